"""The grain of images: white noise is found, ground and shared errors are not taken for it."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.infer.grain import LEAST, grain


def look(
    noise: float, stated: float, *, seed: int = 0, size: int = 60, ground: float = 0.1, hidden: float = 0.0, coarse: bool = False
) -> SimpleNamespace:
    """One band: smooth ground, a common error, white noise of a known sd and a stated one, a share of the pixels hidden."""
    rng = np.random.default_rng(seed)
    rows, cols = np.indices((size, size)) / 15.0
    data = ground * np.sin(rows) * np.cos(cols) + 0.02 + noise * rng.standard_normal((size, size))
    precision = np.where(rng.random((size, size)) < hidden, 0.0, stated**-2)
    layer = SimpleNamespace(footprint=SimpleNamespace(coarse=coarse))
    return SimpleNamespace(data=np.where(precision > 0, data, 9.0)[None], precision=precision[None], bands=("nir",), layer=layer)


@settings(max_examples=20, deadline=None)
@given(st.floats(0.5, 1.0), st.floats(0.0, 0.1), st.integers(0, 99))
def test_white_noise_is_found_through_ground_and_clouds(factor: float, hidden: float, seed: int) -> None:
    """200 x 200 pixels, a tenth of them hidden, leave the median an error of 1.3 %: the bound is five of them and more."""
    assert grain([look(factor * 0.01, 0.01, seed=seed, size=200, hidden=hidden)]) == pytest.approx(min(factor, 1.0), abs=0.07)


def test_stated_noise_is_never_raised_nor_lowered_without_end() -> None:
    assert grain([look(0.03, 0.01)]) == 1.0
    assert grain([look(0.0, 0.01, ground=0.0)]) == LEAST


def test_what_cannot_tell_does_not_count() -> None:
    quiet = look(0.004, 0.01)
    pseudo = SimpleNamespace(**{**vars(quiet), "bands": ("pseudo-1",)})
    assert grain([]) == grain([pseudo]) == grain([look(0.004, 0.01, coarse=True)]) == grain([look(0.004, 0.01, size=8)]) == 1.0
    assert grain([look(0.004, 0.01, hidden=1.0), quiet]) == grain([quiet])
