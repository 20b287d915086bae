"""Every way in which `unblock` cannot do what it was asked: one clear line, the right exit code, nothing started."""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from helpers import AGENT, UNBLOCK, clean_environment, one_line, recordings, unblock

pytestmark = pytest.mark.beside


def refused(*args, status=125, says=(), env=None):
    """Runs `unblock run ARGS`, expects the status and one line that says all of `says`; nothing may be left behind."""
    before = sorted(os.listdir("."))
    done = unblock("run", *args, env=env)
    line = one_line(done.stderr)
    assert (done.returncode, done.stdout) == (status, ""), line
    for text in (says,) if isinstance(says, str) else says:
        assert text in line, line
    assert sorted(os.listdir(".")) == before, "nothing is left behind"
    return line


# The command line ---------------------------------------------------------


def test_no_command(workdir):
    for args in ((), ("--",), ("-t", "50ms"), ("-q", "--")):
        refused(*args, says="no command given")


def test_unknown_option(workdir):
    refused("--thresold", "50ms", "--", "touch", "x", says="unknown option --thresold: did you mean --threshold?")
    refused("-z", "touch", "x", says="unknown option -z")


@pytest.mark.parametrize("option", ["--no-such", "--threads=5", "--children"])
def test_what_does_not_exist_is_not_accepted_silently(workdir, option):
    refused(option, "--", "touch", "x", says="unknown option " + option.split("=")[0])


@pytest.mark.parametrize("value, mend", [
    ("50", "50 has no unit: write 50ms"), ("0", "no unit"), ("0ms", "from 100us to 1 h"), ("-5ms", "negative"),
    ("50us", "from 100us to 1 h"), ("2h", "us, ms and s"), ("4000s", "from 100us to 1 h"), ("fast", "with a unit"),
    ("", "with a unit"), ("1e3ms", "us, ms and s")])
def test_impossible_threshold(workdir, value, mend):
    refused("-t", value, "--", "touch", "x", says=("-t:", mend))
    refused(f"--threshold={value}", "--", "touch", "x", says=("--threshold:", mend))


def test_impossible_settings(workdir):
    refused("--", "touch", "x", says="UNBLOCK_THRESHOLD: 50 has no unit: write 50ms",
            env=clean_environment(UNBLOCK_THRESHOLD="50"))
    refused("--", "touch", "x", says="UNBLOCK_LIVE: 'loud' is none of full, line, none",
            env=clean_environment(UNBLOCK_LIVE="loud"))
    refused("--max-size", "1000", "--", "touch", "x", says="1000 has no unit")
    refused("--max-size", "1k", "--", "touch", "x", says="from 64k")
    refused("--fail-on", "10ms", "-t", "50ms", "--", "touch", "x", says="--fail-on is below the threshold")
    refused("--force", "--append", "--", "touch", "x", says="exclude each other")
    refused("--color=maybe", "--", "touch", "x", says="none of auto, always, never")
    refused("--force=yes", "--", "touch", "x", says="takes no value")
    refused("--output", says="--output needs a value")


def test_message_with_hostile_words(workdir):
    line = refused("--\x1b[31m\n", says="unknown option")
    assert "\x1b" not in line


# The program --------------------------------------------------------------


def test_not_found(workdir):
    refused("--", "no-such-command", status=127, says=("no-such-command", "no such command in PATH"))
    refused("--", "./missing", status=127, says=("./missing does not exist",))
    refused("--", "/etc/passwd/x", status=127, says=("/etc/passwd/x does not exist",))


def test_not_executable(workdir):
    Path("data").write_text("hello")
    refused("--", "./data", status=126, says=("./data is not executable", "chmod +x"))
    refused("--", "/tmp", status=126, says=("/tmp is a folder",))


def test_missing_interpreter(workdir):
    Path("script").write_text("#!/nonexistent/python\n")
    os.chmod("script", 0o755)
    refused("--", "./script", status=127, says=("./script names the interpreter /nonexistent/python", "does not exist"))


def test_damaged_program(workdir):
    elf = bytearray(Path("/bin/true").read_bytes())
    elf[24:32] = b"\xff" * 8
    elf[32:40] = b"\xff" * 8
    Path("damaged").write_bytes(elf[:4096])
    os.chmod("damaged", 0o755)
    done = unblock("run", "-q", "--", "./damaged")
    direct = subprocess.run(["env", "./damaged"], capture_output=True)
    assert done.returncode in (126, direct.returncode)
    assert done.returncode != 0


# The recording ------------------------------------------------------------


