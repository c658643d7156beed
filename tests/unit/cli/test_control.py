"""The operator's commands against a running control API."""

import asyncio
import json
import re
import socket
from collections.abc import Sequence

import pytest
import typer
from typer.testing import CliRunner, Result

from llmux.cli import control
from llmux.core.need import Need, NeedSource
from llmux.core.settings import Limits
from tests.support.control import HOST, ControlApi, control_api
from tests.support.scripted import model

application = typer.Typer()
for command in (
    control.status,
    control.switch,
    control.pin,
    control.unpin,
    control.mode,
    control.sleep,
    control.wake,
    control.eviction,
):
    application.command()(command)


def invoke(arguments: Sequence[str], **environment: str) -> Result:
    return CliRunner().invoke(application, arguments, env={"LLMUX_URL": None, **environment})


async def llmux(api: ControlApi, *arguments: str, **environment: str) -> Result:
    return await asyncio.to_thread(invoke, arguments, LLMUX_URL=api.url, **environment)


async def test_status_as_a_table_and_as_json() -> None:
    async with control_api(model("a"), model("[bold]b")) as api:
        await api.post("pin", model="a")
        shown = await llmux(api, "status")
        assert shown.exit_code == 0
        lines = [line.split() for line in shown.stdout.splitlines()]
        assert shown.stdout.splitlines()[0] == "active:a (mode manual, pinned to a)"
        assert lines[2] == ["a", "running", "0", "0", "0", "offload+keep_running", "1000"]
        assert lines[3] == ["[bold]b", "not_started", "0", "0", "0", "offload+keep_running"]
        assert json.loads((await llmux(api, "status", "--json")).stdout) == await api.status()


async def test_status_says_what_each_model_needs_and_how_that_is_known() -> None:
    needs = {
        "a": Need(300, NeedSource.DECLARED),
        "b": Need(420, NeedSource.MEASURED, 200),
    }
    async with control_api(model("a"), model("b"), need_of=lambda name, gpu: needs[name]) as api:
        shown = await llmux(api, "status")
        lines = shown.stdout.splitlines()
        assert lines[1].split()[:3] == ["Model", "State", "Needs"]
        assert "300 MiB (declared)" in lines[2]
        assert "420 MiB (measured, more than the 200 MiB that were said)" in lines[3]


async def test_status_says_what_is_waited_for() -> None:
    async with control_api(model("a"), model("b")) as api:
        api.runtime.engines["a"].wake_gate.clear()
        api.runtime.ask("a")
        await api.until(lambda: api.runtime.engines["a"].calls == ["wake"])
        shown = await llmux(api, "status")
        assert shown.exit_code == 0
        assert re.fullmatch(r"a, \d+ s so far, expected in \d+ s: is starting for \d+ s", shown.stdout.splitlines()[-1])
        api.runtime.engines["a"].wake_gate.set()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("switch", "a"), "'a' is active"),
        (("pin", "a"), "'a' is active and pinned"),
        (("pin", "a", "--keep"), "'a' is on the GPU and stays there; others are served beside it"),
        (("unpin",), "no model is pinned, mode is auto"),
        (("mode", "manual"), "mode is manual"),
        (("wake", "a"), "'a' is awake"),
        (("sleep", "a"), "'a' is not_started"),
        (("sleep", "a", "--eviction", "retain+stop"), "'a' is not_started"),
    ],
)
async def test_the_result_is_printed(arguments: tuple[str, ...], said: str) -> None:
    async with control_api(model("a")) as api:
        result = await llmux(api, *arguments)
        assert result.exit_code == 0
        # The last line: the server, which is in this process too, may log to the same stream.
        assert result.stdout.splitlines()[-1] == said


