"""Defaults, fall-backs, and what the runtime asks."""

import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from llmux.config.load import with_overrides
from llmux.config.policy import PolicyType
from llmux.config.settings import (
    CanaryMode,
    CheckpointSettings,
    LogLevel,
    ObjectStoreSettings,
    PrefetchedModels,
    Settings,
)
from llmux.core.eviction import STOP, Drain
from llmux.core.settings import RefuseAfter
from llmux.core.target import Target, Targets
from llmux.errors import ConfigError


def settings(**top: Any) -> Settings:
    return Settings.model_validate({"models": {"a": {"model_path": "org/a"}}} | top)


def test_the_register_of_names() -> None:
    given = {
        "qwen": {
            "model_path": "Qwen/Q",
            "extra_args": ["--served-model-name", "gpt-4", "mini"],
            "aliases": ["fast", "mini"],
        },
        "base": {"model_path": "x/base", "extra_args": ["--lora-modules", "sql=/lora/sql"]},
        "one": {"model_path": "twice"},
        "two": {"model_path": "twice"},
        "x/base": {"model_path": "other"},
    }
    names = Settings.model_validate({"models": given}).names()
    assert [(name.name, name.model, name.served, name.kind.name) for name in names.values()] == [
        ("qwen", "qwen", "qwen", "MODEL"),
        ("base", "base", "base", "MODEL"),
        ("one", "one", "one", "MODEL"),
        ("two", "two", "two", "MODEL"),
        ("x/base", "x/base", "x/base", "MODEL"),
        ("gpt-4", "qwen", "gpt-4", "SERVED"),
        ("mini", "qwen", "mini", "SERVED"),
        ("fast", "qwen", "qwen", "ALIAS"),
        ("sql", "base", "sql", "ADAPTER"),
        ("Qwen/Q", "qwen", "Qwen/Q", "PATH"),
        ("other", "x/base", "other", "PATH"),
    ]
    assert names["sql"].root == "/lora/sql"


def test_every_default_of_the_top_level() -> None:
    values = dict(settings())
    assert values.pop("models").keys() == {"a"}
    assert values.pop("engines") == {}
    assert values.pop("policy").policy_type is PolicyType.ADAPTIVE
    assert dict(values.pop("prefetch")) == {
        "models": PrefetchedModels.QUEUED,
        "rate_max": 1 << 30,
        "memory_max": None,
    }
    assert values == {
        "share_gpus": None,
        "host": "127.0.0.1",
        "port": 3000,
        "metrics_port": 9090,
        "admin_port": None,
        "admin_key": None,
        "api_keys": (),
        "batch_api_keys": (),
        "vllm_command": "vllm",
        "checkpoint": None,
        "warmup": False,
        "preload": (),
        "default_model": None,
        "start_timeout_seconds": 1800,
        "engine_stall_seconds": 60,
        "drain_timeout_seconds": 120,
        "shutdown_timeout_seconds": 20,
        "stop_timeout_seconds": 10,
        "sleep_timeout_seconds": 120,
        "wake_timeout_seconds": 120,
        "reload_timeout_seconds": 600,
        "reset_timeout_seconds": 30,
        "canary": CanaryMode.ALWAYS,
        "keepalive_seconds": 15,
        "wait_comments_after_seconds": 1,
        "access_log": None,
        "cache_dir": None,
        "inference_paths": (),
        "gpus": (),
        "groups": {},
        "gpu_memory_reserve": None,
        "cors_origins": (),
        "allowed_hosts": (),
        "host_memory_reserve_mib": 1024,
        "host_memory_max": None,
        "max_body_bytes": 128 * 1024 * 1024,
        "max_receiving_bytes": 1 << 30,
        "spool_bytes": 8 << 20,
        "queue_limit_requests": 10_000,
        "queue_limit_bytes": 1024 * 1024 * 1024,
        "cuda_lock_timeout_seconds": 10,
        "cuda_suspend_timeout_seconds": 120,
        "memory_wait_seconds": 10,
        "log_level": LogLevel.INFO,
    }


def test_every_default_of_the_policy() -> None:
    assert settings().policy.model_dump(mode="json") == {
        "policy_type": "adaptive",
        "request_timeout_seconds": 300,
        "drain_before_switch": None,
        "eviction": {"weights": "retain", "process": "stop"},
        "min_active_seconds": None,
        "coalesce_window_seconds": 2,
        "amortization_factor": 0.5,
        "max_wait_seconds": 15,
        "refuse_after_seconds": None,
        "batch_refuse_after_seconds": None,
        "tick_interval_seconds": 0.5,
        "idle_seconds": None,
        "ttft_target_seconds": 10,
        "batch_ttft_target_seconds": 300,
        "reading_tokens_per_second": 5,
        "sleep_deeper_after_seconds": None,
        "min_quantum_seconds": 2,
    }


