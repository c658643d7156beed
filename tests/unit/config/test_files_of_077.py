"""The kinds of files that users of llmux 0.7.7 have load unchanged, with the values that they mean."""

from pathlib import Path

import pytest

from llmux.config.load import Loaded, load
from llmux.config.policy import PolicyType
from llmux.config.settings import Settings

FIXTURES = Path(__file__).parents[2] / "fixtures" / "config_077"
KINDS = {
    "example",
    "six_models_24gb",
    "sleep",
    "sleep_fast",
    "suspend",
    "checkpoint",
    "checkpoint_s3",
    "tensor_parallel",
}


def loaded(kind: str) -> Loaded:
    return load(FIXTURES / f"{kind}.json", {})


def differences(settings: Settings) -> set[str]:
    """The top-level keys that differ from the defaults."""
    defaults = Settings.model_validate({"models": {"x": {"model_path": "x"}}})
    return {key for key, value in dict(settings).items() if value != getattr(defaults, key)}


def test_every_kind_has_its_file() -> None:
    assert {file.stem for file in FIXTURES.glob("*.json")} == KINDS


@pytest.mark.parametrize("kind", sorted(KINDS - {"six_models_24gb"}))
def test_there_is_nothing_to_warn_about(kind: str) -> None:
    assert loaded(kind).warnings == ()


def test_example() -> None:
    settings = loaded("example").settings
    assert differences(settings) == {"models", "policy", "admin_port", "checkpoint", "share_gpus"}
    assert settings.policy.policy_type is PolicyType.FIFO, "the file says so"
    assert settings.admin_port == 3001
    assert {name: (m.model_path, m.port, m.extra_args) for name, m in settings.models.items()} == {
        "chat-8b": ("example/chat-8b", 8001, ("--gpu-memory-utilization", "0.9")),
        "code-14b": ("example/code-14b", 8002, ("--gpu-memory-utilization", "0.9")),
    }
    assert str(settings.eviction_of("chat-8b")) == "offload+keep_running"
    assert str(settings.eviction_of("code-14b")) == "discard+checkpoint"
    assert settings.checkpoint is not None
    assert settings.checkpoint.model_dump(mode="json") == {
        "criu_path": "criu",
        "cuda_plugin_dir": "/usr/lib/criu",
        "images_dir": "/tmp/llmux-checkpoints",
        "cuda_checkpoint_path": "cuda-checkpoint",
        "keep_images": True,
        "images_budget": None,
        "object_store": None,
    }


def test_six_models() -> None:
    result = loaded("six_models_24gb")
    settings, policy = result.settings, result.settings.policy
    assert differences(settings) == {"models", "policy", "start_timeout_seconds", "share_gpus"}
    assert settings.share_gpus is False, "one model at a time, as there"
    assert list(settings.models) == [f"model-{letter}" for letter in "fedcba"]
    assert [model.port for model in settings.models.values()] == [*range(8001, 8007)]
    assert {settings.engine_of(name).gpu_count for name in settings.models} == {4}
    assert {str(settings.eviction_of(name)) for name in settings.models} == {"offload+keep_running"}
    assert policy.policy_type is PolicyType.TIME_SLICE
    assert policy.request_timeout_seconds == 600
    assert policy.min_active_seconds == 10
    assert policy.max_wait_seconds == 60
    assert policy.tick_interval_seconds == 0.5
    assert policy.min_quantum_seconds == 5
    assert settings.start_timeout_seconds == 600
    assert [warning.path for warning in result.warnings] == ["max_sleeping", "policy.min_quantum_ms"]


@pytest.mark.parametrize(("kind", "format_"), [("sleep", ()), ("sleep_fast", ("--load-format", "fastsafetensors"))])
def test_sleep(kind: str, format_: tuple[str, ...]) -> None:
    settings = loaded(kind).settings
    assert differences(settings) == {"models", "metrics_port", "vllm_command"}
    assert settings.metrics_port == 0
    assert settings.vllm_command == "/opt/engines/bin/vllm"
    assert settings.models["tiny"].extra_args == ("--max-model-len", "2048", *format_)
    assert str(settings.eviction_of("tiny")) == "offload+keep_running"


@pytest.mark.parametrize(
    ("kind", "eviction"), [("suspend", "retain+cuda_suspend"), ("checkpoint", "discard+checkpoint")]
)
def test_suspend_and_checkpoint(kind: str, eviction: str) -> None:
    settings = loaded(kind).settings
    assert differences(settings) == {"models", "metrics_port", "checkpoint"}
    assert str(settings.eviction_of("tiny")) == eviction
    assert settings.checkpoint is not None
    assert settings.checkpoint.model_dump(mode="json") == {
        "criu_path": "/usr/sbin/criu",
        "cuda_plugin_dir": "/opt/criu/plugins",
        "images_dir": "/var/tmp/images",
        "cuda_checkpoint_path": "/usr/bin/cuda-checkpoint",
        "keep_images": True,
        "images_budget": None,
        "object_store": None,
    }


def test_object_store() -> None:
    checkpoint = loaded("checkpoint_s3").settings.checkpoint
    assert checkpoint is not None
    assert checkpoint.images_dir == Path("/dev/shm/images")
    store = checkpoint.object_store
    assert store is not None
    assert (store.endpoint, store.bucket, store.region) == ("http://127.0.0.1:9000", "checkpoints", "us-east-1")
    assert store.access_key is not None and store.secret_key is not None
    assert store.access_key.get_secret_value() == "example-access"
    assert store.secret_key.get_secret_value() == "example-secret"


def test_tensor_parallel() -> None:
    settings = loaded("tensor_parallel").settings
    assert differences(settings) == {"models", "checkpoint"}
    assert settings.engine_of("tiny").gpu_count == 2
    assert str(settings.eviction_of("tiny")) == "retain+cuda_suspend"
    assert settings.checkpoint is not None
    assert settings.checkpoint.model_fields_set == {"cuda_checkpoint_path"}
