"""The formats of `report`, by themselves: their numbers are those of the recording. tests/exports has the real consumers."""

import http.client
import json
import os
import re
import socket
import subprocess

import pytest

import helpers

pytestmark = pytest.mark.beside

SAMPLE = helpers.ROOT / "tests/data/sample.jsonl"
VERDICT = {"stalls": 6, "total_ns": 483300000}
EVIL = "\\u001b]0;x\\u0007 \\u202e;</script>\\\"\\\\\\nx"


def export(name, *files, **kwargs):
    done = helpers.unblock("report", "-f", name, *(files or [SAMPLE]), **kwargs)
    assert done.returncode == 0 and done.stderr == "", done
    return done.stdout


@pytest.fixture
def evil(tmp_path):
    """The sample with a hostile name in every place that a name can have."""
    text = SAMPLE.read_text()
    for name in ("debugCommand", "redis-server", "flushAppendOnlyFile", "clock_nanosleep", "web1", "/build/redis/src/aof.c"):
        text = text.replace(name, EVIL + name)
    path = tmp_path / "evil.jsonl"
    path.write_text(text)
    return path


def test_folded():
    lines = [line.rsplit(" ", 1) for line in export("folded").splitlines()]
    assert sum(int(ns) for _, ns in lines) == VERDICT["total_ns"]
    assert dict(lines)["redis-server;_start;__libc_start_call_main;main;aeMain;aeProcessEvents;near readQueryFromClient;"
                       "processInputBuffer;processCommand;call;debugCommand;nanosleep;clock_nanosleep"] == "251300000"


def test_speedscope():
    document = json.loads(export("speedscope"))
    assert [p["name"] for p in document["profiles"]] == ["redis-server: time lost"]
    profile = document["profiles"][0]
    assert sum(profile["weights"]) == profile["endValue"] == VERDICT["total_ns"]
    frames = document["shared"]["frames"]
    assert all(0 <= i < len(frames) for sample in profile["samples"] for i in sample)
    assert frames[profile["samples"][0][-1]]["name"] == "clock_nanosleep"
    assert {"name": "lzf_compress", "file": "/build/redis/src/lzf_c.c", "line": 155} in frames


def test_chrome():
    events = json.loads(export("chrome"))["traceEvents"]
    slices = [e for e in events if e["ph"] == "X"]
    # One line stands for three stalls here: two that were too many have no moment of their own.
    assert len(slices) == 4 and sum(e["dur"] for e in slices) == pytest.approx((VERDICT["total_ns"] - 50000000) / 1e3)
    assert slices[0]["name"] == "DEBUG SLEEP: clock_nanosleep in debugCommand" and slices[0]["ts"] == 0
    assert slices[1]["ts"] == pytest.approx(8e6) and slices[1]["args"]["site"] == "0c11d2e4"
    names = {e["name"]: e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] != "trace"}
    assert names == {"process_name": "redis-server on web1", "thread_name": "redis-server turn"}


def samples(text):
    return {m[1]: float(m[2]) for m in re.finditer(r"^([a-z_]+(?:\{.*\})?) (\S+)$", text, re.M)}


def test_prometheus():
    text = export("prometheus")
    got = samples(text)
    assert got['unblock_stalls_total{class="counted"}'] == VERDICT["stalls"]
    assert got['unblock_stall_seconds_total{class="counted"}'] == VERDICT["total_ns"] / 1e9
    assert got['unblock_stalls_total{class="stopped"}'] == 1
    labels = '{program="redis-server",loop="turn",thread="",pid="4242",tid="4242"'
    assert got[f"unblock_loop_turn_seconds_count{labels}}}"] == 12034
    buckets = [v for k, v in got.items() if "_bucket" in k]
    assert buckets == sorted(buckets) and buckets[-1] == 12034
    assert sum(v for k, v in got.items() if k.startswith("unblock_site_stalls_total")) == VERDICT["stalls"]


def test_sarif():
    run = json.loads(export("sarif"))["runs"][0]
    assert [r["partialFingerprints"]["unblockSite/v1"] for r in run["results"]] == ["7f3a91c2", "0c11d2e4", "5e5a1007"]
    place = run["results"][2]["locations"][0]["physicalLocation"]
    assert place == {"artifactLocation": {"uri": "file:///build/redis/src/lzf_c.c"}, "region": {"startLine": 155}}


