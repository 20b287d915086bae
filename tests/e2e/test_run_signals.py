"""Signals, stops and terminals under `unblock run`: what reaches the program, and what the shell sees."""

import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from helpers import PYTHON, UNBLOCK, Recording, children, clean_environment, process_state, start, wait_until

pytestmark = pytest.mark.beside

# Counts the signals it gets in the file "got"; ends by SIGKILL or after "stop" exists.
COUNTER = r"""
import os, signal, sys, time
def got(number, frame):
    with open("got", "a") as f:
        f.write(signal.Signals(number).name + "\n")
for name in sys.argv[1:]:
    signal.signal(getattr(signal, name), got)
with open("ready", "w") as f:
    f.write(str(os.getpid()))
while not os.path.exists("stop"):
    time.sleep(0.01)
sys.exit(9)
"""

FORWARDED = ["SIGHUP", "SIGINT", "SIGQUIT", "SIGUSR1", "SIGUSR2", "SIGTERM", "SIGWINCH", "SIGURG", "SIGCONT", "SIGALRM",
             "SIGABRT", "SIGIO", "SIGPWR", "SIGTSTP", "SIGTTIN", "SIGTTOU", "SIGXCPU", "SIGPIPE"]


def ready():
    return wait_until(lambda: Path("ready").exists() and Path("ready").read_text(), what="the program to be ready")


def got():
    return Path("got").read_text().split() if Path("got").exists() else []


def settle():
    """Time for a signal that must not come."""
    time.sleep(0.15)


@pytest.fixture
def counter(workdir):
    """The counting program under `unblock run`; (Popen of unblock, pid of the program)."""
    popen = start("run", "-q", "-o", "r.jsonl", "--", PYTHON, "-c", COUNTER, *[s for s in FORWARDED if s != "SIGURG"])
    try:
        yield popen, int(ready())
    finally:
        popen.kill()
        popen.wait()
        subprocess.run(["pkill", "-KILL", "-F", "ready"], check=False) if Path("ready").exists() else None


@pytest.mark.parametrize("name", [s for s in FORWARDED if s != "SIGURG"])
def test_kill_is_forwarded_once(counter, name):
    popen, _ = counter
    os.kill(popen.pid, getattr(signal, name))
    wait_until(got, what=f"{name} to arrive")
    settle()
    assert got() == [name]
    Path("stop").touch()
    assert popen.wait(20) == 9
    assert Recording("r.jsonl").end["exit"] == 9


def test_signals_to_the_program_itself_are_its_own(counter):
    popen, pid = counter
    os.kill(pid, signal.SIGTERM)
    wait_until(got)
    settle()
    assert got() == ["SIGTERM"]
    os.kill(pid, signal.SIGKILL)
    assert popen.wait(20) == -signal.SIGKILL
    assert Recording("r.jsonl").end["signal"] == 9


def test_value_of_a_queued_signal(workdir):
    """sigqueue(3) carries a value, and it arrives."""
    script = ("import signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN}); open('ready', 'w').write('1');"
              "i = signal.sigwaitinfo({signal.SIGRTMIN}); sys.exit(0 if i.si_code == -1 else 1)")
    popen = start("run", "-q", "--", PYTHON, "-c", script)
    ready()
    assert subprocess.run(["kill", "-q", "42", "-s", "RTMIN", str(popen.pid)]).returncode == 0
    assert popen.wait(20) == 0


def test_default_of_a_forwarded_signal_ends_both(workdir):
    popen = start("run", "-q", "--", "sleep", "100")
    wait_until(lambda: children(popen.pid))
    os.kill(popen.pid, signal.SIGTERM)
    assert popen.wait(20) == -signal.SIGTERM


