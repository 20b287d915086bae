"""libevent once more: tor, told by its control port, and a resolver that is slow. See loop_libraries.py.

The proxy that tor is to use is given by name, and looking that up is the one thing that tor does with getaddrinfo on the
thread that serves everybody (all other names it looks up elsewhere). The resolver is ours, on a loopback address; the
program has it in a resolv.conf of its own, in a mount namespace.
Checked that it can fail: with a resolver that answers at once there is no record.
"""

import pytest

from loop_libraries import kinds, slow_one, SLOW_MS
from resolver import asking_it, Resolver
from servers import Server, tool


@pytest.fixture
def resolver():
    running = Resolver()
    yield running
    running.end()


class Tor(Server):
    def command(self):
        data = self.folder / "data"
        data.mkdir(mode=0o700)
        (self.folder / "torrc").write_text(f"DataDirectory {data}\nControlPort 127.0.0.1:{self.port}\nSocksPort 0\n"
                                           "DisableNetwork 1\nLog err stderr\n")
        return asking_it(self.folder, tool("tor"), "-f", self.folder / "torrc", "--defaults-torrc", "/dev/null", "--quiet")

    def ask(self, connection, *lines):
        said = []
        for line in lines:
            connection.sendall(line.encode() + b"\r\n")
            reply = b""
            while not any(part[3:4] == b" " for part in reply.split(b"\r\n")[:-1]):
                more = connection.recv(65536)
                assert more, f"tor hung up: {reply!r}"
                reply += more
            said.append(reply.decode())
        return said


def name_proxy(tor, name="slow.test"):
    with tor.connect() as connection:
        return tor.ask(connection, "AUTHENTICATE", "GETINFO version", f"SETCONF Socks5Proxy={name}:1080",
                       "GETCONF Socks5Proxy", "RESETCONF Socks5Proxy", "GETCONF Socks5Proxy", "NONSENSE")


def test_tor_same_answers(either, resolver):
    said = either(Tor, name_proxy)
    assert said[1].startswith("250-version=") and said[3] == "250 Socks5Proxy=slow.test:1080\r\n", said
    assert len(resolver.asked) >= 2 and set(resolver.asked) == {b"\x04slow\x04test"}


def test_tor_with_a_slow_resolver(server, resolver):
    tor = server(Tor)
    with tor.connect() as connection:
        tor.ask(connection, "AUTHENTICATE", *["GETINFO version"] * 12)
        resolver.delay = SLOW_MS / 1000 + 0.01
        assert tor.ask(connection, "SETCONF Socks5Proxy=slow.test:1080") == ["250 OK\r\n"]
        resolver.delay = 0
        client = connection.getsockname()[1]
    recording = tor.stop()
    assert kinds(recording, "libevent")["io"] >= 13
    slow, call = slow_one(recording, "libevent", "io", "poll")
    assert call["via"] == "getaddrinfo" and "slow.test" in call["args"], call
    assert slow["callback"]["fd"] >= 0, slow["callback"]  # the client's connection,
    # which is told if it is still there when there is time to look.
    assert slow["callback"].get("fd_path", f"socket 127.0.0.1:{client}") == f"socket 127.0.0.1:{client}", slow["callback"]
    assert slow["callback"]["module"].endswith("/tor"), slow["callback"]
