"""
A test that failed and passed when it was run once more (pytest-rerunfailures) does not fail the run: a thousand tests
on a machine that others use as well would rarely pass together. It is no success either: what it said the first time
is printed whole and counted ("1 rerun"), to be looked into; more than LIMIT of them do fail the run.
"""

LIMIT = 3


def retried(config):
    return config.pluginmanager.get_plugin("terminalreporter").stats.get("rerun", [])


def pytest_sessionfinish(session, exitstatus):
    if exitstatus == 0 and len(retried(session.config)) > LIMIT:
        session.exitstatus = 1


def pytest_terminal_summary(terminalreporter, config):
    first = retried(config)
    if not first:
        return
    terminalreporter.section(f"FAILED AT FIRST ({len(first)}, more than {LIMIT} fail the run)")
    for report in first:
        terminalreporter.write_line(report.nodeid)
        terminalreporter.write_line(report.longreprtext)
