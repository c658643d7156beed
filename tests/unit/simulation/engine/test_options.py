import pytest

from llmux.simulation.engine.options import Adapter, EngineOptions, Timings, parse


def options(line: str, **environment: str) -> EngineOptions:
    return parse(line.split(), environment)[0]


@pytest.mark.parametrize(
    "line",
    [
        "serve org/model --port 1",
        "serve --port 1 --dtype float32 -tp 2 org/model",
        "--port 1 --model org/model",
        "serve org/model --trust-remote-code --port 1 --seed 5 --hf_overrides {}",
        "serve org/model --max-num-se 3 --por 1 -q awq -O3 --lora-modules a=b c=d",
        'serve org/model --compilation-config {"mode":3} --no-enable-prefix-caching --port 1',
        "serve org/model --compilation-config.mode 3 --hf-overrides.a.b=c --port 1",
    ],
)
def test_both_styles_give_the_model_and_vllms_other_flags_do_nothing(line: str) -> None:
    parsed = options(line)
    assert (parsed.model, parsed.served_names, parsed.port) == ("org/model", ("org/model",), 1)


def test_vllms_flags() -> None:
    parsed = options(
        "serve m --served-model-name alias m --hos 0.0.0.0 --uds /s --api-key k --enable-sleep-mode "
        '--max_num_seqs 8 --max-model-len 4k --shutdown-timeout=3 --root-path /llm --allowed-origins ["http://a","http://b"]',
        VLLM_SERVER_DEV_MODE="1",
    )
    assert parsed.name == "alias"
    assert (parsed.served_names, parsed.host, parsed.uds, parsed.api_keys) == (("alias", "m"), "0.0.0.0", "/s", ("k",))
    assert (parsed.sleep_mode, parsed.max_running, parsed.max_model_tokens) == (True, 8, 4000)
    assert (parsed.root_path, parsed.allowed_origins) == ("/llm", ("http://a", "http://b"))
    assert (parsed.shutdown_timeout_seconds, parsed.development_mode) == (3.0, True)


def test_adapters() -> None:
    words = ["serve", "m", "--served-model-name", "base", "other", "--enable-lora", "--lora-modules", "sql=/l=1", ""]
    words += ['{"name": "chat", "path": "/c", "base_model_name": "other"}']
    parsed, _, _ = parse(words, {})
    assert parsed.adapters == (Adapter("sql", "/l=1"), Adapter("chat", "/c", "other"))
    assert parsed.lora
    asked = ("sql", "chat", "base", "other", None, "m")
    assert [parsed.answering_name(name) for name in asked] == ["sql", "chat", "base", "base", "base", None]


def test_defaults_are_those_of_the_mock() -> None:
    parsed, timings, faults = parse(["serve", "m"], {})
    assert (timings.first_token_seconds, timings.token_seconds, timings.reload_seconds) == (0.05, 0.0, 0.1)
    assert (parsed.startup_delay_seconds, parsed.sleep_mode, parsed.development_mode) == (0.0, False, False)
    assert "start-exit" not in list(faults.active())


@pytest.mark.parametrize(
    ("words", "complained_of"),
    [
        (["--no-such-flag"], "unrecognized arguments: --no-such-flag"),
        (["--max-num-seqs 4"], "unrecognized arguments: --max-num-seqs 4"),
        (["another"], "unrecognized arguments: another"),
        (["--disable-log-requests", "--port", "1"], "unrecognized arguments: --disable-log-requests"),
        (["--max-num", "4"], "ambiguous option: --max-num could match"),
        (["--allowed-origins", "*"], "argument --allowed-origins: invalid"),
        (["--lora-modules", "sql"], "argument --lora-modules: invalid"),
        (["--lora-modules", '{"name": "sql"}'], "argument --lora-modules: invalid fields"),
    ],
)
def test_what_vllm_does_not_know_ends_it_as_vllm_ends(
    words: list[str], complained_of: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        parse(["serve", "m", *words], {})
    assert complained_of in capsys.readouterr().err


def test_our_flags_have_environment_variables_and_the_command_line_wins() -> None:
    environment = {"LLMUX_SIM_WAKE_MS": "20", "LLMUX_SIM_LATENCY_MS": "7", "LLMUX_SIM_LEDGER": "/l"}
    environment |= {"LLMUX_SIM_WORKER": "1", "LLMUX_SIM_FAULT": "sleep-500:2,start-hang"}
    parsed, timings, faults = parse(["serve", "m", "--latency-ms", "9"], environment)
    assert (timings.wake_seconds, timings.first_token_seconds) == (0.02, 0.009)
    assert (parsed.ledger_path, parsed.worker) == ("/l", True)
    assert sorted(faults.active()) == ["sleep-500", "start-hang"]


@pytest.mark.parametrize(
    "line", ["serve", "", "serve m --port x", "serve m --sim-fault nonsense", "serve m --max-num-seqs 0"]
)
def test_a_bad_command_line_ends_with_code_2(line: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        options(line)


def test_a_prefill_takes_time_at_its_rate_or_none() -> None:
    assert Timings(prefill_tokens_per_second=100).prefill_seconds(200) == 2.0
    assert Timings().prefill_seconds(10**6) == 0.0


def test_the_decode_rate_falls_linearly_to_that_of_a_full_batch() -> None:
    timings = Timings(token_seconds=1 / 40, full_batch_token_seconds=1 / 20)
    assert [1 / timings.before_token(share) for share in (0.0, 0.5, 1.0)] == pytest.approx([40.0, 30.0, 20.0])


def test_batching_is_free_by_default() -> None:
    assert Timings(token_seconds=0.1).before_token(1.0) == 0.1
    assert Timings(full_batch_token_seconds=0.1).before_token(1.0) == 0.0