def test_ignored_hangup_stays_ignored(workdir):
    """nohup unblock run ...: the program does not hear SIGHUP, sent to it or to unblock."""
    done = subprocess.run(["nohup", str(UNBLOCK), "run", "-q", "--", "sh", "-c", "kill -HUP $$ $PPID; echo alive"],
                          capture_output=True, text=True, timeout=20, env=clean_environment())
    assert (done.returncode, done.stdout) == (0, "alive\n")


def test_the_program_may_signal_its_parent(workdir):
    """A program that kills its group, or its parent, does not hear an echo of it."""
    script = ("import os, signal, time; n = []; signal.signal(signal.SIGUSR1, lambda *a: n.append(1));"
              "os.kill(os.getppid(), signal.SIGUSR1); os.kill(0, signal.SIGUSR1); time.sleep(0.3); print(len(n))")
    done = start("run", "-q", "--", PYTHON, "-c", script, start_new_session=True)
    assert done.communicate(timeout=20)[0] == "1\n"
    assert done.returncode == 0


def test_alarm_set_before(workdir):
    """alarm(2) survives exec: `perl -e 'alarm 1; exec @ARGV' prog` must still end the program."""
    popen = start("run", "-q", "--", "sleep", "100", preexec_fn=lambda: signal.setitimer(signal.ITIMER_REAL, 0.3))
    assert popen.wait(20) == -signal.SIGALRM


def test_killed_unblock_leaves_the_program_alone(counter):
    popen, pid = counter
    popen.kill()
    popen.wait()
    settle()
    assert process_state(pid) not in (None, "Z")
    assert got() == []
    os.kill(pid, signal.SIGUSR1)
    wait_until(lambda: got() == ["SIGUSR1"])


# Stops without a terminal -------------------------------------------------


@pytest.mark.parametrize("name", ["SIGSTOP", "SIGTSTP", "SIGTTIN", "SIGTTOU"])
def test_parent_sees_the_stop_and_continues(workdir, name):
    """The parent (a shell) gets the very stop of the program from waitpid, and SIGCONT to unblock continues it."""
    number = getattr(signal, name)
    # Not start_new_session: the group would be orphaned, and keyboard stops have no effect in such a group.
    popen = start("run", "-q", "--", PYTHON, "-c", COUNTER, "SIGUSR1", preexec_fn=os.setpgrp)
    try:
        pid = int(ready())
        os.kill(pid, number)
        _, status = os.waitpid(popen.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status) and os.WSTOPSIG(status) == number
        settle()
        assert process_state(popen.pid) == "T" and process_state(pid) == "T", "nobody has continued it yet"
        os.kill(popen.pid, signal.SIGCONT)
        wait_until(lambda: process_state(pid) not in ("T", None), what="the program to go on")
        Path("stop").touch()
        assert popen.wait(20) == 9
    finally:
        popen.kill()


def test_program_continued_or_killed_alone(workdir):
    """Whoever stops and continues the program by its own number does not know of unblock: it must wake as well."""
    popen = start("run", "-q", "-o", "r.jsonl", "--", PYTHON, "-c", COUNTER, "SIGUSR1", preexec_fn=os.setpgrp)
    try:
        pid = int(ready())
        for _ in range(5):
            os.kill(pid, signal.SIGSTOP)
            wait_until(lambda: process_state(popen.pid) == "T", what="unblock to stop")
            os.kill(pid, signal.SIGCONT)
            wait_until(lambda: process_state(popen.pid) != "T", what="unblock to go on")
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: process_state(popen.pid) == "T")
        os.kill(pid, signal.SIGKILL)
        assert popen.wait(20) == -signal.SIGKILL
        assert Recording("r.jsonl").end["signal"] == 9
    finally:
        popen.kill()


