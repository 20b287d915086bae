"""Runs unittest modules for python_suites.py, in a process of their own: runner.py OUTCOMES HOW TESTS...

One line to OUTCOMES as a test begins and one as it ends, so that whoever waits sees which one hangs. HOW: `plain`, or `inside`: all of
it in one step of a task, beside a ticker: then everything that blocks in a test blocks a loop."""

import asyncio
import json
import os
import sys
import unittest


class Result(unittest.TextTestResult):
    def tell(self, what, test):
        os.write(OUTCOMES, (json.dumps([what, test.id()]) + "\n").encode())

    def startTest(self, test):
        super().startTest(test)
        self.failed = False
        self.tell("begins", test)

    def stopTest(self, test):
        super().stopTest(test)
        self.tell("ends", test)

    def addSuccess(self, test): self.tell("ok", test); super().addSuccess(test)
    def addFailure(self, test, err): self.tell("failed", test); super().addFailure(test, err)
    def addError(self, test, err): self.tell("error", test); super().addError(test, err)
    def addSkip(self, test, why): self.tell("skipped", test); super().addSkip(test, why)
    def addExpectedFailure(self, test, err): self.tell("expected", test); super().addExpectedFailure(test, err)

    def addSubTest(self, test, subtest, err):
        if err is not None:
            self.tell("failed", test)
        super().addSubTest(test, subtest, err)


def suite():
    from test import support
    support.use_resources = []  # as `python3 -m test`: nothing that needs a network or minutes
    return unittest.defaultTestLoader.loadTestsFromNames(sys.argv[3:])


def run(tests):
    result = unittest.TextTestRunner(resultclass=Result).run(tests)
    os.write(OUTCOMES, json.dumps(["done", str(result.testsRun)]).encode() + b"\n")


async def inside():
    async def ticker():
        while True:
            await asyncio.sleep(0.01)
    for _ in range(12):
        await asyncio.sleep(0.002)  # until the loop is known to be one
    ticking = asyncio.create_task(ticker())
    await asyncio.sleep(0.02)
    run(suite())
    ticking.cancel()


if __name__ == "__main__":
    OUTCOMES = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC)
    if sys.argv[2] == "inside":
        asyncio.run(inside())
    else:
        run(suite())
