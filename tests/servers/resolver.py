"""A resolver that takes its time, on a loopback address; who is to ask it has a resolv.conf of its own, in a mount namespace."""

import os
import socket
import struct
import threading
import time

import pytest

from servers import tool

ADDRESS = "127.7.7.7"


class Resolver:
    """Every name is 127.0.0.1, after `delay` seconds."""

    def __init__(self):
        if os.getuid() != 0:
            pytest.skip("a resolver of our own needs root")
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


def asking_it(folder, *command):
    """The command with a resolv.conf in `folder`; it keeps the pid."""
    (folder / "resolv.conf").write_text(f"nameserver {ADDRESS}\n")
    return [tool("unshare"), "-m", "sh", "-c", 'mount --bind "$0/resolv.conf" /etc/resolv.conf && exec "$@"', folder, *command]
