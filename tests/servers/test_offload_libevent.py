"""Calls moved in real servers on libevent: each answers the same as alone, and unbound answers at once while it waits for who controls it.

unbound reads what `unbound-control` sends with blocking calls, on the thread that answers everybody; and the callback that accepts such a
connection goes on to serve it, with the connection's own event added already. Checked that it can fail: with other events of the
descriptor not kept from firing meanwhile (suspend.c, leave_to) unbound loses the connection. In the other three nothing may be moved that
matters; why is in agent/offload/README.md. Part of `make check-offload`, not of `make check-servers`.
"""

import os
import socket
import struct
import time

import pytest

import helpers
import servers
from lags import DRY_RUN, EAGER, meanwhile, shorter
from servers import Server, tool
from test_loop_libevent import Seed, SlowTransmission
from test_loop_tor import Tor, name_proxy, resolver  # noqa: F401: a fixture
from test_memcached import Memcached, ask

pytestmark = pytest.mark.skipif("UNBLOCK_SOAK" not in os.environ, reason="run by make check-offload")

PAUSE = 0.15  # between two lines of who controls it


class Unbound(Server):
    def command(self):
        self.control = self.folder / "control"
        (self.folder / "unbound.conf").write_text(f"""server:
  interface: 127.0.0.1@{self.port}
  chroot: ""
  username: ""
  directory: "{self.folder}"
  pidfile: ""
  use-syslog: no
  do-daemonize: no
  num-threads: 1
  module-config: "iterator"
  local-zone: "here.test." static
  local-data: "a.here.test. A 10.0.0.1"
remote-control:
  control-enable: yes
  control-use-cert: no
  control-interface: {self.control}
""")
        return [tool("unbound"), "-d", "-c", self.folder / "unbound.conf"]

    def query(self, s, name):
        question = b"".join(bytes([len(part)]) + part.encode() for part in name.split(".")) + b"\0\0\1\0\1"
        s.sendto(struct.pack(">HHHHHH", 7, 0x100, 1, 0, 0, 0) + question, ("127.0.0.1", self.port))
        return s.recv(4096)

    def told(self, command, lines):
        """unbound-control's words, slowly."""
        with socket.socket(socket.AF_UNIX) as s:
            s.settimeout(30)
            s.connect(str(self.control))
            s.sendall(f"UBCT1 {command}\n".encode())
            for line in lines:
                time.sleep(PAUSE)
                s.sendall(line.encode() + b"\n")
            s.sendall(b"\x04\n")
            said = b""
            while more := s.recv(65536):
                said += more
            return said


def dns(kind=socket.SOCK_DGRAM):
    s = socket.socket(socket.AF_INET, kind)
    s.settimeout(30)
    return s


def control_slowly(unbound):
    """Who asks, all the while: (all that was said, how long each answer took)."""
    with dns() as s:
        for _ in range(15):
            unbound.query(s, "a.here.test")
            time.sleep(0.005)  # a turn for each: what comes at once it takes in one, and so few do not make a loop known
        told, took = meanwhile(lambda: unbound.query(s, "a.here.test"),
                               lambda: unbound.told("local_datas", [f"n{i}.here.test. A 10.0.1.{i}" for i in range(8)]))
        return [told, *(unbound.query(s, f"n{i}.here.test") for i in range(8))], took


def test_unbound_answers_while_it_is_told(server):
    watched = server(Unbound, options=DRY_RUN)
    alone, held_up = control_slowly(watched)
    unbound = server(Unbound, options=EAGER)
    with_us, took = control_slowly(unbound)
    assert with_us == alone and alone[0] == b"added 8 datas\n"
    # It is held up for all of the eight pauses; then for none of them.
    assert max(held_up) > 7 * PAUSE and sorted(took)[len(took) * 9 // 10] < PAUSE, (max(held_up), sorted(took)[-5:])
    assert len(took) > 4 * len(held_up), (len(took), len(held_up))
    recording = unbound.stop()
    moved = [line for line in recording.of("offload") if line["moved"]]
    assert {line["call"] for line in moved} == {"recv"} and sum(line["moved"] for line in moved) >= 7, moved
    assert shorter(watched.stop(), recording, 8 * PAUSE * 1000)


def test_memcached(either):
    def talk(memcached):
        with memcached.connect() as s:
            return [ask(s, b"set k%d 0 0 3\r\nabc\r\n" % i) for i in range(50)] + [ask(s, b"get k7\r\n"), ask(s, b"delete k7\r\n"), ask(s, b"get k7\r\n")]

    said = either(Memcached, talk, options=EAGER)
    assert said[-3] == b"VALUE k7 0 3\r\nabc\r\nEND\r\n" and said[-1] == b"END\r\n"


def test_tor(either, resolver):
    resolver.delay = 0.1
    said = either(Tor, name_proxy, options=EAGER)
    assert said[3] == "250 Socks5Proxy=slow.test:1080\r\n", said


def test_transmission(server, tmp_path):
    """What it does on its disk it does with its session locked: that stays, and the files are what they are."""
    names = [f"part{i}" for i in range(4)]
    seed = Seed(tmp_path, names)
    try:
        transmission = server(SlowTransmission, options=EAGER)
        transmission.disk.slow(fallocate=100)
        for name in names:
            transmission.remote("-a", tmp_path / f"{name}.torrent")
        helpers.wait_until(lambda: transmission.remote("-l").count("100%") == len(names), what="the downloads", interval=0.1)
        transmission.disk.quick()
        for i, name in enumerate(names):
            assert (transmission.downloads / name).read_bytes() == seed.content
            transmission.remote(f"-t{i + 1}", "--move", transmission.downloads / "moved")
        helpers.wait_until(lambda: all((transmission.downloads / "moved" / name).exists() for name in names), what="the move")
        assert all((transmission.downloads / "moved" / name).read_bytes() == seed.content for name in names)
        recording = transmission.stop()
    finally:
        seed.end()
    pinned = [line for line in recording.of("offload") if line.get("pinned", {}).get("lock")]
    assert {line["call"] for line in pinned} >= {"fallocate"}, recording.of("offload")


assert servers
