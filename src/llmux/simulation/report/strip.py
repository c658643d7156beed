"""A timeline as columns of a picture: what a model was doing for the most part in each."""

from collections.abc import Iterator

from llmux.simulation.virtual.timeline import Phase, Timeline


def strip(timeline: Timeline, model: str, end: float, columns: int) -> list[Phase]:
    """The main phase of each column; the whole width is the time up to ``end``."""
    seconds: list[dict[Phase, float]] = [{} for _ in range(columns)]
    width = (end or 1.0) / columns
    for begins_at, ends_at, phase in timeline.spans(model, end):
        column = int(begins_at / width)
        while column < columns and column * width < ends_at:
            part = min(ends_at, (column + 1) * width) - max(begins_at, column * width)
            seconds[column][phase] = seconds[column].get(phase, 0.0) + part
            column += 1
    return [_main(parts, width) for parts in seconds]


def runs(phases: list[Phase]) -> Iterator[tuple[int, int, Phase]]:
    """Equal columns side by side as one: from, to, phase."""
    begin = 0
    for column in range(1, len(phases) + 1):
        if column == len(phases) or phases[column] is not phases[begin]:
            yield begin, column, phases[begin]
            begin = column


def _main(parts: dict[Phase, float], width: float) -> Phase:
    off = width - sum(parts.values()) + parts.get(Phase.OFF, 0.0)
    return max([(off, Phase.OFF), *((part, phase) for phase, part in parts.items() if phase is not Phase.OFF)])[1]
