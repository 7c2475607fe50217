"""What a coarse sensor gets wrong, by moments: against errors that were drawn from the equations."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from fusion.infer.discrepancy import centred, errors, share_of_variety, uneven
from fusion.infer.images import moved

LOOKS, BANDS, HIGH, WIDE = 8, 3, 15, 15


def drawn(share: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(residual (n, B, H, W), use, variety (B, H, W)): errors whose variance is 1 - share + share times the variety of the ground."""
    rng = np.random.default_rng(seed)
    variety = np.broadcast_to(rng.gamma(0.5, 2.0, (HIGH, WIDE)), (BANDS, HIGH, WIDE)) * rng.uniform(0.9, 1.1, (BANDS, 1, 1))
    variety = variety / variety.mean(axis=(1, 2), keepdims=True)
    scale = 1 - share + share * variety.mean(axis=0)
    use = (rng.random((LOOKS, BANDS, HIGH, WIDE)) > 0.1).astype(float)
    size = np.array([0.01, 0.02, 0.005])[:, None, None]
    level = rng.normal(0, 0.01, (LOOKS, BANDS, 1, 1))
    return (level + size * np.sqrt(scale) * rng.standard_normal(use.shape)) * use, use, variety


@settings(max_examples=10, deadline=None)
@given(st.sampled_from([0.0, 0.4, 0.75, 0.96]), st.integers(0, 50))
def test_the_share_that_goes_with_variety_is_found(share: float, seed: int) -> None:
    assert share_of_variety(*drawn(share, seed)) == pytest.approx(share, abs=0.21)


def test_cells_are_alike_on_average_and_errors_keep_their_size() -> None:
    residual, use, variety = drawn(0.9, 1)
    scale = uneven(0.9, variety)
    assert scale.mean() == pytest.approx(1.0)
    assert scale.min() >= 0.1
    stated = np.full(BANDS, 0.01**2)
    _, offset, total, _, _ = errors(residual, use, scale, np.arange(LOOKS) * 16.0, np.arange(LOOKS), stated, np.full(BANDS, 0.05**2), 10.0)
    np.testing.assert_allclose(np.sqrt(total), [0.01, 0.02, 0.005], rtol=0.1)
    assert ((offset > 0.004) & (offset < 0.02)).all()


def test_a_cell_a_look_leaves_the_stated_discrepancy_and_few_move_it_by_their_number() -> None:
    """With one cell all that differs from look to look is the look's offset. With two, errors of .002 for the stated .02: variance
    (.02^2)^w (.002^2)^(1 - w), w = 6 / (6 + looks)."""
    days, stated = np.arange(LOOKS) * 16.0, np.full(1, 0.02**2)
    one = np.random.default_rng(0).normal(0.03, 0.004, (LOOKS, 1, 1, 1))
    bias, _, total, lasting, _ = errors(one, np.ones_like(one), np.ones((1, 1)), days, np.arange(LOOKS), np.full(1, 0.005**2), stated, 10.0)
    np.testing.assert_allclose(total, stated)
    assert 0 < lasting[0] < total[0]
    assert bias[0] == pytest.approx(0.03, abs=0.004)
    two = one + np.array([-0.002, 0.002]) / np.sqrt(2)
    _, _, total, _, _ = errors(two, np.ones_like(two), np.ones((1, 2)), days, np.arange(LOOKS), np.full(1, 0.005**2), stated, 10.0)
    weight = 6 / (6 + LOOKS)
    np.testing.assert_allclose(total, 0.02 ** (2 * weight) * 0.002 ** (2 - 2 * weight), rtol=1e-6)


def test_a_look_is_centred_by_what_is_sure() -> None:
    residual, use, _ = drawn(0.0, 2)
    weight = np.where(np.arange(WIDE) < 5, use, 0.0)
    off, level = centred(residual, weight)
    np.testing.assert_allclose(level[0, 0], residual[0, 0][weight[0, 0] > 0].mean())
    assert (off[weight == 0] == 0).all()


@pytest.mark.parametrize(("shift", "blur"), [((0.0, 0.0), 0.0), ((1.3, -2.6), 0.0), ((-3.0, 0.25), 1.7)])
def test_pictures_are_moved_as_by_interpolation(shift: tuple[float, float], blur: float) -> None:
    pictures = np.random.default_rng(0).normal(size=(2, 3, 20, 25))
    wanted = ndimage.shift(pictures, (0, 0, *shift), order=1, mode="nearest")
    wanted = ndimage.gaussian_filter(wanted, (0, 0, blur, blur), mode="nearest", truncate=3.0) if blur > 0 else wanted
    np.testing.assert_allclose(moved(pictures, shift, blur), wanted, atol=1e-6)


def test_looks_beside_one_picture_have_its_offset_in_common() -> None:
    """A picture that is off by .02 is off for all looks beside it: two pictures tell a bias and its scatter twice, however many looks there are.

    By hand: levels 0 and .02, one each, bias .02 / 2.25, variance (2 * .005^2 + sum (level - bias)^2) / (2 + 2).
    """
    for beside in (1, 4):
        level = np.concatenate([np.zeros(beside), np.full(beside, 0.02)])
        residual = np.broadcast_to(level[:, None, None, None], (2 * beside, 1, 3, 3))
        pictures = np.repeat([0, 1], beside)
        bias, offset, *_ = errors(
            residual, np.ones_like(residual), np.ones((3, 3)), np.arange(2.0 * beside), pictures, np.full(1, 0.005**2), np.full(1, 0.02**2), 10.0
        )
        by_hand = 0.02 / 2.25
        assert bias[0] == pytest.approx(by_hand)
        assert offset[0] == pytest.approx(np.sqrt((2 * 0.005**2 + by_hand**2 + (0.02 - by_hand) ** 2) / 4))
