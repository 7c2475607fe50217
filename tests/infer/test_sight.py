"""The prior of the spectra gives way to what images show, and to what they change, as far as these contradict it."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from fusion.cube.calendar import Calendar
from fusion.infer import steps
from fusion.infer.sight import LEAST, WITHIN, Sight, Spread, adapted, finest
from fusion.process.hierarchy import Hyper, build, canonical_mixing


def sight(x: np.ndarray, library: np.ndarray, colour: np.ndarray, noise: float, stated: float) -> Sight:
    """The sight of a sensor whose canonical components are x (K, N)."""
    mixing = canonical_mixing(library, colour / stated).astype(float)
    data = colour @ mixing @ x + noise * np.random.default_rng(1).normal(size=(len(colour), x.shape[1]))
    bands = len(colour)
    return Sight(4, np.full(bands, 1 / stated), colour, x.shape[1], data @ data.T / x.shape[1], np.full(bands, stated**2))


def test_the_prior_heeds_images_that_contradict_the_library() -> None:
    """The library's variance moves to within a factor WITHIN of what a sensor sees well, not at all of what it does not see."""
    rng = np.random.default_rng(0)
    library, colour = 0.05**2 * (np.eye(4) + 0.4), rng.normal(size=(3, 4))  # three bands: one component is never seen
    mixing = canonical_mixing(library, colour / 0.004).astype(float)
    scale = np.array([0.1, 6.0, 0.7, 0.1])
    total = float((np.asarray(Hyper.default(1, ()).sd) ** 2).sum())
    x = np.sqrt(total) * scale[:, None] * rng.normal(size=(4, 200_000))

    def found(pixels: int, noise: float, stated: float) -> np.ndarray:
        made, prior = adapted(library, sight(x[:, :pixels], library, colour, noise, stated))
        np.testing.assert_allclose(made, colour / stated)
        back = np.linalg.inv(mixing)
        return np.sqrt(np.diag(back @ prior @ back.T))

    wanted = [0.1 * np.sqrt(WITHIN), 6.0 / np.sqrt(WITHIN), 1, 1]
    np.testing.assert_allclose(found(200_000, 0.004, 0.004), wanted, rtol=0.08)
    np.testing.assert_allclose(found(200_000, 0.006, 0.004), wanted, rtol=0.15)  # noisier than it says
    few = found(200, 0.004, 0.004)[:2]
    assert (np.abs(np.log(few)) < 0.5 * np.abs(np.log(wanted[:2]))).all()
    assert ((few - 1) * (np.array(wanted[:2]) - 1) > 0).all()
    assert finest([]) is None
    empty, same = adapted(library, None)
    np.testing.assert_array_equal(empty, np.eye(4))
    np.testing.assert_array_equal(same, library)


def test_the_prior_heeds_how_much_images_change() -> None:
    """After what the images show, each component moves to within a factor of what they change; noise that is said to be there is none."""
    rng = np.random.default_rng(0)
    library, colour, sharp = 0.05**2 * (np.eye(4) + 0.4), rng.normal(size=(3, 4)), np.full(3, 1 / 0.004)
    mixing = canonical_mixing(library, sharp[:, None] * colour).astype(float)
    total = float((np.asarray(Hyper.default(1, ()).sd) ** 2).sum())
    usual = sight(np.sqrt(total) * rng.normal(size=(4, 200_000)), library, colour, 0.004, 0.004)
    scale, seen = np.array([0.2, 3.0, 0.9, 5.0]), colour @ mixing

    def found(scale: np.ndarray, noise: float) -> np.ndarray:
        square = (seen * scale**2 * 0.7) @ seen.T + 2 * noise**2 * np.eye(3)
        _, prior = adapted(library, usual, Spread(10**6, square, np.full(3, 2 * 0.004**2), 0.7))
        back = np.linalg.inv(mixing)
        return np.sqrt(np.diag(back @ prior @ back.T))

    root = np.sqrt(WITHIN)
    np.testing.assert_allclose(found(scale, 0.0), [0.2 * root, 3 / root, 1, 1], rtol=0.03)
    np.testing.assert_allclose(found(np.ones(4), 0.004), 1, rtol=0.03)
    # along a direction across components too: the first two always change together, never apart
    tied = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    square = (seen @ tied * 0.7) @ seen.T
    _, prior = adapted(library, usual, Spread(10**6, square, np.full(3, 2 * 0.004**2), 0.7))
    back = np.linalg.inv(mixing)
    together, apart = 2 / WITHIN, LEAST * WITHIN
    wanted = np.diag([0, 0, 1.0, 1]) + np.pad(0.5 * np.array([[together + apart, together - apart], [together - apart, together + apart]]), (0, 2))
    np.testing.assert_allclose(back @ prior @ back.T, wanted, atol=0.03)
    assert adapted(library, usual)[1] == pytest.approx(library, rel=0.03)


def test_what_the_prior_draws_changes_as_much_as_is_expected() -> None:
    """Images drawn from the prior medians: components' changes have the variance that `steps.change` expects, so the prior stays as it is."""
    calendar = Calendar.regular("2024-05-01", "2024-08-05", 8)
    count, rank, edge, draws = len(calendar), 2, 12, 150
    rng = np.random.default_rng(3)
    library, shown = np.diag([0.05, 0.02]) ** 2, np.eye(2)
    kinds = rng.random((6, edge, edge))
    empirical = np.exp(-np.abs(np.arange(count)[:, None] - np.arange(count)) / 4)
    hierarchy = build(
        calendar.days, library, shown / 0.004, kinds / np.sqrt((kinds**2).sum(0)), rng.integers(0, 9, (edge, edge)), spacing=4.0,
        ranks=dict.fromkeys(("class", "object", "place", "pixel"), count), empirical=empirical,
    )
    hyper = Hyper.default(rank, ())
    factors = hierarchy.factors(hyper)
    fields = []
    for _ in range(draws):
        white = {name: jnp.asarray(rng.normal(size=shape), jnp.float32) for name, shape in hierarchy.white_shapes.items()}
        fields.append(np.asarray(hierarchy.field(*hierarchy.coefficients(white | {"scene": jnp.zeros((rank, count))}, factors))))
    times, bands = (0, 2, 3, 7, 11), ("red", "nir")
    keys = [("fine", band, t) for t in times for band in bands]
    patches = np.stack([np.stack(fields)[:, t, b] for t in times for b in range(2)]).astype(np.float32)
    own = Sight(5, np.full(2, 1 / 0.004), shown, 1000, np.eye(2), np.full(2, 0.004**2), bands)
    found = steps.change("fine", own, keys, patches, calendar, empirical)
    assert found is not None
    assert found.pixels == 4 * draws * edge**2
    np.testing.assert_allclose(found.noise, 2 * 0.004**2)
    back = np.linalg.inv(np.asarray(hierarchy.mixing, float))
    np.testing.assert_allclose(np.diag(back @ found.square @ back.T) / found.expected, 1, rtol=0.1)
    root = found.root(own.sharp, own.sharp[:, None] * np.asarray(hierarchy.mixing, float))
    np.testing.assert_allclose(root @ root.T, np.eye(rank), atol=1e-6)
    patches[2, :, :3] = np.nan  # red of the second image: pixels that one band lacks tell nothing
    some = steps.change("fine", own, keys, patches, calendar, empirical)
    assert some is not None
    assert some.pixels == found.pixels - 2 * draws * 3 * edge
    assert steps.change("fine", own, keys[:2], patches[:2], calendar, None) is None
    assert steps.change("other", own, keys, patches, calendar, None) is None
