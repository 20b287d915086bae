"""libev: nghttpd, asked by nghttp. See loop_libraries.py."""

import random
import re
import subprocess

import pytest

import helpers
import servers
from loop_libraries import kinds, slow_one, SLOW_MS
from servers import Server, SlowDisk, tool


class Nghttpd(Server):
    slow = False

    def command(self):
        root = self.folder / "root"
        if self.slow:
            self.disk = SlowDisk(self.folder)
            root = self.disk.path
        root.mkdir(exist_ok=True)
        (root / "small").write_text("hello\n")
        (root / "big").write_bytes(random.Random(6).randbytes(300_000))
        (root / "late").write_bytes(random.Random(7).randbytes(3_000))
        return [tool("nghttpd"), "--no-tls", "-d", root, self.port]

    def get(self, *paths, options=()):
        done = subprocess.run([tool("nghttp"), *options, *(f"http://127.0.0.1:{self.port}/{p}" for p in paths)],
                              capture_output=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout.replace(str(self.port).encode(), b"PORT")


class SlowNghttpd(Nghttpd):
    slow = True


def test_nghttpd_same_answers(either):
    def talk(nghttpd):
        said = [nghttpd.get("small"), nghttpd.get("big"), nghttpd.get("none"), nghttpd.get("small", "big", "small")]
        verbose = nghttpd.get("small", "none", options=["-nv"]).decode()
        # What the server said. In which order the client sends and receives is its own affair, and differs from run to run.
        said += sorted(re.findall(r"(?m):status: \d+|content-length: \d+|^ *recv .* frame <.*>",
                                  re.sub(r"\[ *[\d.]+\]|\x1b\[[\d;]*m", "", verbose)))
        return said

    said = either(Nghttpd, talk)
    assert said[0] == b"hello\n" and len(said[1]) == 300_000 and ":status: 404" in said[4:]


def test_nghttpd_file_on_a_slow_disk(server):
    nghttpd = server(SlowNghttpd)
    for _ in range(6):
        assert nghttpd.get("small") == b"hello\n"
    nghttpd.disk.slow(open=SLOW_MS)
    assert nghttpd.get("late") == (nghttpd.disk.disk / "late").read_bytes()
    recording = nghttpd.stop()
    assert kinds(recording, "libev")["io"] >= 12
    slow, call = slow_one(recording, "libev", "io", "openat")
    assert f"{nghttpd.disk.path}/late" in call["args"], call
    assert slow["callback"]["fd"] >= 0, slow["callback"]  # the client's connection


# EV has libev linked into itself, where no hook reaches. It catches what a callback dies of: by longjmp, out of perl's own
# frames and past the call that was in them.
DIES = r"""
use strict; use warnings; use EV; use Time::HiRes;
my ($ran, $died) = (0, 0);
$EV::DIED = sub { $died++ };
my $timer = EV::timer 0.001, 0.001, sub {
    Time::HiRes::usleep(60_000) if ++$ran == 50;
    EV::break if $ran >= 100;
    die "out of the callback\n";
};
EV::run;
print "$ran $died\n";
"""


def test_perl_dies_out_of_its_callbacks(tmp_path, sentinel):
    """Each of its callbacks; one of them blocks first. Nothing is left open: no other record, and none too long."""
    perl = tool("perl")
    if subprocess.run([perl, "-MEV", "-e", "0"], capture_output=True, check=False).returncode != 0:
        pytest.skip("perl's EV is not installed (libev-perl)")
    (tmp_path / "dies.pl").write_text(DIES)
    done, recording = helpers.record(tmp_path, perl, tmp_path / "dies.pl", threshold="20ms", timeout=60)
    assert (done.returncode, done.stdout) == (0, "100 100\n"), done.stderr
    slow = [s for s in recording.slow if s["duration_ns"] >= 60_000_000 and "usleep" in str(s.get("calls"))]
    assert len(slow) == 1 and slow[0]["cause"] in ("call", "runqueue"), recording.slow
    assert slow[0]["calls"][0]["duration_ns"] >= 60_000_000, slow
    rest = [s for s in servers.stalls(recording, sentinel) if s is not slow[0]]
    assert not rest, rest
    assert recording.of("stats")[-1]["turns"] >= 50, recording.of("stats")
