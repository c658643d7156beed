"""No test is skipped unseen: with ``LLMUX_CI=1`` a skip that nobody has allowed makes the run fail.

``LLMUX_CI_ALLOWED_SKIPS`` holds regular expressions, one a line; a skip is allowed if one is found in its reason.
"""

import os
import re
from collections import Counter
from collections.abc import Sequence

import pytest

EXIT_CODE = 1


class SkipWatch:
    """The pytest plugin: collects the reasons of all skips, and judges them at the end."""

    def __init__(self, allowed: Sequence[str]) -> None:
        self._allowed = [re.compile(pattern) for pattern in allowed]
        self.reasons: Counter[str] = Counter()

    @property
    def forbidden(self) -> list[str]:
        """The reasons that nobody has allowed."""
        return [reason for reason in self.reasons if not any(pattern.search(reason) for pattern in self._allowed)]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A test, or a part of it, has run; an expected failure is no skip."""
        if report.skipped and not hasattr(report, "wasxfail"):
            self._add(report.longrepr)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A file was read, which may skip itself as a whole."""
        if report.skipped:
            self._add(report.longrepr)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """The verdict; a run that failed anyway keeps its exit code."""
        if self.forbidden and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            session.exitstatus = EXIT_CODE

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """Show what was skipped, allowed or not."""
        for reason, count in self.reasons.items():
            verdict = "NOT ALLOWED" if reason in self.forbidden else "allowed"
            terminalreporter.write_line(f"skipped, {verdict}: {count} x {reason}")

    def _add(self, detail: object) -> None:
        reason = detail[2] if isinstance(detail, tuple) else str(detail)
        self.reasons[reason] += 1


def watch_skips(config: pytest.Config) -> None:
    """Install the watch where the environment asks for it."""
    if os.environ.get("LLMUX_CI") == "1":
        patterns = os.environ.get("LLMUX_CI_ALLOWED_SKIPS", "").splitlines()
        config.pluginmanager.register(SkipWatch([pattern for pattern in patterns if pattern]), "skip-watch")
