#!/usr/bin/env python3
"""What unblock costs, beside other tools: one table. `make bench`, or

    tests/bench/bench.py [--quick] [--only NAME[,NAME...]] [--list]

--quick takes 5 pairs instead of 20 (the intervals then say little);
UNBLOCK_BENCH_PAIRS=N any number. Each section checks its own work (counts,
replies, recordings) before its rows are printed; all single runs are kept in
build/bench/SECTION.json. The peers are measured where they are installed, each
in a section of its own. Exits 1 when a limit is exceeded.
"""

import argparse
import json
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "e2e"), str(HERE.parent / "servers")]

import pytest  # noqa: E402

import callbacks  # noqa: E402
import computing  # noqa: E402
import entering  # noqa: E402
import helpers  # noqa: E402
import hopping  # noqa: E402
import kernel  # noqa: E402
import micro  # noqa: E402
import moved  # noqa: E402
import peers  # noqa: E402
import reports  # noqa: E402
import services  # noqa: E402
import steps  # noqa: E402
import watcher  # noqa: E402

OUT = helpers.BUILD / "bench"

# section: what it measures, a function(quick) that returns (rows, raw)
SECTIONS = {
    "turn": micro.turn,
    "serve": micro.serve,
    "malloc": micro.malloc,
    "offloop": micro.offloop,
    "call": micro.call,
    "loopcall": micro.loopcall,
    "fibers": micro.fibers,
    "callback": callbacks.callbacks,
    "uprobe": callbacks.uprobes,
    "uftrace-callback": callbacks.uftrace,
    "step": steps.steps,
    "latency": watcher.latency,
    "stolen": watcher.stolen,
    "watcher": watcher.cpu,
    "idle": watcher.idle,
    "attach": entering.entering,
    "redis": services.redis,
    "nginx": services.nginx,
    "memcached": services.memcached,
    "node": services.node,
    "aiohttp": services.aiohttp,
    "uvloop": services.uvloop,
    "moved": moved.aiohttp,
    "hops": moved.hops,
    "hops-uv": hopping.hops,
    "inline": hopping.inline,
    "suspensions": hopping.suspensions,
    "tickers": moved.tickers,
    "waits": moved.waits,
    "echo": computing.echoes,
    "yield": computing.yields,
    "functions": computing.elsewhere,
    "checkpoint": computing.checkpoints,
    "trace": kernel.trace,
    "untraced": kernel.beside_it,
    "offcpu": kernel.offcpu,
    "strace": peers.strace,
    "perf": peers.perf,
    "bpftrace": peers.bpftrace,
    "uftrace": peers.uftrace,
    "report": reports.gigabyte,
}


class Row:
    """One line of the table. `limit`: None, or what `judged` must not exceed."""

    def __init__(self, what, ours="", peer="", limit=None, judged=None, unit=""):
        self.what, self.ours, self.peer, self.limit, self.judged, self.unit = what, ours, peer, limit, judged, unit

    @property
    def verdict(self):
        if self.limit is None or self.judged is None:
            return ""
        return "ok" if self.judged <= self.limit else "OVER"


def show(rows):
    cells = [("what", "ours", "peer", "limit", "")]
    for row in rows:
        limit = "" if row.limit is None else f"<= {row.limit:.3g}{row.unit}"
        cells.append((row.what, row.ours, row.peer, limit, row.verdict))
    width = [max(len(c[i]) for c in cells) for i in range(5)]
    for i, cell in enumerate(cells):
        print("  ".join(text.ljust(w) for text, w in zip(cell, width)).rstrip(), flush=True)
        if i == 0:
            print("  ".join("-" * w for w in width).rstrip())


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--only", default=",".join(SECTIONS))
    parser.add_argument("--list", action="store_true")
    args = parser.parse_args()
    if args.list:
        print("\n".join(SECTIONS))
        return 0
    if not helpers.UNBLOCK.exists():
        print(f"{helpers.UNBLOCK} is missing: run make first", file=sys.stderr)
        return 2
    OUT.mkdir(parents=True, exist_ok=True)
    rows, failed = [], []
    for name in args.only.split(","):
        begun = time.monotonic()
        print(f"{name} ...", end=" ", file=sys.stderr, flush=True)
        try:
            described, raw = SECTIONS[name](args.quick)
        except (peers.Missing, pytest.skip.Exception) as missing:
            print(f"left out: {missing}", file=sys.stderr)
            rows.append(Row(name, peer=f"left out: {missing}"))
            continue
        except Exception as error:  # whatever it was: this section has no numbers to show
            print(f"did not check out: {type(error).__name__}: {error}", file=sys.stderr)
            failed.append(name)
            continue
        (OUT / f"{name}.json").write_text(json.dumps({"section": name, "when": time.strftime("%FT%TZ", time.gmtime()),
                                                      "quick": args.quick, "raw": raw}, indent=1))
        rows += [Row(**d) for d in described]
        print(f"{time.monotonic() - begun:.0f} s", file=sys.stderr)
    show(rows)
    over = [row.what for row in rows if row.verdict == "OVER"]
    print(f"\nall runs: {OUT}/*.json" + (f"\nover the limit: {', '.join(over)}" if over else "") +
          (f"\ndid not check out: {', '.join(failed)}" if failed else ""))
    return 1 if over or failed else 0


if __name__ == "__main__":
    sys.exit(main())
