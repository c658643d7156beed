"""Each rule across keys refuses with the path of the key, and leaves its neighbours alone."""

from pathlib import Path
from typing import Any

import pytest

from llmux.config import checks
from llmux.config.settings import Settings
from llmux.core.eviction import Eviction
from llmux.errors import Problem


def settings(models: dict[str, dict[str, Any]], **top: Any) -> Settings:
    return Settings.model_validate({"models": {n: {"model_path": "x"} | m for n, m in models.items()}} | top)


def problems(models: dict[str, dict[str, Any]], **top: Any) -> list[Problem]:
    return list(checks.problems(settings(models, **top)))


def paths(models: dict[str, dict[str, Any]], **top: Any) -> list[str]:
    return [problem.path for problem in problems(models, **top)]


@pytest.mark.parametrize(
    ("models", "top", "expected"),
    [
        ({"a": {"port": 8001}, "b": {"port": 8001}}, {}, ["models.b.port"]),
        ({"a": {"port": 3000}}, {}, ["models.a.port"]),
        ({"a": {"port": 9090}}, {}, ["models.a.port"]),
        ({"a": {"port": 3001}}, {"admin_port": 3001}, ["models.a.port"]),
        ({"a": {}}, {"metrics_port": 3000}, ["metrics_port"]),
        ({"a": {}}, {"admin_port": 9090}, ["admin_port"]),
        ({"a": {"port": 1}, "b": {"port": 1}, "c": {"port": 1}}, {}, ["models.b.port", "models.c.port"]),
        ({"a": {}, "b": {}}, {"port": 0, "metrics_port": 0, "admin_port": 0}, []),
        ({"a": {"port": 8001}, "b": {"port": 8002}}, {"admin_port": 3001}, []),
    ],
)
def test_no_port_is_used_twice(models: dict[str, Any], top: dict[str, Any], expected: list[str]) -> None:
    assert paths(models, **top) == expected


def test_a_port_problem_names_the_other_use() -> None:
    (problem,) = problems({"a": {"port": 8001}, "b": {"port": 8001}})
    assert problem.message == "8001 is already used by models.a.port"


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--max-num-seqs 4", "two words in one (write --max-num-seqs and 4 as two items)"),
        ("-tp 2", "two words in one (write -tp and 2 as two items)"),
        ("--port\t9000", "two words in one (write --port and 9000 as two items)"),
        ('--hf-overrides {"a": 1}', 'two words in one (write --hf-overrides and {"a": 1} as two items)'),
        ("--api-key hush", "two words in one (write --api-key and its value as two items)"),
        ("--seed ", "--seed has a blank at its end (remove it)"),
        (" --seed 1", "two words in one (write --seed and 1 as two items)"),
        ("--seed 1 --port 2", "several words in one, the first of them --seed (write each word as an item of its own)"),
    ],
)
def test_several_words_in_one_are_refused(word: str, expected: str) -> None:
    (problem,) = problems({"a": {"extra_args": ["--enforce-eager", word]}})
    assert str(problem) == f"models.a.extra_args.1: {expected}"


@pytest.mark.parametrize("word", ["--x=a b", "a -b c", "- be brief", "-1 2", "--x", '{"a": 1}', "--x={a b=c}"])
def test_one_word_with_blanks_is_one_word(word: str) -> None:
    assert problems({"a": {"extra_args": ["--y", word]}}) == []


@pytest.mark.parametrize(
    ("word", "full"),
    [("--hos", "--host"), ("--po=1", "--port"), ("--ud", "--uds"), ("--h", "--host"), ("--por", "--port")],
)
def test_abbreviations_of_flags_that_llmux_sets_are_refused(word: str, full: str) -> None:
    (problem,) = problems({"a": {"extra_args": [word, "0.0.0.0"]}})
    assert problem.path == "models.a.extra_args"
    assert f"would be read as {full}" in problem.message


