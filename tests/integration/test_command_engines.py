"""Servers that llmux knows only by their commands, as real processes behind a real llmux."""

from pathlib import Path

from tests.support.command_engines import MODEL, said, serving_commands


async def test_two_servers_take_turns(tmp_path: Path) -> None:
    async with serving_commands({"a": MODEL, "b": MODEL}, tmp_path) as bench:
        first, second, third = await said(bench, "a"), await said(bench, "b"), await said(bench, "a")
        assert [first[0], second[0], third[0]] == ["a", "b", "a"]
        assert first[1] != third[1], "the server was stopped, and started again"
        asked = (await bench.engine_call("a", "GET /asked")).document
        assert sum("/v1/chat/completions" in call for call in asked) == 1


async def test_a_server_that_dies_is_started_again(tmp_path: Path) -> None:
    async with serving_commands({"a": MODEL}, tmp_path) as bench:
        _, pid = await said(bench, "a")
        bench.engine("a").kill()
        name, other = await said(bench, "a")
        assert name == "a" and other != pid
