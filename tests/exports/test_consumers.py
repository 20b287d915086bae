"""Each format in the tool that people use for it."""

import base64
import json
import socket
import subprocess
import urllib.request

import pytest

import helpers
from conftest import NPM, SAMPLE, needs, npm

TOTAL_NS = 483300000


@pytest.mark.parametrize("name,profile", [("speedscope", "redis-server: time lost"), ("folded", None), ("chrome", None),
                                          ("pprof", None)])
def test_speedscope(browser, export, tmp_path, name, profile):
    """Its page imports the file and shows it: the way its own command line opens a browser."""
    release = npm("speedscope") / "dist/release"
    out = export(name)
    loader = tmp_path / "load.js"
    loader.write_text(f"speedscope.loadFileFromBase64({json.dumps(out.name)}, {json.dumps(base64.b64encode(out.read_bytes()).decode())})")
    page = tmp_path / "open.html"
    page.write_text(f'<script>window.location="file://{release}/index.html#localProfilePath={loader}"</script>')
    seen = browser("speedscope", page)
    assert seen["title"] != "speedscope" and "speedscope" in seen["title"], seen
    if profile:
        assert profile in seen["title"] + seen["text"]
    assert "error" not in seen["text"].lower()


def test_speedscope_schema(export):
    """The part of its schema that matters, and all weights."""
    jsonschema = pytest.importorskip("jsonschema")
    schema = npm("speedscope") / "dist/release/file-format-schema.json"
    schemas = [schema] if schema.exists() else list((npm("speedscope") / "dist/release").glob("file-format-schema*.json"))
    if not schemas:
        pytest.skip("this speedscope ships no schema")
    document = json.loads(export("speedscope").read_text())
    jsonschema.validate(document, json.loads(schemas[0].read_text()))
    assert sum(sum(p["weights"]) for p in document["profiles"]) == TOTAL_NS


def test_go_tool_pprof(export):
    go = needs("go")
    done = subprocess.run([go, "tool", "pprof", "-raw", "-symbolize=none", str(export("pprof"))], capture_output=True,
                          text=True, timeout=60, env={**helpers.clean_environment(), "PPROF_TMPDIR": "/tmp"})
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.split("Samples:\n")[1].split("Locations\n")[0].splitlines() if ": " in line]
    values = [int(row[1].rstrip(":")) for row in rows if row[0].isdigit()]
    assert sum(values) == TOTAL_NS
    assert "debugCommand" in done.stdout and "site:[7f3a91c2]" in done.stdout


