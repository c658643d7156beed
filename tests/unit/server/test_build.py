"""From settings to what is built of them."""

from pathlib import Path

import pytest

from llmux.config.policy import PolicySettings, PolicyType
from llmux.config.settings import Settings
from llmux.server.build import build_policy, build_redactor, build_scheduler
from tests.support.core_scenarios import POLICIES

DOCS = Path(__file__).parents[3] / "docs"


def test_every_secret_is_known_to_the_redactor(monkeypatch: pytest.MonkeyPatch) -> None:
    secrets = [f"a-secret-{number}" for number in range(10)]
    monkeypatch.setenv("INHERITED_TOKEN", secrets[0])
    model = {
        "model_path": "x",
        "env": {"SOME_PASSWORD": secrets[1]},
        "extra_args": ["--api-key", secrets[2], secrets[3]],
    }
    store = {"endpoint": "http://x", "bucket": "b", "access_key": secrets[4], "secret_key": secrets[5]}
    store["options"] = {"some_session_token": secrets[9]}
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
    assert [redactor.redact(secret) for secret in secrets] == ["***"] * 10


@pytest.mark.parametrize("name", list(PolicyType))
def test_the_random_walks_know_every_policy_that_can_be_configured(name: PolicyType) -> None:
    assert type(build_policy(PolicySettings(policy_type=name))) is POLICIES[name]


@pytest.mark.parametrize("document", ["configuration.md", "scheduling.md"])
def test_every_policy_is_described(document: str) -> None:
    rows = [line for line in (DOCS / document).read_text().splitlines() if line.startswith("| `")]
    assert [name for name in PolicyType if not any(row.startswith(f"| `{name}`") for row in rows)] == []


@pytest.mark.parametrize(("policy", "covers"), [({}, False), ({"request_timeout_seconds": 300.0}, True)])
def test_a_request_timeout_covers_starts_only_if_it_was_set(policy: dict[str, float], covers: bool) -> None:
    settings = Settings.model_validate({"models": {"a": {"model_path": "x"}}, "policy": policy})
    assert build_scheduler(settings)._world.limits.request_timeout_covers_starts is covers