def test_otlp_of_two_hosts(tmp_path):
    """Each stall is its own host's; figures of both together are said of neither."""
    other = tmp_path / "web2.jsonl"
    other.write_text(SAMPLE.read_text().replace('"web1"', '"web2"'))
    hosts = []
    for line in export("otlp", SAMPLE, other).splitlines():
        (resource,) = json.loads(line)["resourceLogs"]
        attributes = {a["key"]: a["value"] for a in resource["resource"]["attributes"]}
        hosts += [attributes["host.name"]["stringValue"]] * len(resource["scopeLogs"][0]["logRecords"])
    assert hosts == ["web1"] * 4 + ["web2"] * 4
    (resource,) = json.loads(export("otlp-metrics", SAMPLE, other))["resourceMetrics"]
    assert "web1" not in json.dumps(resource["resource"])
    turns = next(m for m in resource["scopeMetrics"][0]["metrics"] if m["name"] == "unblock.loop.turn.duration")
    points = [json.dumps(p["attributes"]) for p in turns["histogram"]["dataPoints"]]
    assert "web1" in points[0] and "web2" in points[1]


def test_prometheus_of_two_hosts(tmp_path):
    """In containers the program is process 1 on all of them: no series comes twice, also of one host started again."""
    other = tmp_path / "web2.jsonl"
    other.write_text(SAMPLE.read_text().replace('"web1"', '"web2"'))
    again = tmp_path / "again.jsonl"
    again.write_text(SAMPLE.read_text().replace("2025-11-21T03:05:12", "2025-11-21T04:05:12"))
    series = [line.rsplit(" ", 1)[0] for line in export("prometheus", SAMPLE, other, again).splitlines() if line[0] != "#"]
    assert len(series) == len(set(series))
    counts = [s for s in series if s.startswith("unblock_loop_turn_seconds_count")]
    assert [re.search(r'host="(\w+)",run="(\d)"', s).groups() for s in counts] == [("web1", "0"), ("web2", "1"), ("web1", "2")]


def test_otlp_without_a_clock(tmp_path):
    """No wall clock in the header: no time is made up."""
    path = tmp_path / "r.jsonl"
    path.write_text(SAMPLE.read_text().replace('"started":"2025-11-21T03:05:12.000000Z",', ""))
    for name in ("otlp", "otlp-metrics"):
        text = export(name, path)
        assert "imeUnixNano" not in text and text


def html_data(text):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)[1])


def test_html(tmp_path):
    """One file that refers to nothing, small before its data; tests/exports looks at it in a browser."""
    text = export("html")
    data = html_data(text)
    assert (data["verdict"]["n"], data["verdict"]["total"]) == (VERDICT["stalls"], VERDICT["total_ns"])
    assert sum(ns for site in data["sites"] for ns, _ in site["stacks"]) == VERDICT["total_ns"]
    assert data["sites"][0]["cost"] == "3 descriptors were ready in this turn" and "DEBUG SLEEP" in data["sites"][0]["do"]
    marks = [m for t in data["tracks"] for m in t["marks"]]
    assert [m * 1000 for m in marks[1::3]] == [251300000, 61200000, 30800000, 90000000]
    assert not re.search(r"(src|href)=|url\(|@import|https?://", text.replace(json.dumps(data), ""))
    nonces = set(re.findall(r"nonce[-=]\"?([0-9a-f]{32})", text))
    assert len(nonces) == 1 and "default-src 'none'" in text and nonces != set(re.findall(r"nonce-([0-9a-f]{32})", export("html")))
    empty = tmp_path / "r"
    empty.write_text(SAMPLE.read_text().splitlines(keepends=True)[0])
    assert len(export("html", empty)) < 150_000


def test_html_has_the_habits(tmp_path):
    lint = {"type": "lint", "pid": 1, "tid": 1, "lint": "sleep0", "count": 5000, "total_ns": 5_000_000,
            "callback": {"function": "poll</script>", "file": "/srv/app.py", "line": 7}}
    path = tmp_path / "lint.jsonl"
    path.write_text(SAMPLE.read_text() + json.dumps(lint) + "\n" + json.dumps({**lint, "count": 10, "callback": {"function": "seldom"}}) + "\n")
    lints = html_data(export("html", path))["lints"]
    assert len(lints) == 1 and lints[0].startswith("app.py:7  poll</script>() gave way by sleep(0) "), lints
    assert html_data(export("html"))["lints"] == []