@pytest.mark.parametrize(
    ("policy", "seconds"),
    [({}, 1.0), ({"policy_type": "fifo"}, 5.0), ({"min_active_seconds": 3}, 3.0), ({"min_active_seconds": 0}, 0.0)],
)
def test_the_default_of_min_active_seconds_depends_on_the_policy(policy: dict[str, object], seconds: float) -> None:
    assert settings(policy=policy).policy.effective_min_active_seconds == seconds


def test_a_model_may_have_targets_of_its_own() -> None:
    policy = {"ttft_target_seconds": 20, "reading_tokens_per_second": 8}
    both = settings(policy=policy, models={"a": {"ttft_target_seconds": 2}, "b": {"reading_tokens_per_second": 30}})
    assert both.targets_of("a") == Targets(Target(2, 8), Target(300, 8))
    assert both.targets_of("b") == Targets(Target(20, 30), Target(300, 30))


def refuse_after(found: Settings, model: str) -> RefuseAfter:
    return found.policy.refuse_after(found.models[model])


def test_a_model_may_refuse_sooner_or_later_than_the_others() -> None:
    policy = {"refuse_after_seconds": 60, "batch_refuse_after_seconds": 600}
    models: dict[str, dict[str, object]] = {"a": {"refuse_after_seconds": 20}, "b": {"batch_refuse_after_seconds": 900}}
    both = settings(policy=policy, models=models)
    assert refuse_after(both, "a") == RefuseAfter(20, 600)
    assert refuse_after(both, "b") == RefuseAfter(60, 900)
    assert refuse_after(settings(), "a") == RefuseAfter(math.inf, math.inf)


def test_every_default_of_a_model() -> None:
    assert settings().models["a"].model_dump() == {
        "model_path": "org/a",
        "aliases": (),
        "port": None,
        "extra_args": (),
        "eviction": None,
        "checkpoint_path": None,
        "checkpoint_calls": None,
        "env": {},
        "command": None,
        "max_in_flight": None,
        "drain": None,
        "idle_seconds": None,
        "gpu_memory": None,
        "gpus": None,
        "pin": None,
        "weight": 1.0,
        "max_wait_seconds": None,
        "refuse_after_seconds": None,
        "batch_refuse_after_seconds": None,
        "ttft_target_seconds": None,
        "batch_ttft_target_seconds": None,
        "reading_tokens_per_second": None,
        "engine": "vllm",
        "canary_adapter": None,
        "canary_image": None,
        "canary_tokens_per_second": None,
        "start_command": None,
        "stop_command": None,
        "ready_path": None,
        "wake_command": None,
        "sleep_command": None,
        "alive_command": None,
        "url": None,
        "api_key": None,
        "adapters": {},
        "saved_prompts_mib": 2048,
    }


def test_every_default_of_the_checkpoint_section() -> None:
    assert dict(CheckpointSettings()) == {
        "criu_path": "criu",
        "cuda_plugin_dir": Path("/usr/lib/criu/"),
        "images_dir": Path("/tmp/llmux-checkpoints"),
        "cuda_checkpoint_path": "cuda-checkpoint",
        "keep_images": True,
        "images_budget": None,
        "object_store": None,
    }


def test_every_default_of_the_object_store() -> None:
    assert dict(ObjectStoreSettings()) == {
        "url": None,
        "options": {},
        "endpoint": None,
        "bucket": None,
        "access_key": None,
        "secret_key": None,
        "region": "us-east-1",
        "compression": "auto",
        "download_timeout_seconds": 600.0,
    }


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError):
        settings().port = 1


def test_a_copy_derives_everything_anew() -> None:
    first = settings(vllm_command="vllm-1")
    assert first.engine_of("a").options.program == "vllm-1"
    copy = first.model_copy(update={"vllm_command": "vllm-2"})
    assert copy.engine_of("a").options.program == "vllm-2"
    assert first.engine_of("a") is first.engine_of("a")


def test_the_order_of_the_models_is_kept() -> None:
    names = ["z", "a", "m", "b"]
    assert list(Settings.model_validate({"models": {n: {"model_path": n} for n in names}}).models) == names


def test_eviction_falls_back_to_the_policy_and_then_to_stop() -> None:
    models = {"own": {"model_path": "x", "eviction": 1}, "other": {"model_path": "x"}}
    with_policy = Settings.model_validate({"models": models, "policy": {"eviction": "discard+keep_running"}})
    assert str(with_policy.eviction_of("own")) == "offload+keep_running"
    assert str(with_policy.eviction_of("other")) == "discard+keep_running"
    assert Settings.model_validate({"models": models}).eviction_of("other") == STOP


