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
    time.sleep(0.1)

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
    for i, (function, scope) in enumerate(SCOPES):
        await asyncio.create_task(function(scope, None, None), name=str(i))
        await asyncio.sleep(0.005)

asyncio.run(main())
"""
SERVED = [{"method": "POST", "route": "/items/{id}"}, {"method": "DELETE", "path": "/caf\u00e9/\x1b[31m"},
          {"method": "GET", "path": "/live"}, {"method": "PUT", "path": "/slots"}, None, None, None]
CASES = [(v, p) for v in pythons.READ for p in pythons.installed(v) or [None]]


def by_task(recording):
    """{place in SCOPES: request} of the stalls whose stack was had."""
    return {int(s["task"]["name"]): s.get("request") for s in recording.slow
            if s.get("task", {}).get("name", "").isdigit() and any("stack" in x for x in s["samples"])}


@pytest.mark.parametrize("version,python", CASES)
def test_asgi(tmp_path, version, python):
    if not python:
        pytest.skip("no such CPython is installed")
    (tmp_path / "served.py").write_text(PROGRAM)
    done, recording = helpers.record(tmp_path, python, tmp_path / "served.py", threshold="20ms", options=["--live=full"])
    assert done.returncode == 0, done.stderr
    found = by_task(recording)
    served = list(SERVED)
    if version in ("3.8", "3.9", "3.10"):  # what a function inside uses is not among the local variables
        served[1] = None
    assert len(found) >= 5, recording.slow  # a starved watcher may miss one
    assert all(request == served[i] for i, request in found.items()), found
    assert 0 not in found or "  serves POST /items/{id}\n" in done.stderr, done.stderr
    assert "\x1b" not in done.stderr, done.stderr

    _, redacted = helpers.record(tmp_path, python, tmp_path / "served.py", threshold="20ms", options=["--redact"])
    found = by_task(redacted)
    assert len(found) >= 5 and all(request == (SERVED[0] if i == 0 else None) for i, request in found.items()), \
        "a path is the caller's"