def test_pprof_format(export):
    npm("pprof-format")
    code = ("const {Profile} = require(process.argv[1]); const p = Profile.decode(require('fs').readFileSync(process.argv[2]));"
            "let n = 0n; for (const s of p.sample) n += BigInt(s.value[1]);"
            "console.log(JSON.stringify({total: String(n), functions: p.function.length, names: p.stringTable.strings}))")
    done = subprocess.run([needs("node"), "-e", code, str(NPM / "node_modules/pprof-format"), str(export("pprof"))],
                          capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert int(seen["total"]) == TOTAL_NS and "lzf_compress" in seen["names"]


def test_promtool(export):
    done = subprocess.run([needs("promtool"), "check", "metrics"], stdin=open(export("prometheus")), capture_output=True,
                          text=True, timeout=60)
    assert done.returncode == 0 and done.stdout + done.stderr == "", done.stdout + done.stderr


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def test_prometheus_scrapes_a_running_program(tmp_path):
    """unblock run --metrics, a real Prometheus beside it, and its answer to a query."""
    prometheus = needs("prometheus")
    metrics, web = free_port(), free_port()
    (tmp_path / "p.yml").write_text("global: {scrape_interval: 1s}\nscrape_configs:\n- job_name: unblock\n"
                                    f"  static_configs: [{{targets: ['127.0.0.1:{metrics}']}}]\n")
    code = ("import select, sys, time\ne = select.epoll(); e.register(sys.stdin.fileno())\n"
            "for i in range(60):\n e.poll(0.001)\n if i >= 30 and i % 6 == 0: time.sleep(0.05)\ninput()\n")
    watched = helpers.start("run", "-q", "-t", "20ms", "-o", tmp_path / "r.jsonl", "--metrics", f"127.0.0.1:{metrics}", "--",
                            helpers.PYTHON, "-c", code, stdin=subprocess.PIPE)
    server = subprocess.Popen([prometheus, f"--config.file={tmp_path}/p.yml", f"--storage.tsdb.path={tmp_path}/data",
                               f"--web.listen-address=127.0.0.1:{web}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def ask(query):
        url = f"http://127.0.0.1:{web}/api/v1/query?query={query}"
        try:
            with urllib.request.urlopen(url, timeout=5) as reply:
                result = json.load(reply)["data"]["result"]
        except OSError:
            return None
        return float(result[0]["value"][1]) if result else None

    try:
        query = 'unblock_stalls_total%7Bclass%3D%22counted%22%7D'
        counted = helpers.wait_until(lambda: (ask(query) or 0) >= 5 and ask(query), timeout=60, what="Prometheus", interval=0.3)
        assert ask("up") == 1
        watched.communicate("\n", timeout=helpers.PATIENCE)
        recorded = [s for s in helpers.Recording(tmp_path / "r.jsonl").slow if not s.get("startup") and s["cause"] != "stopped"]
        assert counted == len(recorded)
    finally:
        server.terminate()
        server.wait()
        if watched.poll() is None:
            watched.kill()
            watched.communicate()


def test_jq_and_the_recording():
    done = subprocess.run([needs("jq"), "-s", '[.[]|select(.type=="slow" and .ongoing!=true)|.duration_ns]|add', str(SAMPLE)],
                          capture_output=True, text=True)
    assert done.returncode == 0 and int(done.stdout) > TOTAL_NS / 2


def test_junitparser(tmp_path):
    needs("xmllint")
    out = tmp_path / "j.xml"
    helpers.unblock("check", SAMPLE, "--fail-on", "80ms", "-f", "junit", "-o", out)
    assert subprocess.run(["xmllint", "--noout", str(out)]).returncode == 0
    try:
        import junitparser
    except ImportError:
        pytest.skip("junitparser is not installed: tests/deps.sh exports")
    xml = junitparser.JUnitXml.fromfile(str(out))
    cases = [case for suite in xml for case in suite]
    assert len(cases) == 2 and all(case.result for case in cases)
    assert (xml.tests, xml.failures) in ((2, 2), (None, None)) or sum(s.failures for s in xml) == 2


def sarif_validate(path, folder):
    """(exit status, [(rule, level)]) of Microsoft's validator: the schema and what code scanning asks for."""
    tool = npm("@microsoft/sarif-multitool-linux") / "Sarif.Multitool"
    out = folder / "validated.sarif"
    done = subprocess.run([tool, "validate", path, "--output", out, "--log", "ForceOverwrite"],
                          capture_output=True, text=True, timeout=120,
                          env={**helpers.clean_environment(), "DOTNET_SYSTEM_GLOBALIZATION_INVARIANT": "1",
                               "DOTNET_BUNDLE_EXTRACT_BASE_DIR": str(folder / "dotnet")})
    assert out.exists(), done.stdout + done.stderr
    run = json.loads(out.read_text(encoding="utf-8-sig"))["runs"][0]
    return done.returncode, [(r["ruleId"], r.get("level", "warning")) for r in run["results"]]


def test_sarif_multitool(export, tmp_path):
    path = export("sarif")
    status, findings = sarif_validate(path, tmp_path)
    # What it misses is an address of the project.
    assert status == 0 and {rule for rule, _ in findings} <= {"SARIF2005"}, findings
    allowed = tmp_path / "allow.txt"
    allowed.write_text("7f3a91c2 until 2999-12-31 # ticket 5\n")
    helpers.unblock("check", SAMPLE, "--fail-on", "80ms", "--allow", allowed, "-f", "sarif", "-o", tmp_path / "c.sarif")
    status, findings = sarif_validate(tmp_path / "c.sarif", tmp_path)
    assert status == 0 and {rule for rule, _ in findings} <= {"SARIF2005"}, findings
    broken = tmp_path / "broken.sarif"
    broken.write_text(path.read_text().replace('"startLine": 155', '"startLine": 0'))
    assert any(level == "error" for _, level in sarif_validate(broken, tmp_path)[1]), "it does find what is wrong"
