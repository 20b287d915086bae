"""Scripted conversations with programs nobody here wrote: byte for byte the same with and without the agent."""

import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path

import pytest

import helpers

USER = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]


def tool(name):
    path = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    return path or pytest.skip(f"{name} is not installed")


@pytest.fixture
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("peer")
    for p in (path, *list(path.parents)[:2]):
        p.chmod(0o755)
    return path


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Talk:
    """One side of the comparison: starts programs, alone or under the agent, and keeps what they said."""

    def __init__(self, folder, watched, port):
        self.root, self.watched, self.port = folder, watched, port
        self.folder = folder / "work"
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(mode=0o755)
        self.said = []
        self.started, self.running = 0, []

    def command(self, argv, user=False):
        argv = [str(a) for a in argv]
        if self.watched:
            self.started += 1
            argv = [str(helpers.UNBLOCK), "run", "-q", "--force", "-o",
                    str(self.root / f"recording-{self.started}.jsonl"), "--", *argv]
        return argv

    def env(self, **more):
        return helpers.clean_environment(LC_ALL="C", TZ="UTC", **more)

    def run(self, *argv, stdin="", **env):
        """A program from start to end; its output, errors and status are part of what is compared."""
        done = subprocess.run(self.command(argv), input=stdin, cwd=self.folder, env=self.env(**env), text=True,
                              capture_output=True, timeout=60)
        self.said.append((argv[0], done.returncode, done.stdout, done.stderr))
        return done

    def start(self, *argv, port=None, **env):
        p = subprocess.Popen(self.command(argv), cwd=self.folder, env=self.env(**env), stdin=subprocess.DEVNULL,
                             stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.running.append(p)

        def ready():
            assert p.poll() is None, f"{argv[0]} ended with {p.returncode}"
            try:
                socket.create_connection(("127.0.0.1", port or self.port), 5).close()
                return True
            except OSError:
                return False

        helpers.wait_until(ready, what=f"{argv[0]} to listen")
        return p

    def stop(self, p, sig=signal.SIGTERM):
        p.send_signal(sig)
        self.said.append(("ended", p.wait(30)))

    def ask(self, *requests, quiet=0.3, connection=None):
        """Sends each request and keeps everything that is answered until the peer closes, or is quiet for a while: what is to be
        closed can be waited for longer."""
        s = connection or socket.create_connection(("127.0.0.1", self.port), 10)
        for request in requests:
            s.sendall(request)
            answer, waited = b"", 5.0
            while True:
                s.settimeout(waited)
                try:
                    part = s.recv(65536)
                except (TimeoutError, ConnectionResetError):
                    break
                if not part:
                    answer += b"<closed>"
                    break
                answer += part
                waited = quiet
            assert answer, f"no answer to {request[:60]!r}"
            self.said.append(answer)
        if not connection:
            s.close()


def compare(folder, script, normalise=lambda text: text):
    """Both sides on the same port and in the same folder, one after the other."""
    port, sides = free_port(), []
    for watched in (False, True):
        talk = Talk(folder, watched, port)
        try:
            script(talk)
        finally:  # what a failure left running
            for p in talk.running:
                if p.poll() is None:
                    p.terminate()
                    p.wait(30)
        sides.append([normalise(repr(x)) for x in talk.said])
    plain, watched = sides
    assert plain and plain == watched
    recordings = list(folder.glob("recording-*.jsonl"))
    assert len(recordings) == talk.started
    for path in recordings:
        notes = helpers.Recording(path, torn=True).of("note")
        assert not any("not loaded" in n["text"] for n in notes), notes


def test_redis(folder):
    def resp(*words):
        return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(w), w) for w in words)

    def script(t):
        p = t.start(tool("redis-server"), "--port", t.port, "--save", "", "--dir", t.folder, "--appendonly", "yes")
        t.ask(*(resp(*line.split()) for line in (
            b"PING", b"SET a 1", b"INCR a", b"GET a", b"INCR nonumber x", b"LPUSH l 1 2 3", b"LRANGE l 0 -1", b"MULTI",
            b"SET b 2", b"GET b", b"EXEC", b"HSET h f v g w", b"HGETALL h", b"EXPIRE a 100", b"TYPE h", b"NOSUCH x",
            b"EVAL return{1,2,KEYS[1]} 1 k", b"BLPOP nothing 0.2", b"SUBSCRIBE c", b"BGREWRITEAOF", b"UNSUBSCRIBE",
            b"WAIT 0 10", b"DBSIZE", b"OBJECT ENCODING l")))
        t.ask(b"PING\r\nECHO inline\r\n", b"*1\r\n$-5\r\n")
        t.stop(p)

    compare(folder, script)