def offload_lines(name=""):
    """What a run with moved calls, and stalls that were kept, ends with; `name` goes into every name."""
    place = {"function": name + "on_timer", "file": f"/srv/{name}app.c", "line": 12}
    lock = {"function": name + "txn_begin", "file": f"/srv/{name}db.c", "line": 70}
    return [{"type": "offload", "site": "aa00aa00", "call": name + "fsync", "moved": 3, "saved_ns": 450_000_000, "longest_ns": 160_000_000,
             "wait_ns": 2_000_000, "beside": 41, "beside_max": 20, "first": 1, "first_ns": 151_000_000, "caller": place, "callback": place,
             "meanwhile": [{**place, "function": f"{name}on_{i}", "kind": name + "timer", "count": 10 - i} for i in range(5)], "meanwhile_others": 1},
            {"type": "offload", "site": "0c11d2e4", "call": name + "fdatasync", "moved": 0, "would_move": 0, "saved_ns": 0,
             "pinned": {"lock": 2, name + "kind": 1}, "pinned_ns": 92_000_000, "lock": lock}]


def with_offload(tmp_path, lines, mode="eager", **header):
    """The sample as if calls had moved in it."""
    sample = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    total = {"moved": 3, "saved_ns": 450_000_000, "wait_ns": 2_000_000, "stack_bytes": 9000, "threads": 2, "queued_max": 5, "beside": 41,
             "busy_ns": 440_000_000}
    for line in sample:
        if line["type"] == "header":
            line.update(offload=mode, **header)
        elif line["type"] == "stats":
            line["lag"] = {"p99_ns": 40_400, "longest_ns": 4_080_000}
        elif line["type"] == "end":
            line["offload"] = total
    path = tmp_path / "offload.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in [*sample[:-1], *lines, sample[-1]]))
    return path


def test_html_has_what_moved(tmp_path):
    path = with_offload(tmp_path, offload_lines(), predicted={"p99_ns": 22_000, "longest_ns": 1_080_000, "from": "pred.jsonl"})
    got = html_data(export("html", path))["offload"]
    assert got["mode"] == "eager" and got["would"] == [] and got["hidden"] == 0
    assert got["total"] == {"moved": 3, "saved_ns": 450_000_000, "wait_ns": 2_000_000, "threads": 2, "queued": 5, "stack": 9000, "beside": 41,
                            "busy_ns": 440_000_000}
    assert got["moved"] == [{"call": "fsync", "at": ["on_timer()", "app.c:12"], "moved": 3, "saved_ns": 450_000_000,
                             "longest_ns": 160_000_000, "wait_ns": 2_000_000, "beside": 41, "first": 1, "first_ns": 151_000_000, "others": 7,
                             "meanwhile": [[[f"on_{i}()", "app.c:12"], "timer", 10 - i] for i in range(4)]}]
    (pinned,) = got["pinned"]
    assert (pinned["call"], pinned["site"], pinned["ns"], pinned["lock"]) == ("fdatasync", "0c11d2e4", 92_000_000, ["txn_begin()", "db.c:70"])
    assert pinned["reasons"][0] == ["lock", "a lock is held", 2] and pinned["reasons"][1][0::2] == ["kind", 1]
    assert got["lag"] == {"measured": [40_400, 4_080_000], "predicted": [22_000, 1_080_000], "from": "pred.jsonl"}
    assert "offload" not in html_data(export("html")), "nothing is said where nothing was to move"


def test_html_of_a_dry_run(tmp_path):
    would = {"type": "offload", "site": "7f3a91c2", "call": "clock_nanosleep", "moved": 0, "would_move": 2, "saved_ns": 312_000_000}
    many = [{**would, "site": f"{i:08x}"} for i in range(299)]
    got = html_data(export("html", with_offload(tmp_path, [would, *many], "dry-run")))["offload"]
    assert got["would"][0] == {"call": "clock_nanosleep", "site": "7f3a91c2", "n": 2, "saved_ns": 312_000_000}
    assert (len(got["would"]), got["hidden"]) == (200, 100) and got["moved"] == got["pinned"] == []


