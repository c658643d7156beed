"""The figures as one JSON document; seconds throughout."""

from collections.abc import Mapping, Sequence
from typing import Any

from llmux.simulation.report.figures import Distribution, Figures, LowerBound, RunFigures
from llmux.simulation.virtual.timeline import Shares

DIGITS = 6


def run_document(run: RunFigures) -> dict[str, Any]:
    """One policy's, or one replay's, part."""
    return figures_document(run.total) | {
        "models": {name: figures_document(figures) for name, figures in run.models.items()}
    }


def figures_document(figures: Figures) -> dict[str, Any]:
    """What some requests had to bear."""
    return {
        "requests": figures.requests,
        "unserved": figures.unserved,
        "wait": distribution_document(figures.wait),
        "ttft": distribution_document(figures.ttft),
        "latency": distribution_document(figures.latency),
        "within": {str(seconds): round(share, DIGITS) for seconds, share in figures.within.items()},
        "switches": figures.switches,
        "share": _share_document(figures.share),
        "starvation": round(figures.starvation, DIGITS),
    }


def distribution_document(distribution: Distribution) -> dict[str, float | None]:
    """Durations in seconds."""
    return {
        "mean": _rounded(distribution.mean),
        "p50": _rounded(distribution.p50),
        "p90": _rounded(distribution.p90),
        "p99": _rounded(distribution.p99),
        "max": _rounded(distribution.max),
    }


def document(
    trace: Sequence[str], requests: int, runs: Sequence[RunFigures], bound: LowerBound | None, **more: Any
) -> Mapping[str, Any]:
    """The whole. Without a lower bound there is none in it."""
    result: dict[str, Any] = {"trace": " ".join(trace), "requests": requests, **more}
    result["policies"] = {run.name: run_document(run) for run in runs}
    if bound is not None:
        result["lower_bound"] = {"ttft": distribution_document(bound.ttft)}
    return result


def _share_document(share: Shares | None) -> dict[str, float] | None:
    if share is None:
        return None
    return {
        "serving": round(share.serving, DIGITS),
        "switching": round(share.switching, DIGITS),
        "draining": round(share.draining, DIGITS),
        "idle": round(share.idle, DIGITS),
    }


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, DIGITS)
