"""A pytest plugin that says what processor time each test file takes: `make test-time`.

A phase of a test (fixtures, the test, what is taken down) counts what its process, and those of its children
that it has waited for, have used since the phase before; so a child that lives on is counted where it ends.
What is left of the whole is starting processes and collecting.
"""

import os
from collections import Counter
from collections.abc import Generator
from typing import Any

import pytest

_SHOWN = 12  # of single tests
_until_now = 0.0
_of_files: Counter[str] = Counter()
_of_tests: Counter[str] = Counter()


def _used() -> float:
    """Processor time of this process and of its children that it has waited for, in seconds."""
    return sum(os.times()[:4])


def pytest_collection_finish() -> None:
    """What was used up to here belongs to no test."""
    global _until_now
    _until_now = _used()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, Any, Any]:
    """Put on the report of a phase what the phase has used: reports come from worker processes, too."""
    global _until_now
    report = yield
    before, _until_now = _until_now, _used()
    report.processor_s = _until_now - before
    return report


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Add up what the phases have used. In a worker process nobody reads the sums."""
    seconds = getattr(report, "processor_s", 0.0)
    _of_files[report.nodeid.split("::")[0]] += seconds
    _of_tests[report.nodeid] += seconds


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Say it by file, and the dearest tests."""
    whole, of_tests = _used(), sum(_of_files.values())
    terminalreporter.section("processor time, with children")
    for name, seconds in [*_of_tests.most_common(_SHOWN), ("", 0), *_of_files.most_common()]:
        terminalreporter.write_line(f"{seconds:8.2f} s  {name}" if name else "")
    terminalreporter.write_line(f"{whole - of_tests:8.2f} s  starting processes and collecting")
    terminalreporter.write_line(f"{whole:8.2f} s  all")
