"""The simulated ComfyUI as a real process: work that goes on after its request, and memory that is freed later."""

import signal
from pathlib import Path
from typing import Any

import pytest

from llmux.simulation.engine.comfyui import picture
from llmux.simulation.ledger import Ledger
from tests.support.simulated_engine import EngineProcess, eventually, stand_in

WORKFLOW = {"9": {"class_type": "SaveImage", "inputs": {}}}


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "gpu.json").create(1000)


def flags(ledger: Ledger, *more: str) -> tuple[str, ...]:
    memory = ("--sim-gpu-ledger", str(ledger.path), "--sim-gpu-memory", "600", "--sim-residue", "50")
    return (*memory, "--sim-prompt-ms", "20", *more)


async def put(comfy: EngineProcess) -> str:
    status, body = await comfy.post("/prompt", {"prompt": WORKFLOW, "client_id": "c"})
    assert (status, body["node_errors"]) == (200, {})
    return str(body["prompt_id"])


async def queue(comfy: EngineProcess) -> tuple[list[str], list[str]]:
    _, body = await comfy.get("/queue")
    running, pending = ([entry[1] for entry in body[key]] for key in ("queue_running", "queue_pending"))
    return running, pending


async def until_done(comfy: EngineProcess, prompt: str) -> Any:
    async def done() -> bool:
        return prompt in (await comfy.get(f"/history/{prompt}"))[1]

    await eventually(done, "the end of a prompt")
    return (await comfy.get(f"/history/{prompt}"))[1][prompt]


async def test_the_answer_comes_before_the_work_which_the_queue_shows(ledger: Ledger) -> None:
    async with stand_in("comfyui", *flags(ledger, "--sim-prompt-ms", "300")) as comfy:
        first, second = await put(comfy), await put(comfy)

        async def runs() -> bool:
            return await queue(comfy) == ([first], [second])

        await eventually(runs, "one prompt running and one pending")
        assert (await comfy.get(f"/history/{first}"))[1] == {}
        assert (await comfy.get("/prompt"))[1] == {"exec_info": {"queue_remaining": 2}}
        assert (await comfy.post("/queue", {"delete": [second]}))[0] == 200
        record = await until_done(comfy, first)
        assert record["status"]["status_str"] == "success"
        (shown,) = record["outputs"]["9"]["images"]
        async with comfy.session.get(comfy.url(f"/view?filename={shown['filename']}")) as response:
            assert await response.read() == picture(WORKFLOW)
        assert await queue(comfy) == ([], [])


async def test_only_pictures_of_work_that_is_done_are_written(ledger: Ledger, tmp_path: Path) -> None:
    slow = ("--sim-prompt-ms", "60000", "--output-directory", str(tmp_path))
    async with stand_in("comfyui", *flags(ledger, "--output-directory", str(tmp_path))) as comfy:
        prompt = await put(comfy)
        await until_done(comfy, prompt)
    async with stand_in("comfyui", *flags(ledger, *slow)) as comfy:
        await put(comfy)
    assert [file.name for file in tmp_path.glob("*.p*")] == [f"{prompt}.png"]
    assert (tmp_path / f"{prompt}.png").read_bytes() == picture(WORKFLOW)
    assert picture({**WORKFLOW, "1": {}}) != picture(WORKFLOW)


async def test_memory_is_taken_by_the_first_prompt_and_kept(ledger: Ledger) -> None:
    async with stand_in("comfyui", *flags(ledger)) as comfy:
        assert ledger.snapshot().used_mib == 50
        await until_done(comfy, await put(comfy))
        assert ledger.snapshot().used_mib == 600
        (device,) = (await comfy.get("/system_stats"))[1]["devices"]
        mib = 1 << 20
        assert (device["vram_total"], device["vram_free"]) == (1000 * mib, 400 * mib)
        assert device["torch_vram_total"] == 600 * mib


