"""sd-event: systemd-journal-remote, fed by a socket; systemd-socket-proxyd, asked by curl. See loop_libraries.py."""

import http.server
import json
import os
import random
import signal
import threading

import pytest

import servers
from loop_libraries import kinds, output, slow_one, SLOW_MS
from servers import Server, SlowDisk, tool


class JournalRemote(Server):
    """Takes journal entries from other machines by HTTP and writes them to a journal of its own."""

    slow = False

    def command(self):
        journals = self.folder / "journals"
        if self.slow:
            self.disk = SlowDisk(self.folder)
            journals = self.disk.path
        journals.mkdir(exist_ok=True)
        self.journal = journals / "remote-127.0.0.1.journal"
        program = "/lib/systemd/systemd-journal-remote"
        if not os.path.exists(program):
            pytest.skip("systemd-journal-remote is not installed")
        return [program, f"--listen-http=127.0.0.1:{self.port}", "--split-mode=host", "-o", journals]

    def send(self, first, count, more=""):
        entries = "".join(f"__REALTIME_TIMESTAMP={1700000000000000 + i}\n__MONOTONIC_TIMESTAMP={i + 1}\n"
                          f"_BOOT_ID=11111111111111111111111111111111\nMESSAGE=entry {i}{more}\nPRIORITY=6\n\n"
                          for i in range(first, first + count))
        path = self.folder / "entries"
        path.write_text(entries)
        return output(tool("curl"), "-s", "-H", "Content-Type: application/vnd.fdo.journal", "--data-binary", f"@{path}",
                      f"http://127.0.0.1:{self.port}/upload")

    def browse(self):
        return output(tool("curl"), "-s", f"http://127.0.0.1:{self.port}/browse")

    def entries(self):
        lines = output(tool("journalctl"), "-qa", f"--file={self.journal}", "-o", "json").splitlines()
        return [(e["MESSAGE"], e["__REALTIME_TIMESTAMP"]) for e in map(json.loads, lines)]


class SlowJournalRemote(JournalRemote):
    slow = True


def test_journal_remote_same_answers(either):
    def talk(remote):
        said = [remote.send(i * 20, 20) for i in range(5)]
        said.append(remote.browse())
        os.kill(remote.pid, signal.SIGTERM)
        said.append(remote.process.wait(30))
        return [*said, remote.entries()]

    said = either(JournalRemote, talk)
    assert len(said[-1]) == 100 and said[-1][7][0] == "entry 7" and said[-2] == 0


def test_journal_remote_on_a_slow_disk(server):
    remote = server(SlowJournalRemote)
    for _ in range(12):
        remote.browse()
    remote.disk.slow(fallocate=SLOW_MS)
    remote.send(0, 20)  # the first of this machine: its journal is made
    remote.disk.quick()
    remote.send(20, 20)
    assert len(remote.entries()) == 40
    recording = remote.stop()
    assert kinds(recording, "sd-event")["io"] >= 20
    slow, call = slow_one(recording, "sd-event", "io", "fallocate")
    assert call["fd_path"].endswith("/slow/remote-127.0.0.1.journal"), call
    assert slow["callback"]["fd_path"] == "eventpoll", slow["callback"]  # microhttpd's own, in sd-event's
    assert servers.has_function(recording, slow, "journal_file_open"), recording.functions(slow)


class Proxy(Server):
    """systemd-socket-proxyd, given its socket by systemd-socket-activate, in front of an HTTP server of ours."""

    content = random.Random(8).randbytes(400_000)

    def command(self):
        content = self.content

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200 if self.path == "/blob" else 404)
                self.send_header("Content-Length", str(len(content) if self.path == "/blob" else 0))
                self.end_headers()
                self.wfile.write(content if self.path == "/blob" else b"")

            def date_time_string(self, timestamp=None):
                return "never"

            def log_message(self, *_):
                pass

        self.behind = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.behind.daemon_threads = True
        threading.Thread(target=self.behind.serve_forever, daemon=True).start()
        program = "/lib/systemd/systemd-socket-proxyd"
        if not os.path.exists(program):
            pytest.skip("systemd-socket-proxyd is not installed")
        # It hands no variables on but those it is told.
        agent = ["-E", "LD_PRELOAD", "-E", "UNBLOCK_ARENA"] if self.watched else []
        return [tool("systemd-socket-activate"), *agent, "-l", f"127.0.0.1:{self.port}", program,
                f"127.0.0.1:{self.behind.server_port}"]

    def get(self, path):
        return output(tool("curl"), "-s", "-i", f"http://127.0.0.1:{self.port}/{path}", text=False)

    def end(self):
        super().end()
        if hasattr(self, "behind"):
            self.behind.shutdown()
            self.behind.server_close()


def test_socket_proxyd(either):
    """Every byte of 30 connections arrives, and each connection's callbacks were seen."""
    recordings = []

    def talk(proxy):
        said = [proxy.get("blob" if i % 3 else "none") for i in range(30)]
        if proxy.watched:
            recordings.append(proxy.stop())
        return said

    said = either(Proxy, talk)
    assert said[1].endswith(Proxy.content) and b"404" in said[0]
    assert kinds(recordings[0], "sd-event")["io"] >= 100
