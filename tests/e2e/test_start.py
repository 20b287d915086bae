"""What the agent does to a process that it has just entered.

Checked that it can fail: with dlsym for the old names of the resolver the program's call ends with ENOSYS, and seven
blocks are allocated (the loader's messages).
"""

import json
import subprocess

import pytest

import helpers

pytestmark = pytest.mark.beside

# As a program that was built before glibc 2.34 calls it. The answer has no room for a header: EINVAL, nothing is sent.
OLD = r"""
#include <errno.h>
#include <stdio.h>
#include <string.h>
int old_query(const unsigned char *query, int len, unsigned char *answer, int size);
__asm__(".symver old_query, __res_send@GLIBC_2.2.5");
int main(void)
{
    unsigned char query[12] = {0}, answer[12];
    int r = old_query(query, sizeof(query), answer, 4);
    printf("%d %s\n", r, strerrorname_np(errno));
}
"""


def test_names_of_an_older_libc(tmp_path):
    (tmp_path / "old.c").write_text(OLD)
    built = subprocess.run(["cc", "-D_GNU_SOURCE", "-o", tmp_path / "old", tmp_path / "old.c", "-lresolv"],
                           capture_output=True, text=True, check=False)
    if built.returncode != 0:
        pytest.skip(f"this libc has no such old name: {built.stderr[-200:]}")
    alone = subprocess.run([tmp_path / "old"], capture_output=True, text=True, check=True).stdout
    assert alone == "-1 EINVAL\n"
    done, _ = helpers.record(tmp_path, tmp_path / "old")
    assert (done.returncode, done.stdout) == (0, alone), done.stderr


@pytest.mark.parametrize("library", ["uv", "event", "ev", "glib", "sd"])
def test_no_allocations(tmp_path, library):
    """Not one call of malloc and its kin more than without the agent, from the program's start to its end."""
    for count in ("2000", "200000", "2000000"):
        command = [helpers.program(f"cost_{library}"), count]
        alone = json.loads(subprocess.run(command, capture_output=True, text=True, check=True,
                                          env=helpers.clean_environment()).stdout)
        done, recording = helpers.record(tmp_path, *command)
        assert done.returncode == 0, done.stderr
        if recording.of("loop"):
            break  # else it was over before the watcher had CPU to meet it
    assert recording.of("loop"), "a dormant agent"
    watched = json.loads(done.stdout)
    assert watched["allocations_all"] == alone["allocations_all"] > 0
    assert watched["allocations"] == alone["allocations"]
