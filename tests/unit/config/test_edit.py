"""One value is changed, and everything else in the file stays as it was."""

import os
from pathlib import Path

import pytest

from llmux.config.edit import EditRefused, FileChanged, read_file, replace_file, with_eviction
from llmux.core.eviction import Eviction

OFFLOAD = Eviction.parse("offload+keep_running")
FILE = Path("llmux.yaml")
PICKED = "    # picked by llmux validate: 0.1 s\n    eviction: offload+keep_running"
"""In a model's section."""


def edited(text: str, model: str = "a") -> str:
    return with_eviction(text, FILE, model, OFFLOAD, "0.1 s")


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "# head\nmodels:\n  a:   # the first\n    model_path: x  # path\n  b: {model_path: y}\n",
            f"# head\nmodels:\n  a:   # the first\n{PICKED}\n    model_path: x  # path\n  b: {{model_path: y}}\n",
        ),
        (
            "models:\n  a:\n    model_path: ${WEIGHTS}\n    eviction: retain+stop  # for now\n",
            f"models:\n  a:\n    model_path: ${{WEIGHTS}}\n{PICKED}  # for now\n",
        ),
        (
            "models:\n  a:\n    eviction:\n      weights: retain\n      process: stop\n\n    # about the path\n"
            "    model_path: x\n",
            f"models:\n  a:\n{PICKED}\n\n    # about the path\n    model_path: x\n",
        ),
        (
            "models:\n  a:\n    # picked by llmux validate: 9 s\n    eviction: retain+stop\n    model_path: x\n",
            f"models:\n  a:\n{PICKED}\n    model_path: x\n",
        ),
        ("models: {a: {model_path: x}}\n", "models: {a: {eviction: offload+keep_running, model_path: x}}\n"),
        (
            "models:\n  a: {model_path: x, eviction: {weights: retain, process: stop}, port: 1}\n",
            "models:\n  a: {model_path: x, eviction: offload+keep_running, port: 1}\n",
        ),
        (
            '{\n  "models": {\n    "a": {\n      "model_path": "x"\n    }\n  }\n}\n',
            '{\n  "models": {\n    "a": {\n      "eviction": "offload+keep_running",\n      "model_path": "x"\n'
            "    }\n  }\n}\n",
        ),
        (
            '{"models": {"a": {"model_path": "x", "eviction": {"weights": "retain", "process": "stop"}}}}',
            '{"models": {"a": {"model_path": "x", "eviction": "offload+keep_running"}}}',
        ),
        (
            "models:\n  a:\n    sleep_level: 5\n    model_path: x\n",
            f"models:\n  a:\n{PICKED}\n    model_path: x\n",
        ),
        (
            "x-base: &base\n  port: 8001\nmodels:\n  a:\n    <<: *base\n    model_path: x\n",
            f"x-base: &base\n  port: 8001\nmodels:\n  a:\n{PICKED}\n    <<: *base\n    model_path: x\n",
        ),
    ],
)
def test_only_the_eviction_changes(before: str, after: str) -> None:
    assert edited(before) == after
    assert edited(after) == after, "a second time changes nothing"


@pytest.mark.parametrize(
    "text",
    [
        "models:\n  a: &same\n    model_path: x\n  b: *same\n",
        "x-a: &same\n  model_path: x\nmodels:\n  a: *same\n  b: *same\n",
        '{\n\t"models": {"a": {"model_path": "x"}}\n}\n',
        "models:\n  b:\n    model_path: x\n",
        "models:\n  a:\n",
    ],
)
def test_what_would_change_more_is_refused(text: str) -> None:
    with pytest.raises(EditRefused, match=r"write 'eviction: offload\+keep_running' by hand"):
        edited(text)


def test_the_file_keeps_its_mode_and_its_link(tmp_path: Path) -> None:
    file, link = tmp_path / "real.yaml", tmp_path / "link.yaml"
    file.write_text("old")
    file.chmod(0o640)
    link.symlink_to(file)
    replace_file(link, "new", "old")
    assert link.is_symlink() and file.read_text() == "new"
    assert file.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["link.yaml", "real.yaml"]  # noqa: PTH208


def test_a_file_that_was_changed_meanwhile_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "llmux.yaml"
    file.write_text("somebody's")
    with pytest.raises(FileChanged, match="run the command again"):
        replace_file(file, "new", "old")
    assert file.read_text() == "somebody's"


def test_the_ends_of_lines_and_a_byte_order_mark_stay(tmp_path: Path) -> None:
    file = tmp_path / "llmux.yaml"
    file.write_bytes("\ufeff# dös\r\nmodels:\r\n  a:\r\n    model_path: x\r\n".encode())
    before = read_file(file)
    replace_file(file, edited(before), before)
    note, key = PICKED.split("\n")
    assert file.read_bytes() == (f"\ufeff# dös\r\nmodels:\r\n  a:\r\n{note}\r\n{key}\r\n    model_path: x\r\n".encode())


def test_lines_that_end_in_two_ways_are_refused() -> None:
    with pytest.raises(EditRefused, match="end in two ways"):
        edited("models:\r\n  a:\n    model_path: x\n")
