"""The HTTP request that a blocked handler serves, by the ASGI scope. (aiohttp's: tests/servers/test_asyncio.py.)"""

import pytest

import helpers
import pythons

PROGRAM = r"""
import asyncio, time

class Route:
    def __init__(self, path):
        self.methods = {"GET"}
        self.path = path

class Slotted:  # has no dict: nothing must be read before or behind it
    __slots__ = ("path",)
    def __init__(self, path):
        self.path = path

def block():
    time.sleep(0.06)

async def handler(request):
    block()

async def app(scope, receive, send):
    await handler(None)

async def closure_app(scope, receive, send):
    async def inner():
        block()
        return scope
    await inner()

SCOPES = [
    (app, {"type": "http", "method": "POST", "path": "/items/42", "route": Route("/items/{id}")}),
    (closure_app, {"type": "http", "method": "DELETE", "path": "/caf\u00e9/\x1b[31m"}),
    (app, {"type": "websocket", "path": "/live"}),
    (app, {"type": "http", "method": "PUT", "path": "/slots", "route": Slotted("/never")}),
    (app, {"type": "lifespan", "path": "/no"}),
    (app, {"type": "http", "method": 5, "path": 7}),
    (app, ["type", "http"]),
]

async def main():
    for _ in range(40):
        await asyncio.sleep(0.001)
    for function, scope in SCOPES:
        await asyncio.get_running_loop().create_task(function(scope, None, None))
        await asyncio.sleep(0.005)

asyncio.run(main())
"""
SERVED = [{"method": "POST", "route": "/items/{id}"}, {"method": "DELETE", "path": "/caf\u00e9/\x1b[31m"},
          {"method": "GET", "path": "/live"}, {"method": "PUT", "path": "/slots"}, None, None, None]
CASES = [(v, p) for v in pythons.READ for p in pythons.installed(v) or [None]]


@pytest.mark.parametrize("version,python", CASES)
def test_asgi(tmp_path, version, python):
    if not python:
        pytest.skip("no such CPython is installed")
    (tmp_path / "served.py").write_text(PROGRAM)
    done, recording = helpers.record(tmp_path, python, tmp_path / "served.py", threshold="20ms", options=["--live=full"])
    assert done.returncode == 0, done.stderr
    slow = [s for s in recording.slow if any(f.get("function") == "block" for x in s["samples"] if "stack" in x
                                             for f in recording.stacks[x["stack"]])]
    served = list(SERVED)
    if version in ("3.8", "3.9", "3.10"):  # what a function inside uses is not among the local variables
        served[1] = None
    assert [s.get("request") for s in slow] == served
    assert "  serves POST /items/{id}\n" in done.stderr and "\x1b" not in done.stderr, done.stderr

    _, redacted = helpers.record(tmp_path, python, tmp_path / "served.py", threshold="20ms", options=["--redact"])
    assert {str(s["request"]) for s in redacted.slow if "request" in s} == {str(SERVED[0])}, "a path is the caller's"
