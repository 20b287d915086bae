"""OTLP: sent the way the docs say to a receiver that knows OpenTelemetry's own definitions; every figure is the recording's."""

import json
import os
import re
import subprocess

import pytest

import helpers
from conftest import NPM, SAMPLE, needs, npm

DOCS = helpers.ROOT / "ui/docs/fleet.md"


class Receiver:
    def __init__(self):
        npm("@opentelemetry/otlp-transformer/build/src/generated/root.js")
        self.node = subprocess.Popen([needs("node"), helpers.ROOT / "tests/exports/otlp.js"], text=True,
                                     stdout=subprocess.PIPE, env={**os.environ, "UNBLOCK_NPM": str(NPM)})
        self.port = int(self.node.stdout.readline())

    def next(self):
        return json.loads(self.node.stdout.readline())


@pytest.fixture
def receiver():
    r = Receiver()
    yield r
    r.node.kill()
    r.node.wait()


def as_documented(kind, recording, port):
    """The shell lines of the docs, with our recording and port."""
    needs("curl")
    lines = re.search(rf"^    (unblock report -f {kind} .*(?:\n    .*)*)", DOCS.read_text(), re.M)[1]
    lines = lines.replace("r.jsonl", f"'{recording}'").replace("http://localhost:4318", f"http://127.0.0.1:{port}")
    env = {**helpers.clean_environment(), "PATH": f"{helpers.BUILD / 'bin'}:{os.environ['PATH']}"}
    done = subprocess.run(["sh", "-c", lines], capture_output=True, text=True, timeout=60, env=env)
    assert done.returncode == 0 and done.stderr == "", done


def values(attributes):
    got = {}
    for a in attributes:
        (kind, value), = a["value"].items()
        got[a["key"]] = int(value) if kind == "intValue" else value
    assert len(got) == len(attributes), "no key twice"
    return got


def test_logs(receiver):
    as_documented("otlp", SAMPLE, receiver.port)
    seen = receiver.next()
    assert seen.get("path") == "/v1/logs", seen
    (resource,) = seen["data"]["resourceLogs"]
    assert values(resource["resource"]["attributes"]) == {
        "service.name": "redis-server", "host.name": "web1", "process.pid": 4242}
    records = resource["scopeLogs"][0]["logRecords"]
    truth = {(s["site"], s["start_ns"]): s for s in helpers.Recording(SAMPLE).slow
             if not s.get("startup") and s["cause"] != "stopped"}
    begin = 1763694312_000000000 - 5000000000000  # `started` and `monotonic_ns` of the header
    assert len(records) == len(truth)
    for record in records:
        a = values(record["attributes"])
        stall = truth[a["unblock.site"], int(record["timeUnixNano"]) - begin]
        assert (a["unblock.duration_ns"], a["unblock.cause"], a["thread.id"]) == (
            stall["duration_ns"], stall["cause"], stall["tid"])
        assert int(record["observedTimeUnixNano"]) - int(record["timeUnixNano"]) == stall["duration_ns"]
        assert record["eventName"] == "unblock.stall" and record["severityNumber"] == 13
    longest = [values(r["attributes"]) for r in records if "unblock.site.longest" in values(r["attributes"])]
    verdict = json.loads(helpers.unblock("report", "-f", "json", SAMPLE).stdout)["verdict"]
    assert len(longest) == 3
    assert sum(a["unblock.site.stalls"] for a in longest) == verdict["stalls"]
    assert sum(a["unblock.site.total_ns"] for a in longest) == verdict["total_ns"]
    save = next(a for a in longest if a["unblock.site"] == "5e5a1007")
    assert (save["code.function.name"], save["code.file.path"], save["code.line.number"]) == (
        "lzf_compress", "/build/redis/src/lzf_c.c", 155)
    assert save["code.stacktrace"].splitlines()[:2] == [
        "lzf_compress (/build/redis/src/lzf_c.c:155)", "rdbSaveRio (/build/redis/src/rdb.c:1290)"]