@pytest.mark.parametrize(
    ("words", "path", "remedy"),
    [
        (["--tensor-parallel", "2"], "models.a.extra_args", "write --tensor-parallel-size"),
        (["--max_num_seq=2"], "models.a.extra_args", "write --max-num-seqs"),
        (["max-model-len", "2"], "models.a.extra_args.0", "begin with a flag, such as --max-model-len"),
        (["--x=a --seed 1"], "models.a.extra_args.0", "write each flag as an item of its own"),
    ],
)
def test_arguments_that_are_probably_meant_otherwise(words: list[str], path: str, remedy: str) -> None:
    (warning,) = checks.warnings(settings({"a": {"extra_args": words}}))
    assert (warning.path, warning.remedy) == (path, remedy)


def test_usual_arguments_are_no_reason_to_warn() -> None:
    words = ["--max-model-len", "4096", "-tp", "2", "--gpu-memory-utilization=0.9", "--chat-template", "a --b"]
    assert list(checks.warnings(settings({"a": {"extra_args": words}}))) == []


def test_a_models_path_is_no_flag() -> None:
    assert paths({"a": {"model_path": "--host=0.0.0.0"}}) == ["models.a.model_path"]
    assert paths({"a": {"model_path": "./--host"}}) == []


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::", "::1", "fe80::1%eth0", "*", "localhost", "a-b.example"])
def test_hosts(host: str) -> None:
    assert paths({"a": {}}, host=host) == []


@pytest.mark.parametrize(
    ("host", "remedy"),
    [
        ("[::1]", "write ::1"),
        ("[::1]:3000", "write ::1"),
        ("http://0.0.0.0", "write 0.0.0.0, and the port into port"),
        ("http://[::1]:80/", "write ::1, and the port into port"),
        ("127.0.0.1:3000", "write 127.0.0.1, and 3000 into port"),
        ("localhost:80", "write localhost, and 80 into port"),
        ("300.1.1.1", None),
        ("a b", None),
        (" 127.0.0.1", None),
        ("127.0.0.1, ::1", None),
        ("/run/llmux.sock", None),
        (":3000", None),
        ("x" * 64, None),
        ("a..b", None),
    ],
)
def test_what_is_no_host(host: str, remedy: str | None) -> None:
    (problem,) = problems({"a": {}}, host=host)
    assert problem.path == "host"
    assert problem.remedy == (remedy or "write 127.0.0.1 for this machine only, 0.0.0.0 for all")


@pytest.mark.parametrize(
    "path",
    [
        "v1/x",
        "/",
        "",
        "/v1/x/",
        "/v1//x",
        "/v1/x?a=b",
        "/v1/*",
        "/v1/../x",
        "/v1/%41",
        "/a b",
        "/ä",
        "/control/x",
        "/v1/models",
        "/v1/models/x",
        "/models",
    ],
)
def test_unusable_inference_paths(path: str) -> None:
    if path:
        assert paths({"a": {}}, inference_paths=["/generate", path]) == ["inference_paths.1"]
    else:
        with pytest.raises(ValueError, match="inference_paths"):
            settings({"a": {}}, inference_paths=[path])


def test_usable_inference_paths() -> None:
    assert paths({"a": {}}, inference_paths=["/generate", "/v1/videos", "/v1/a.b-c_d/...x"]) == []
    assert paths({"a": {}}, inference_paths=["/v1/models_extra", "/controls/x", "/healthy", "/modelscope"]) == []


@pytest.mark.parametrize(
    ("key", "usable", "unusable"),
    [
        (
            "cors_origins",
            ["*", "null", "https://chat.example.org", "http://localhost:5173/", "app://obsidian.md", "http://[::1]:80"],
            [
                "chat.example.org",
                "https://",
                "https://a.example/path",
                "https://*.example",
                "https://u@a",
                "https://a b",
            ],
        ),
        (
            "allowed_hosts",
            ["box", "llm.example.org", "a_b-c"],
            ["http://box", "box:3000", "box/x", "*.example", "a b", "::1", ".a"],
        ),
    ],
)
def test_origins_and_hosts(key: str, usable: list[str], unusable: list[str]) -> None:
    assert paths({"a": {}}, **{key: usable}) == []
    assert paths({"a": {}}, **{key: unusable}) == [f"{key}.{index}" for index in range(len(unusable))]


@pytest.mark.parametrize("name", ["", "-a", "a\nb", "a\x7f", "\ud800", "/a", "a/", "a//b", ".", "..", "a/../b", "./a"])
def test_unusable_names(name: str) -> None:
    (problem,) = problems({name: {}})
    assert problem.message.startswith("not usable as a model's name: ")


