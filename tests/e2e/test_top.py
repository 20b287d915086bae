"""unblock top, driven in a terminal (tmux) as a person does."""

import json
import os
import shutil
import signal
import subprocess

import pytest

import attaching
import helpers

pytestmark = pytest.mark.beside

SAMPLE = helpers.ROOT / "tests/data/sample.jsonl"
LINES = SAMPLE.read_text().splitlines(keepends=True)


class Screen:
    """A program in a tmux of its own."""

    def __init__(self, folder, *command, width=100, height=24, term="tmux-256color", **env):
        self.socket = str(folder / f"tmux{len(list(folder.glob('tmux*')))}")
        words = " ".join(f"{k}={v}" for k, v in {"TERM": term, "LC_ALL": "C.UTF-8", **env}.items())
        # It stays when the program has ended, to be looked at.
        line = f"env {words} {' '.join(map(str, command))}; echo exit=$?; exec sleep 1000"
        self.tmux("-f", "/dev/null", "new-session", "-d", "-x", str(width), "-y", str(height), line)

    def tmux(self, *args):
        return subprocess.run(["tmux", "-S", self.socket, *args], capture_output=True, text=True, check=True,
                              env=helpers.clean_environment(TERM="xterm")).stdout

    def keys(self, *names):
        self.tmux("send-keys", *names)

    def text(self, *args):
        return self.tmux("capture-pane", "-p", *args)

    def wait(self, *words, absent=()):
        def seen():
            text = self.text()
            return text if all(w in text for w in words) and not any(w in text for w in absent) else None
        try:
            return helpers.wait_until(seen, what=f"{words} on the screen", interval=0.05)
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{self.text()}") from None

    def close(self):
        subprocess.run(["tmux", "-S", self.socket, "kill-server"], capture_output=True)


@pytest.fixture
def screen(tmp_path):
    if not shutil.which("tmux"):
        pytest.skip("tmux is not installed")
    opened = []

    def start(*args, **kwargs):
        opened.append(Screen(tmp_path, helpers.UNBLOCK, "top", *args, **kwargs))
        return opened[-1]
    yield start
    for s in opened:
        s.close()


def test_once():
    done = helpers.unblock("top", "--once", SAMPLE)
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[1] == "6 stalls, 483 ms lost, worst 251 ms"
    assert any("redis-server" in line and "1.5%" in line for line in lines)
    assert [line.split()[0] for line in lines[-3:]] == ["251", "142", "90"]
    by_count = helpers.unblock("top", "--once", "--sort", "count", SAMPLE).stdout.splitlines()
    assert "AOF fsync" in by_count[-3]


def test_wrong_use(tmp_path):
    def refused(*args):
        done = helpers.unblock("top", *args)
        assert done.returncode == 2 and done.stdout == ""
        return helpers.one_line(done.stderr)

    assert "missing" in refused()
    assert "one PID" in refused(SAMPLE, SAMPLE)
    assert "No such file" in refused(tmp_path / "none", "--once")
    assert f"unblock trace {os.getpid()}" in refused("--once", os.getpid())
    gone = subprocess.Popen(["true"])
    gone.wait()
    assert "there is no process" in refused("--once", gone.pid)
    assert "no terminal" in refused(SAMPLE)
    (tmp_path / "text").write_text("hello\n")
    assert "no recording" in refused("--once", tmp_path / "text")
    assert "directory" in refused("--once", tmp_path)


def test_keys(screen):
    s = screen(SAMPLE)
    text = s.wait("6 stalls, 483 ms lost", ">   251 ms", "quit")
    assert text.splitlines()[-1].startswith("Enter where")
    s.keys("j")
    s.wait(">   142 ms")
    s.keys("Up")
    s.wait(">   251 ms")
    s.keys("G")
    s.wait(">    90 ms")
    s.keys("g", "Enter")
    s.wait("why    clock_nanosleep", "where  debugCommand", "site   7f3a91c2")
    s.keys("Escape")
    s.wait("CALL SITE (3, by lost)")
    s.keys("s", "s")
    s.wait("by count")
    s.keys("S")
    s.wait("by max")
    s.keys("/", "f", "s", "y", "n", "c")
    s.wait("/fsync_", "(1 found", absent=["DEBUG SLEEP"])
    s.keys("Enter", "Escape")
    s.wait("DEBUG SLEEP")
    s.keys("Space")
    s.wait("PAUSED")
    s.keys("Space", "?")
    s.wait("count from now on")
    s.keys("?", "r")
    s.wait("no stalls", "(0, by")
    s.keys("q")
    s.wait("exit=0")


@pytest.mark.parametrize("width,height", [(60, 12), (200, 50), (20, 4)])
def test_sizes(screen, width, height):
    s = screen(SAMPLE, width=width, height=height)
    text = s.wait("6 stalls")
    assert max(map(len, text.splitlines())) <= width
    if height >= 12:
        assert "DEBUG" in text and "AOF" in text
    s.keys("Enter", "Down", "Down", "Escape", "?", "?", "G", "PPage", "NPage")
    s.wait("6 stalls")


@pytest.mark.parametrize("width,height", [(60, 12), (80, 24)])
def test_nothing_is_cut_from_a_site(screen, tmp_path, width, height):
    """What to do is the point of it all: long lines are folded, also those of wide characters."""
    path = tmp_path / "r.jsonl"
    path.write_text(SAMPLE.read_text().replace('"processCommand"', '"' + "\u4f60\u597d" * 60 + '"'))
    s = screen(path, width=width, height=height)
    s.wait("DEBUG SLEEP: clock_nanosleep" + ("..." if width < 80 else " in debug"))
    s.keys("Enter")
    text = s.wait("why    clock_nanosleep", "where")
    for _ in range(20):
        s.keys("Down")
    text += s.wait("site   7f3a91c2")
    words = " ".join(text.split())
    assert "a client sent DEBUG SLEEP: shut it off (enable-debug-command no, or ACL -debug)" in words
    s.keys("?")
    assert "site   7f3a91c2" not in s.wait("this help")


