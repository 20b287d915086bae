"""Programs that nobody here wrote, one or more on each event-loop library, under their own clients.

    libuv     named (BIND 9), asked by dig, updated by nsupdate
    libevent  transmission-daemon, told by transmission-remote
    libev     nghttpd, asked by nghttp
    GLib      dconf-service on a private bus, told by dconf
    sd-event  systemd-journal-remote, fed by a socket; systemd-socket-proxyd, asked by curl

Each behaves the same with the agent and without, its callbacks are timed by themselves, and on a slow disk
(slowfs.c) the stall is found in the callback that waits for it: kind, call, descriptor, duration.
"""

import hashlib
import http.server
import json
import os
import random
import re
import signal
import socket
import subprocess
import threading
import time

import pytest

import helpers
import servers
from servers import Server, SlowDisk, only, tool

SLOW_MS = 150


def output(*command, text=True, **options):
    done = subprocess.run([str(c) for c in command], capture_output=True, text=text, timeout=60, check=False,
                          env=helpers.clean_environment(**options.pop("env", {})), **options)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def kinds(recording, library):
    """What `stats` has counted, by kind, over all loops of that library."""
    loops = {(line["pid"], line["tid"]): line for line in recording.of("loop") if line["identity"] == "callback"}
    assert loops and {line["loop"] for line in loops.values()} == {library}, recording.of("loop")
    last = {(line["pid"], line["tid"]): line for line in recording.of("stats")}
    counted = {}
    for key in loops:
        for kind, sums in last[key].get("kinds", {}).items():
            counted[kind] = counted.get(kind, 0) + sums["callbacks"]
    return counted


def slow_one(recording, library, kind, call):
    """The one stall of the slow disk, and the call in it: a callback of that kind was in that call for so long."""
    found = [(s, c) for s in recording.slow for c in s.get("calls", [])
             if c["name"] == call and c["duration_ns"] > SLOW_MS * 950_000 and not s.get("startup")]
    assert len(found) == 1, recording.slow
    slow, found_call = found[0]
    assert (slow["loop"], slow["kind"]) == (library, kind), slow
    assert slow["cause"] in ("call", "runqueue") and slow["duration_ns"] >= found_call["duration_ns"], slow
    return slow, found_call


# ---- libuv: named ----------------------------------------------------------------------------------------------------


class Named(Server):
    ZONE = "$TTL 60\n@ SOA ns.example.test. root.example.test. (1 60 60 60 60)\n@ NS ns\nns A 127.0.0.1\nwww A 192.0.2.7\n" \
        "text TXT \"said\" \"so\"\nalias CNAME www\n"

    def command(self):
        self.disk = SlowDisk(self.folder)
        (self.disk.path / "example.db").write_text(self.ZONE)
        self.control_port = servers.free_port()
        key = 'key "k" { algorithm hmac-sha256; secret "c2VjcmV0"; };'
        (self.folder / "rndc.conf").write_text(
            f'{key} options {{ default-key "k"; default-server 127.0.0.1; default-port {self.control_port}; }};')
        (self.folder / "named.conf").write_text(f"""
            {key}
            controls {{ inet 127.0.0.1 port {self.control_port} allow {{ 127.0.0.1; }} keys {{ "k"; }}; }};
            options {{
                directory "{self.folder}"; pid-file none; session-keyfile "{self.folder}/session.key";
                listen-on port {self.port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
                recursion no; dnssec-validation no; notify no; empty-zones-enable no;
            }};
            zone "example.test" {{ type primary; file "{self.disk.path}/example.db"; allow-update {{ 127.0.0.1; }}; }};
            """)
        return [tool("named"), "-g", "-n", "1", "-c", self.folder / "named.conf"]

    def dig(self, *words):
        said = output(tool("dig"), "@127.0.0.1", "-p", self.port, "+tries=1", "+timeout=10", *words)
        # The query's number, its time, the date and the cookie differ from run to run.
        said = re.sub(r"(?m)^;; (WHEN|Query time).*\n|^; COOKIE.*\n", "", said)
        return re.sub(r"id: \d+", "id: N", said).replace(str(self.port), "PORT")

    def update(self, *lines):
        return output(tool("nsupdate"), input="\n".join([f"server 127.0.0.1 {self.port}", "zone example.test", *lines,
                                                          "send", ""]))

    def rndc(self, *words):
        return output(tool("rndc"), "-c", self.folder / "rndc.conf", *words)


def test_named_same_answers(either):
    def talk(named):
        said = [named.dig(*words) for words in (
            ["www.example.test"], ["+tcp", "www.example.test"], ["text.example.test", "TXT"], ["alias.example.test"],
            ["none.example.test"], ["other.invalid"], ["example.test", "AXFR"], ["+noedns", "example.test", "ANY"])]
        named.update("update add new.example.test 60 A 192.0.2.9", "update delete www.example.test")
        said += [named.dig("new.example.test"), named.dig("www.example.test"), named.dig("+tcp", "example.test", "AXFR"),
                 re.findall("(?:serial|nodes|dynamic): .*", named.rndc("zonestatus", "example.test"))]
        return said

    said = either(Named, talk)
    assert "192.0.2.7" in said[0] and "192.0.2.9" in said[8] and "NXDOMAIN" not in said[0]