@pytest.mark.parametrize("name", ["a\nb", "-a", "/a", "a/", ".."])
def test_unusable_aliases(name: str) -> None:
    assert paths({"a": {"aliases": ["fine", name]}}) == ["models.a.aliases.1"]


@pytest.mark.parametrize(
    ("models", "path", "name"),
    [
        ({"a": {"aliases": ["x"]}, "b": {"aliases": ["x"]}}, "models.b.aliases", "x"),
        ({"a": {"aliases": ["b"]}, "b": {}}, "models.a.aliases", "b"),
        ({"a": {"extra_args": ["--served-model-name", "x"]}, "b": {"aliases": ["x"]}}, "models.b.aliases", "x"),
        ({"a": {}, "b": {"extra_args": ["--served-model-name", "a"]}}, "models.b.extra_args", "a"),
        ({"a": {"aliases": ["sql"]}, "b": {"extra_args": ["--lora-modules", "sql=/l"]}}, "models.b.extra_args", "sql"),
    ],
)
def test_a_name_stands_for_one_model(models: dict[str, Any], path: str, name: str) -> None:
    (problem,) = problems(models)
    assert problem.path == path
    assert problem.message == f"'{name}' stands for '{path[7]}' here, and for '{'ab'.replace(path[7], '')}' too"


def test_names_that_do_not_collide() -> None:
    same = ["--served-model-name", "a", "x", "--lora-modules", "l=/l"]
    assert paths({"a": {"aliases": ["a", "x", "y"], "extra_args": same}, "x/y": {"aliases": ["other"]}}) == []
    assert paths({"a": {"model_path": "b"}, "b": {"model_path": "a"}}) == [], "a path is no name that was given"


def test_two_engines_of_one_model_are_warned_of() -> None:
    (warning,) = checks.warnings(settings({"a": {}, "b": {}, "c": {"extra_args": ["--seed", "1"]}}))
    assert (warning.path, warning.remedy) == ("models.b", "give 'a' the alias 'b' instead")
    served = {"extra_args": ["--served-model-name", "x"]}
    assert len(list(checks.warnings(settings({"a": {}, "b": served})))) == 1, "that is but a name"
    for differs in ({"model_path": "y"}, {"env": {"A": "1"}}, {"command": "other"}, {"extra_args": ["--seed", 1]}):
        assert list(checks.warnings(settings({"a": {}, "b": differs}))) == []


@pytest.mark.parametrize("name", ["a", "org/model", "qwen2.5:7b", "Größe", "a b", "...", "v1..2"])
def test_usable_names(name: str) -> None:
    assert problems({name: {}}) == []


@pytest.mark.parametrize(
    "words", [["--port", "1"], ["--port=1"], ["--host", "::"], ["--host=::"], ["--uds=/x"], ["--uds"]]
)
def test_flags_that_llmux_sets_are_refused(words: list[str]) -> None:
    (problem,) = problems({"a": {"extra_args": words}})
    assert problem.path == "models.a.extra_args"
    assert problem.message == f"{words[0].split('=')[0]} is set by llmux itself"


@pytest.mark.parametrize(
    "words", [["--max-num-seqs", "x"], ["-tp=0"], ["--tensor-parallel-size"], ["--served-model-name"]]
)
def test_unreadable_arguments_are_refused(words: list[str]) -> None:
    assert paths({"a": {"extra_args": words}}) == ["models.a.extra_args"]


def test_a_model_that_never_leaves_the_gpu_cannot_share_it() -> None:
    policy = {"eviction": "retain+keep_running"}
    llama = {"engine": "llama_cpp"}
    stays = llama | policy
    assert paths({"a": stays, "b": {}}) == ["models.a.eviction"]
    leaves = {"eviction": "retain+stop"}
    assert paths({"a": llama | leaves, "b": leaves, "c": stays}, policy=policy) == ["models.c.eviction"]
    assert paths({"a": stays}) == []
    assert "models.a.eviction" in [warning.path for warning in checks.warnings(settings({"a": stays}))]