def test_unwritable_output(workdir):
    refused("-o", "no/such/folder/r.jsonl", "--", "touch", "x",
            says=("cannot write the recording no/such/folder/r.jsonl: No such file", "-o FILE"))
    refused("-o", ".", "--", "touch", "x", says="cannot write the recording .")
    refused("-o", "/proc/nothing", "--", "touch", "x", says="cannot write the recording /proc/nothing")


def test_unwritable_folder_as_a_user(workdir):
    if os.geteuid() != 0:
        pytest.skip("takes root to become somebody else")
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders are closed to other users
        os.chmod(folder, 0o755)
        done = unblock("run", "--", "touch", "x", cwd=folder, user=65534, group=65534, extra_groups=[])
        assert os.listdir(folder) == []
    assert done.returncode == 125
    assert "cannot write the recording unblock-touch-" in one_line(done.stderr)
    assert "Permission denied" in done.stderr


def test_failed_start_leaves_an_old_recording_alone(workdir):
    Path("r.jsonl").write_text("old\n")
    refused("--force", "-o", "r.jsonl", "--", "no-such-command", status=127)
    assert Path("r.jsonl").read_text() == "old\n"


def test_full_disk_does_not_touch_the_program(workdir):
    done = unblock("run", "-q", "-o", "/dev/full", "--", "sh", "-c", "echo fine; exit 3")
    assert (done.returncode, done.stdout) == (3, "fine\n")
    assert "No space left on device" in one_line(done.stderr)


# The surroundings ---------------------------------------------------------


def without_proc(*args):
    command = ["unshare", "-m", "sh", "-c", 'umount -l /proc && exec "$@"', "sh", *map(str, args)]
    if subprocess.run([*command[:5], "true"], capture_output=True).returncode != 0:
        pytest.skip("cannot unmount /proc in a mount namespace here")
    return command


def test_no_proc(workdir):
    for args in ((), ("--append",)):
        done = subprocess.run(without_proc(UNBLOCK, "run", *args, "--", "touch", "x"), capture_output=True, text=True,
                              env=clean_environment())
        assert done.returncode == 125
        assert "/proc cannot be read" in one_line(done.stderr) and "mount -t proc" in done.stderr
    assert os.listdir(".") == []
    done = subprocess.run(without_proc(UNBLOCK, "dump", "1"), capture_output=True, text=True, env=clean_environment())
    assert done.returncode == 2
    assert "/proc cannot be read" in one_line(done.stderr)


def test_no_proc_although_the_agent_is_named(workdir):
    """UNBLOCK_AGENT spares the look at /proc/self/exe; the watcher needs /proc all the same."""
    done = subprocess.run(without_proc(UNBLOCK, "run", "--", "touch", "x"), capture_output=True, text=True,
                          env=clean_environment(UNBLOCK_AGENT=str(AGENT)))
    assert done.returncode == 125
    assert "/proc" in one_line(done.stderr)
    assert os.listdir(".") == []


# Help ---------------------------------------------------------------------


def test_help_teaches(workdir):
    done = unblock("--help")
    assert done.returncode == 0 and done.stderr == ""
    for text in ("event loop", "unblock run --", "unblock report", "unblock dump", "Exit status"):
        assert text in done.stdout
    for command in ("run", "report", "dump"):
        help_text = unblock(command, "--help")
        assert help_text.returncode == 0 and help_text.stderr == ""
        assert "Usage: unblock " + command in help_text.stdout
        assert max(map(len, help_text.stdout.splitlines())) <= 100
        assert unblock("help", command).stdout == help_text.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert unblock("--version").stdout.startswith("unblock 0.")
    assert recordings(workdir) == []


def test_unknown_command(workdir):
    for word, says in (("rnu", "did you mean run?"), ("reprot", "did you mean report?"), ("observe", "see unblock --help"),
                       ("--verbose", "options come after the command"), ("/bin/true", "unblock run -- /bin/true")):
        done = unblock(word)
        assert done.returncode == 2
        assert says in one_line(done.stderr)
    done = unblock()
    assert done.returncode == 2 and "Commands:" in done.stderr and done.stdout == ""


def test_a_recording_place_that_is_no_file_stays(workdir):
    """What was there before us is not ours to remove, whether it could be started or not."""
    os.mkfifo("fifo")
    reader = os.open("fifo", os.O_RDWR)
    try:
        shutil.copy("/bin/true", "busy")
        with open("busy", "ab"):  # nobody may execute it meanwhile
            for option in ((), ("--force",)):
                done = unblock("run", *option, "-o", "fifo", "--", "./busy")
                assert done.returncode == 126, done.stderr
                assert os.path.exists("fifo")
    finally:
        os.close(reader)