def test_named_journal_on_a_slow_disk(server):
    """An update is answered when its journal is on the disk: meanwhile this thread answers nobody."""
    named = server(Named)
    for _ in range(3):
        for transport in ("+notcp", "+tcp"):
            assert "192.0.2.7" in named.dig(transport, "www.example.test")
    named.disk.slow(fsync=SLOW_MS)
    named.update("update add slow.example.test 60 A 192.0.2.10")
    named.disk.quick()
    assert "192.0.2.10" in named.dig("slow.example.test")
    recording = named.stop()
    counted = kinds(recording, "libuv")
    assert counted["udp"] >= 4 and counted["read"] >= 3 and counted["listener"] >= 3 and counted["async"] >= 1, counted
    slow, call = slow_one(recording, "libuv", "async", "fsync")
    assert call["fd_path"].endswith("/slow/example.db.jnl"), call
    assert servers.has_function(recording, slow, "dns_journal_commit"), recording.functions(slow)
    # The callback is a function of libisc whose name its symbols do not tell; what it runs is.
    assert "/libisc-" in slow["callback"]["module"] and slow["callback"]["function"] == "isc_task_run", slow["callback"]


# ---- libevent: transmission-daemon -----------------------------------------------------------------------------------


def bencode(value):
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return b"%d:%s" % (len(value), value)
    return b"d" + b"".join(bencode(k) + bencode(value[k]) for k in sorted(value)) + b"e"


class Seed:
    """An HTTP server that has the one file of a torrent."""

    def __init__(self, folder):
        self.content = random.Random(5).randbytes(256 << 10)
        content = self.content

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                begin, end = re.match(r"bytes=(\d+)-(\d+)", self.headers["Range"]).groups()
                part = content[int(begin):int(end) + 1]
                self.send_response(206)
                self.send_header("Content-Length", str(len(part)))
                self.send_header("Content-Range", f"bytes {begin}-{end}/{len(content)}")
                self.end_headers()
                self.wfile.write(part)

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        piece = 32 << 10
        pieces = b"".join(hashlib.sha1(content[i:i + piece]).digest() for i in range(0, len(content), piece))
        self.torrent = folder / "blob.torrent"
        self.torrent.write_bytes(bencode({
            "info": {"length": len(content), "name": "blob", "piece length": piece, "pieces": pieces},
            "url-list": f"http://127.0.0.1:{self.server.server_port}/blob"}))

    def end(self):
        self.server.shutdown()
        self.server.server_close()


class Transmission(Server):
    slow = False

    def command(self):
        downloads = self.folder / "downloads"
        if self.slow:
            self.disk = SlowDisk(self.folder)
            downloads = self.disk.path
        downloads.mkdir(exist_ok=True)
        self.downloads = downloads
        config = self.folder / "config"
        config.mkdir()
        (config / "settings.json").write_text(json.dumps({
            "dht-enabled": False, "lpd-enabled": False, "pex-enabled": False, "utp-enabled": False,
            "port-forwarding-enabled": False, "preallocation": 2, "rpc-whitelist-enabled": False,
            "bind-address-ipv4": "127.0.0.1", "bind-address-ipv6": "::1", "peer-port": servers.free_port(),
            "rpc-bind-address": "127.0.0.1", "download-dir": str(downloads)}))
        return [tool("transmission-daemon"), "-f", "-g", config, "-p", self.port]

    def remote(self, *words):
        return output(tool("transmission-remote"), f"127.0.0.1:{self.port}", *words)

    def download(self, seed):
        self.remote("-a", seed.torrent)
        helpers.wait_until(lambda: "Percent Done: 100%" in self.remote("-t1", "-i"), what="the download", interval=0.1)
        return (self.downloads / "blob").read_bytes()


class SlowTransmission(Transmission):
    slow = True


@pytest.fixture
def seed(tmp_path):
    running = Seed(tmp_path)
    yield running
    running.end()


def test_transmission_same_answers(either, seed):
    def talk(transmission):
        said = [transmission.remote("-l"), transmission.download(seed), transmission.remote("-t1", "-f")]
        # The other lines are dates, rates and what it is doing this very moment.
        said += re.findall("(?:Name|Hash|Percent Done|Have|Availability|Total size|Downloaded|Corrupt DL|Piece .*): .*",
                           transmission.remote("-t1", "-i"))
        said += [transmission.remote("-t1", "-r"), transmission.remote("-l")]
        return [s if isinstance(s, bytes) else s.replace(str(transmission.port), "PORT") for s in said]

    said = either(Transmission, talk)
    assert said[1] == seed.content and "blob" in said[2] and len(said) == 15, said