def test_weights_that_stay_on_the_gpu_are_warned_of_with_the_flags_that_leave_room_for_them() -> None:
    stays = {"eviction": "retain+keep_running"}
    models = {"a": stays, "b": {"model_path": "y"}, "s": {"engine": "sglang"}, "r": REMOTE}
    assert paths(models) == []
    (warning,) = checks.warnings(settings(models))
    assert warning.path == "models.a.eviction"
    assert "weights of 'a' stay on the GPU" in warning.message
    assert warning.remedy.endswith("--gpu-memory-utilization or --mem-fraction-static")
    placed = models | {"a": stays | {"gpu_memory": "4GiB"}}
    assert paths(placed, gpus=[{"memory": "24GiB"}]) == ["models.a.eviction"], "how much its weights take is not known"
    assert list(checks.warnings(settings({"a": stays, "r": REMOTE}))) == [], "nobody shares the GPU with it"
    (warning, *_) = checks.warnings(settings({"a": stays, "l": {"engine": "llama_cpp"}}))
    assert warning.path == "models.a.eviction" and not warning.remedy, "no flag of it says how much it takes"


@pytest.mark.parametrize("process", ["cuda_suspend", "checkpoint"])
@pytest.mark.parametrize("flag", ["-tp=2", "--tensor-parallel-size=2"])
@pytest.mark.parametrize(
    ("further", "missing"),
    [
        ([], "--enforce-eager and --disable-custom-all-reduce"),
        (["--enforce-eager"], "--disable-custom-all-reduce"),
        (["--disable-custom-all-reduce"], "--enforce-eager"),
        (["--disable-custom-all-reduce", "--enforce-eager"], None),
    ],
)
def test_several_gpus_need_both_flags(process: str, flag: str, further: list[str], missing: str | None) -> None:
    model = {"eviction": f"retain+{process}", "extra_args": [flag, *further]}
    found = problems({"a": model}, checkpoint={})
    assert [problem.path for problem in found] == (["models.a.extra_args"] if missing else [])
    assert all(missing and f"needs {missing}, else" in problem.message for problem in found)


def test_the_flags_are_not_needed_elsewhere() -> None:
    assert paths({"a": {"eviction": "offload+keep_running", "extra_args": ["-tp", "2"]}}) == []
    assert paths({"a": {"eviction": "retain+cuda_suspend", "extra_args": ["-tp", "1"]}}, checkpoint={}) == []


def test_the_flags_are_needed_with_the_policys_eviction_too() -> None:
    top = {"policy": {"eviction": "retain+cuda_suspend"}, "checkpoint": {}}
    assert paths({"a": {"extra_args": ["-tp", "2"]}}, **top) == ["models.a.extra_args"]


def test_the_checkpoint_section_is_needed(tmp_path: Path) -> None:
    models = {
        "a": {"eviction": "retain+cuda_suspend"},
        "b": {"eviction": "discard+checkpoint"},
        "c": {"checkpoint_path": str(tmp_path)},
        "d": {},
    }
    (problem,) = problems(models)
    assert problem.path == "checkpoint"
    assert problem.message.endswith("'b', 'c'"), "a CUDA suspend needs no images"
    assert problems(models, checkpoint={}) == []
    assert paths({"a": {}}, policy={"eviction": "retain+checkpoint"}) == ["checkpoint"]


def test_checkpoint_path_must_exist_unless_there_is_an_object_store(tmp_path: Path) -> None:
    models = {"a": {"checkpoint_path": str(tmp_path / "absent")}}
    store = {"endpoint": "http://x", "bucket": "b", "access_key": "k", "secret_key": "s"}
    assert paths(models, checkpoint={}) == ["models.a.checkpoint_path"]
    assert paths(models, checkpoint={"object_store": store}) == []


S3 = {"endpoint": "http://x", "bucket": "b", "access_key": "k", "secret_key": "s"}


