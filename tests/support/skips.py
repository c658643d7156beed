"""No test is left out without the summary saying so.

* Tests marked ``slow`` are deselected by default; the summary counts them and names the command that runs them.
* With ``LLMUX_CI=1`` a skip fails the run unless it is allowed: unless a line of ``LLMUX_CI_ALLOWED_SKIPS``, a regular
  expression, is found in its reason.

Both work under xdist, where only a worker knows what happened while it collected tests: it passes that on to the
controller in its ``workeroutput``, and the controller prints and decides.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

from llmux import how_built

is_compiled = how_built() == "compiled"
REPLACES_COMPILED_CODE = "replaces a part of what is compiled"
replaces_compiled_code = pytest.mark.skipif(is_compiled, reason=REPLACES_COMPILED_CODE)
counts_calls = pytest.mark.skipif(is_compiled, reason="counts calls, which compiled code makes without Python")

EXIT_CODE = 1
COLLECTED_SKIPS = "collected_skips"
SLOW_TESTS = "slow_tests"
DEFAULT_SELECTION = "not slow"


class SlowCount:
    """A pytest plugin that counts the slow tests that ``-m "not slow"`` deselects."""

    def __init__(self) -> None:
        self.count = 0

    def pytest_deselected(self, items: Sequence[pytest.Item]) -> None:
        """``-k`` deselects first, slow tests and others; ``-m`` then deselects slow ones only."""
        if all(item.get_closest_marker("slow") for item in items):
            self.count = len(items)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output[SLOW_TESTS] = self.count

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """An xdist worker has ended. Each worker collects all tests, so their counts are equal."""
        self.count = max(self.count, getattr(node, "workeroutput", {}).get(SLOW_TESTS, 0))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.count:
            terminalreporter.write_line(f"left out: {self.count} slow tests; `make test-all` runs them")


class SkipWatch:
    """A pytest plugin that collects the reasons of all skips and fails the run if one is not allowed."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = [re.compile(pattern) for pattern in allowed]
        self.reasons: Counter[str] = Counter()
        self._while_collecting: Counter[str] = Counter()

    @property
    def forbidden(self) -> list[str]:
        return [reason for reason in self.reasons if not any(pattern.search(reason) for pattern in self._allowed)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a skipped test. pytest reports an expected failure as skipped too; that is none."""
        if report.skipped and not hasattr(report, "wasxfail"):
            self.reasons[_reason(report.longrepr)] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Count a file that skips itself as a whole."""
        if report.skipped:
            self._while_collecting[_reason(report.longrepr)] += 1

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """An xdist worker has ended. Each worker collects all files, so their counts are equal."""
        self._while_collecting |= Counter(getattr(node, "workeroutput", {}).get(COLLECTED_SKIPS, {}))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Set the exit code; a run that has failed for another reason keeps its own."""
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output[COLLECTED_SKIPS] = dict(self._while_collecting)
            return
        self.reasons += self._while_collecting
        if self.forbidden and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = EXIT_CODE

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for reason, count in self.reasons.items():
            verdict = "NOT ALLOWED" if reason in self.forbidden else "allowed"
            terminalreporter.write_line(f"skipped, {verdict}: {count} x {reason}")


def watch_skips(config: pytest.Config) -> None:
    """Register the plugins that this run needs."""
    if config.getoption("markexpr") == DEFAULT_SELECTION:
        config.pluginmanager.register(SlowCount(), "slow-count")
    if os.environ.get("LLMUX_CI") == "1":
        patterns = os.environ.get("LLMUX_CI_ALLOWED_SKIPS", "").splitlines()
        config.pluginmanager.register(SkipWatch([pattern for pattern in patterns if pattern]), "skip-watch")


def _reason(detail: object) -> str:
    """A skip's reason: pytest gives a tuple of file, line and reason, and xdist keeps it."""
    return str(detail[2]) if isinstance(detail, tuple) else str(detail)
