#!/usr/bin/env python3
"""Grows real recordings into one of any size: grow.py SIZE OUT RECORDING...

What a program that stalls for weeks would have left: headers, processes, loops and stacks once, then the
stalls of the given recordings over and over, each with an id, a time and a duration of its own (a few longer
than any before), a `stats` line for every loop each ten seconds, and an end. The mix of lines is that of the
recordings; the run of RECORDING is said by the header of the first of them.
SIZE takes k, M or G. Prints what must be found again: {"stalls", "total_ns", "bytes"}.
"""

import json
import random
import sys

UNITS = {"k": 1 << 10, "M": 1 << 20, "G": 1 << 30}


def read(paths):
    header, heads, slows, stats = None, [], [], []
    next_stack = 0
    for path in paths:
        ids, last = {}, {}
        with open(path, encoding="utf-8") as f:
            for text in f:
                line = json.loads(text)
                kind = line["type"]
                if kind == "header":
                    header = header or line
                elif kind == "stack":
                    next_stack += 1
                    ids[line["id"]] = next_stack
                    heads.append({**line, "id": next_stack})
                elif kind in ("process", "loop"):
                    heads.append(line)
                elif kind == "slow" and not line.get("ongoing"):
                    samples = [{**s, "stack": ids[s["stack"]]} if "stack" in s else s for s in line["samples"]]
                    slows.append({**line, "samples": samples})
                elif kind == "stats":
                    last[(line["pid"], line["tid"])] = line
        stats += last.values()
    return header, heads, slows, stats


def grow(size, out, paths):
    header, heads, slows, stats = read(paths)
    dice = random.Random(1)
    written = stalls = total = 0
    now = last_stats = header["monotonic_ns"]

    def put(line):
        nonlocal written
        text = json.dumps(line, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"
        written += out.write(text)

    for line in [header, *heads]:
        put(line)
    # A line is made once and cut where the numbers stand: a gigabyte takes a minute, not ten.
    templates = []
    for line in slows:
        text = json.dumps({**line, "id": "@1", "start_ns": "@2", "duration_ns": "@3"}, separators=(",", ":"),
                          ensure_ascii=False)
        text = text.replace("%", "%%")
        for i, name in enumerate(("id", "start", "duration"), 1):
            text = text.replace(f'"@{i}"', f"%({name})d")
        templates.append((text + "\n", line["duration_ns"],
                          not line.get("startup") and line["cause"] != "stopped" and "parent" not in line))
    while written < size:
        for template, duration, counted in templates:
            duration = int(duration * (0.5 + dice.random()))
            now += duration + dice.randrange(1, 40_000_000)
            text = template % {"id": stalls, "start": now - duration, "duration": duration}
            written += out.write(text.encode())
            stalls += 1
            total += duration if counted else 0
        if now - last_stats > 10_000_000_000:
            last_stats = now
            for line in stats:
                put({**line, "at_ns": now, "observed_ns": now - header["monotonic_ns"]})
    put({"type": "end", "exit": 0, "slow": stalls, "lost": {"ring": 0, "rate_limited": 0, "torn": 0}, "at_ns": now})
    return {"stalls": stalls, "total_ns": total, "bytes": written}


def main():
    if len(sys.argv) < 4:
        sys.exit(__doc__)
    size = sys.argv[1]
    size = int(float(size[:-1]) * UNITS[size[-1]]) if size[-1] in UNITS else int(size)
    with open(sys.argv[2], "wb", buffering=1 << 20) as out:
        print(json.dumps(grow(size, out, sys.argv[3:])))


if __name__ == "__main__":
    main()
