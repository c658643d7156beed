"""The names and labels of 0.7.7's metrics after two switches."""

from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families

from tests.support.bench import OFFLOAD, Bench, serving

DURATION_BUCKETS = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]


class Scrape:
    """What ``/metrics`` said."""

    def __init__(self, text: str) -> None:
        self.families = {family.name: family for family in text_string_to_metric_families(text)}

    def type_of(self, family: str) -> str:
        return str(self.families[family].type)

    def samples(self, name: str) -> dict[tuple[str, ...], float]:
        """Values by the labels' values, in the order of the labels' names."""
        found = [sample for family in self.families.values() for sample in family.samples if sample.name == name]
        assert found, f"no sample {name}"
        return {tuple(sample.labels[label] for label in sorted(sample.labels)): sample.value for sample in found}

    def labels(self, name: str) -> set[tuple[str, ...]]:
        """The sets of label names, ``le`` aside."""
        samples = [sample for family in self.families.values() for sample in family.samples if sample.name == name]
        assert samples, f"no sample {name}"
        return {tuple(sorted(label for label in sample.labels if label != "le")) for sample in samples}


async def scrape(bench: Bench) -> Scrape:
    answer = await bench.call("GET /metrics")
    assert answer.status == 200
    assert answer.headers["Content-Type"].startswith("text/plain")
    return Scrape(answer.text)


async def test_switches(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD, "b": OFFLOAD}, tmp_path) as bench:
        await bench.expect("a")
        await bench.expect("b")
        seen = await scrape(bench)
    assert seen.samples("llmux_switches_total") == {("", "a"): 1, ("a", "b"): 1}
    assert seen.labels("llmux_switches_total") == {("from", "to")}
    assert seen.type_of("llmux_switch_total_seconds") == "histogram"
    assert seen.labels("llmux_switch_total_seconds_count") == {("to",)}
    assert seen.samples("llmux_switch_total_seconds_count") == {("a",): 1, ("b",): 1}
    assert seen.samples("llmux_switch_total_seconds_sum")["b",] > 0
    phases = seen.samples("llmux_switch_phase_seconds_count")
    assert phases == {(phase, to): 1 for phase in ("cooldown", "drain", "sleep", "wake") for to in "ab"}
    assert seen.samples("llmux_active_model_info") == {("a",): 0, ("b",): 1}
    assert seen.type_of("llmux_active_model_info") == "gauge"


async def test_failures(tmp_path: Path) -> None:
    async with serving({"a": {**OFFLOAD, "extra_args": ["--sim-fault", "start-exit"]}}, tmp_path) as bench:
        assert (await bench.ask("a")).status == 503
        seen = await scrape(bench)
    assert seen.samples("llmux_switch_failures_total") == {("a",): 1}
    assert seen.labels("llmux_switch_failures_total") == {("to",)}


async def test_requests(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD, "b": OFFLOAD}, tmp_path) as bench:
        for _ in range(3):
            await bench.expect("a")
        await bench.expect("b")
        assert (await bench.ask("nobody")).status == 404
        seen = await scrape(bench)
    assert seen.samples("llmux_requests_total") == {
        ("a", "true"): 1,
        ("a", "false"): 2,
        ("b", "true"): 1,
        ("b", "false"): 0,
    }
    assert seen.labels("llmux_requests_total") == {("model", "waited")}
    assert seen.type_of("llmux_request_queue_wait_seconds") == "histogram"
    assert seen.samples("llmux_request_queue_wait_seconds_count") == {("a",): 3, ("b",): 1}
    assert seen.samples("llmux_request_queue_wait_seconds_sum")["b",] > 0
    assert seen.samples("llmux_in_flight") == {("a",): 0, ("b",): 0}
    assert seen.type_of("llmux_in_flight") == "gauge"


async def test_http(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD}, tmp_path) as bench:
        await bench.expect("a")
        assert (await bench.ask("nobody")).status == 404
        await bench.call("POST /v1/some/path/of/a/client", {"model": "a"})
        await bench.call("GET /v1/models")
        seen = await scrape(bench)
    requests = seen.samples("llmux_http_requests_total")
    assert seen.labels("llmux_http_requests_total") == {("endpoint", "method", "status")}
    assert requests["/v1/chat/completions", "POST", "200"] == 1
    assert requests["/v1/chat/completions", "POST", "404"] == 1
    assert requests["other", "POST", "404"] == 1
    assert requests["/v1/models", "GET", "200"] == 1
    assert {key[0] for key in requests}.isdisjoint({"/v1/some/path/of/a/client", "nobody"})
    assert seen.type_of("llmux_http_requests_duration_seconds") == "histogram"
    assert seen.labels("llmux_http_requests_duration_seconds_bucket") == {("endpoint", "method", "status")}
    bounds = {
        float(sample.labels["le"])
        for sample in seen.families["llmux_http_requests_duration_seconds"].samples
        if "le" in sample.labels
    }
    assert set(DURATION_BUCKETS) <= bounds
    assert seen.samples("llmux_http_requests_pending")["/v1/chat/completions", "POST"] == 0
    assert seen.labels("llmux_http_requests_pending") == {("endpoint", "method")}
    assert seen.samples("llmux_http_response_body_size_count")["/v1/chat/completions", "POST"] == 2
    assert seen.samples("llmux_http_response_body_size_sum")["/v1/chat/completions", "POST"] > 0


async def test_labels_never_come_from_requests(tmp_path: Path) -> None:
    async with serving({"a": OFFLOAD}, tmp_path) as bench:
        await bench.ask("surprising-model")
        await bench.call("GET /surprising-path")
        await bench.call("SURPRISE /v1/models")
        text = (await bench.call("GET /metrics")).text
    assert "surpris" not in text.lower()
