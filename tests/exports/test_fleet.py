"""Many hosts: recordings joined, shipped by a log shipper, figures through node_exporter. The configurations are those of the docs."""

import json
import subprocess
import urllib.request
from pathlib import Path

import helpers
from conftest import SAMPLE, needs
from test_consumers import free_port


def test_report_of_many_hosts(tmp_path):
    """A hundred hosts with the same bug: one call site."""
    paths = []
    for i in range(100):
        paths.append(tmp_path / f"web{i}.jsonl")
        paths[-1].write_text(SAMPLE.read_text().replace('"web1"', f'"web{i}"'))
    document = json.loads(helpers.unblock("report", "-f", "json", *paths).stdout)
    assert document["verdict"]["stalls"] == 600
    assert {s["site"]: s["stalls"] for s in document["sites"] if s["class"] == "counted"} == {
        "7f3a91c2": 100, "0c11d2e4": 400, "5e5a1007": 100}
    assert len(document["recordings"]) == 100 and len(document["loops"]) == 100


def test_rsyslog_ships_the_lines(tmp_path):
    rsyslogd = needs("rsyslogd")
    target = tmp_path / "shipped"
    (tmp_path / "state").mkdir()
    conf = Path(__file__).with_name("rsyslog.conf").read_text().replace("FOLDER", str(tmp_path)).replace("TARGET", str(target))
    (tmp_path / "rsyslog.conf").write_text(conf)
    check = subprocess.run([rsyslogd, "-N1", "-f", tmp_path / "rsyslog.conf"], capture_output=True, text=True)
    assert check.returncode == 0, check.stderr
    lines = SAMPLE.read_text().splitlines(keepends=True)
    recording = tmp_path / "app.jsonl"
    recording.write_text("".join(lines[:5]))
    shipper = subprocess.Popen([rsyslogd, "-n", "-f", tmp_path / "rsyslog.conf", "-i", tmp_path / "pid"],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wanted = [line for line in lines if '"type":"stats"' not in line]
    try:
        helpers.wait_until(lambda: target.exists() and target.read_text(), what="the first lines")
        with open(recording, "a", encoding="utf-8") as f:
            f.write("".join(lines[5:]))
        helpers.wait_until(lambda: len(target.read_text().splitlines()) >= len(wanted), what="all lines")
    finally:
        shipper.terminate()
        shipper.wait()
    assert target.read_text() == "".join(wanted)
    # What arrived is a recording again.
    shipped = json.loads(helpers.unblock("report", "-f", "json", target).stdout)
    assert shipped["verdict"] == json.loads(helpers.unblock("report", "-f", "json", SAMPLE).stdout)["verdict"]


def test_node_exporter(tmp_path):
    """--metrics FILE.prom in its textfile folder."""
    exporter = needs("prometheus-node-exporter")
    port = free_port()
    helpers.unblock("report", "-f", "prometheus", "-o", tmp_path / "unblock.prom", SAMPLE)
    server = subprocess.Popen([exporter, f"--web.listen-address=127.0.0.1:{port}", "--collector.disable-defaults",
                               "--collector.textfile", f"--collector.textfile.directory={tmp_path}"],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def scrape():
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as reply:
                return reply.read().decode()
        except OSError:
            return ""

    try:
        text = helpers.wait_until(scrape, what="node_exporter")
    finally:
        server.terminate()
        server.wait()
    assert 'unblock_stalls_total{class="counted"} 6' in text
    assert "node_textfile_scrape_error 0" in text
