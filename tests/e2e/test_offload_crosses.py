"""Steps that want one another's connections: none waits for ever, and the report says that they got in between each other.

Seen to fail: hung with the circle not looked for, and nothing was said.
"""

import helpers
import pythons
import pytest

CROSSES = "a step got a connection of one that may wait for it: they mix"
PROGRAM = """
import asyncio, sys, time
import pyodbc

def rows(connection):
    return sorted(who for who, in connection.execute("select a from t").fetchall())

async def main(count):
    for _ in range(12):
        await asyncio.sleep(0.002)
    connections = [pyodbc.connect(f"DRIVER=SQLite3;Database={n}.db", autocommit=False) for n in range(count)]
    for connection in connections:
        connection.execute("create table t(a)")
        connection.commit()

    async def writes(n):
        own, next = connections[n], connections[(n + 1) % count]
        await asyncio.sleep(0.02 * n)
        own.execute("insert into t values(?)", n)
        time.sleep(0.15)
        if next is not own:
            next.execute("insert into t values(?)", n)
            next.commit()
        own.commit()
    await asyncio.gather(*(asyncio.create_task(writes(n)) for n in range(count)))
    print([rows(connection) for connection in connections])

asyncio.run(main(int(sys.argv[1])))
"""


@pytest.mark.skipif(not pythons.moving(helpers.AGENT, False), reason="no headers of CPython 3.11 to 3.13: not built")
@pytest.mark.parametrize("count", [1, 2, 3])
def test_let_in(tmp_path, count):
    """Each has a connection and wants the next one's: in a circle of two and of three; one that has its own only crosses nobody."""
    python = "/usr/bin/python3"
    if "SQLite3" not in pythons.ask(python, "import pyodbc; print(pyodbc.drivers())"):
        pytest.skip("Debian's pyodbc or its driver of SQLite is not here")
    (tmp_path / "crosses.py").write_text(PROGRAM)
    done, recording = helpers.record(tmp_path, python, "crosses.py", count, threshold="50ms", options=("--offload=eager",), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{[sorted({n, (n - 1) % count}) for n in range(count)]}\n"
    told = [line for line in recording.of("python") if line["text"] == CROSSES]
    assert len(told) == (count > 1) and (CROSSES in done.stderr) == (count > 1), done.stderr
