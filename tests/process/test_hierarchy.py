"""The hierarchy: exact transposes, the prior it states, theta as a push-forward, random fields that do not see tile borders."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fusion.process.courses import temporal_functions
from fusion.process.hierarchy import LEVELS, PRIOR, REACH, Hyper, canonical_mixing
from fusion.process.keyed import keyed_normal
from fusion.process.landscape import Cover, soft_classes
from fusion.process.space import Objects, Pixels, Smooth, Weights
from tests.infer.oracle import K, T, X, Y, world

rng = np.random.default_rng(0)
SPACES = {
    "weights": Weights(jnp.asarray(rng.random((3, 9, 11)), jnp.float32)),
    "objects": Objects.from_label(rng.integers(0, 7, (9, 11))),
    "smooth": Smooth.lattice((9, 11), (-3, 5), 4.0),
    "pixels": Pixels(jnp.zeros((9, 11))),
}


@pytest.mark.parametrize("name", SPACES)
def test_gather_is_the_transpose_of_spread(name: str) -> None:
    space = SPACES[name]
    units, plane = rng.normal(size=(2, space.size)), rng.normal(size=(2, 9, 11))
    left = (np.asarray(space.spread(jnp.asarray(units, jnp.float32))) * plane).sum()
    right = (np.asarray(space.gather(jnp.asarray(plane, jnp.float32))) * units).sum()
    assert left == pytest.approx(right, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("lead", [(), (3,), (3, 4)])
def test_objects_sum_their_pixels(lead: tuple[int, ...]) -> None:
    label = rng.integers(0, 5, (29, 11))
    planes = rng.normal(size=(*lead, 29, 11))
    space = Objects.from_label(label)
    expected = np.stack([(planes * (label == i)).sum((-2, -1)) for i in range(5)], axis=-1)
    sums = np.asarray(space.gather(jnp.asarray(planes, jnp.float32)))
    np.testing.assert_allclose(sums[..., :5], expected, rtol=1e-4, atol=1e-5)
    assert not sums[..., 5:].any()
    chunks = jnp.moveaxis(space.grouped(jnp.asarray(planes, jnp.float32)).sum(-1), -1, 0)  # an object of 64 pixels has two
    np.testing.assert_allclose(np.moveaxis(np.asarray(space.whole(chunks)), 0, -1), sums, rtol=1e-4, atol=1e-5)


def test_smooth_level_has_unit_variance_and_global_nodes() -> None:
    whole, part = Smooth.lattice((40, 40), (0, 0), 6.0), Smooth.lattice((20, 16), (11, 7), 6.0)
    np.testing.assert_allclose((np.asarray(whole.rows) ** 2).sum(1), 1, rtol=1e-5)
    nodes = rng.normal(size=(200, 200)).astype(np.float32)

    def seen(space: Smooth) -> np.ndarray:
        pick = nodes[np.ix_(np.asarray(space.node_rows) + 50, np.asarray(space.node_cols) + 50)]
        return np.asarray(space.spread(jnp.asarray(pick.reshape(-1))))

    np.testing.assert_allclose(seen(whole)[11:31, 7:23], seen(part), atol=1e-5)


def test_theta_is_a_bounded_push_forward_and_round_trips() -> None:
    sensors = ("a", "b")
    white = np.random.default_rng(1).normal(size=Hyper.size(3, 2))
    hyper = Hyper.from_white(white, 3, sensors)
    np.testing.assert_allclose(hyper.to_white(), white, atol=1e-3)
    assert len(hyper.names()) == len(white)
    far = Hyper.from_white(np.full(len(white), 1e4), 3, sensors)
    np.testing.assert_allclose(far.noise, PRIOR["noise"][0] * np.exp(REACH * PRIOR["noise"][1]), rtol=1e-4)
    again = Hyper.from_attrs(hyper.to_attrs())
    assert again.sensors == sensors
    np.testing.assert_array_equal(again.sd, hyper.sd)


def test_mixing_factors_the_prior_and_separates_what_the_bands_see() -> None:
    root, colour = rng.normal(size=(4, 4)), rng.normal(size=(6, 4))
    mixing = canonical_mixing(root @ root.T, colour).astype(np.float64)
    np.testing.assert_allclose(mixing @ mixing.T, root @ root.T, atol=1e-4)
    seen = (colour @ mixing).T @ (colour @ mixing)
    assert np.abs(seen - np.diag(np.diag(seen))).max() < 1e-3 * seen.max()


def test_stated_prior_is_that_of_the_equation() -> None:
    w = world("empty")
    mixing, alive = (np.asarray(a, np.float64) for a in (w.hierarchy.mixing, w.hierarchy.liveliness))
    left = np.einsum("jk,ktt,yx->tjyx", mixing**2, w.remainder(w.hyper), alive**2)
    dense = np.sqrt(np.diag(w.prior()).reshape(T, K, Y, X) + left)
    np.testing.assert_allclose(w.hierarchy.prior_sd(w.hyper), dense, rtol=2e-3)


def test_random_fields_agree_where_tiles_overlap() -> None:
    key = jax.random.key(3)
    whole = keyed_normal(key, jnp.arange(-5, 35)[:, None], jnp.arange(50)[None], 4)
    part = keyed_normal(key, jnp.arange(10, 20)[:, None], jnp.arange(30, 45)[None], 4)
    np.testing.assert_array_equal(whole[:, 15:25, 30:45], part)
    many = np.asarray(keyed_normal(key, jnp.arange(200)[:, None], jnp.arange(200)[None], 8), np.float64)
    assert abs(many.mean()) < 5e-3
    assert many.std() == pytest.approx(1, abs=5e-3)
    assert (many**4).mean() == pytest.approx(3, abs=0.06)
    for shifted in (many[:, 1:] * many[:, :-1], many[:, :, 1:] * many[:, :, :-1], many[1:] * many[:-1]):
        assert abs(shifted.mean()) < 6e-3


def segments(stack: np.ndarray, size: int) -> np.ndarray:
    cover = Cover.learn(stack[:, None], count=1)
    return cover.segments(cover.features(stack), size)


def test_landscape_finds_classes_and_edges_and_survives_no_image() -> None:
    truth = np.zeros((24, 24))
    truth[:, 12:] = 1.0
    images = np.stack([truth * 0.3 + 0.1, 0.5 - truth * 0.2]) + 0.005 * rng.normal(size=(2, 24, 24))
    images[0, :3] = np.nan
    member = soft_classes(images, count=4)
    np.testing.assert_allclose((member**2).sum(0), 1, rtol=1e-4)
    left, right, far = (found / np.linalg.norm(found) for found in (member[:, 6:, c].mean(1) for c in (3, 8, 18)))
    assert left @ right > 0.9
    assert left @ far < 0.75
    label = segments(images, 6)
    sides = np.stack([np.bincount(side.ravel(), minlength=label.max() + 1) for side in (label[3:, :12], label[3:, 12:])])
    assert sides.min(0).sum() <= 3  # pixels of segments that lie across the edge
    empty = np.full((1, 24, 24), np.nan)
    assert np.isfinite(soft_classes(empty, count=4)).all()
    assert segments(empty, 6).shape == (24, 24)


@given(st.integers(1, 60), st.dictionaries(st.sampled_from(LEVELS[1:]), st.integers(1, 40)))
def test_pixels_have_as_many_functions_as_any_level_and_none_more_than_there_are_times(times: int, asked: dict[str, int]) -> None:
    found = temporal_functions(times, asked)
    assert set(found) == set(LEVELS[1:])
    assert found["pixel"] == max(found.values()) <= times
    for name, width in asked.items():
        assert found[name] >= min(width, times)
        assert name == "pixel" or found[name] == min(width, times)