def test_no_helper_outlives_a_stop(workdir):
    popen = start("run", "-q", "--", PYTHON, "-c", COUNTER, "SIGUSR1", preexec_fn=os.setpgrp)
    try:
        pid = int(ready())
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: process_state(popen.pid) == "T")
        wait_until(lambda: len(children(popen.pid)) == 2, what="the helper")
        os.kill(popen.pid, signal.SIGCONT)
        wait_until(lambda: children(popen.pid) == [pid], what="the helper to go")
        wait_until(lambda: process_state(pid) != "T", what="the program to go on")
        os.kill(pid, signal.SIGSTOP)
        wait_until(lambda: process_state(popen.pid) == "T")
        (helper,) = [p for p in children(popen.pid) if p != pid]
        popen.kill()
        wait_until(lambda: process_state(helper) in (None, "Z"), what="the helper to end with unblock")
    finally:
        os.kill(pid, signal.SIGKILL)
        popen.wait()


# A real shell on a real terminal -----------------------------------------


def shell(terminal, **kwargs):
    """An interactive bash that prints a prompt we can wait for."""
    t = terminal("bash", "--norc", "--noprofile", "-i", env=clean_environment(PS1="READY> ", TERM="dumb", HISTFILE=""),
                 **kwargs)
    t.expect(r"READY> ")
    return t


def test_ctrl_c(workdir, terminal):
    t = shell(terminal)
    t.send(f"{UNBLOCK} run -q -- sleep 100\n")
    wait_until(lambda: any(children(c) for c in children(t.pid)), what="sleep to run")
    t.send("\x03")
    t.expect(r"READY> ")
    t.send("echo status $?\n")
    t.expect(r"status 130")


def test_ctrl_c_reaches_the_program_once(workdir, terminal):
    t = shell(terminal)
    Path("counter.py").write_text(COUNTER)
    t.send(f"{UNBLOCK} run -q -o r.jsonl -- {PYTHON} counter.py SIGINT SIGQUIT SIGTSTP SIGWINCH\n")
    ready()
    for key, name in (("\x03", "SIGINT"), ("\x1c", "SIGQUIT"), ("\x1a", "SIGTSTP")):
        t.send(key)
        wait_until(lambda: name in got(), what=name)
        settle()
        assert got().count(name) == 1
    t.resize(30, 100)
    wait_until(lambda: "SIGWINCH" in got(), what="SIGWINCH")
    settle()
    assert got() == ["SIGINT", "SIGQUIT", "SIGTSTP", "SIGWINCH"]
    Path("stop").touch()
    t.expect(r"READY> ")
    t.send("echo status $?\n")
    t.expect(r"status 9\r\n")
    assert Recording("r.jsonl").end["exit"] == 9


def test_ctrl_z_and_fg(workdir, terminal):
    t = shell(terminal)
    Path("counter.py").write_text(COUNTER)
    t.send(f"{UNBLOCK} run -q -- {PYTHON} counter.py SIGCONT\n")
    pid = int(ready())
    for i in range(3):
        t.send("\x1a")
        t.expect(r"Stopped")
        t.expect(r"READY> ")
        assert process_state(pid) == "T"
        t.send("fg\n")
        wait_until(lambda: process_state(pid) != "T", what="the program to go on")
        wait_until(lambda: len(got()) > i, what="SIGCONT")
        settle()
        assert got() == ["SIGCONT"] * (i + 1), "one fg is one SIGCONT"
    t.send("\x1a")
    t.expect(r"Stopped")
    t.expect(r"READY> ")
    t.send("bg\n")
    t.expect(r"READY> ")
    wait_until(lambda: process_state(pid) != "T")
    t.send("jobs\n")
    t.expect(r"Running")
    t.send("kill %1; wait; echo gone\n")
    t.expect(r"\ngone")
    assert process_state(pid) is None


def test_background_read_stops_the_job(workdir, terminal):
    t = shell(terminal)
    t.send(f"{UNBLOCK} run -q -- cat &\n")
    t.expect(r"\] (\d+)\r\n")
    wait_until(lambda: any(process_state(c) == "T" for c in children(t.pid)), what="the job to stop")
    # bash tells with the prompt after it has heard of it
    wait_until(lambda: (t.send("\n"), t.read(0.2), b"Stopped" in t.output)[-1], what="bash to tell", interval=0.1)
    t.send("fg\n")
    t.expect(r"fg\r\n[^\n]*cat\r\n")
    settle()
    t.send("hello\n")
    t.expect(r"hello\r\nhello\r\n")
    t.send("\x04")
    t.expect(r"READY> ")


