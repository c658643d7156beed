"""No test is left out unseen.

With ``LLMUX_CI=1`` a skip that is not allowed makes the run fail. ``LLMUX_CI_ALLOWED_SKIPS`` holds regular expressions,
one a line; a skip is allowed if one of them is found in its reason. Without it, too, the summary says how many slow
tests a run has left out.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pytest

EXIT_CODE = 1
COLLECTED_SKIPS = "collected_skips"


class SkipWatch:
    """The pytest plugin: collects the reasons of all skips, and judges them at the end.

    Under xdist a worker passes on what was skipped while it collected; the controller sees everything else itself, and
    alone judges.
    """

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = [re.compile(pattern) for pattern in allowed]
        self.reasons: Counter[str] = Counter()
        self._while_collecting: Counter[str] = Counter()

    @property
    def forbidden(self) -> list[str]:
        """The reasons that are not allowed."""
        return [reason for reason in self.reasons if not any(pattern.search(reason) for pattern in self._allowed)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Count a skipped test; an expected failure is no skip."""
        if report.skipped and not hasattr(report, "wasxfail"):
            self.reasons[_reason(report.longrepr)] += 1

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Count a file that skips itself as a whole."""
        if report.skipped:
            self._while_collecting[_reason(report.longrepr)] += 1

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any, error: object) -> None:
        """An xdist worker has ended. Each collects all files, so their counts are the same."""
        self._while_collecting |= Counter(getattr(node, "workeroutput", {}).get(COLLECTED_SKIPS, {}))

    @pytest.hookimpl(tryfirst=True)
    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Give the verdict; a run that has failed anyway keeps its exit code."""
        output = getattr(session.config, "workeroutput", None)
        if output is not None:
            output[COLLECTED_SKIPS] = dict(self._while_collecting)
            return
        self.reasons += self._while_collecting
        if self.forbidden and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = EXIT_CODE

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show what was skipped, allowed or not."""
        for reason, count in self.reasons.items():
            verdict = "NOT ALLOWED" if reason in self.forbidden else "allowed"
            terminalreporter.write_line(f"skipped, {verdict}: {count} x {reason}")


def watch_skips(config: pytest.Config) -> None:
    """Install the watch where the environment asks for it."""
    if os.environ.get("LLMUX_CI") == "1":
        patterns = os.environ.get("LLMUX_CI_ALLOWED_SKIPS", "").splitlines()
        config.pluginmanager.register(SkipWatch([pattern for pattern in patterns if pattern]), "skip-watch")


def say_what_was_left_out(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell of the slow tests that a run without ``-m`` of its own has left out."""
    if terminalreporter.config.getoption("markexpr") == "not slow":
        terminalreporter.write_line("tests marked slow were left out; `make test-all` runs them too")


def _reason(detail: object) -> str:
    return str(detail[2]) if isinstance(detail, tuple) else str(detail)
