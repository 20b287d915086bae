"""Blocking calls as the thread itself times them: exact, and there even when nobody looked."""

import subprocess

import pytest

import helpers
import oracle
import test_schema

MS = 1000000


def run(tmp_path, mode, count, threshold):
    done, recording = helpers.record(tmp_path, helpers.program("calls"), mode, count, threshold=threshold)
    assert done.returncode == 0 and done.stdout == "done\n", done
    assert not [p for line in recording.lines for p in test_schema.problems(line)]
    # Stalls of the program are in a call or long; others are a busy machine's.
    slow = [s for s in recording.slow if not s.get("startup") and
            (s.get("calls") or s["duration_ns"] >= 8 * MS and not oracle.is_noise(s))]
    return slow, recording


def via(slow):
    return [c["via"] for c in slow.get("calls", [])]


def test_every_call_is_known(tmp_path):
    """More stalls a second than looks are taken: those nobody looked at have call, duration, stack and callback too."""
    count = 400
    slow, recording = run(tmp_path, "many", count, "1ms")
    # Of the last few stalls: where the watcher gets no CPU for longer, those before are told without calls.
    late = [s for s in recording.slow if not s.get("startup") and not s.get("calls") and s["duration_ns"] >= 3 * MS]
    slow = [s for s in slow if s.get("calls")]
    assert count * 3 // 4 <= len(slow) <= count <= len(slow) + len(late), [s for s in slow if s["cause"] != "call"]
    for s in slow:
        assert via(s) == ["usleep"], s
        call = s["calls"][0]
        assert 3 * MS <= call["duration_ns"] <= s["duration_ns"]
        assert call["name"] == "clock_nanosleep" and call["args"] == "3 ms"
    # Where the sleep was most of the stall (this machine may be busy with something else in between) it is all there.
    plain = [s for s in slow if s["cause"] == "call"]
    assert len(plain) > count // 2
    for s in plain:
        assert s["call"]["duration_ns"] == s["calls"][0]["duration_ns"]
        assert s["callback"]["function"] == "do_sleep", s
        assert any("stack" in x for x in s["samples"]), s
    own = [s for s in slow if any(x.get("proof") == "self" for x in s["samples"])]
    assert len(own) > count // 4, "this machine is too slow for the test: every stall was looked at"
    for s in own:
        sample = [x for x in s["samples"] if x.get("proof") == "self"][-1]
        frames = recording.frames(sample["stack"])
        assert sample["complete"] and {"do_sleep", "loop", "main"} <= set(frames), frames
        assert sample["at_ns"] <= s["duration_ns"]
    # The same place has the same name, whoever saw it.
    assert len({s["site"] for s in plain}) == 1, {s["site"] for s in plain}


def test_calls_are_summed(tmp_path):
    slow, _ = run(tmp_path, "sum", 5, "20ms")
    assert len(slow) == 5
    for s in slow:
        call = s["calls"][0]
        assert via(s) == ["usleep"] and call["count"] == 10
        assert 30 * MS <= call["duration_ns"] <= s["duration_ns"]
        assert 3 * MS <= call["max_ns"] <= call["duration_ns"] - 27 * MS


def test_short_calls_are_summed(tmp_path):
    """Each is far below the threshold, and together they are the stall."""
    slow, _ = run(tmp_path, "short", 5, "20ms")
    assert len(slow) == 5
    for s in slow:
        call = s["calls"][0]
        assert via(s) == ["usleep"] and call["count"] == 200
        assert 40 * MS <= call["duration_ns"] <= s["duration_ns"]
        assert s["call"]["duration_ns"] == call["duration_ns"] and s["cause"] != "unknown"


def test_the_longest_are_kept(tmp_path):
    slow, _ = run(tmp_path, "mixed", 5, "20ms")
    assert len(slow) == 5
    for s in slow:
        known = {c["via"]: c["duration_ns"] for c in s["calls"]}
        assert len(known) == 4, s["calls"]
        # On a busy machine a short one may have become a long one.
        if s["duration_ns"] < 50 * MS:
            assert {"sigtimedwait", "read"} <= known.keys(), s["calls"]
        assert known.get("clock_nanosleep", 6 * MS) >= 6 * MS and known.get("sigtimedwait", 10 * MS) >= 10 * MS
        durations = [c["duration_ns"] for c in s["calls"]]
        assert durations == sorted(durations, reverse=True) and sum(durations) <= s["duration_ns"]
        fds = {c["via"]: c.get("fd_path") for c in s["calls"]}
        # "socket unix", unless the program was over before that was asked for.
        assert all(fds[call].startswith("socket") for call in fds.keys() & {"read", "recv"}), fds