def test_memcached(folder):
    def script(t):
        user = ["-u", "nobody"] if os.getuid() == 0 else []
        p = t.start(tool("memcached"), "-p", t.port, "-U", 0, "-l", "127.0.0.1", "-t", 2, *user)
        t.ask(b"set a 1 0 3\r\nabc\r\n", b"get a b\r\n", b"append a 0 0 1\r\nd\r\n", b"gets a\r\n", b"incr a 1\r\n",
              b"set n 0 0 1\r\n5\r\n", b"incr n 7\r\n", b"delete a\r\n", b"delete a\r\n", b"touch n 10\r\n",
              b"nonsense\r\n", b"set x 0 0 3\r\ntoo long\r\n", b"mg n v t\r\n", b"version\r\n", b"quit\r\n")
        t.stop(p)

    compare(folder, script)


def test_nginx(folder):
    """Workers, a reload, a range, an error page, a pipeline; then a graceful end."""
    def script(t):
        (t.folder / "index.html").write_text("<p>hello</p>\n" * 1000)
        os.utime(t.folder / "index.html", (1e9, 1e9))
        conf = t.folder / "nginx.conf"
        conf.write_text(f"""daemon off; worker_processes 2; pid {t.folder}/pid; error_log {t.folder}/error;
events {{}} http {{ access_log off; server {{ listen 127.0.0.1:{t.port}; root {t.folder};
location /r {{ return 200 "one\\n"; }} location /gone {{ return 410; }} }} }}""")
        p = t.start(tool("nginx"), "-c", conf, "-p", t.folder)
        ask = (b"GET / HTTP/1.0\r\n\r\n", b"GET / HTTP/1.1\r\nHost: x\r\nRange: bytes=5-20\r\nConnection: close\r\n\r\n",
               b"GET /r HTTP/1.1\r\nHost: x\r\n\r\nGET /gone HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
               b"GET /none HTTP/1.0\r\n\r\n", b"BROKEN\r\n\r\n")
        for request in ask:
            t.ask(request, quiet=5.0)
        conf.write_text(conf.read_text().replace("one", "two"))
        master = int((t.folder / "pid").read_text())
        old = helpers.children(master)
        os.kill(master, signal.SIGHUP)
        helpers.wait_until(lambda: not set(old) & set(helpers.children(master)), what="the old workers to go")
        for request in ask:
            t.ask(request, quiet=5.0)
        t.stop(p, signal.SIGQUIT)
        t.said.append((t.folder / "error").read_text().count("[alert]"))

    compare(folder, script, lambda text: re.sub(r"Date: [^\\]*", "Date: -", text))