@pytest.mark.parametrize("body", [{"unload_models": True}, {"free_memory": True}])
async def test_free_is_done_after_the_running_prompt(ledger: Ledger, body: dict[str, bool]) -> None:
    async with stand_in("comfyui", *flags(ledger, "--sim-prompt-ms", "400", "--sim-free-ms", "0")) as comfy:
        prompt = await put(comfy)

        async def loaded() -> bool:
            return ledger.snapshot().used_mib == 600

        await eventually(loaded, "models on the GPU")
        assert (await comfy.post("/free", body))[0] == 200
        assert (ledger.snapshot().used_mib, await queue(comfy)) == (600, ([prompt], []))

        async def freed() -> bool:
            return ledger.snapshot().used_mib == 50

        await eventually(freed, "freed memory")
        assert prompt in (await comfy.get("/history"))[1]


async def test_free_is_done_at_once_when_idle_but_after_its_answer(ledger: Ledger) -> None:
    async with stand_in("comfyui", *flags(ledger, "--sim-free-ms", "200")) as comfy:
        await until_done(comfy, await put(comfy))
        assert (await comfy.post("/free", {"unload_models": True, "free_memory": True}))[0] == 200
        assert ledger.snapshot().used_mib == 600

        async def freed() -> bool:
            return ledger.snapshot().used_mib == 50

        await eventually(freed, "freed memory")
        await until_done(comfy, await put(comfy))
        assert ledger.snapshot().used_mib == 600


async def test_with_highvram_nothing_is_freed(ledger: Ledger) -> None:
    async with stand_in("comfyui", *flags(ledger, "--highvram", "--sim-free-ms", "0")) as comfy:
        await until_done(comfy, await put(comfy))
        await comfy.post("/free", {"unload_models": True})
        await until_done(comfy, await put(comfy))
        assert ledger.snapshot().used_mib == 600


async def test_a_prompt_that_does_not_fit_fails_and_comfyui_goes_on(ledger: Ledger) -> None:
    async with stand_in("comfyui", *flags(ledger, "--sim-gpu-memory", "1100")) as comfy:
        record = await until_done(comfy, await put(comfy))
        assert (record["status"]["status_str"], record["outputs"]) == ("error", {})
        assert record["status"]["messages"][0][1]["exception_type"] == "torch.OutOfMemoryError"
        assert len(ledger.snapshot().refused) == 1
        assert await queue(comfy) == ([], [])


async def test_an_interrupt_ends_the_running_prompt(ledger: Ledger) -> None:
    async with stand_in("comfyui", *flags(ledger, "--sim-prompt-ms", "60000")) as comfy:
        prompt = await put(comfy)

        async def runs() -> bool:
            return await queue(comfy) == ([prompt], [])

        await eventually(runs, "a running prompt")
        assert (await comfy.post("/interrupt"))[0] == 200
        record = await until_done(comfy, prompt)
        assert record["status"]["messages"][0][0] == "execution_interrupted"


async def test_the_page_its_assets_and_no_websocket(ledger: Ledger) -> None:
    async with stand_in("comfyui", *flags(ledger)) as comfy:
        for path, content in (("/", "ComfyUI"), ("/assets/index.js", "WebSocket"), ("/assets/index.css", "body")):
            status, body = await comfy.get(path)
            assert status == 200
            assert content in body
        assert (await comfy.get("/ws?clientId=c"))[0] == 400
        assert (await comfy.get("/api/queue"))[0] == 200
        assert (await comfy.post("/prompt", {}))[0] == 400
        assert (await comfy.post("/prompt", {"prompt": {}}))[0] == 400


async def test_sigterm_ends_it_in_the_middle_of_a_prompt(ledger: Ledger) -> None:
    async with stand_in("comfyui", "--listen", "127.0.0.1", *flags(ledger, "--sim-prompt-ms", "60000")) as comfy:
        await put(comfy)
        comfy.process.terminate()
        assert await comfy.exit_code() == -signal.SIGTERM
    assert ledger.snapshot().used_mib == 0
