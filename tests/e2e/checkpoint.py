"""The service that writes its live state down (tests/programs/pycheckpoint.py), for tests and the bench."""

import http.client
import json
import pickle
import signal
import socket
import subprocess
import threading
import time

import helpers


class Checkpoint:
    """pycheckpoint.py, and what a client sees while it writes its state down. With options: under `unblock run`."""

    def __init__(self, folder, megabytes, *options):
        with socket.socket() as s:
            s.bind(("127.0.0.1", 0))
            self.port = s.getsockname()[1]
        command = [helpers.PYTHON, helpers.ROOT / "tests/programs/pycheckpoint.py", self.port, folder, megabytes]
        self.path = folder / "r.jsonl"
        if options:
            command = [helpers.UNBLOCK, "run", "-q", "--force", "-t", "50ms", "-o", self.path, *options, "--", *command]
        self.folder = folder
        self.process = subprocess.Popen([str(c) for c in command], stdin=subprocess.DEVNULL, env=helpers.clean_environment())
        helpers.wait_until(self.answers, what="the server to listen")

    def answers(self):
        assert self.process.poll() is None, "the server ended"
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def ask(self, connection, method, path):
        connection.request(method, path)
        answer = connection.getresponse()
        assert answer.status == 200, answer.status
        return answer.read()

    def saves(self, times):
        """(the latencies of requests meanwhile in ms, what the saves said)"""
        took, over = [], threading.Event()

        def hits():
            connection = http.client.HTTPConnection("127.0.0.1", self.port)
            while not over.is_set():
                begun = time.monotonic()
                self.ask(connection, "GET", "/hit")
                took.append((time.monotonic() - begun) * 1e3)
                time.sleep(0.001)
        thread = threading.Thread(target=hits)
        thread.start()
        connection, said = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60), []
        time.sleep(0.3)
        for _ in range(times):
            said.append(json.loads(self.ask(connection, "POST", "/save")))
            with open(self.folder / "state.pickle", "rb") as file:
                state = pickle.load(file)
            assert all(len(queue) == 90 for queue in state.values()), "half a change was written"
        over.set()
        thread.join()
        return sorted(took), said

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(helpers.PATIENCE)