@pytest.mark.parametrize(
    ("policy", "own", "expected"),
    [
        ({}, None, Drain.FREEZE),
        ({"drain_before_switch": True}, None, Drain.WAIT),
        ({"policy_type": "fifo"}, None, Drain.WAIT),
        ({"policy_type": "cost_aware"}, "freeze", Drain.FREEZE),
        ({}, "wait", Drain.WAIT),
        ({"drain_before_switch": True}, "freeze", Drain.FREEZE),
        ({"drain_before_switch": False}, None, Drain.ABORT),
        ({"drain_before_switch": False}, "wait", Drain.WAIT),
        ({}, "abort", Drain.ABORT),
        ({"drain_before_switch": False, "policy_type": "cost_aware"}, None, Drain.WAIT),
        ({"drain_before_switch": False, "policy_type": "time_slice"}, None, Drain.WAIT),
    ],
)
def test_drain(policy: dict[str, Any], own: str | None, expected: Drain) -> None:
    model = {"model_path": "x", "drain": own, "eviction": "offload+keep_running"}
    assert settings(models={"a": model}, policy=policy).drain_of("a") is expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({"eviction": "retain+stop"}, Drain.WAIT),
        ({"eviction": "retain+keep_running"}, Drain.FREEZE),
        ({"eviction": "discard+checkpoint"}, Drain.FREEZE),
        ({"engine": "llama_cpp"}, Drain.WAIT),
        ({"engine": "llama_cpp", "eviction": "retain+checkpoint"}, Drain.FREEZE),
        ({"engine": "sglang", "eviction": "discard+keep_running"}, Drain.FREEZE),
        ({"engine": "hooks", "wake_command": "true", "sleep_command": "true", "url": "http://x"}, Drain.WAIT),
        ({"engine": "command", "command": "x", "eviction": "retain+checkpoint"}, Drain.WAIT),
    ],
)
def test_requests_are_frozen_by_default_where_engine_and_eviction_can_keep_them(
    model: dict[str, Any], expected: Drain
) -> None:
    assert settings(models={"a": {"model_path": "x"} | model}).drain_of("a") is expected


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ({}, 256),
        ({"extra_args": ["--max-num-seqs", "8"]}, 8),
        ({"extra_args": ["--max-num-seqs=8"]}, 8),
        ({"extra_args": ["--max-num-seqs", "8"], "max_in_flight": 3}, 3),
    ],
)
def test_max_in_flight(model: dict[str, Any], expected: int) -> None:
    assert settings(models={"a": {"model_path": "x"} | model}).max_in_flight_of("a") == expected


def test_tensor_parallel_size_and_command() -> None:
    models = {"a": {"model_path": "x", "extra_args": ["-tp", 2]}, "b": {"model_path": "x", "command": "/opt/engine"}}
    configured = settings(models=models, vllm_command="my-vllm")
    assert configured.engine_of("a").gpu_count == 2
    assert configured.engine_of("b").gpu_count == 1
    assert configured.command_of("a") == "my-vllm"
    assert configured.command_of("b") == "/opt/engine"


def test_overrides_of_the_command_line() -> None:
    changed = with_overrides(settings(), host="0.0.0.0", port=0)
    assert (changed.host, changed.port) == ("0.0.0.0", 0)
    assert with_overrides(settings()) == settings()
    assert changed.models == settings().models


@pytest.mark.parametrize(("port", "words"), [(9090, "metrics_port: 9090 is already used by port"), (70000, "port: ")])
def test_a_wrong_or_taken_port_of_the_command_line_is_refused(port: int, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        with_overrides(settings(), port=port)
    (problem,) = caught.value.problems
    assert str(problem).startswith(words)
    assert caught.value.source == "command line"


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (1000, 1000),
        ("1000B", 1000),
        ("20GiB", 20 << 30),
        ("1.5 GiB", 3 << 29),
        ("500MB", 500_000_000),
        ("2TB", 2 * 10**12),
    ],
)
def test_sizes_have_units(written: object, size: int) -> None:
    assert CheckpointSettings.model_validate({"images_budget": written}).images_budget == size


@pytest.mark.parametrize("written", [0, -1, "20", "20 gigabytes", "GiB", "1e9B", True, 1.5])
def test_sizes_that_are_none(written: object) -> None:
    with pytest.raises(ValidationError):
        CheckpointSettings.model_validate({"images_budget": written})