def test_html_of_hostile_names_that_moved(tmp_path):
    text = export("html", with_offload(tmp_path, offload_lines("\x1b]0;x\x07 \u202e</script><b>"), "\u202e</script>",
                                       predicted={"p99_ns": 1, "longest_ns": 1, "from": "\u202e</script>"}))
    assert text.count("</script>") == 2 and not set("\x1b\x07\u202e") & set(text) and "<b>" not in text
    assert "</script><b>fsync" in html_data(text)["offload"]["moved"][0]["call"]


@pytest.mark.parametrize("value", [None, 7, "x", [], {}, -1, [None], {"a": []}])
def test_html_of_wrong_types_that_moved(tmp_path, value):
    for line in offload_lines():
        lines = [{**line, key: value} for key in line if key != "type"]
        data = html_data(export("html", with_offload(tmp_path, lines)))
        assert len(data["offload"]["moved"] + data["offload"]["pinned"]) > 0


def test_html_of_hostile_names(evil):
    text = export("html", evil)
    assert text.count("</script>") == 2 and "\u202e" not in text
    assert html_data(text)["verdict"]["total"] == VERDICT["total_ns"]


@pytest.mark.parametrize("name", ["text", "json", "folded", "speedscope", "prometheus", "chrome", "junit", "github", "sarif", "otlp",
                                  "otlp-metrics"])
def test_hostile_names(evil, name):
    out = export(name, evil)
    for raw in ("\x1b", "\x07"):
        assert raw not in out
    if name in ("folded", "prometheus", "github", "text"):
        assert "\u202e" not in out
    if name == "folded":
        assert all(re.fullmatch(r".*\S \d+", line) for line in out.splitlines())
        assert sum(int(line.rsplit(" ", 1)[1]) for line in out.splitlines()) == VERDICT["total_ns"]
    if name in ("speedscope", "chrome", "sarif", "json", "otlp", "otlp-metrics"):
        json.loads(out)


@pytest.mark.parametrize("name", ["folded", "speedscope", "prometheus", "chrome", "pprof", "sarif", "junit", "html",
                                  "otlp", "otlp-metrics"])
def test_recording_without_stalls(tmp_path, name):
    path = tmp_path / "r"
    path.write_text(SAMPLE.read_text().splitlines(keepends=True)[0])
    assert helpers.unblock("report", "-f", name, path, text=False).returncode == 0


# run --metrics --------------------------------------------------------------


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class UnixConnection(http.client.HTTPConnection):
    def __init__(self, path):
        super().__init__("localhost")
        self.path = path

    def connect(self):
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.connect(self.path)


def get(connection, path="/metrics", **headers):
    connection.request("GET", path, headers=headers)
    reply = connection.getresponse()
    return reply.status, reply.getheader("Content-Type"), reply.read().decode()


@pytest.fixture
def blocked(workdir):
    """A watched program that stalls 5 times and then waits for its end."""
    def start(where):
        code = ("import select, sys, time\np = select.poll(); p.register(0, select.POLLIN); e = select.epoll(); e.register(sys.stdin.fileno())\n"
                "for i in range(60):\n e.poll(0.001)\n if i >= 30 and i % 6 == 0: time.sleep(0.05)\n"
                "print('ready', flush=True)\ninput()\n")
        child = helpers.start("run", "-q", "-t", "20ms", "-o", "r.jsonl", "--metrics", where, "--", helpers.PYTHON, "-c", code,
                              stdin=subprocess.PIPE)
        started.append(child)
        assert child.stdout.readline() == "ready\n", child.stderr.read()
        return child
    started = []
    yield start
    for child in started:
        if child.poll() is None:
            child.communicate("\n", timeout=helpers.PATIENCE)


def test_endpoint(blocked):
    port = free_port()
    blocked(f":{port}")
    assert oct(os.stat("r.jsonl").st_mode & 0o777) == "0o600"

    def counted():
        status, kind, text = get(http.client.HTTPConnection("127.0.0.1", port))
        assert status == 200 and kind.startswith("text/plain; version=0.0.4")
        return samples(text)['unblock_stalls_total{class="counted"}']

    assert helpers.wait_until(lambda: counted() >= 4, what="stalls in the metrics")
    assert get(http.client.HTTPConnection("127.0.0.1", port), "/")[0] == 404
    assert get(http.client.HTTPConnection("127.0.0.1", port), Host="evil.example:80")[0] == 403
    with socket.create_connection(("127.0.0.1", port)) as silent:  # it may not hold up the others for long
        silent.send(b"GET /met")
        assert get(http.client.HTTPConnection("127.0.0.1", port))[0] == 200


