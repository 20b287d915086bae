"""libevent once more: tor, told by its control port, and a resolver that is slow. See loop_libraries.py.

The proxy that tor is to use is given by name, and looking that up is the one thing that tor does with getaddrinfo on the
thread that serves everybody (all other names it looks up elsewhere). The resolver is ours, on a loopback address; the
program has it in a resolv.conf of its own, in a mount namespace.
Checked that it can fail: with a resolver that answers at once there is no record.
"""

import os
import socket
import struct
import threading
import time

import pytest

from loop_libraries import kinds, slow_one, SLOW_MS
from servers import Server, tool

ADDRESS = "127.7.7.7"


class Resolver:
    """Every name is 127.0.0.1, after `delay` seconds."""

    def __init__(self):
        self.delay, self.asked = 0, []
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        try:
            self.socket.bind((ADDRESS, 53))
        except OSError as error:
            self.socket.close()
            pytest.skip(f"a resolver on {ADDRESS}, port 53: {error.strerror}")
        self.thread = threading.Thread(target=self.serve, daemon=True)
        self.thread.start()

    def serve(self):
        while True:
            query, client = self.socket.recvfrom(512)
            if not query:
                return
            end = query.index(b"\0", 12) + 5  # of the question: the name, its type and class
            kind = struct.unpack(">H", query[end - 4:end - 2])[0]
            self.asked.append(query[12:end - 5])
            time.sleep(self.delay)
            answer = b"\xc0\x0c" + struct.pack(">HHIH", 1, 1, 0, 4) + bytes([127, 0, 0, 1]) if kind == 1 else b""
            self.socket.sendto(query[:2] + struct.pack(">HHHHH", 0x8180, 1, bool(answer), 0, 0) + query[12:end] + answer,
                               client)

    def end(self):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            s.sendto(b"", (ADDRESS, 53))
        self.thread.join()
        self.socket.close()


@pytest.fixture
def resolver():
    if os.getuid() != 0:
        pytest.skip("a resolver of our own needs root")
    running = Resolver()
    yield running
    running.end()


class Tor(Server):
    def command(self):
        data = self.folder / "data"
        data.mkdir(mode=0o700)
        (self.folder / "resolv.conf").write_text(f"nameserver {ADDRESS}\n")
        (self.folder / "torrc").write_text(f"DataDirectory {data}\nControlPort 127.0.0.1:{self.port}\nSocksPort 0\n"
                                           "DisableNetwork 1\nLog err stderr\n")
        # Its own resolv.conf; then it is tor itself, under the same pid.
        return [tool("unshare"), "-m", "sh", "-c", 'mount --bind "$0/resolv.conf" /etc/resolv.conf && exec "$@"',
                self.folder, tool("tor"), "-f", self.folder / "torrc", "--defaults-torrc", "/dev/null", "--quiet"]

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
