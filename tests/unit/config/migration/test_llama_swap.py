"""llama-swap's files: what is refused, with its line, and the rules of macros, addresses and variables."""

from typing import Any

import pytest
import yaml

from llmux.config.migration.convert import convert
from llmux.errors import ConfigError


def converted(text: str) -> Any:
    return yaml.safe_load(convert(text, "swap.yaml").text)


def model(text: str) -> Any:
    """The model ``a`` of a file of which this is the section."""
    indented = "\n".join(f"    {line}" for line in text.splitlines())
    return converted(f"models:\n  a:\n{indented}\n")["models"]["a"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models:\n  a:\n    cmd: [x\n", "not YAML at line 4, column 1"),
        ("models:\n  a:\n\tcmd: x\n", "not YAML at line 3"),
        ("models:\n  a: {cmd: x}\n  a: {cmd: y}\n", "models.a: the key is given twice (lines 2 and 3)"),
        ("models:\n  a:\n    ttl: 5\n", "models.a.cmd: line 2: the command is missing"),
        ("models:\n  a:\n    cmd: |\n      # nothing\n", "models.a.cmd: line 3: the command is missing"),
        ("models:\n  a:\n    cmd: [x]\n", "models.a.cmd: line 3: must be a text"),
        ("models:\n  a:\n    cmd: x 'y\n", "models.a.cmd: line 3: a quote is not closed"),
        ("models:\n  a:\n    cmd: x ${nope}\n", "models.a.cmd: line 3: the macro ${nope} is not defined"),
        ("models:\n  a:\n    cmd: x ${PID}\n    proxy: http://${h}\n", "models.a.proxy: line 4: the macro ${h}"),
        ("models:\n  a:\n    cmd: x\n    ttl: soon\n", "models.a.ttl: line 4: must be a whole number"),
        ("models:\n  a:\n    cmd: x\n    env: [A=1, B]\n", "models.a.env.1: line 4: must be NAME=VALUE"),
        ("models:\n  a:\n    cmd: x\n    env: {A: 1}\n", "models.a.env: line 4: must be a list of texts"),
        ("models:\n  a: x\n", "models.a: line 2: must be a mapping"),
        ("models: {}\n", "models: line 1: there is no model"),
        ("models:\n  ${env.X}: {cmd: x}\n", "line 2: a model's name cannot contain a variable"),
        ("macros:\n  PORT: 1\nmodels: {a: {cmd: x}}\n", "macros.PORT: line 2: this name belongs to llama-swap"),
        ("macros:\n  a b: 1\nmodels: {a: {cmd: x}}\n", "macros.a b: line 2: a macro's name"),
        ("macros:\n  m: x${m}\nmodels: {a: {cmd: x}}\n", "macros.m: line 2: the macro contains itself"),
        ("macros:\n  m: [1]\nmodels: {a: {cmd: x}}\n", "macros.m: line 2: a macro's value is a text"),
        ("logLevel: loud\nmodels: {a: {cmd: x}}\n", "logLevel: line 1: must be one of debug, info, warn, error"),
        ("models: {a: {cmd: x}}\npeers:\n  p: {models: [m]}\n", "peers.p.proxy: line 3: the URL is missing"),
        ("models: {a: {cmd: x}}\ngroups: [a]\n", "groups: line 2: must be a mapping"),
        ("models: {a: {model_path: x}}\n", "models: this is a configuration of llmux already"),
        ("services: {a: {image: x}}\n", "neither llama-swap's YAML"),
        ("", "the file is empty"),
        ("- a\n", "the file is no mapping of keys to values"),
        ("models: {a: {cmd: \ue000}}\n", "private use area"),
        ("[" * 1000, "nested too deeply"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as refused:
        convert(text, "swap.yaml")
    assert message in "\n".join(map(str, refused.value.problems))


def test_the_last_macro_is_replaced_first_and_a_model_overrides_in_place() -> None:
    text = (
        "macros: {size: 1, args: '-c ${size}', line: 'serve ${args} ${MODEL_ID} --port ${PORT}'}\n"
        "models:\n  a: {cmd: '${line}'}\n  b: {cmd: '${line}', macros: {size: 2.50, flag: true}}\n"
    )
    models = converted(text)["models"]
    assert models["a"]["start_command"] == "serve -c 1 a --port {port}"
    assert models["b"]["start_command"] == "serve -c 2.50 b --port {port}"


def test_a_macro_that_comes_later_is_not_defined_yet() -> None:
    with pytest.raises(ConfigError, match=r"the macro \$\{later\} is not defined"):
        convert("macros: {first: '${later}', later: x}\nmodels: {a: {cmd: '${first}'}}\n", "swap.yaml")


def test_macros_that_double_each_other_are_refused() -> None:
    macros = "".join(f"  m{number}: '${{m{number - 1}}}${{m{number - 1}}}'\n" for number in range(1, 60))
    with pytest.raises(ConfigError, match="longer than 100000 characters"):
        convert(f"macros:\n  m0: x\n{macros}models: {{a: {{cmd: '${{m59}}'}}}}\n", "swap.yaml")


@pytest.mark.parametrize(
    ("proxy", "port"),
    [
        ("http://127.0.0.1:9000", 9000),
        ("http://localhost:9000/", 9000),
        ("http://localhost", 80),
        ("http://127.0.0.1:${PORT}", None),
        ("http://10.0.0.1:9000", None),
        ("unix:/run/x.sock", None),
        ("http://[x", None),
    ],
)
def test_the_port_of_a_command_is_the_proxys(proxy: str, port: int | None) -> None:
    assert model(f"cmd: serve --port ${{PORT}}\nproxy: {proxy}").get("port") == port


def test_an_address_elsewhere_is_said() -> None:
    text = convert("models: {a: {cmd: x, proxy: 'http://10.0.0.1:9000'}}", "swap.yaml").text
    assert "# proxy (http://10.0.0.1:9000): llmux reaches the engines that it starts by HTTP on loopback." in text


@pytest.mark.parametrize(("given", "seconds"), [("300", 300), ("5", 15), ("${env.SECONDS}", "${SECONDS}")])
def test_the_time_for_starting_is_carried_over(given: str, seconds: int | str) -> None:
    document = converted(f"healthCheckTimeout: {given}\nmodels: {{a: {{cmd: x}}}}\n")
    assert document["start_timeout_seconds"] == seconds


def test_a_variable_may_stand_in_brackets_without_quotes_as_in_llama_swap() -> None:
    assert converted("apiKeys: [${env.KEY}]\nmodels: {a: {cmd: x}}\n")["api_keys"] == ["${KEY}"]


def test_a_stop_command_with_the_process_number_is_left_out() -> None:
    section = model("cmd: serve ${PORT}\ncmdStop: kill -INT ${PID}")
    assert section == {"engine": "command", "start_command": "serve {port}"}


def test_no_secret_is_in_the_summary() -> None:
    text = (
        "apiKeys: [sk-clients]\n"
        "models:\n  a:\n    cmd: llama-server -m x --port 1 --api-key sk-engine --alias sk-alias\n"
        "    env: [TOKEN=sk-env]\n    cmdStop: stop --key sk-stop\n    useModelName: sk-name\n"
        "    metadata: {key: sk-metadata}\n    filters: {stripParams: sk-strip}\n    description: sk-text\n"
        "peers: {p: {proxy: 'http://h', apiKey: sk-peer, models: [m], tailcatKey: sk-tail}}\n"
    )
    result = convert(text, "swap.yaml")
    assert "sk-" not in "\n".join(result.remarks())
    assert "sk-clients" in result.text
