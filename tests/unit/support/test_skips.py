"""Runs of pytest with skips and with slow tests: what the summary says, and the exit code."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CONFTEST = "from tests.support.skips import watch_skips\ndef pytest_configure(config): watch_skips(config)\n"
PASSES = "def test_passes(): pass\n"
SKIPS = "import pytest\n@pytest.mark.skip(reason='no such thing here')\ndef test_skips(): pass\n"
SKIPS_ITSELF = "import pytest\npytest.skip('no such thing here', allow_module_level=True)\n"
SLOW = "import pytest\n@pytest.mark.slow\n@pytest.mark.parametrize('n', range(3))\ndef test_slow(n): pass\n"
IS_EXPECTED_TO_FAIL = "import pytest\n@pytest.mark.xfail(strict=True)\ndef test_fails(): assert False\n"


def run(
    directory: Path, source: str, *options: str, allowed: str = "", watched: str = "1"
) -> subprocess.CompletedProcess[str]:
    """Run pytest over two files: this source, and one whose test passes."""
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_it.py").write_text(source)
    (directory / "test_passes.py").write_text(PASSES)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # Importing the others takes four times as long as the run.
        "LLMUX_CI": watched,
        "LLMUX_CI_ALLOWED_SKIPS": allowed,
    }
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-p", "xdist", *options, str(directory)],
        cwd=directory,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,  # only against a hang: the machine may be busy
        check=False,
    )


@pytest.mark.parametrize("options", [(), ("-n2",)], ids=["one process", "xdist"])
@pytest.mark.parametrize("source", [SKIPS, SKIPS_ITSELF], ids=["test", "file"])
def test_a_skip_that_is_not_allowed_fails_the_run(tmp_path: Path, source: str, options: tuple[str, ...]) -> None:
    result = run(tmp_path, source, *options, allowed="another reason")
    assert result.returncode == 1
    assert "NOT ALLOWED: 1 x Skipped: no such thing here" in result.stdout


@pytest.mark.parametrize("options", [(), pytest.param(("-n2",), marks=pytest.mark.slow)], ids=["one process", "xdist"])
@pytest.mark.parametrize("source", [SKIPS, SKIPS_ITSELF], ids=["test", "file"])
def test_an_allowed_skip_is_shown(tmp_path: Path, source: str, options: tuple[str, ...]) -> None:
    result = run(tmp_path, source, *options, allowed="another reason\nsuch thing")
    assert result.returncode == 0, result.stdout
    assert "skipped, allowed: 1 x Skipped: no such thing here" in result.stdout


def test_expected_failures_are_not_skips(tmp_path: Path) -> None:
    assert run(tmp_path, IS_EXPECTED_TO_FAIL).returncode == 0


def test_without_the_variable_nothing_is_watched(tmp_path: Path) -> None:
    assert run(tmp_path, SKIPS, watched="0").returncode == 0


@pytest.mark.parametrize("options", [(), ("-n2",)], ids=["one process", "xdist"])
def test_slow_tests_that_were_left_out_are_counted(tmp_path: Path, options: tuple[str, ...]) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    result = run(tmp_path, SLOW, "-m", "not slow", "-k", "test_", *options)
    assert result.returncode == 0, result.stdout
    assert "left out: 3 slow tests; `make test-all` runs them" in result.stdout
    assert "left out" not in run(tmp_path, SLOW, "-m", "", *options).stdout


def test_a_run_that_leaves_out_every_test_is_no_success(tmp_path: Path) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")
    result = run(tmp_path, SLOW, "-m", "not slow", "-k", "test_slow")
    assert result.returncode == pytest.ExitCode.NO_TESTS_COLLECTED
    assert "left out: 3 slow tests" in result.stdout
