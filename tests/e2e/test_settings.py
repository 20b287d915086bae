"""Options, variables, files, man pages and completion: one table, and which of them wins."""

import os
import re
import shutil
import subprocess

import pytest

import helpers

pytestmark = pytest.mark.beside

SAMPLE = helpers.ROOT / "tests/data/sample.jsonl"


def commands():
    done = helpers.unblock("--help=table")
    return [line.split("\t")[0] for line in done.stdout.splitlines()]


def table(command):
    done = helpers.unblock(command, "--help=table")
    assert done.returncode == 0, done
    return [line.split("\t") for line in done.stdout.splitlines()]


COMMANDS = commands()


def test_commands():
    assert {"run", "report", "check", "diff", "top", "dump", "completion"} <= set(COMMANDS)
    help_text = helpers.unblock("--help").stdout
    for command in COMMANDS:
        assert f"  {command} " in help_text


@pytest.mark.parametrize("command", COMMANDS)
def test_help_table_and_man_page_agree(command):
    rows = table(command)
    assert all(len(row) == 5 for row in rows)
    text = helpers.unblock(command, "--help").stdout
    assert max(map(len, text.splitlines())) <= 88
    in_help = {m[1] for m in re.finditer(r"^ +(?:-\w, )?--([a-z-]+)", text.split("\nOptions")[1], re.M)}
    assert in_help == {row[1] for row in rows}
    if not shutil.which("scdoc"):
        pytest.skip("scdoc is not installed")
    source = helpers.unblock(command, "--help=man").stdout
    page = subprocess.run(["scdoc"], input=source, capture_output=True, text=True)
    assert page.returncode == 0, page.stderr
    if not shutil.which("man"):
        pytest.skip("man is not installed")
    shown = subprocess.run(["man", "-l", "-"], input=page.stdout, capture_output=True, text=True,
                           env=helpers.clean_environment(MANWIDTH="200", MAN_KEEP_FORMATTING="", LC_ALL="C.UTF-8"))
    assert shown.returncode == 0 and "warning" not in shown.stderr, shown.stderr
    plain = re.sub(r".\x08", "", shown.stdout).replace("\u2010", "-")
    for row in rows:
        assert f"--{row[1]}" in plain
    variables = set(re.findall(r"\[(UNBLOCK_\w+)\]", text))
    assert variables <= set(re.findall(r"UNBLOCK_\w+", plain))


def test_the_overview_is_a_man_page():
    if not shutil.which("scdoc"):
        pytest.skip("scdoc is not installed")
    with open(helpers.ROOT / "ui/man/unblock.1.scd") as source:
        done = subprocess.run(["scdoc"], stdin=source, capture_output=True, text=True)
    assert done.returncode == 0 and ".TH" in done.stdout


# files --------------------------------------------------------------------------


@pytest.fixture
def configured(tmp_path):
    """report(...) with a user's and a project's file, and variables."""
    (tmp_path / "config").mkdir()
    (tmp_path / "work").mkdir()

    def run(*args, user=None, project=None, command="report", **env):
        for text, path in ((user, tmp_path / "config/unblock.ini"), (project, tmp_path / "work/.unblock.ini")):
            path.unlink(missing_ok=True)
            if text is not None:
                path.write_text(text)
        return helpers.unblock(command, *args, cwd=tmp_path / "work",
                               env=helpers.clean_environment(XDG_CONFIG_HOME=str(tmp_path / "config"), **env))
    run.folder = tmp_path
    return run


def coloured(done):
    assert done.returncode == 0, done.stderr
    return "\x1b" in done.stdout


def test_precedence(configured):
    always, never = "[report]\ncolor = always\n", "[report]\ncolor = never\n"
    assert not coloured(configured(SAMPLE))
    assert coloured(configured(SAMPLE, user=always))
    assert not coloured(configured(SAMPLE, user=always, project=never))
    assert coloured(configured(SAMPLE, user=never, project=always))
    assert not coloured(configured(SAMPLE, user=always, project=always, UNBLOCK_COLOR="never"))
    assert coloured(configured("--color", "always", SAMPLE, project=never, UNBLOCK_COLOR="never"))
    assert coloured(configured(SAMPLE, project=always, UNBLOCK_COLOR=""))


def test_sections(configured):
    assert coloured(configured(SAMPLE, project="; mine\ncolor = always\n"))
    assert not coloured(configured(SAMPLE, project="[dump]\ncolor = always\n"))
    assert "1 stall," in configured(SAMPLE, project="[report]\nmin = 100ms\n").stdout
    assert "1 stall," in configured(SAMPLE, project="threshold = 3ms\nmin = 100ms\n").stdout, "an option of others only"


def test_flags_in_files(configured):
    args = ("-o", "r", "--", "true")
    assert "no event loop" in configured(*args, command="run").stderr
    assert configured("--force", *args, command="run", project="[run]\nquiet = yes\n").stderr == ""
    done = configured("--force", *args, command="run", user="[run]\nquiet = yes\n", project="[run]\nquiet = no\n")
    assert "no event loop" in done.stderr