def test_terminal_of_the_program(workdir, terminal):
    """Same controlling terminal, foreground group, size and settings."""
    script = ("import os, json, termios; s = os.get_terminal_size(0);"
              "print('seen', s.columns, s.lines, os.tcgetpgrp(0) == os.getpgrp(), os.ttyname(0) != '', os.isatty(2),"
              "os.open('/dev/tty', os.O_RDWR) > 0, termios.tcgetattr(0)[3])")
    seen = []
    for prefix in ([], [UNBLOCK, "run", "-q", "--"]):
        t = terminal(*prefix, PYTHON, "-c", script, cwd=workdir, rows=37, columns=91)
        seen.append(t.expect(r"seen [^\n]*\n").group(0))
        assert t.wait() == 0
    assert b" 91 37 True True True True " in seen[0]
    assert seen[0] == seen[1]


def test_hangup_reaches_the_program(workdir, terminal):
    """unblock as session leader: the terminal goes away, the kernel tells the leader only, the program must hear it."""
    t = terminal(UNBLOCK, "run", "-q", "-o", "r.jsonl", "--", PYTHON, "-c", COUNTER, "SIGHUP", cwd=workdir)
    ready()
    os.close(t.fd)
    wait_until(got, what="SIGHUP")
    settle()
    assert got() == ["SIGHUP"]
    Path("stop").touch()
    _, status = os.waitpid(t.pid, 0)
    t.status = status
    assert os.waitstatus_to_exitcode(status) == 9


def test_editor_like_program_in_raw_mode(workdir, terminal):
    """Raw mode set by the program works and is restored by it, key by key."""
    script = ("import sys, termios, tty; old = termios.tcgetattr(0); tty.setraw(0); print('raw', end='', flush=True);"
              "keys = [sys.stdin.buffer.raw.read(1) for _ in range(3)];"
              "termios.tcsetattr(0, termios.TCSADRAIN, old); print('keys', keys)")
    t = shell(terminal)
    t.send(f"{UNBLOCK} run -q -- {PYTHON} -c \"{script}\"\n")
    t.expect(r"\nraw")
    t.send("\x03\x1aq")
    t.expect(re.escape(r"keys [b'\x03', b'\x1a', b'q']"))
    t.expect(r"READY> ")


def test_live_text_is_full_on_a_terminal_and_lines_elsewhere(workdir, terminal):
    t = terminal(UNBLOCK, "run", "-o", "a.jsonl", "--", "sh", "-c", "test -t 2 && echo yes", cwd=workdir,
                 env=clean_environment(TERM="xterm"))
    t.expect(r"yes")
    t.expect(r"\x1b\[")
    assert t.wait() == 0
    done = start("run", "-o", "b.jsonl", "--", "true")
    _, err = done.communicate(timeout=20)
    assert "\x1b[" not in err


def test_shell_inside_has_job_control(workdir, terminal):
    """`unblock run -- bash`: the inner shell makes groups of its own and takes the terminal."""
    t = terminal(UNBLOCK, "run", "-q", "--", "bash", "--norc", "--noprofile", "-i", cwd=workdir,
                 env=clean_environment(PS1="INNER> ", TERM="dumb", HISTFILE=""))
    t.expect(r"INNER> ")
    t.send("sleep 100\n")
    time.sleep(0.2)
    t.send("\x1a")
    t.expect(r"Stopped")
    t.expect(r"INNER> ")
    t.send("kill -KILL %1; sleep 0.2\n")
    t.expect(r"Killed")
    t.send("exit 4\n")
    assert os.waitstatus_to_exitcode(t.wait()) == 4