@pytest.mark.parametrize(
    ("store", "wrong"),
    [
        (S3, []),
        ({**S3, "region": "eu-west-1", "compression": "none"}, []),
        ({"url": "gs://bucket/prefix"}, []),
        ({"url": "s3://bucket", "options": {"endpoint": "http://x", "access_key_id": "k"}}, []),
        ({}, [""]),
        ({"compression": "zstd"}, [""]),
        ({"options": {"region": "r"}}, [""]),
        ({"region": "r"}, [".endpoint", ".bucket", ".access_key", ".secret_key"]),
        ({**S3, "endpoint": "store:9000"}, [".endpoint"]),
        ({**S3, "options": {"region": "r"}}, [".options"]),
        ({**S3, "url": "s3://b"}, [".endpoint", ".bucket", ".access_key", ".secret_key"]),
        ({"url": "s3://b", "region": "r"}, [".region"]),
        ({"url": "/var/images"}, [".url"]),
    ],
)
def test_an_object_store_is_described_in_one_way(store: dict[str, Any], wrong: list[str]) -> None:
    found = problems({"a": {}}, checkpoint={"object_store": store})
    assert [problem.path for problem in found] == [f"checkpoint.object_store{key}" for key in wrong]
    assert all(problem.remedy for problem in found)


def test_a_body_must_fit_into_the_queue() -> None:
    assert paths({"a": {}}, max_body_bytes=1000, queue_limit_bytes=999) == ["max_body_bytes"]
    assert paths({"a": {}}, max_body_bytes=1000, queue_limit_bytes=1000) == []


def test_warnings() -> None:
    top = {"policy": {"policy_type": "time_slice", "drain_before_switch": False}}
    assert [warning.path for warning in checks.warnings(settings({"a": {}}, **top))] == ["policy.drain_before_switch"]
    assert list(checks.warnings(settings({"a": {}}, policy={"drain_before_switch": False}))) == []


@pytest.mark.parametrize(
    ("model", "path"),
    [
        ({"model_path": "\u201cx/a\u201d"}, "models.a.model_path"),
        ({"command": "\u2018vllm\u2019"}, "models.a.command"),
        ({"extra_args": ["--seed", "1", "\u2013\u2013enforce-eager"]}, "models.a.extra_args.2"),
        ({"aliases": ["gpt-4 "]}, "models.a.aliases"),
        ({"extra_args": ["--lora-modules", "sql=/lora/sql", "docs"]}, "models.a.extra_args"),
        ({"extra_args": ["--lora-modules", '{"name": "sql"}']}, "models.a.extra_args"),
    ],
)
def test_slips_that_only_the_engine_would_notice(model: dict[str, Any], path: str) -> None:
    (warning,) = checks.warnings(settings({"a": model}))
    assert (warning.path, bool(warning.remedy)) == (path, True)


def test_adapters_in_both_notations_are_no_slips() -> None:
    words = ["--lora-modules", "sql=/lora/sql", '{"name": "docs", "path": "/lora/docs"}']
    assert list(checks.warnings(settings({"a": {"extra_args": words}}))) == []


@pytest.mark.parametrize(
    ("policy", "own", "paths"),
    [
        ({"refuse_after_seconds": 900}, {}, []),
        ({"refuse_after_seconds": 901}, {}, ["policy.refuse_after_seconds"]),
        ({}, {"batch_refuse_after_seconds": 901}, ["models.a.batch_refuse_after_seconds"]),
        ({"refuse_after_seconds": 60}, {"refuse_after_seconds": 86400}, []),
    ],
)
def test_a_limit_that_no_forecast_reaches_is_warned_of_where_it_spares_no_model(
    policy: dict[str, Any], own: dict[str, Any], paths: list[str]
) -> None:
    found = list(checks.warnings(settings({"a": own}, policy=policy)))
    assert [problem.path for problem in found] == paths
    assert all(problem.remedy for problem in found)


def test_a_key_of_two_kinds_is_a_warning_without_the_key() -> None:
    keys = {"api_keys": ["one-secret", "two-secret"], "batch_api_keys": ["two-secret"], "admin_key": "one-secret"}
    found = list(checks.warnings(settings({"a": {}}, **keys)))
    assert [warning.path for warning in found] == ["batch_api_keys.0", "admin_key"]
    assert not any("secret" in str(warning) for warning in found)


def test_the_canarys_adapter_must_be_one_of_the_engine() -> None:
    lora = {"extra_args": ["--lora-modules", "sql=/l"]}
    assert paths({"a": {**lora, "canary_adapter": "sql"}}) == []
    assert paths({"a": {**lora, "canary_adapter": "sqk"}}) == ["models.a.canary_adapter"]