@pytest.mark.parametrize("text,words", [
    ("[report]\nmn = 3ms\n", ["./.unblock.ini", "'mn'"]),
    ("[report]\nmin = 3\n", ["./.unblock.ini: min", "unit"]),
    ("[report]\nmin 3ms\n", ["./.unblock.ini:2"]),
    ("[report\n", ["./.unblock.ini:1"]),
])
def test_what_makes_no_sense(configured, text, words):
    done = configured(SAMPLE, project=text)
    assert done.returncode == 2
    for word in words:
        assert word in helpers.one_line(done.stderr)
    assert configured("--help", project=text).returncode == 0, "help is for those whose settings are wrong"


def test_anothers_file_is_not_read(configured):
    if os.geteuid() != 0:
        pytest.skip("only root can give a file away")
    configured(SAMPLE, project="")
    path = configured.folder / "work/.unblock.ini"
    path.write_text("[report]\ncolor = always\n")
    os.chown(path, 12345, 12345)
    env = helpers.clean_environment(XDG_CONFIG_HOME=str(configured.folder / "config"))
    done = helpers.unblock("report", SAMPLE, cwd=path.parent, env=env)
    assert not coloured(done) and "another user's" in helpers.one_line(done.stderr)


def test_odd_files(configured):
    path = configured.folder / "work/.unblock.ini"
    for make in (path.mkdir, lambda: os.mkfifo(path), lambda: path.write_bytes(b"\0" * 100000), lambda: path.symlink_to("/dev/zero")):
        make()
        env = helpers.clean_environment(XDG_CONFIG_HOME=str(configured.folder / "config"))
        done = helpers.unblock("report", SAMPLE, cwd=path.parent, env=env)
        assert done.returncode in (0, 2)
        path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()


# completion ------------------------------------------------------------------------


def complete_in_bash(*words):
    """What bash proposes for the last word."""
    code = ("eval \"$(unblock completion bash)\"; COMP_WORDS=(\"$@\"); COMP_CWORD=$(($# - 1)); _unblock; "
            "printf '%s\\n' \"${COMPREPLY[@]}\"")
    env = helpers.clean_environment(PATH=f"{helpers.UNBLOCK.parent}:{os.environ['PATH']}")
    done = subprocess.run(["bash", "-c", code, "bash", "unblock", *words], capture_output=True, text=True, env=env,
                          cwd=helpers.ROOT / "tests/data")
    assert done.stderr == ""
    return done.stdout.split()


def test_bash():
    assert complete_in_bash("re") == ["report"]
    assert set(COMMANDS) <= set(complete_in_bash(""))
    assert complete_in_bash("report", "--so") == ["--sort"]
    assert complete_in_bash("report", "--sort", "") == ["total", "max", "count", "p99"]
    assert "html" in complete_in_bash("report", "-f", "")
    assert complete_in_bash("report", "sample.js") == ["sample.jsonl"]
    assert complete_in_bash("run", "-o", "sample.js") == ["sample.jsonl"]
    assert complete_in_bash("run", "-t", "") == []
    assert "bash" in complete_in_bash("run", "--", "bas")
    assert complete_in_bash("completion", "f") == ["fish"]
    assert str(os.getpid()) in complete_in_bash("top", str(os.getpid()))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_good_shell(shell):
    done = helpers.unblock("completion", shell)
    assert done.returncode == 0
    if not shutil.which(shell):
        pytest.skip(f"{shell} is not installed")
    check = subprocess.run([shell, "-n"], input=done.stdout, capture_output=True, text=True)
    assert check.returncode == 0 and check.stderr == "", check.stderr


def test_fish():
    if not shutil.which("fish"):
        pytest.skip("fish is not installed")
    env = helpers.clean_environment(PATH=f"{helpers.UNBLOCK.parent}:{os.environ['PATH']}")

    def proposals(line):
        done = subprocess.run(["fish", "--no-config", "-c", f"unblock completion fish | source; complete -C '{line}'"],
                              capture_output=True, text=True, env=env)
        assert done.returncode == 0, done.stderr
        return [row.split("\t")[0] for row in done.stdout.splitlines()]

    assert proposals("unblock re") == ["report"]
    assert "--sort" in proposals("unblock report --so")
    assert {"total", "p99"} <= set(proposals("unblock report --sort "))


def test_no_such_shell():
    done = helpers.unblock("completion", "tcsh")
    assert done.returncode == 2 and "bash, zsh or fish" in helpers.one_line(done.stderr)


def test_install(tmp_path):
    done = subprocess.run(["make", "-C", str(helpers.ROOT), "install", f"DESTDIR={tmp_path}", "PREFIX=/usr",
                           f"BUILD={os.path.relpath(helpers.BUILD, helpers.ROOT)}"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    usr = tmp_path / "usr"
    assert "_unblock" in (usr / "share/bash-completion/completions/unblock").read_text()
    assert (usr / "lib/unblock/pytest/unblock_pytest.py").exists()
    if shutil.which("scdoc"):
        assert {p.name for p in (usr / "share/man/man1").iterdir()} == {"unblock.1", *(f"unblock-{c}.1" for c in COMMANDS)}
    assert subprocess.run([usr / "bin/unblock", "run", "-q", "-o", tmp_path / "r", "--", "true"]).returncode == 0