def test_resize(screen):
    s = screen(SAMPLE)
    s.wait("LAST 24 S")
    s.tmux("resize-window", "-x", "60", "-y", "12")
    s.wait("DEBUG SLEEP", absent=["LAST 24 S", "P50"])
    s.tmux("resize-window", "-x", "120", "-y", "40")
    s.wait("LAST 24 S", "P50")
    s.keys("q")
    s.wait("exit=0")


def test_without_colour(screen):
    s = screen(SAMPLE, NO_COLOR="1")
    s.wait("6 stalls")
    assert "\x1b[3" not in s.text("-e").replace("\x1b[39m", "")
    s.keys("q")
    s.wait("exit=0")
    s.close()
    s = screen(SAMPLE)
    s.wait("6 stalls")
    assert "\x1b[31m" in s.text("-e").replace("\x1b[1m\x1b[31m", "\x1b[31m") or "\x1b[1;31m" in s.text("-e") or "31m" in s.text("-e")


def test_plain_terminals(screen):
    s = screen(SAMPLE, term="vt100", LC_ALL="C")
    text = s.wait("6 stalls", "DEBUG SLEEP")
    assert text.isascii()
    s.keys("q")
    s.wait("exit=0")
    s.close()
    s = screen(SAMPLE, term="no-such-terminal")
    s.wait("is not known: set TERM", "exit=2")


def test_growing_file(screen, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text("".join(LINES[:3]))
    s = screen("--refresh", "100ms", path)
    s.wait("no stalls", "live")
    with open(path, "a", encoding="utf-8") as f:
        f.write("".join(LINES[3:5]))
        f.flush()
        s.wait("1 stall,", "1 goes on now", "! DEBUG SLEEP")
        f.write(LINES[5][:50])  # half a line is not the end of it
        f.flush()
        s.wait("1 goes on now")
        f.write(LINES[5][50:])
        f.flush()
        s.wait("1 stall, 251 ms lost", absent=["goes on"])
        f.write(json.dumps({"type": "note", "level": "info", "text": "goes on in r.jsonl.1", "next": str(path) + ".1"}) + "\n")
        f.flush()
        part = tmp_path / "r.jsonl.1"
        part.write_text(LINES[0].replace('"schema"', '"part":1,"schema"') + "".join(LINES[6:]))
        s.wait("6 stalls, 483 ms lost", "ended")
    s.keys("q")
    s.wait("exit=0")


def test_hostile_names(screen, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(SAMPLE.read_text().replace("debugCommand", "\\u001b]0;owned\\u0007\\u202e\\u4f60\\u597d" * 20))
    s = screen(path)
    text = s.wait("6 stalls", "]0;owned")
    assert "\\x1b" in text and "\u202e" not in text
    assert "owned" not in s.tmux("display-message", "-p", "#{pane_title}")
    s.keys("Enter")
    s.wait("site   7f3a91c2")


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_watched_process(screen, tmp_path, end):
    """A live PID: what it does now, and that it has ended."""
    code = ("import select, sys, time\ne = select.epoll(); e.register(sys.stdin.fileno())\nprint('ready', flush=True)\n"
            "for i in range(60): e.poll(0.001)\n"
            "while not e.poll(0.1): time.sleep(0.06)\n")
    child = helpers.start("run", "-q", "-t", "20ms", "-o", tmp_path / "r.jsonl", "--", helpers.PYTHON, "-c", code,
                          stdin=subprocess.PIPE)
    try:
        assert child.stdout.readline() == "ready\n"
        pid = helpers.wait_until(lambda: helpers.children(child.pid), what="the program")[0]
        s = screen("--refresh", "100ms", pid, XDG_RUNTIME_DIR=os.environ.get("XDG_RUNTIME_DIR", ""))
        s.wait("live", "clock_nanosleep", "python3")
        done = helpers.unblock("top", "--once", pid)
        assert done.returncode == 0 and "clock_nanosleep" in done.stdout
        if end == "exit":
            child.communicate("\n", timeout=helpers.PATIENCE)
        else:
            os.kill(child.pid, signal.SIGKILL)
            os.kill(pid, signal.SIGKILL)
        s.wait("ended", "clock_nanosleep")
        s.keys("q")
        s.wait("exit=0")
    finally:
        child.kill()
        child.communicate()


def test_attaches_by_itself(screen, tmp_path):
    """A process that nobody watches is attached to, and left when the view is."""
    code = ("import select, time\ne = select.epoll()\nprint('ready', flush=True)\n"
            "while not e.poll(0.02): time.sleep(0.07)\n")
    with subprocess.Popen([helpers.PYTHON, "-c", code], stdout=subprocess.PIPE, text=True) as target:
        try:
            assert target.stdout.readline() == "ready\n"
            s = screen("--refresh", "100ms", target.pid, XDG_RUNTIME_DIR=os.environ.get("XDG_RUNTIME_DIR", ""),
                       TMPDIR=tmp_path)
            s.wait("live", "clock_nanosleep", "python3")
            assert not list(tmp_path.glob("unblock-top-*")), "what top sees is kept nowhere"
            s.keys("q")
            s.wait("exit=0")
            assert not attaching.has_arena(target.pid)
        finally:
            target.kill()


def test_cannot_attach(screen):
    """Why not is said as `unblock attach` says it."""
    s = screen("1", width=200, XDG_RUNTIME_DIR=os.environ.get("XDG_RUNTIME_DIR", ""))
    s.wait("unblock top: ", "exit=2")
