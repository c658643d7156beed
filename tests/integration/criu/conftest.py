"""Checks after every test with the real criu that nothing is left of it."""

from collections.abc import Iterator

import pytest

from tests.support.real_criu import nothing_left


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    with nothing_left():
        yield
