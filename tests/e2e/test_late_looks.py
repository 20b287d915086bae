"""A watcher that is kept from the CPU in the midst of a look: what it reads after that is of another moment, and is not told as if it
were of the stall.

It is kept by a function of libc's that sleeps (LD_PRELOAD); the program has the same one, and does not call it.

Seen to fail: without the look at the turn after the pool and the call's arguments were read, and without that at the thread after its
Python frames were.
"""

import subprocess

import helpers

MS = 1_000_000


def compile_c(text, to, *flags):
    subprocess.run(["gcc", "-xc", "-", "-o", to, *flags], input=text, text=True, check=True)


READS_LINKS_SLOWLY = r"""
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>
ssize_t readlink(const char *path, char *to, size_t size)
{
    if (strstr(path, "/fd/"))
        usleep(60000);
    return syscall(SYS_readlink, path, to, size);
}
"""
FILLS_POOL_AFTERWARDS = r"""
#include <stdlib.h>
#include <unistd.h>
#include <uv.h>
static int turns, left;
static void on_work(uv_work_t *w) { usleep(20000); (void)w; }
static void on_done(uv_work_t *w, int status) { free(w); left--; (void)status; }
static void on_timer(uv_timer_t *t)
{
    if (left)
        return;
    if (++turns == 70)
        uv_close((uv_handle_t *)t, NULL);
    else if (turns > 30 && turns % 10 == 0)
        usleep(40000);
    else if (turns > 30 && turns % 10 == 1)
        for (int i = 0; i < 8; i++, left++)
            uv_queue_work(t->loop, malloc(sizeof(uv_work_t)), on_work, on_done);
}
int main(void)
{
    uv_timer_t t;
    uv_timer_init(uv_default_loop(), &t);
    uv_timer_start(&t, on_timer, 1, 1);
    return uv_run(uv_default_loop(), UV_RUN_DEFAULT);
}
"""


def test_pool_and_call(tmp_path):
    """The first link that is read is that of the loop's epoll. By then the sleep is over, and the pool has been filled."""
    compile_c(READS_LINKS_SLOWLY, tmp_path / "slow.so", "-shared", "-fPIC")
    compile_c(FILLS_POOL_AFTERWARDS, tmp_path / "fills", "-luv")
    env = helpers.clean_environment(UV_THREADPOOL_SIZE="2", LD_PRELOAD=str(tmp_path / "slow.so"))
    done, recording = helpers.record(tmp_path, tmp_path / "fills", threshold="20ms", env=env, options=("-q",))
    assert done.returncode == 0, done
    looked = [s for s in recording.slow if s["duration_ns"] > 35 * MS and any("stack" in sample for sample in s["samples"])]
    assert len(looked) >= 2 and recording.of("pool")[-1]["queued_max"] >= 5, recording.lines
    assert not [s["pool"] for s in recording.slow if "pool" in s], recording.slow
    assert {s["call"].get("args", "40 ms") for s in looked} == {"40 ms"}, looked


# After a stack was read, what is read next: Python's frames.
READS_FRAMES_SLOWLY = r"""
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>
ssize_t process_vm_readv(pid_t pid, const struct iovec *to, unsigned long m, const struct iovec *from, unsigned long n, unsigned long flags)
{
    static __thread int stack_was_read;
    if (m == 1 && to->iov_len >= 2048)
        stack_was_read = 1;
    else if (stack_was_read && !(stack_was_read = 0))
        usleep(50000);
    return syscall(SYS_process_vm_readv, pid, to, m, from, n, flags);
}
"""
COMPUTES_AFTERWARDS = """
import asyncio, time
def computes():
    until = time.monotonic() + 0.1
    while time.monotonic() < until:
        pass
async def sleeps():
    time.sleep(0.05)
    computes()
async def main():
    for _ in range(20):
        await asyncio.sleep(0.002)
    for _ in range(4):
        await asyncio.create_task(sleeps())
        await asyncio.sleep(0.02)
asyncio.run(main())
"""


def test_python_frames(tmp_path):
    """The native stack is that of the sleep, the frames are those of what came after it."""
    compile_c(READS_FRAMES_SLOWLY, tmp_path / "slow.so", "-shared", "-fPIC")
    (tmp_path / "app.py").write_text(COMPUTES_AFTERWARDS)
    env = helpers.clean_environment(LD_PRELOAD=str(tmp_path / "slow.so"))
    done, recording = helpers.record(tmp_path, helpers.PYTHON, tmp_path / "app.py", threshold="20ms", env=env, options=("-q",))
    assert done.returncode == 0, done
    mixed = []
    for sample in [sample for slow in recording.slow for sample in slow["samples"] if "stack" in sample]:
        names = [f.get("function") for f in recording.stacks[sample["stack"]]]
        if sample["state"] == "blocked" and "computes" in names:
            mixed.append(sample)
    assert mixed and all(sample["python"] == "unproven" for sample in mixed), (mixed, recording.slow)
