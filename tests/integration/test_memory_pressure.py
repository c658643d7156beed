"""Programs that are not ours take GPU memory: idle models and sleepers make room, busy ones stay."""

from pathlib import Path

from tests.support.pressure import machine, program


async def test_an_idle_model_leaves_and_comes_back_for_whoever_asks(tmp_path: Path) -> None:
    async with machine(tmp_path, "90MiB") as bench:
        await bench.expect("a")
        async with program(bench, 40) as game:
            await bench.until_model("a", process_state="sleeping:Offload+KeepRunning")
            told = await bench.server.wait_for_log("other programs have taken GPU memory.*")
            assert f"pid {game.pid}" in told[0]
            await bench.expect("a", "asked for while memory is missing")
        await bench.server.wait_for_log("no GPU memory is missing any more")
        await bench.expect("a", "afterwards")
        assert bench.starts("a") == 1, "it was put to sleep, and not stopped"


async def test_sleepers_are_stopped_while_a_busy_model_stays(tmp_path: Path) -> None:
    async with machine(tmp_path, "90MiB") as bench:
        await bench.expect("a")
        await bench.expect("b")
        async with bench.held_stream("b") as stream:
            async with program(bench, 40):
                await bench.until_model("a", process_state="not_started")
                assert await bench.process_state("b") == "running"
            await bench.let_go("b")
            await stream.read()
            assert stream.is_complete
        await bench.expect("a", "it is started anew")
