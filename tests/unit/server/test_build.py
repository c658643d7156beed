"""From settings to what is built of them."""

import pytest

from llmux.config.settings import Settings
from llmux.server.build import build_redactor


def test_every_secret_is_known_to_the_redactor(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = [f"a-secret-{number}" for number in range(9)]
    monkeypatch.setenv("INHERITED_TOKEN", secrets[0])
    model = {
        "model_path": "x",
        "env": {"SOME_PASSWORD": secrets[1]},
        "extra_args": ["--api-key", secrets[2], secrets[3]],
    }
    store = {"endpoint": "http://x", "bucket": "b", "access_key": secrets[4], "secret_key": secrets[5]}
    settings = Settings.model_validate(
        {
            "models": {"a": model},
            "admin_key": secrets[6],
            "api_keys": [secrets[7]],
            "batch_api_keys": [secrets[8]],
            "checkpoint": {"object_store": store},
        }
    )
    redactor = build_redactor(settings)
    assert [redactor.redact(secret) for secret in secrets] == ["***"] * 9
