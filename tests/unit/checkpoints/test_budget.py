"""Which images are given up first."""

import pytest

from llmux.checkpoints.budget import LocalImage, choose

NOW = 1000.0
GIB = 1 << 30


def image(model: str, age: float, *, holds_engine: bool = False, is_stored: bool = False, gib: int = 1) -> LocalImage:
    return LocalImage(model, gib * GIB, NOW - age, holds_engine, is_stored)


def given_up(*images: LocalImage, budget_gib: int) -> str:
    return "".join(one.model for one in choose(images, budget_gib * GIB, NOW))


def test_nothing_goes_as_long_as_all_fit() -> None:
    assert given_up(image("a", 10), image("b", 20), budget_gib=2) == ""


def test_the_oldest_goes_first_and_no_more_than_needed() -> None:
    assert given_up(image("a", 10), image("b", 30), image("c", 20), budget_gib=2) == "b"
    assert given_up(image("a", 10), image("b", 30), image("c", 20), budget_gib=1) == "bc"
    assert given_up(image("a", 10, gib=3), image("b", 30), budget_gib=3) == "b"


def test_what_must_be_downloaded_stays_longer_than_what_is_dumped_again() -> None:
    stored = image("a", 20, holds_engine=True, is_stored=True)
    assert given_up(stored, image("b", 10), budget_gib=1) == "b"
    assert given_up(stored, image("b", 1), budget_gib=1) == "a", "but not for ever"


@pytest.mark.parametrize("budget_gib", [0, 1])
def test_the_only_copy_of_an_engine_never_goes(budget_gib: int) -> None:
    assert given_up(image("a", 500, holds_engine=True), image("b", 1), budget_gib=budget_gib) == "b"
