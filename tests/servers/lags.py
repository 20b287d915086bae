"""How long a real server keeps others waiting while it does what blocks: asked all the while, and as unblock tells its loop's lag."""

import threading
import time

DRY_RUN, EAGER = ("--offload",), ("--offload=eager",)


def meanwhile(ask, do):
    """(what do() returns, how long each ask() took meanwhile, in s)."""
    took, done = [], threading.Event()

    def poll():
        while not done.is_set():
            begun = time.monotonic()
            ask()
            took.append(time.monotonic() - begun)
            time.sleep(0.01)

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        said = do()
    finally:
        done.set()
        thread.join()
    return said, took


def lag_ms(recording):
    """(p99, the longest), of all the time that was watched; of the process whose loop was held up most."""
    lag = max((line["lag"] for line in recording.of("stats") if "lag" in line), key=lambda lag: lag["longest_ns"])
    return lag["p99_ns"] / 1e6, lag["longest_ns"] / 1e6


def shorter(before, after, blocks_ms):
    """Of two recordings; both are told. What blocks does not any more, on a machine that may be busy."""
    print(f"\nlag, p99 and longest: {lag_ms(before)[0]:.1f} and {lag_ms(before)[1]:.1f} ms, moved {lag_ms(after)[0]:.1f} and {lag_ms(after)[1]:.1f}")
    return (lag_ms(before)[1] > blocks_ms / 2 and lag_ms(after)[1] < lag_ms(before)[1] / 2 and lag_ms(after)[0] < lag_ms(before)[0] / 4)
