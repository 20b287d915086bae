"""The classic first asyncio program: a ticker, and three workers that each do one second's work in another way.

    python3 tutorial.py

Only one of the workers lets the ticker tick.
"""

import asyncio
import time


def fetch_report():
    time.sleep(1)  # stands for requests.get(...)
    return "report"


def is_prime(n):
    i = 2
    while i * i <= n:
        if n % i == 0:
            return False
        i += 1
    return True


async def ticker():
    while True:
        last = time.monotonic()
        await asyncio.sleep(0.1)
        late = time.monotonic() - last - 0.1
        print("." if late < 0.05 else f" {late * 1000:.0f} ms late ", end="", flush=True)


async def blocking_worker():
    await asyncio.sleep(1.5)
    fetch_report()


async def cpu_worker():
    await asyncio.sleep(3.5)
    is_prime(100_000_000_000_031)


async def executor_worker():
    await asyncio.sleep(5)
    await asyncio.get_running_loop().run_in_executor(None, fetch_report)


async def main():
    ticking = asyncio.create_task(ticker(), name="ticker")
    await asyncio.gather(blocking_worker(), cpu_worker(), executor_worker())
    ticking.cancel()
    print()


asyncio.run(main())
