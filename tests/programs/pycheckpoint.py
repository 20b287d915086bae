"""An aiohttp service that writes its live state down, by pickle into a file: pycheckpoint.py PORT FOLDER SIZE_MB

Each GET /hit changes the state, a nested defaultdict of deques, and answers; POST /save writes it all and says {"ms": , "bytes": }.
"""

import collections
import itertools
import os
import pickle
import sys
import time

from aiohttp import web

FIELD = 100


def fill(megabytes):
    total = collections.defaultdict(collections.deque)
    for user in range(megabytes * 1_000_000 // (100 * FIELD)):
        total[user].extend(f"{user}:{i}:".ljust(FIELD, "x") for i in range(90))
    return total


async def hit(request):
    state = request.app["state"]
    queue = state[next(request.app["count"]) % len(state)]
    queue.append(queue.popleft())
    return web.Response(text="ok")


async def save(request):
    begun = time.monotonic()
    path = os.path.join(request.app["folder"], "state.pickle")
    with open(path + ".new", "wb") as file:
        pickle.dump(request.app["state"], file, protocol=5)
    os.replace(path + ".new", path)
    return web.json_response({"ms": (time.monotonic() - begun) * 1e3, "bytes": os.path.getsize(path)})


def main(port, folder, megabytes):
    app = web.Application()
    app["state"], app["count"], app["folder"] = fill(megabytes), itertools.count(), folder
    app.router.add_get("/hit", hit)
    app.router.add_post("/save", save)
    web.run_app(app, host="127.0.0.1", port=port, print=None)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
