"""Rules by names for tasks that yield: not yet in a policy file."""

import helpers

PROGRAM = helpers.ROOT / "tests/programs/pyyields.py"


def yields(folder, rules):
    env = {"UNBLOCK_UNFINISHED": "1", "UNBLOCK_PYTHON_RULES": rules}
    _, recording = helpers.record(folder, helpers.PYTHON, PROGRAM, "one", options=("--yield", "-q"), env=helpers.clean_environment(**env))
    return sum(line["count"] for line in recording.of("python") if line["kind"] == "yield")


def test_an_exception_keeps_a_function_whole(tmp_path):
    assert yields(tmp_path, "except 0 __main__.bur?\n") == 0


def test_a_name_that_fits(tmp_path):
    assert yields(tmp_path, "yield 5000000 __main__.burn\n") > 5


def test_a_name_that_does_not(tmp_path):
    assert yields(tmp_path, "yield 5000000 jobs.*\n") == 0
