"""An aiohttp server whose handlers block, or leave that to an executor by hand, or await, or do none of it: pyserver.py asyncio|uvloop PORT"""
import asyncio
import sys
import time
from concurrent.futures import ThreadPoolExecutor

from aiohttp import web

SECONDS = 0.05
POOL = ThreadPoolExecutor(50)


async def blocks(_):
    time.sleep(SECONDS)
    return web.Response(text="hello")


async def by_hand(_):
    await asyncio.get_running_loop().run_in_executor(POOL, time.sleep, SECONDS)
    return web.Response(text="hello")


async def asleep(_):
    await asyncio.sleep(SECONDS)
    return web.Response(text="hello")


async def hello(_):
    return web.Response(text="hello")


if sys.argv[1] == "uvloop":
    import uvloop
    uvloop.install()
APP = web.Application()
APP.add_routes([web.get("/blocks", blocks), web.get("/by_hand", by_hand), web.get("/asleep", asleep),
                web.get("/hello", hello)])
web.run_app(APP, host="127.0.0.1", port=int(sys.argv[2]), print=None, access_log=None)