async def test_evictions_are_shown_and_changed() -> None:
    async with control_api(model("a"), model("b")) as api:
        changed = await llmux(api, "eviction", "b", "discard+stop")
        assert changed.exit_code == 0
        shown = await llmux(api, "eviction")
        assert [line.split() for line in shown.stdout.splitlines()[1:]] == [
            ["a", "offload+keep_running", "not_started"],
            ["b", "discard+stop", "not_started"],
        ]
        one = json.loads((await llmux(api, "eviction", "b", "--json")).stdout)
        assert one["models"]["b"]["eviction"] == {"weights": "discard", "process": "stop"}
        assert list(one["models"]) == ["b"]
        assert (await llmux(api, "eviction", "nobody")).exit_code == 1


async def test_a_refusal_and_a_failure_are_reported_and_end_with_1() -> None:
    async with control_api(model("a"), limits=Limits(backoff_first_seconds=60.0)) as api:
        unknown = await llmux(api, "switch", "nobody")
        assert (unknown.exit_code, unknown.stdout) == (1, "")
        assert unknown.stderr == "llmux: the model 'nobody' does not exist; configured models: a\n"
        api.runtime.engines["a"].wake_error = "no such file"
        failed = await llmux(api, "switch", "a")
        assert failed.exit_code == 1
        assert failed.stderr.splitlines()[-1] == "llmux: no such file"


async def test_the_key_comes_from_option_or_environment() -> None:
    async with control_api(model("a"), admin_key="secret") as api:
        without = await llmux(api, "status")
        assert without.exit_code == 1
        assert (
            without.stderr == "llmux: a key is needed: give llmux's admin_key with --admin-key, or in LLMUX_ADMIN_KEY\n"
        )
        wrong = await llmux(api, "status", "--admin-key", "other")
        assert wrong.stderr.startswith("llmux: the key is wrong: give ")
        assert (await llmux(api, "status", "--admin-key", "secret")).exit_code == 0
        assert (await llmux(api, "status", LLMUX_ADMIN_KEY="secret")).exit_code == 0


def test_no_server_is_reported_and_ends_with_1() -> None:
    with socket.socket() as reserved:
        reserved.bind((HOST, 0))
        url = f"http://{HOST}:{reserved.getsockname()[1]}"
        result = invoke(["status", "--url", url])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"llmux: nothing listens at {url} (")
    assert result.stderr.endswith(": is llmux running?\n")


async def test_a_server_that_is_not_llmux_is_reported() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")
        writer.close()

    async with await asyncio.start_server(answer, HOST, 0) as server:
        url = f"http://{HOST}:{server.sockets[0].getsockname()[1]}"
        result = await asyncio.to_thread(invoke, ["status", "--url", url])
    assert (result.exit_code, result.stderr) == (1, f"llmux: {url} answers, but it is not llmux\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ("switch",),
        ("mode", "sometimes"),
        ("sleep", "a", "--eviction", "offload"),
        ("eviction", "a", "offload+nothing"),
        ("status", "--url", "localhost:3000"),
    ],
)
def test_wrong_usage_ends_with_2(arguments: tuple[str, ...]) -> None:
    assert invoke(arguments).exit_code == 2


async def test_status_says_what_is_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    async with control_api(model("a")) as api:
        assert "reading ahead" not in (await llmux(api, "status")).stdout
        now = {"model": "[b]", "reason": "queued", "done_mib": 1, "total_mib": 4096}
        monkeypatch.setattr(api.runtime.operations, "_describe_prefetch", lambda: now)
        assert "reading ahead [b] (queued): 1 of 4096 MiB" in (await llmux(api, "status")).stdout.splitlines()


@pytest.mark.parametrize(("load", "said"), [(1.42, " (1.4 times as much)"), (None, "")])
async def test_status_says_how_much_more_is_asked_than_can_be_done(
    load: float | None, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with control_api(model("a")) as api:
        operations = api.runtime.operations
        monkeypatch.setattr(operations, "_overload_seconds", lambda: 90.0)
        monkeypatch.setattr(operations._forecasts, "offered_load", lambda now: load)
        line = f"more is asked of the GPUs than they can do{said}, for 90 s: requests will time out"
        assert line in (await llmux(api, "status")).stdout.splitlines()
        assert (await api.status())["offered_load"] == load