def test_haproxy(folder):
    def script(t):
        conf = t.folder / "haproxy.cfg"
        conf.write_text(f"""global
  maxconn 100
defaults
  mode http
  timeout client 2s
  timeout server 2s
  timeout connect 2s
frontend f
  bind 127.0.0.1:{t.port}
  http-request return status 200 content-type text/plain string "hello" if {{ path /hello }}
  http-request deny deny_status 403 if {{ path /no }}
  default_backend b
backend b
  server dead 127.0.0.1:1
""")
        p = t.start(tool("haproxy"), "-f", conf, "-db")
        for path in (b"hello", b"no", b"dead"):
            t.ask(b"GET /%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path, quiet=5.0)
        t.ask(b"nonsense\r\n\r\n")
        t.stop(p, signal.SIGUSR1)

    compare(folder, script)


def test_mosquitto(folder):
    """MQTT 3.1.1 by hand: connect, subscribe, publish to ourselves with QoS 1, ping, a broken packet."""
    def script(t):
        conf = t.folder / "mosquitto.conf"
        conf.write_text(f"listener {t.port} 127.0.0.1\nallow_anonymous true\npersistence false\n")
        conf.chmod(0o644)
        p = t.start(tool("mosquitto"), "-c", conf)
        t.ask(b"\x10\x0d\x00\x04MQTT\x04\x02\x00\x3c\x00\x01c", b"\x82\x06\x00\x01\x00\x01t\x01",
              b"\x32\x08\x00\x01t\x00\x02abc", b"\x40\x02\x00\x01\xc0\x00", b"\xf0\x00")
        t.stop(p)

    compare(folder, script)


def test_postgres(folder):
    """Server (which forks a process a connection) and psql, both under the agent."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        pytest.skip("postgresql is not installed")
    psql, as_user = tool("psql"), []
    if os.getuid() == 0:
        as_user = [tool("setpriv"), *USER[1:]]
    (folder / "data").mkdir()
    if as_user:
        shutil.chown(folder / "data", 65534, 65534)
        folder.chmod(0o777)
    subprocess.run([*as_user, found[-1].parent / "initdb", "-D", folder / "data", "-A", "trust", "-N", "-U", "postgres"],
                   check=True, capture_output=True, cwd="/")

    def script(t):
        p = t.start(*as_user, found[-1], "-D", folder / "data", "-h", "127.0.0.1", "-p", t.port, "-k", "", "-F")
        connect = [psql, "-X", "-h", "127.0.0.1", "-p", t.port, "-U", "postgres", "-At"]
        helpers.wait_until(lambda: subprocess.run([str(c) for c in [*connect, "-c", "select 1"]], capture_output=True)
                           .returncode == 0, what="PostgreSQL")
        t.run(*connect, stdin="""create table t (a int primary key, b text);
insert into t select i, md5(i::text) from generate_series(1, 1000) i;
select count(*), min(b), max(b) from t;
begin; delete from t where a > 10; select count(*) from t; rollback; select count(*) from t;
insert into t values (1, 'again'); select nonsense;
listen l; notify l, 'payload'; set statement_timeout = 50; select pg_sleep(5);
copy (select a from t where a < 4) to stdout; vacuum t; drop table t;
""")
        t.stop(p, signal.SIGINT)

    compare(folder, script, lambda text: re.sub(r"PID \d+", "PID -", text))


BASH = r"""
trap 'echo usr1' USR1; trap 'echo exit $?' EXIT
kill -USR1 $$; echo one | { read x; echo "got $x"; }
sleep 0.05 & wait $!; echo "waited $?"
(exit 3) & (sleep 0.1; exit 4) & wait -n; echo "first $?"; wait -n; echo "second $?"; wait; echo "none $?"
read -t 0.1 y < <(sleep 1); echo "read $?"
false | true; echo "${PIPESTATUS[@]}"; cat <(echo sub) - <<<here; exec 5<>/dev/null; echo >&5; exec 5>&-
for i in $(seq 50); do /bin/true & done; wait; ( ulimit -n 20; ls /nonexistent ) 2>&1; nosuchcommand; echo $?
timeout 0.1 sleep 5; echo "timeout $?"; bash -c 'kill -TERM $$'; echo "term $?"; printf '%s\n' {1..300} | sort -rn | head -2; exit 7
"""


def test_bash(folder):
    compare(folder, lambda t: t.run(tool("bash"), "-c", BASH))


def test_make_and_gcc(folder):
    def script(t):
        (t.folder / "a.c").write_text('#include <stdio.h>\nint main(void) { return printf("%d\\n", __LINE__); }\n')
        (t.folder / "bad.c").write_text("int main(void) { return nothing; }\n")
        (t.folder / "Makefile").write_text("all: one two a\n%:\n\t@echo $@\na: a.c\n\t@gcc -o $@ $<\n"
                                           "bad: bad.c\n\tgcc -o $@ $<\nwords:\n\t@echo $(shell echo hi) $(words a b)\n")
        t.run(tool("make"), "-s", "-j4", "--output-sync=target", "-f", "Makefile", "a", "words")
        t.run(tool("make"), "-k", "bad", "words")
        t.run(tool("gcc"), "-O2", "-c", "-o", "a.o", "a.c")
        t.said.append((t.folder / "a.o").read_bytes())
        t.run(t.folder / "a")

    compare(folder, script)


def test_git(folder):
    def script(t):
        who = {k: v for side in ("AUTHOR", "COMMITTER") for k, v in (
            (f"GIT_{side}_NAME", "x"), (f"GIT_{side}_EMAIL", "x@y"), (f"GIT_{side}_DATE", "2000-01-01T00:00:00Z"))}
        who.update(HOME=str(t.folder), GIT_CONFIG_NOSYSTEM="1")
        git = tool("git")
        t.run(git, "init", "-q", "-b", "main", "r", **who)
        for i in range(3):
            (t.folder / "r" / f"f{i}").write_text(f"{i}\n" * 100)
            t.run(git, "-C", "r", "add", ".", **who)
            t.run(git, "-C", "r", "commit", "-q", "-m", f"c{i}", **who)
        t.run(git, "clone", "-q", f"file://{t.folder}/r", "c", **who)
        t.run(git, "-C", "c", "log", "--stat", "--format=%H %s", **who)
        t.run(git, "-C", "c", "gc", "-q", **who)
        t.run(git, "-C", "c", "fsck", **who)
        t.run(git, "-C", "c", "grep", "-c", "1", **who)
        t.run(git, "-C", "c", "checkout", "nosuch", **who)

    compare(folder, script)


PERL = r"""
use Socket; use IO::Select; use POSIX ":sys_wait_h"; $| = 1;
local $SIG{ALRM} = sub { die "alarm\n" }; eval { alarm 1; select undef, undef, undef, 5; }; print "died $@";
socketpair my $a, my $b, AF_UNIX, SOCK_STREAM, 0 or die; my $pid = fork;
if (!$pid) { close $a; my $x = <$b>; print $b "child $x"; exit 5 }
close $b; print $a "hello\n"; $a->flush; print IO::Select->new($a)->can_read(5) ? scalar <$a> : "nothing\n";
waitpid $pid, 0; print "status $?\n"; print `echo shell; exit 2`, $? >> 8, "\n"; system "kill -9 \$\$"; print "$?\n";
open my $f, "-|", "yes" or die; print scalar <$f>; close $f; print "yes $?\n"; sleep 1; print -e "/nonexistent" ? 1 : "$!\n";
"""


def test_perl(folder):
    compare(folder, lambda t: t.run(tool("perl"), "-e", PERL))


def test_curl(folder):
    """curl (its resolver is a thread) against nginx; only curl is under the agent."""
    def script(t):
        (t.folder / "file").write_text("x" * 200000)
        with subprocess.Popen([helpers.PYTHON, "-m", "http.server", "--bind", "127.0.0.1", "-d", t.folder, str(t.port)],
                              stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            def up():
                try:
                    socket.create_connection(("127.0.0.1", t.port)).close()
                    return True
                except OSError:
                    return False
            try:
                helpers.wait_until(up, what="the server")
                for url in (f"http://localhost:{t.port}/file", f"http://localhost:{t.port}/none", "http://127.0.0.1:1/",
                            "http://nosuch.invalid/"):
                    t.run(tool("curl"), "-s", "-S", "--noproxy", "*", "-w", "%{http_code} %{size_download}", url)
            finally:
                server.kill()

    # The system's messages have times in them.
    compare(folder, script, lambda text: re.sub(r"after \d+ ms", "after - ms", text))


@pytest.fixture
def keys(folder):
    """The server's key and the user's, the same for both sides, and one that nobody knows."""
    for name in ("host", "user", "stranger"):
        subprocess.run([tool("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", folder / name], check=True)
    return folder


def test_ssh(folder, keys):
    """sshd (which executes itself for each connection and confines a child by seccomp), ssh and sftp, all under the agent."""
    user = pwd.getpwuid(os.getuid()).pw_name
    if os.getuid() == 0:
        os.makedirs("/run/sshd", 0o755, exist_ok=True)  # sshd's own; the service makes it otherwise
    listener = socket.create_server(("127.0.0.1", 0))

    def echo():
        while True:
            try:
                peer, _ = listener.accept()
            except OSError:
                return
            with peer:
                while part := peer.recv(65536):
                    peer.sendall(part.upper())

    threading.Thread(target=echo, daemon=True).start()

    def script(t):
        conf = t.folder / "sshd_config"
        conf.write_text(f"""Port {t.port}
ListenAddress 127.0.0.1
HostKey {keys}/host
AuthorizedKeysFile {keys}/user.pub
PidFile none
UsePAM no
StrictModes no
PermitRootLogin yes
PasswordAuthentication no
KbdInteractiveAuthentication no
AcceptEnv WORD
Subsystem sftp internal-sftp
""")
        (t.folder / "known").write_text(f"[127.0.0.1]:{t.port} {(keys / 'host.pub').read_text()}")
        (t.folder / "none").write_text("")
        options = ["-F", "none", "-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none", "-o", "BatchMode=yes",
                   "-o", f"Port={t.port}", "-o", f"User={user}"]
        known = ["-o", f"UserKnownHostsFile={t.folder}/known", "-o", "StrictHostKeyChecking=yes"]
        ssh = [tool("ssh"), *options, *known, "-i", keys / "user"]
        p = t.start(tool("sshd"), "-D", "-f", conf)
        t.run(*ssh, "127.0.0.1", "echo out; echo err >&2; exit 3")
        t.run(*ssh, "127.0.0.1", "sha256sum", stdin="0123456789\n" * 100000)
        t.run(*ssh, "127.0.0.1", "yes | head -c 3000000 | sha256sum; kill -TERM $$")
        t.run(*ssh, "-o", "SendEnv=WORD", "127.0.0.1", "echo $WORD", WORD="handed on")
        t.run(*ssh, "-tt", "127.0.0.1", "test -t 0 && echo a terminal; stty -echo; cat", stdin="typed\n\4")
        t.run(*ssh, "-C", "-c", "aes128-ctr", "-m", "hmac-sha2-256", "127.0.0.1", "seq 20000 | tail -1")
        t.run(*ssh, "-W", f"127.0.0.1:{listener.getsockname()[1]}", "127.0.0.1", stdin="forwarded\n" * 1000)
        t.run(*ssh, "-W", "127.0.0.1:1", "127.0.0.1")
        t.run(*ssh[:-1], keys / "stranger", "127.0.0.1", "true")
        t.run(*ssh[:1], *options, "-o", f"UserKnownHostsFile={t.folder}/none", "-o", "StrictHostKeyChecking=yes",
              "-i", keys / "user", "127.0.0.1", "true")
        (t.folder / "sent").write_text("x" * 500000)
        batch = "put sent there\nrename there over\nget over back\nls -1\nrm over\nget nosuch\n"
        sftp = [tool("sftp"), *ssh[1:-2], "-i", keys / "user", "-q", "-b", "-"]
        t.run(*sftp, f"127.0.0.1:{t.folder}", stdin=batch)
        t.said.append((t.folder / "back").read_bytes())
        control = ["-o", f"ControlPath={t.folder}/c"]
        t.run(*ssh, *control, "-M", "-N", "-f", "127.0.0.1")
        t.run(*ssh, *control, "127.0.0.1", "echo by the other")
        t.run(*ssh, *control, "-O", "exit", "127.0.0.1")
        t.stop(p)
        refused = [x for x in t.said if x[0] == ssh[0] and x[1] == 255]
        assert len(refused) == 4, t.said  # the killed command, the dead port, the key nobody knows, the unknown host

    try:
        compare(folder, script)
    finally:
        listener.close()


def test_starts_and_stops_many(folder):
    """500 short children, with their statuses; nothing is left behind."""
    def script(t):
        t.run(tool("bash"), "-c", "for i in $(seq 500); do /bin/true || exit 1; done; echo all")

    begun = time.monotonic()
    compare(folder, script)
    assert time.monotonic() - begun < 120
    left = [p for p in Path("/proc").glob("[0-9]*/environ") if str(folder).encode() in readable(p)]
    assert not left


def readable(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""
