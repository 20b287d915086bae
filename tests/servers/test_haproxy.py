"""haproxy: a bare epoll loop with a scheduler of its own. A Lua service opens a FIFO that nobody writes to yet.

Debian's haproxy is stripped but exports its functions: they have names.
"""

import os
import threading
import time

import servers
from servers import Server, has_function, http_get, only, tool

SERVICE = """
core.register_service("stall", "http", function(applet)
    local f = io.open("FIFO")
    local body = f:read("l") .. "\\n"
    f:close()
    applet:set_status(200)
    applet:add_header("content-length", #body)
    applet:start_response()
    applet:send(body)
end)
"""


class Haproxy(Server):
    def command(self):
        self.fifo = self.folder / "fifo"
        os.mkfifo(self.fifo)
        (self.folder / "stall.lua").write_text(SERVICE.replace("FIFO", str(self.fifo)))
        (self.folder / "haproxy.cfg").write_text(f"""
global
  nbthread 1
  lua-load {self.folder}/stall.lua
defaults
  mode http
  timeout client 30s
  timeout server 30s
  timeout connect 2s
frontend f
  bind 127.0.0.1:{self.port}
  http-request return status 200 content-type text/plain string "hello" if {{ path /hello }}
  http-request use-service lua.stall if {{ path /stall }}
  http-request deny deny_status 404
""")
        return [tool("haproxy"), "-db", "-f", self.folder / "haproxy.cfg"]

    def stall(self, connection, seconds):
        """The reply, and when the FIFO got its writer."""
        fed = []

        def feed():
            time.sleep(seconds)
            fed.append(servers.now_ns())
            self.fifo.write_text("fed\n")

        feeder = threading.Thread(target=feed)
        feeder.start()
        reply = http_get(connection, "/stall", self.port)
        feeder.join()
        return reply, fed[0]


def test_service_that_waits_for_a_fifo(server):
    haproxy = server(Haproxy)
    connection = haproxy.connect()
    for _ in range(30):
        http_get(connection, "/hello", haproxy.port)
    begun = servers.now_ns()
    reply, fed = haproxy.stall(connection, 0.4)
    ended = servers.now_ns()
    assert reply == (b"HTTP/1.1 200 OK", b"fed\n")
    assert http_get(connection, "/hello", haproxy.port)[1] == b"hello"
    recording = haproxy.stop()

    slow = only([s for s in servers.stalls(recording) if s["duration_ns"] > 200_000_000], "the FIFO")
    assert (slow["loop"], slow["kind"], slow["cause"]) == ("turn", "turn", "call"), slow
    assert slow["call"]["name"] in ("open", "openat") and str(haproxy.fifo) in slow["call"]["args"], slow["call"]
    assert begun < slow["start_ns"] and fed < slow["start_ns"] + slow["duration_ns"] < ended + 200_000_000, slow
    # Below the loop and its scheduler comes what was scheduled.
    assert slow["callback"]["function"] == "task_run_applet", slow["callback"]
    assert has_function(recording, slow, "hlua_applet_http_fct"), recording.functions(slow)
    assert slow["input"]["fd_path"] == "socket %s:%d" % connection.getsockname(), slow["input"]


def test_same_replies(either):
    def talk(haproxy):
        connection = haproxy.connect()
        said = [http_get(connection, f"/{name}", haproxy.port) for name in ["hello", "hello"] * 15]
        return [*said, haproxy.stall(connection, 0.05)[0], http_get(connection, "/hello", haproxy.port)]

    replies = either(Haproxy, talk)
    assert replies[0] == (b"HTTP/1.1 200 OK", b"hello") and replies[-2] == (b"HTTP/1.1 200 OK", b"fed\n")
