"""
A test that failed and passed when it was run once more (pytest-rerunfailures) does not fail the run: a thousand tests
on a machine that others use as well would rarely pass together. It is no success either: what it said the first time
is printed whole and counted ("1 rerun"), to be looked into; more than LIMIT of them do fail the run. Of a run in two parts
(`make check-e2e`) the second counts those of the first, too: the file $UNBLOCK_RETRIED names them.
"""

import os
from pathlib import Path

LIMIT = 3
FILE = os.environ.get("UNBLOCK_RETRIED")


def retried(config):
    return config.pluginmanager.get_plugin("terminalreporter").stats.get("rerun", [])


def counted(first):
    """How many there were in the whole run."""
    return len(Path(FILE).read_text().splitlines()) if FILE else len(first)


def pytest_sessionfinish(session, exitstatus):
    if hasattr(session.config, "workerinput"):
        return  # one of several that run tests at a time: who started it counts
    first = retried(session.config)
    if FILE:
        with open(FILE, "a") as file:
            file.writelines(f"{report.nodeid}\n" for report in first)
    if exitstatus == 0 and counted(first) > LIMIT:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter, config):
    first = retried(config)
    if not first:
        return
    terminalreporter.section(f"FAILED AT FIRST ({len(first)}, with those of the part before {counted(first)}; more than {LIMIT} fail the run)"
                             if FILE else f"FAILED AT FIRST ({len(first)}, more than {LIMIT} fail the run)")
    for report in first:
        terminalreporter.write_line(report.nodeid)
        terminalreporter.write_line(report.longreprtext)