def test_keys_of_other_kinds_and_unknown_kinds_are_refused() -> None:
    assert paths({"a": {"start_command": "serve {port}"}}) == ["models.a.start_command"]
    assert paths({"a": {"engine": "vlm"}}) == ["models.a.engine"]


HOOKS = {"engine": "hooks", "wake_command": "true", "sleep_command": "true"}
REMOTE = {"engine": "remote", "url": "https://api.example.org/v1", "api_key": "k3y"}


def not_ours(**model: Any) -> Settings:
    return Settings.model_validate({"models": {"m": model, "a": {"model_path": "x"}}})


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (HOOKS | {"port": 8001}, []),
        (HOOKS | {"url": "http://127.0.0.1:8001"}, []),
        (HOOKS, ["models.m.url: is missing"]),
        (HOOKS | {"port": 8001, "url": "http://h"}, ["models.m.port: is in url already"]),
        (
            {"engine": "hooks", "port": 8001},
            ["models.m.wake_command: is missing", "models.m.sleep_command: is missing"],
        ),
        (HOOKS | {"port": 8001, "eviction": "discard+keep_running"}, ["models.m.eviction: a hooks engine leaves by"]),
        (HOOKS | {"port": 8001, "extra_args": ["--x"]}, ["models.m.extra_args: a hooks engine has no use for it"]),
        (REMOTE, []),
        ({"engine": "remote"}, ["models.m.url: is missing"]),
        ({"engine": "remote", "port": 8001}, ["models.m.port: a remote engine has", "models.m.url: is missing"]),
        (REMOTE | {"url": "https://"}, ["models.m.url: names no host"]),
        (REMOTE | {"url": "https://u:swordfish@h"}, ["models.m.url: contains a user or a password"]),
        (REMOTE | {"wake_command": "true"}, ["models.m.wake_command: a remote engine has no use for it"]),
        ({"model_path": "x", "url": "http://h"}, ["models.m.url: a vllm engine has no use for it"]),
    ],
)
def test_engines_that_llmux_does_not_start_say_where_they_serve(model: dict[str, Any], expected: list[str]) -> None:
    found = [str(problem) for problem in checks.problems(not_ours(**model))]
    assert len(found) == len(expected)
    assert all(any(text.startswith(wanted) for text in found) for wanted in expected), found
    assert "swordfish" not in str(found)


def test_a_remote_stays_beside_models_that_share_the_gpu_but_one_that_takes_it_does_not() -> None:
    assert not_ours(**REMOTE).eviction_of("m") == Eviction.parse("retain+keep_running")
    stays = {"engine": "llama_cpp", "eviction": "retain+keep_running"}
    (problem,) = problems({"a": {}, "b": stays, "m": REMOTE})
    assert problem.path == "models.b.eviction"
    assert problems({"b": stays, "m": REMOTE}) == []


@pytest.mark.parametrize(
    ("url", "warned"),
    [("http://gpu-box:8080", True), ("http://127.0.0.1:8080", False), ("https://gpu-box", False)],
)
def test_a_key_that_travels_in_clear_is_warned_of(url: str, warned: bool) -> None:
    found = [
        warning for warning in checks.warnings(not_ours(**REMOTE | {"url": url})) if warning.path == "models.m.url"
    ]
    assert [("in clear" in str(warning)) for warning in found] == [True] * warned


@pytest.mark.parametrize(
    ("prefetch", "access_log", "expected"),
    [
        ({}, None, []),
        ({"models": "none"}, None, []),
        ({"models": "none", "rate_max": "1GiB", "memory_max": "1GiB"}, None, ["memory_max", "rate_max"]),
        ({"models": "predicted", "memory_max": "1GiB"}, "log.jsonl", []),
        ({"models": "predicted"}, None, ["models"]),
    ],
)
def test_what_of_prefetch_has_no_effect(prefetch: dict[str, Any], access_log: str | None, expected: list[str]) -> None:
    found = checks.warnings(settings({"a": {}}, prefetch=prefetch, access_log=access_log))
    assert [warning.path for warning in found] == [f"prefetch.{key}" for key in expected]
