"""Random blocking calls of random callbacks, all of which are checked (tests/programs/stress.cc): the five loops, with one, two and
32 threads in the executor. Nothing may be lost, reordered, doubled or leaked. Some hundred callbacks in `make check`, 10,000 suspensions each in `make check-offload`,
UNBLOCK_STRESS of them in `make soak`.

Seen to fail: without the order of calls on one file ("shared pipe"), without exceptions of their own ("the exception is"), with duplicates that are not
closed ("descriptors").
"""

import json
import os
import random
import subprocess

import helpers
import pytest

pytestmark = pytest.mark.beside

LIBRARIES = {"uv": ["-luv"], "event": ["-DLIBEVENT", "-levent_core", "-levent_pthreads"], "glib": ["-DGLIB", "-lglib-2.0"], "ev": ["-DLIBEV", "-lev"],
             "sd": ["-DSD_EVENT", "-lsystemd"]}
LONG = "UNBLOCK_SOAK" in os.environ
CALLBACKS = int(os.environ.get("UNBLOCK_STRESS", 10000 if LONG else 160))


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Builds the program for one library, with further flags."""
    folder, made = tmp_path_factory.mktemp("stress"), {}

    def program(library, *flags):
        if (library, flags) not in made:
            includes = subprocess.run(["pkg-config", "--cflags", "glib-2.0"], capture_output=True, text=True).stdout.split()
            made[library, flags] = path = folder / f"stress{len(made)}"
            source = helpers.ROOT / "tests/programs/stress.cc"
            subprocess.run([*helpers.COMPILER, "-std=c++17", "-O1" if LONG else "-O0", "-g", "-Wall", *includes, source, "-o", path, *LIBRARIES[library], *flags,
                            "-lpthread"], check=True)
        return made[library, flags]

    return program


def seed():
    """Another one each time; it is in the command that a failure prints."""
    return random.randrange(1, 1 << 30)


def stress(tmp_path, program, callbacks, threads, **env):
    command = [program, callbacks, seed()]
    done, recording = helpers.record(tmp_path, *command, threshold="1ms", options=("--offload=eager", "--force", "-q"), timeout=1800,
                                     env=helpers.clean_environment(UNBLOCK_POOL=str(threads), **env))
    assert done.returncode == 0, (command, done.returncode, done.stdout, done.stderr[-2000:])
    assert done.stdout.startswith("done "), (command, done.stdout)
    shown = helpers.unblock("top", "--once", recording.path).stdout
    moved = recording.end["offload"]["moved"]
    assert f"offload eager: {moved} calls moved" in shown and f"executor: {recording.end['offload']['threads']} thread" in shown, shown[:1000]
    assert recording.end["offload"]["busy_ns"] > 0, recording.end
    return done, recording.end["offload"]


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("threads", [1, 2, 32] if LONG else [2])
def test_nothing_is_lost_reordered_doubled_or_leaked(tmp_path, build, library, threads):
    _, offload = stress(tmp_path, build(library), CALLBACKS, threads)
    assert offload["moved"] >= CALLBACKS * 0.9 and min(threads, 2) <= offload["threads"] <= 2 * threads, offload
    assert offload["stack_bytes"] > 0 and (offload["queued_max"] > 1 or threads > 2), offload


def test_threads_that_come_and_go(tmp_path):
    """What a thread had for its callbacks is the next one's: two mappings or more a thread stayed otherwise."""
    count = 48
    done, recording = helpers.record(tmp_path, helpers.program("threads_uv"), count, threshold="1ms", options=("--offload=eager", "-q"),
                                     timeout=120)
    said = json.loads(done.stdout)
    assert recording.end["offload"]["moved"] >= 2 * count
    assert said["late"] - said["early"] < count / 2, said


def test_the_program_alone(build):
    """It finds nothing wrong with itself where nothing moves."""
    program = build("glib" if LONG else random.choice(sorted(LIBRARIES)))
    done = subprocess.run([program, "60", str(seed())], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("done "), done


def test_a_program_with_thread_sanitizer_in_it(tmp_path):
    """It crashed in our constructor. Now the agent stays out of it, which is told."""
    (tmp_path / "waits.c").write_text("#include <unistd.h>\nint main(void) { usleep(1000); return 7; }\n")
    built = subprocess.run(["gcc", "-fsanitize=thread", "-static-libtsan", tmp_path / "waits.c", "-o", tmp_path / "waits"],
                           capture_output=True, text=True)
    if "cannot find" in built.stderr:
        pytest.skip("no ThreadSanitizer to link to")
    assert built.returncode == 0, built.stderr
    if subprocess.run([tmp_path / "waits"], capture_output=True).returncode != 7:
        pytest.skip("ThreadSanitizer does not run here")
    done, _ = helpers.record(tmp_path, tmp_path / "waits")
    assert done.returncode == 7 and "has ThreadSanitizer in it" in done.stderr, done


def test_a_program_with_pointers_to_what_a_sanitizer_stands_in_for(tmp_path):
    """Not position-independent, it has an entry of its own for each, which is no sanitizer's."""
    (tmp_path / "waits.c").write_text(
        "#include <pthread.h>\n#include <stdio.h>\n#include <string.h>\n#include <sys/epoll.h>\n#include <unistd.h>\n"
        "int main(void) { struct epoll_event e; int fd = epoll_create1(0);\n"
        "printf(\"%p %p\\n\", (void *)strlen, (void *)pthread_spin_lock);\n"
        "for (int i = 0; i < 20; i++) { epoll_wait(fd, &e, 1, 2); usleep(i < 15 ? 0 : 60000); }\nreturn 7; }\n")
    subprocess.run(["gcc", "-no-pie", "-fno-pie", tmp_path / "waits.c", "-o", tmp_path / "waits"], check=True)
    done, recording = helpers.record(tmp_path, tmp_path / "waits", threshold="20ms")
    assert done.returncode == 7 and "ThreadSanitizer" not in done.stderr, done
    assert len(recording.slow) >= 2, recording.lines
