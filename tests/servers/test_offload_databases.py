"""Whole calls of client libraries (common/units.h) against servers of Debian's, on loopback: the answers are the same as alone, and the
ticker beside them goes on. `make check-offload`.

Seen to fail: `mysql`, which hung while who had a connection waited behind those that wait for it; `postgres`, which
hung in `transacts` while who wanted a connection kept psycopg2's mutex of it.
"""

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import helpers
import oracle
import pytest

PROGRAM = helpers.ROOT / "tests/programs/pydatabases.py"
PYTHON = "/usr/bin/python3"
pytestmark = pytest.mark.skipif("UNBLOCK_SOAK" not in os.environ or os.geteuid() != 0 or not (helpers.AGENT.parent / "python3.11.so").exists(),
                                reason="make check-offload, as root (for the servers' users), with Debian's Python 3.11")


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def wait_for(port, process):
    for _ in range(600):
        assert process.poll() is None, process.stdout.read() if process.stdout else ""
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise TimeoutError(port)


def run(*command, user=None, **more):
    command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *command] if user else command
    return subprocess.run(list(map(str, command)), check=True, capture_output=True, text=True, timeout=120, **more)


def begin(*command, user=None):
    command = ["setpriv", f"--reuid={user}", f"--regid={user}", "--clear-groups", *command] if user else command
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def postgres(folder, port):
    programs = max(Path("/usr/lib/postgresql").glob("*/bin"), default=None)
    if not programs:
        pytest.skip("no postgresql is installed")
    shutil.chown(folder, "postgres")
    run(programs / "initdb", "-D", folder / "data", "-A", "trust", "-U", "postgres", user="postgres", cwd="/")
    return begin(programs / "postgres", "-D", folder / "data", "-p", port, "-c", "listen_addresses=127.0.0.1",
                 "-c", f"unix_socket_directories={folder}", "-c", "fsync=off", user="postgres")


def mysql(folder, port):
    if not shutil.which("mariadbd", path="/usr/sbin"):
        pytest.skip("no mariadb-server is installed")
    shutil.chown(folder, "mysql")
    run("mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={folder}/data", "--auth-root-authentication-method=normal")
    (folder / "init.sql").write_text("create user tester@'%' identified by 'tester';\ncreate user tester@localhost identified by 'tester';\n"
                                      "create database test;\ngrant all on test.* to tester@'%';\ngrant all on test.* to tester@localhost;\n")
    os.chmod(folder / "init.sql", 0o644)
    return begin("/usr/sbin/mariadbd", "--no-defaults", "--user=mysql", f"--datadir={folder}/data", f"--port={port}",
                 "--bind-address=127.0.0.1", f"--socket={folder}/socket", f"--pid-file={folder}/pid", f"--init-file={folder}/init.sql")


def ldap(folder, port):
    if not shutil.which("slapd", path="/usr/sbin"):
        pytest.skip("no slapd is installed")
    (folder / "data").mkdir()
    (folder / "slapd.conf").write_text(f"""include /etc/ldap/schema/core.schema
pidfile {folder}/pid
modulepath /usr/lib/ldap
moduleload back_mdb
database mdb
suffix dc=test
rootdn cn=admin,dc=test
rootpw secret
directory {folder}/data
""")
    run("/usr/sbin/slapadd", "-f", folder / "slapd.conf", input="dn: dc=test\nobjectClass: dcObject\nobjectClass: organization\ndc: test\no: test\n")
    return begin("/usr/sbin/slapd", "-d", "0", "-f", folder / "slapd.conf", "-h", f"ldap://127.0.0.1:{port}")


@pytest.fixture(params=[postgres, mysql, ldap], ids=lambda start: start.__name__)
def server(request):
    """(case, port, pid)"""
    folder = Path(tempfile.mkdtemp(prefix="unblock-db-"))
    port = free_port()
    process = request.param(folder, port)
    try:
        wait_for(port, process)
        yield request.param.__name__, port, process.pid
    finally:
        process.send_signal(signal.SIGCONT)
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        shutil.rmtree(folder, ignore_errors=True)


MOVED = {"postgres": "PQexec in ask()", "mysql": "mysql_real_query in ask()", "ldap": "ldap_result in "}


def test_whole_calls(tmp_path, server):
    case, *where = server
    module = {"postgres": "psycopg2", "mysql": "MySQLdb", "ldap": "ldap"}[case]
    if subprocess.run([PYTHON, "-c", f"import {module}"], capture_output=True).returncode:
        pytest.skip(f"Debian's Python has no {module}")
    command = [PYTHON, PROGRAM, case, *map(str, where)]
    env = helpers.clean_environment(PYTHONDONTWRITEBYTECODE="1", TMPDIR=str(tmp_path))
    alone = subprocess.run(command, capture_output=True, text=True, env=env, timeout=90)
    assert alone.returncode == 0, alone.stderr
    with oracle.Sentinel() as sentinel:
        done, recording = helpers.record(tmp_path, *command, options=("--offload=eager", "--live=none"), threshold="50ms", env=env,
                                         timeout=90)
    assert done.returncode == 0, done.stderr
    assert done.stdout == alone.stdout, done.stderr
    assert MOVED[case] in done.stderr, done.stderr
    gaps = [int(next(line.split()[1] for line in text.splitlines() if "asks_ldap " in line or line.startswith(case + " ")))
            for text in (alone.stderr, done.stderr)]
    if sum(b - a for a, b in sentinel.late) < 50_000_000:
        assert gaps[1] < gaps[0] / 2, (gaps, done.stderr)
