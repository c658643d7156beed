from pathlib import Path

from llmux.config.reference import MARK, render_reference
from llmux.config.settings import Settings

DOCUMENT = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_documented_options_are_current() -> None:
    assert DOCUMENT.read_text().partition(MARK)[2] == render_reference(), "run 'make reference'"


def test_every_option_is_documented() -> None:
    table = render_reference()
    for key in Settings.model_fields:
        assert f"| `{key}` |" in table
