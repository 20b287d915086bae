"""How long `unblock attach` keeps a loop from its work: an idle program's, and servers' under load of three clients."""

import importlib.util
import tempfile
from pathlib import Path

import attaching
import pairs


def entries(pid, count):
    """The longest time at once of each entry, in milliseconds."""
    held = attaching.Held()
    with tempfile.TemporaryDirectory(prefix="unblock-bench-") as folder:
        for i in range(count):
            held.add(attaching.leave(attaching.enter(pid, Path(folder) / f"{i}.jsonl")))
    return held.longest


def under_load():
    """tests/servers/test_attach.py; there is another file of that name."""
    path = Path(__file__).resolve().parents[1] / "servers" / "test_attach.py"
    spec = importlib.util.spec_from_file_location("attach_servers", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def loaded(name, count):
    module = under_load()
    kind, talk, reply, whom = module.KINDS[name]
    server = kind(watched=False)
    try:
        server.start()
        with module.Load(server, talk, reply) as load:
            held = entries(whom(server), count)
        assert load.replies > 100 and not load.wrong, load.wrong
    finally:
        server.end()
    return held


def entering(quick):
    count = 10 if quick else 50
    raw = {}
    with attaching.Target(0) as target:
        target.ready()
        raw["idle, ms"] = entries(target.pid, count)
        attaching.nothing_noticed(target.end())
    for name in ("redis", "node", "aiohttp"):
        raw[f"{name} under load, ms"] = loaded(name, count)
    rows = []
    for what, held in raw.items():
        for p, limit in ((0.5, 2), (1.0, 10)):
            value = max(held) if p == 1.0 else pairs.percentile(held, p)
            rows.append({"what": f"attach: the loop was held at a time, {what[:-4]}, {'max' if p == 1.0 else 'p50'} of {count}",
                         "ours": f"{value:.2f} ms", "limit": limit, "judged": value, "unit": " ms", "peer": ""})
    return rows, raw
