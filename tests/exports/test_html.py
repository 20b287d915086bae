"""The HTML report in a real Chromium, over file://. UNBLOCK_SHOTS=FOLDER keeps screenshots to look at."""

import json
import os

from conftest import SAMPLE

EVIL = "</script><script>window.pwned=1</script><img src=x onerror=window.pwned=1>\\u202e\\u001b[31m&quot;\\\"'"


def test_use(browser, export):
    seen = browser("use", export("html"), *([os.environ["UNBLOCK_SHOTS"]] if "UNBLOCK_SHOTS" in os.environ else []))
    assert seen["title"] == "unblock: redis-server --port 7000"
    assert seen["tiles"][:4] == ["6\nstalls", "483 ms\nlost", "251 ms\nlongest", "3\ncall sites"]
    assert seen["rows"] == 3
    assert "BLOCKED 251 ms DEBUG SLEEP: clock_nanosleep in debugCommand" in seen["clicked"].replace("  ", " ")
    assert "3 of 3 samples" in seen["clicked"] and "debugCommand" in seen["clicked"] and "7f3a91c2" in seen["clicked"]
    assert seen["tip"].startswith("251 ms")
    assert seen["closed"]
    assert "fdatasync" in seen["second"] and "DEBUG SLEEP" in seen["back"]
    assert seen["found"] == ["1 of 3", 1] and seen["flame_of_found"].startswith("all: 90 ms")
    assert "SAVE: cpu in lzf_compress" in seen["chosen"]
    assert "DEBUG SLEEP" in seen["row"] and "fdatasync" in seen["row2"]
    assert seen["flame"].startswith("redis-server: 483 ms") and seen["flame_back"].startswith("all: 483 ms")
    assert "fdatasync" in seen["sorted"], "four stalls, most of all"
    assert seen["help"] and seen["toggled"]
    assert seen["overflow"] == [0] * 8, "no sideways scrolling at any width, of the page or of its flame graph"
    assert seen["dark"] != seen["light"]
    assert seen["pdf"] > 10000


def test_hostile_names(browser, export, tmp_path):
    text = SAMPLE.read_text()
    for name in ("debugCommand", "redis-server", "flushAppendOnlyFile", "clock_nanosleep", "web1", "aof.c", "7f3a91c2"):
        text = text.replace(name, EVIL + name)
    lines = text.splitlines(keepends=True)
    long = json.loads(lines[5])
    long["callback"] = {"function": "x" * 3_900_000}
    long.update(id=77, call={"name": "y" * 10000, "args": "z" * 10000}, site="aaaa0001")
    note = json.dumps({"type": "note", "level": "warning", "text": "</script><b>" + "n" * 10000})
    lint = json.dumps({"type": "lint", "pid": 1, "tid": 1, "lint": "sleep0", "count": 5000, "total_ns": 5_000_000,
                       "callback": {"function": "</script><i>poll", "file": "/srv/app.py", "line": 7}})
    place = {"function": "</script><i>kept", "file": "/srv/</script><i>.c", "line": 9}
    moved = json.dumps({"type": "offload", "site": "</script><i>", "call": "</script><i>fsync", "moved": 2, "saved_ns": 60_000_000, "first": 0,
                        "caller": place, "pinned": {"lock": 1, "</script><i>why": 2}, "pinned_ns": 5_000_000, "lock": place})
    path = tmp_path / "evil.jsonl"
    path.write_text("".join(lines[:-1]) + json.dumps(long) + "\n" + note + "\n" + lint + "\n" + moved + "\n" + lines[-1])
    out = export("html", path)
    assert out.stat().st_size < 200_000, "names are cut"
    assert b"</script><script>window" not in out.read_bytes()
    seen = browser("hostile", out)
    assert seen["pwned"] is None and seen["inline"] is None and seen["fetch"] == "refused"
    assert seen["scripts"] == 2 and seen["images"] == 0
    assert "\\u202e\\x1b[31m" in seen["body"] and "</script><script>" in seen["body"]
    assert "Habits that cost" in seen["body"] and "</script><i>poll() gave way by sleep(0) " in seen["body"]
    moved = seen["body"][seen["body"].index("Moved off the loop"):]
    assert "</script><i>fsync\t</script><i>kept()" in moved and "</script><i>why 2" in moved and "60 ms" in moved
    for raw in ("\u202e", "\x1b"):
        assert raw not in seen["body"]
    assert seen["overflow"] == 0


def test_a_hundred_thousand_stalls(browser, export, tmp_path):
    lines = SAMPLE.read_text().splitlines(keepends=True)
    slow = json.loads(lines[7])
    path = tmp_path / "large.jsonl"
    with open(path, "w", encoding="utf-8") as f:
        f.writelines(lines[:4] + [lines[6]])
        for i in range(100_000):
            slow.update(id=100 + i, start_ns=5_000_000_000_000 + i * 40_000_000, duration_ns=20_000_000 + i * 7919 % 17_000_000,
                        site=f"site{i % 500:04}")
            f.write(json.dumps(slow) + "\n")
    out = export("html", path)
    assert out.stat().st_size < 3_000_000
    seen = browser("large", out)
    print(f"\n100,000 stalls: {out.stat().st_size} bytes, {seen}")
    assert seen["tiles"][0] == "100,000\nstalls"
    assert "80,0" in seen["hint"] and "grey sums" in seen["hint"]
    # Far above what it takes (some 0.3 s to show, 20 ms a key), far below what would be felt as stuck.
    assert seen["ready_ms"] < 10_000 and seen["zoom_ms"] < 5000 and seen["step_ms"] < 5000 and seen["search_ms"] < 5000


def test_nothing_recorded(browser, export, tmp_path):
    path = tmp_path / "r"
    path.write_text(SAMPLE.read_text().splitlines(keepends=True)[0])
    out = export("html", path)
    assert out.stat().st_size < 150_000, "the page before its data"
    assert browser("speedscope", out)["title"].startswith("unblock: redis-server")
