"""Groups with real processes: rivals take turns, those that stay shut others out, companions come along."""

from pathlib import Path

from tests.support.bench import SLOW, eventually
from tests.support.several_gpus import gpus, model, resident

POLICY = {"policy_type": "fifo", "min_active_seconds": 0.0}


async def test_rivals_take_turns_though_they_would_fit(tmp_path: Path) -> None:
    models = {"a": model(300), "b": model(300), "c": model(300)}
    groups = {"one": {"models": ["a", "b"], "exclusive": True}}
    async with gpus(tmp_path, models, 1000, groups=groups, policy=POLICY) as bench:
        for name in "cab":
            await bench.expect(name)
        assert resident(tmp_path, 0) == {"b", "c"}
        await bench.expect("a")
        assert resident(tmp_path, 0) == {"a", "c"}


async def test_what_does_not_fit_beside_a_persistent_group_is_refused_and_the_rest_served(tmp_path: Path) -> None:
    models = {"a": model(300), "b": model(300), "large": model(500), "small": model(300)}
    groups = {"ours": {"models": ["a", "b"], "persistent": True}}
    async with gpus(tmp_path, models, 900, groups=groups, policy=POLICY) as bench:
        for name in ("a", "large", "b"):
            await bench.expect(name)
        refused = await bench.ask("large")
        assert refused.status == 503
        assert refused.document["error"]["code"] == "model_not_allowed"
        assert "which stays on the GPUs" in refused.document["error"]["message"]
        await bench.expect("small")
        assert resident(tmp_path, 0) == {"a", "b", "small"}


async def test_a_companion_comes_while_the_other_one_is_used_and_is_there_when_it_is_asked_for(tmp_path: Path) -> None:
    models = {"chat": model(400, extra_args=SLOW), "embedder": model(300)}
    groups = {"search": {"models": ["chat", "embedder"], "together": True}}
    async with gpus(tmp_path, models, 1000, groups=groups, policy=POLICY) as bench:
        async with bench.held_stream("chat"):

            async def is_there() -> bool:
                return resident(tmp_path, 0) == {"chat", "embedder"}

            await eventually(is_there, "the embedder has come along")
            await bench.until_model("embedder", process_state="running")
            await bench.let_go("chat")
        await bench.expect("embedder")
        assert bench.starts("embedder") == 1
