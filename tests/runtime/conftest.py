"""What all tests of a forward share."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="module")
def quick_collection() -> Iterator[None]:
    """A manager of continuous batching collects garbage three times, over everything that the tests have imported."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
