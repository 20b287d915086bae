"""GLib: dconf-service on a private bus, told by dconf. See loop_libraries.py."""

import os
import subprocess

import pytest

import helpers
import servers
from loop_libraries import kinds, output, slow_one, SLOW_MS
from servers import Server, SlowDisk, tool


class Dconf(Server):
    """The service that writes settings, on a bus of its own."""

    slow = False
    bus = None

    def command(self):
        settings = self.folder / "settings"
        if self.slow:
            self.disk = SlowDisk(self.folder)
            settings = self.disk.path
        settings.mkdir(exist_ok=True)
        self.settings = settings
        address = f"unix:path={self.folder}/bus"
        self.bus = subprocess.Popen([tool("dbus-daemon"), "--session", "--nofork", "--address", address],
                                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=self.stderr)
        helpers.wait_until((self.folder / "bus").exists, what="the bus")
        if not os.path.exists("/usr/libexec/dconf-service"):
            pytest.skip("dconf-service is not installed")
        return ["/usr/libexec/dconf-service"]

    def environment(self):
        return {"DBUS_SESSION_BUS_ADDRESS": f"unix:path={self.folder}/bus", "XDG_CONFIG_HOME": str(self.settings),
                "XDG_RUNTIME_DIR": str(self.folder)}

    def ready(self):
        return "true" in output(tool("gdbus"), "call", "--session", "-d", "org.freedesktop.DBus", "-o", "/", "-m",
                                "org.freedesktop.DBus.NameHasOwner", "ca.desrt.dconf", env=self.environment())

    def dconf(self, *words):
        return output(tool("dconf"), *words, env=self.environment())

    def end(self):
        super().end()
        if self.bus:
            self.bus.kill()
            self.bus.wait()


class SlowDconf(Dconf):
    slow = True


def test_dconf_same_answers(either):
    def talk(dconf):
        said = []
        for i in range(5):
            said.append(dconf.dconf("write", "/a/number", str(i)))
            said.append(dconf.dconf("read", "/a/number"))
        said += [dconf.dconf("write", "/a/b/text", "'so'"), dconf.dconf("list", "/a/"), dconf.dconf("dump", "/"),
                 dconf.dconf("reset", "-f", "/a/b/"), dconf.dconf("dump", "/")]
        return [*said, (dconf.settings / "dconf" / "user").read_bytes()]

    said = either(Dconf, talk)
    assert "number=4" in said[-2]


def test_dconf_settings_on_a_slow_disk(server):
    dconf = server(SlowDconf)
    for i in range(12):
        dconf.dconf("write", "/a/number", str(i))
    dconf.disk.slow(fsync=SLOW_MS)
    dconf.dconf("write", "/a/number", "99")
    dconf.disk.quick()
    assert dconf.dconf("read", "/a/number") == "99\n"
    recording = dconf.stop()
    counted = kinds(recording, "glib")
    assert counted["idle"] >= 13, counted  # GDBus hands each request over to the main loop by one
    slow, call = slow_one(recording, "glib", "idle", "fsync")
    assert "/slow/dconf/user" in call["fd_path"], call
    # The source is GIO's; what ran in it is the program's.
    assert slow["callback"]["module"].endswith("/dconf-service") and \
        slow["callback"]["name"] == "gio/gdbusconnection.c] call_in_idle_cb", slow["callback"]
    assert servers.has_function(recording, slow, "g_file_set_contents_full"), recording.functions(slow)
