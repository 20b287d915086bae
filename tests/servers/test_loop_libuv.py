"""libuv: named (BIND 9), asked by dig, updated by nsupdate. See loop_libraries.py."""

import re

import servers
from loop_libraries import kinds, output, slow_one, SLOW_MS
from servers import Server, SlowDisk, tool


class Named(Server):
    ZONE = "$TTL 60\n@ SOA ns.example.test. root.example.test. (1 60 60 60 60)\n@ NS ns\nns A 127.0.0.1\nwww A 192.0.2.7\n" \
        "text TXT \"said\" \"so\"\nalias CNAME www\n"

    def command(self):
        self.disk = SlowDisk(self.folder)
        (self.disk.path / "example.db").write_text(self.ZONE)
        self.control_port = servers.free_port()
        key = 'key "k" { algorithm hmac-sha256; secret "c2VjcmV0"; };'
        (self.folder / "rndc.conf").write_text(
            f'{key} options {{ default-key "k"; default-server 127.0.0.1; default-port {self.control_port}; }};')
        (self.folder / "named.conf").write_text(f"""
            {key}
            controls {{ inet 127.0.0.1 port {self.control_port} allow {{ 127.0.0.1; }} keys {{ "k"; }}; }};
            options {{
                directory "{self.folder}"; pid-file none; session-keyfile "{self.folder}/session.key";
                listen-on port {self.port} {{ 127.0.0.1; }}; listen-on-v6 {{ none; }};
                recursion no; dnssec-validation no; notify no; empty-zones-enable no;
            }};
            zone "example.test" {{ type primary; file "{self.disk.path}/example.db"; allow-update {{ 127.0.0.1; }}; }};
            """)
        return [tool("named"), "-g", "-n", "1", "-c", self.folder / "named.conf"]

    def dig(self, *words):
        said = output(tool("dig"), "@127.0.0.1", "-p", self.port, "+tries=1", "+timeout=10", *words)
        # The query's number, its time, the date and the cookie differ from run to run.
        said = re.sub(r"(?m)^;; (WHEN|Query time).*\n|^; COOKIE.*\n", "", said)
        return re.sub(r"id: \d+", "id: N", said).replace(str(self.port), "PORT")

    def update(self, *lines):
        return output(tool("nsupdate"), input="\n".join([f"server 127.0.0.1 {self.port}", "zone example.test", *lines,
                                                          "send", ""]))

    def rndc(self, *words):
        return output(tool("rndc"), "-c", self.folder / "rndc.conf", *words)


def test_named_same_answers(either):
    def talk(named):
        said = [named.dig(*words) for words in (
            ["www.example.test"], ["+tcp", "www.example.test"], ["text.example.test", "TXT"], ["alias.example.test"],
            ["none.example.test"], ["other.invalid"], ["example.test", "AXFR"], ["+noedns", "example.test", "ANY"])]
        named.update("update add new.example.test 60 A 192.0.2.9", "update delete www.example.test")
        said += [named.dig("new.example.test"), named.dig("www.example.test"), named.dig("+tcp", "example.test", "AXFR"),
                 re.findall("(?:serial|nodes|dynamic): .*", named.rndc("zonestatus", "example.test"))]
        return said

    said = either(Named, talk)
    assert "192.0.2.7" in said[0] and "192.0.2.9" in said[8] and "NXDOMAIN" not in said[0]


def test_named_journal_on_a_slow_disk(server):
    """An update is answered when its journal is on the disk: meanwhile this thread answers nobody."""
    named = server(Named)
    for _ in range(3):
        for transport in ("+notcp", "+tcp"):
            assert "192.0.2.7" in named.dig(transport, "www.example.test")
    named.disk.slow(fsync=SLOW_MS)
    named.update("update add slow.example.test 60 A 192.0.2.10")
    named.disk.quick()
    assert "192.0.2.10" in named.dig("slow.example.test")
    recording = named.stop()
    counted = kinds(recording, "libuv")
    assert counted["udp"] >= 4 and counted["read"] >= 3 and counted["listener"] >= 3 and counted["async"] >= 1, counted
    slow, call = slow_one(recording, "libuv", "async", "fsync")
    assert call["fd_path"].endswith("/slow/example.db.jnl"), call
    assert servers.has_function(recording, slow, "dns_journal_commit"), recording.functions(slow)
    # The callback is a function of libisc whose name its symbols do not tell; what it runs is.
    assert "/libisc-" in slow["callback"]["module"] and slow["callback"]["function"] == "isc_task_run", slow["callback"]
