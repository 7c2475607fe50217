"""Fixtures of the inference tests."""

from __future__ import annotations

from collections.abc import Iterator

import jax
import pytest


@pytest.fixture(scope="module")
def hasty(request: pytest.FixtureRequest) -> Iterator[None]:
    """Programs compiled without optimisations, where nearly all of the time is compiling. --slow tests them as users run them."""
    jax.config.update("jax_disable_most_optimizations", not request.config.getoption("--slow"))
    yield
    jax.config.update("jax_disable_most_optimizations", False)