def test_unix_socket(blocked, workdir):
    path = str(workdir / "m.sock")
    blocked(f"unix:{path}")
    assert os.stat(path).st_mode & 0o777 == 0o700
    assert get(UnixConnection(path))[0] == 200


def test_file(blocked, workdir):
    child = blocked("m.prom")
    assert "unblock_build_info" in (workdir / "m.prom").read_text()
    child.communicate("\n", timeout=helpers.PATIENCE)
    got = samples((workdir / "m.prom").read_text())
    assert got['unblock_stalls_total{class="counted"}'] == len([s for s in helpers.Recording("r.jsonl").slow
                                                               if not s.get("startup") and s["cause"] != "stopped"])
    assert not list(workdir.glob("*.tmp"))


@pytest.mark.parametrize("where,words", [("0.0.0.0:9464", "loopback"), ("10.1.2.3:9464", "loopback"),
                                         ("/nonexistent/m.prom", "No such file"), ("/dev/full", "no regular file"),
                                         ("unix:" + "x" * 200, "too long")])
def test_places_that_are_refused(workdir, where, words):
    done = helpers.unblock("run", "--metrics", where, "--", "true")
    assert done.returncode == 125 and words in helpers.one_line(done.stderr)


def test_taken_port(workdir):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        s.listen()
        done = helpers.unblock("run", "--metrics", f":{s.getsockname()[1]}", "--", "true")
    assert done.returncode == 125 and "in use" in helpers.one_line(done.stderr)


@pytest.fixture
def unclear(tmp_path):
    """The sample, of which the longest stall may have been several short turns, for all that the kernel's view knows."""
    lines = [json.loads(line) for line in SAMPLE.read_text().splitlines()]
    longest = max((line for line in lines if line["type"] == "slow" and line["cause"] != "stopped" and not line.get("startup")),
                  key=lambda line: line["duration_ns"])
    for line in lines:
        if line.get("site") == longest["site"]:
            line["unclear"] = True
            line["callback"] = {"function": "hundred_turns", "module": longest["callback"]["module"]}
    path = tmp_path / "unclear.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path, longest


@pytest.mark.parametrize("name", ["folded", "speedscope", "chrome", "junit", "github", "sarif", "otlp"])
def test_no_stall_of_what_may_be_many_turns(unclear, name):
    """Formats that list stalls do not list it."""
    path, longest = unclear
    assert longest["site"] in export(name) or "clock_nanosleep" in export(name)
    text = export(name, path)
    assert text and longest["site"] not in text and "hundred_turns" not in text and "clock_nanosleep" not in text


def test_what_may_be_many_turns_is_a_class(unclear):
    """Formats that count tell it by itself; `check` and `diff` do not count it."""
    path, longest = unclear
    counted, total = VERDICT["stalls"] - 1, VERDICT["total_ns"] - longest["duration_ns"]
    report = json.loads(export("json", path))
    assert (report["verdict"]["stalls"], report["verdict"]["total_ns"], report["unclear"]["stalls"]) == (counted, total, 1)
    assert [s["class"] for s in report["sites"] if s["site"] == longest["site"]] == ["unclear"]
    metrics = export("prometheus", path)
    assert f'unblock_stalls_total{{class="counted"}} {counted}\n' in metrics
    assert 'unblock_stalls_total{class="unclear"} 1\n' in metrics
    stalls = json.loads(export("otlp-metrics", path))["resourceMetrics"][0]["scopeMetrics"][0]["metrics"][0]["sum"]
    classes = {point["attributes"][0]["value"]["stringValue"]: int(point["asInt"]) for point in stalls["dataPoints"]}
    assert (classes["counted"], classes["unclear"]) == (counted, 1)
    assert longest["duration_ns"] > 100_000_000
    assert helpers.unblock("check", "--fail-on", "100ms", SAMPLE).returncode == 1
    assert helpers.unblock("check", "--fail-on", "100ms", path).returncode == 0
    assert longest["site"] not in helpers.unblock("diff", path, path).stdout
    assert "Perhaps several short turns" in export("text", path)
