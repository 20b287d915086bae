"""libevent: transmission-daemon, told by transmission-remote. See loop_libraries.py."""

import hashlib
import http.server
import json
import random
import re
import threading

import pytest

import helpers
import servers
from loop_libraries import kinds, output, slow_one, SLOW_MS
from servers import Server, SlowDisk, tool


def bencode(value):
    if isinstance(value, int):
        return b"i%de" % value
    if isinstance(value, str):
        value = value.encode()
    if isinstance(value, bytes):
        return b"%d:%s" % (len(value), value)
    return b"d" + b"".join(bencode(k) + bencode(value[k]) for k in sorted(value)) + b"e"


class Seed:
    """An HTTP server that has the one file of a torrent, and of others of the same content by other `names`."""

    def __init__(self, folder, names=("blob",)):
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
        for name in names:
            self.torrent = folder / f"{name}.torrent"
            self.torrent.write_bytes(bencode({
                "info": {"length": len(content), "name": name, "piece length": piece, "pieces": pieces},
                "url-list": f"http://127.0.0.1:{self.server.server_port}/{name}"}))

    def end(self):
        self.server.shutdown()
        self.server.server_close()


class Transmission(Server):
    slow = config_on_disk = False

    def command(self):
        downloads = self.folder / "downloads"
        if self.slow:
            self.disk = SlowDisk(self.folder)
            downloads = self.disk.path
        downloads.mkdir(exist_ok=True)
        self.downloads = downloads
        config = self.folder / "config" if not self.config_on_disk else self.disk.path / "config"
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
