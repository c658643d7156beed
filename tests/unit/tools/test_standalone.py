"""The commands that work on one engine alone refuse what llmux does not start."""

import pytest

from llmux.config.settings import Settings
from llmux.tools.standalone import NotStartedHere, open_standalone


async def test_an_engine_that_llmux_does_not_start_is_refused() -> None:
    settings = Settings.model_validate({"models": {"far": {"engine": "remote", "url": "http://127.0.0.1:1"}}})
    with pytest.raises(NotStartedHere, match="'far' has a remote engine"):
        async with open_standalone(settings, "far", images=None):
            pass