def test_transmission_preallocates(server, seed):
    """The first piece of a download: the file is made as long as it will be, on the thread that serves everybody."""
    transmission = server(SlowTransmission)
    transmission.disk.slow(fallocate=SLOW_MS)
    assert transmission.download(seed) == seed.content
    recording = transmission.stop()
    counted = kinds(recording, "libevent")
    assert counted["timer"] >= 3 and counted["io"] >= 10 and counted["callback"] >= 3, counted  # the last: of evhttp
    slow, call = slow_one(recording, "libevent", "io", "fallocate")
    assert call["fd_path"].endswith("/slow/blob.part"), call
    assert slow["callback"]["fd_path"] == "pipe", slow["callback"]  # by which its other threads hand over work
    assert slow["callback"]["module"].endswith("/transmission-daemon"), slow["callback"]


# ---- libev: nghttpd --------------------------------------------------------------------------------------------------


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
        said += re.findall(r"(?m):status: \d+|content-length: \d+|^.* frame <.*>", re.sub(r"\[ *[\d.]+\]|\x1b\[[\d;]*m", "", verbose))
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


# ---- GLib: dconf-service ---------------------------------------------------------------------------------------------


class Dconf(Server):
    """The service that writes settings, on a bus of its own."""

    slow = False
    bus = None

    def command(self):
        settings = self.folder / "settings"
        if self.slow:
            self.disk = SlowDisk(self.folder)
            settings = self.disk.path
        settings.mkdir(exist_ok=True)
        self.settings = settings
        address = f"unix:path={self.folder}/bus"
        self.bus = subprocess.Popen([tool("dbus-daemon"), "--session", "--nofork", "--address", address],
                                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.stderr)
        helpers.wait_until((self.folder / "bus").exists, what="the bus")
        if not os.path.exists("/usr/libexec/dconf-service"):
            pytest.skip("dconf-service is not installed")
        return ["/usr/libexec/dconf-service"]

    def environment(self):
        return {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={self.folder}/bus", "XDG_CONFIG_HOME": str(self.settings),
                "XDG_RUNTIME_DIR": str(self.folder)}

    def ready(self):
        return "true" in output(tool("gdbus"), "call", "--session", "-d", "org.freedesktop.DBus", "-o", "/", "-m",
                                "org.freedesktop.DBus.NameHasOwner", "ca.desrt.dconf", env=self.environment())

    def dconf(self, *words):
        return output(tool("dconf"), *words, env=self.environment())

    def end(self):
        super().end()
        if self.bus:
            self.bus.kill()
            self.bus.wait()


class SlowDconf(Dconf):
    slow = True


def test_dconf_same_answers(either):
    def talk(dconf):
        said = []
        for i in range(5):
            said.append(dconf.dconf("write", "/a/number", str(i)))
            said.append(dconf.dconf("read", "/a/number"))
        said += [dconf.dconf("write", "/a/b/text", "'so'"), dconf.dconf("list", "/a/"), dconf.dconf("dump", "/"),
                 dconf.dconf("reset", "-f", "/a/b/"), dconf.dconf("dump", "/")]
        return [*said, (dconf.settings / "dconf" / "user").read_bytes()]

    said = either(Dconf, talk)
    assert "number=4" in said[-2]


def test_dconf_settings_on_a_slow_disk(server):
    dconf = server(SlowDconf)
    for i in range(12):
        dconf.dconf("write", "/a/number", str(i))
    dconf.disk.slow(fsync=SLOW_MS)
    dconf.dconf("write", "/a/number", "99")
    dconf.disk.quick()
    assert dconf.dconf("read", "/a/number") == "99\n"
    recording = dconf.stop()
    counted = kinds(recording, "glib")
    assert counted["idle"] >= 13, counted  # GDBus hands each request over to the main loop by one
    slow, call = slow_one(recording, "glib", "idle", "fsync")
    assert "/slow/dconf/user" in call["fd_path"], call
    # The source is GIO's; what ran in it is the program's.
    assert slow["callback"]["module"].endswith("/dconf-service") and \
        slow["callback"]["name"] == "gio/gdbusconnection.c] call_in_idle_cb", slow["callback"]
    assert servers.has_function(recording, slow, "g_file_set_contents_full"), recording.functions(slow)


# ---- sd-event: systemd-journal-remote, systemd-socket-proxyd ---------------------------------------------------------


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

    def send(self, first, count):
        entries = "".join(f"__REALTIME_TIMESTAMP={1700000000000000 + i}\n__MONOTONIC_TIMESTAMP={i + 1}\n"
                          f"_BOOT_ID=11111111111111111111111111111111\nMESSAGE=entry {i}\nPRIORITY=6\n\n"
                          for i in range(first, first + count))
        path = self.folder / "entries"
        path.write_text(entries)
        return output(tool("curl"), "-s", "-H", "Content-Type: application/vnd.fdo.journal", "--data-binary", f"@{path}",
                      f"http://127.0.0.1:{self.port}/upload")

    def browse(self):
        return output(tool("curl"), "-s", f"http://127.0.0.1:{self.port}/browse")

    def entries(self):
        lines = output(tool("journalctl"), "-q", f"--file={self.journal}", "-o", "json").splitlines()
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
