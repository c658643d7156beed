"""From settings to what is built of them."""

import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from llmux.config.policy import PolicySettings, PolicyType
from llmux.config.settings import Settings
from llmux.core.identifiers import ALL_OF_IT, GpuId
from llmux.errors import ConfigError
from llmux.gpus import nvml
from llmux.gpus.hook import VARIABLE
from llmux.server.build import build_policy, build_redactor, build_scheduler, decide_sharing, find_gpus
from llmux.simulation.gpus import HOOK
from llmux.simulation.ledger import Ledger
from tests.support.core_scenarios import POLICIES
from tests.support.fake_nvml import FakeGpu, FakeNvml

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


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Gives this machine the GPUs of a fake library."""

    def give(*found: FakeGpu, failure: str = "") -> None:
        nvml._load.cache_clear()
        monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(*found, failure=failure))

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr(nvml, "_load", cache(nvml._load.__wrapped__))
    return give


def settings_of(**top_level: object) -> Settings:
    return Settings.model_validate({"models": {"a": {"model_path": "x"}}, **top_level})


def test_models_share_gpus_that_can_be_read(gpus: Callable[..., None]) -> None:
    gpus(FakeGpu("GPU-a", 1000), FakeGpu("GPU-b", 2000, reserved_mib=100))
    decided = decide_sharing(settings_of())
    assert decided.places_by_memory
    assert find_gpus(decided) == {GpuId("local", "0"): 1000, GpuId("local", "1"): 1900}
    assert not decide_sharing(settings_of(share_gpus=False)).places_by_memory


@pytest.mark.parametrize("failure", ["", "Driver Not Loaded"])
def test_without_gpus_that_can_be_read_each_takes_all_of_them(gpus: Callable[..., None], failure: str) -> None:
    gpus(failure=failure)
    decided = decide_sharing(settings_of())
    assert not decided.places_by_memory
    assert find_gpus(decided) == ALL_OF_IT
    with pytest.raises(ConfigError, match="declare"):
        find_gpus(decide_sharing(settings_of(share_gpus=True)))


def test_the_hook_may_name_the_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for number in range(2):
        Ledger(tmp_path / f"gpu-{number}.json").create(1000 + number)
    monkeypatch.setenv(VARIABLE, HOOK)
    assert not decide_sharing(settings_of()).places_by_memory, "it names none: NVML is not asked"
    monkeypatch.setenv("LLMUX_SIM_LEDGER", str(tmp_path / "gpu-{gpu}.json"))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    assert find_gpus(decide_sharing(settings_of())) == {GpuId("local", "0"): 1000, GpuId("local", "1"): 1001}