WAITS = {"poll": "9 ms", "__poll_chk": "9 ms", "ppoll": "9 ms", "select": "fds below", "pselect": "9 ms",
         "epoll_wait": "9 ms", "epoll_pwait": "9 ms", "epoll_pwait2": "9 ms"}


def test_waits_that_are_not_the_loops(tmp_path):
    """poll, select and epoll_wait for other descriptors inside a callback: they end no turn, and are timed."""
    slow, recording = run(tmp_path, "waits", 20, "6ms")
    assert len(slow) == 20
    seen = [s["calls"][0] for s in slow]
    assert [len(s["calls"]) for s in slow] == [1] * 20
    assert sorted(c["via"] for c in seen) == sorted([*WAITS, "poll", "poll"] * 2)
    for s, c in zip(slow, seen):
        assert 9 * MS <= c["duration_ns"] <= s["duration_ns"] and WAITS[c["via"]] in c["args"], c
        single = c["via"] in ("__poll_chk", "ppoll") or c["args"].endswith(", 1 fds, 9 ms")
        assert ("fd" in c) == (single or c["via"].startswith("epoll")), c
        assert not single or c["fd_path"].startswith("socket"), c
    # Where the wait was most of the stall it is its cause, and the callback that waited is named, not the agent.
    plain = [s for s in slow if s["cause"] == "call"]
    assert len(plain) >= 10
    assert {s["callback"]["function"] for s in plain} == {"do_waits"}


def test_calls_inside_calls_count_once(tmp_path):
    slow, _ = run(tmp_path, "nested", 5, "5ms")
    assert len(slow) == 5
    assert all(via(s) == ["fread"] for s in slow), [s["calls"] for s in slow]


@pytest.mark.parametrize("mode", ["failing", "signals", "longjmp"])
def test_nothing_is_disturbed(tmp_path, mode):
    """errno, EINTR, handlers that make slow calls themselves, jumps out of a call: the program checks itself."""
    slow, _ = run(tmp_path, mode, 50, "5ms")
    assert len(slow) == 50
    if mode == "failing":
        assert all(via(s) == ["recv"] for s in slow)
    else:  # what jumped away has left nothing behind that would stop the next one
        assert sum("usleep" in via(s) for s in slow) == 50


@pytest.mark.parametrize("mode", ["fork", "vfork"])
def test_a_childs_calls_are_not_its_parents(tmp_path, mode):
    slow, _ = run(tmp_path, mode, 10, "5ms")
    assert len(slow) == 10
    for s in slow:
        assert "usleep" not in via(s), s["calls"]
        assert mode == "vfork" or via(s) == ["waitpid"]


def test_cancelled_in_a_call(tmp_path):
    run(tmp_path, "cancel", 1, "5ms")


def test_under_a_filter_that_kills(tmp_path):
    """Times are known without any system call; strings and stacks are not copied there."""
    slow = [s for s in run(tmp_path, "filter", 20, "1ms")[0] if s.get("calls")]
    assert len(slow) >= 15  # the watcher polls: on a busy machine it may come too late for some
    assert all(via(s) == ["usleep"] and s["calls"][0]["duration_ns"] >= 3 * MS for s in slow)


def test_redacted(tmp_path):
    _, recording = helpers.record(tmp_path, helpers.program("calls"), "mixed", 2, threshold="20ms",
                                  options=("--redact",))
    assert recording.slow and all(not {"args", "fd_path"} & c.keys() for s in recording.slow for c in s["calls"])


def test_known_without_any_watcher(tmp_path):
    """As pid 1 a program gets no helper: the agent itself records what it has timed."""
    command = ["unshare", "--pid", "--fork", "--mount-proc", helpers.program("calls"), "mixed", "3"]
    if subprocess.run([*command[:4], "true"], capture_output=True).returncode != 0:
        pytest.skip("a pid namespace cannot be made here")
    env = helpers.clean_environment(UNBLOCK_THRESHOLD="20ms", UNBLOCK_OUTPUT=str(tmp_path / "r.jsonl"))
    done = subprocess.run([*command[:4], "env", f"LD_PRELOAD={helpers.AGENT}", *command[4:]], env=env,
                          capture_output=True, text=True, timeout=helpers.PATIENCE)
    assert (done.returncode, done.stdout, done.stderr) == (0, "done\n", "")
    recording = helpers.Recording(tmp_path / "r.jsonl")
    assert not [p for line in recording.lines for p in test_schema.problems(line)]
    slow = [s for s in recording.slow if s.get("calls")]
    assert len(slow) == 3
    for s in slow:
        known = {c["via"]: c["duration_ns"] for c in s["calls"]}
        assert len(known) == 4 and {"sigtimedwait", "read"} <= known.keys()
        assert s["cause"] == "call" and s["call"]["duration_ns"] == max(known.values())