def test_many_stalls_are_several_requests(receiver, tmp_path):
    """Small enough for a collector, nothing lost or twice."""
    lines = SAMPLE.read_text().splitlines(keepends=True)
    slow = json.loads(lines[7])
    path = tmp_path / "many.jsonl"
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(lines[:4] + [lines[6]])
        for i in range(2500):
            slow.update(id=100 + i, start_ns=5_000_000_000_000 + i * 40_000_000, duration_ns=20_000_000 + i)
            f.write(json.dumps(slow) + "\n")
    as_documented("otlp", path, receiver.port)
    durations = []
    for count in (1000, 1000, 500):
        seen = receiver.next()
        records = [r for resource in seen["data"]["resourceLogs"] for s in resource["scopeLogs"] for r in s["logRecords"]]
        assert len(records) == count and len(json.dumps(seen)) < 4_000_000
        durations += [values(r["attributes"])["unblock.duration_ns"] for r in records]
    assert sorted(durations) == [20_000_000 + i for i in range(2500)]


def test_metrics(receiver):
    as_documented("otlp-metrics", SAMPLE, receiver.port)
    seen = receiver.next()
    assert seen.get("path") == "/v1/metrics", seen
    (resource,) = seen["data"]["resourceMetrics"]
    assert values(resource["resource"]["attributes"]) == {"service.name": "redis-server", "host.name": "web1"}
    metrics = {m["name"]: m for m in resource["scopeMetrics"][0]["metrics"]}
    report = json.loads(helpers.unblock("report", "-f", "json", SAMPLE).stdout)

    def points(name, kind, *keys):
        for p in metrics[name][kind]["dataPoints"]:
            assert (p["startTimeUnixNano"], p["timeUnixNano"]) == ("1763694312000000000", "1763694373000000000")
        return {tuple(values(p["attributes"])[k] for k in keys): p for p in metrics[name][kind]["dataPoints"]}

    stalls = points("unblock.stalls", "sum", "unblock.class")
    assert {k[0]: int(p["asInt"]) for k, p in stalls.items()} == {"counted": 6, "startup": 1, "stopped": 1, "suppressed": 0,
                                                              "unclear": 0}
    time = points("unblock.stall.time", "sum", "unblock.class")
    assert time["counted",]["asDouble"] == report["verdict"]["total_ns"] / 1e9
    assert points("unblock.stall.max", "gauge", "unblock.class")["counted",]["asDouble"] == report["verdict"]["max_ns"] / 1e9
    sites = points("unblock.site.stalls", "sum", "unblock.site")
    assert {k[0]: int(p["asInt"]) for k, p in sites.items()} == {
        s["site"]: s["stalls"] for s in report["sites"] if s["class"] == "counted"}
    for name in ("unblock.stalls", "unblock.stall.time", "unblock.site.stalls"):
        assert metrics[name]["sum"]["isMonotonic"] and metrics[name]["sum"]["aggregationTemporality"] == 2
    (turns,) = points("unblock.loop.turn.duration", "histogram", "thread.id").values()
    assert int(turns["count"]) == 12034 == sum(map(int, turns["bucketCounts"]))
    assert len(turns["bucketCounts"]) == len(turns["explicitBounds"]) + 1
    within = dict(zip(turns["explicitBounds"], map(int, turns["bucketCounts"])))
    assert (within[0.0001], within[0.005], within[0.05], within[0.1], within[0.5]) == (11800, 229, 2, 2, 1)
    assert turns["max"] == 0.2513


def test_nothing_recorded(receiver, tmp_path):
    path = tmp_path / "r.jsonl"
    path.write_text(SAMPLE.read_text().splitlines(keepends=True)[0])
    assert helpers.unblock("report", "-f", "otlp", path).stdout == "", "no request without a stall"
    as_documented("otlp-metrics", path, receiver.port)
    assert receiver.next().get("path") == "/v1/metrics"
