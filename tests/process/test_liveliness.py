"""How much pixels change: the equation, term by term; ground not seen to change is its class; shares of the class and of what was seen."""

from __future__ import annotations

import numpy as np
import pytest

from fusion.process import liveliness
from fusion.process.landscape import CALMEST, LIVELIEST, Cover

SHAPE = (12, 30)
BEFORE = np.array([-1, -1, 0, 1, 2, 3, -1])
SHARE = np.array([0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 1.0])


@pytest.fixture(scope="module")
def planes() -> np.ndarray:
    """(7, 12, 30): three looks of two bands and one look of another sensor, each with its own mean, pixels of unequal liveliness, a third hidden."""
    rng = np.random.default_rng(5)
    lively = np.where(np.arange(SHAPE[1]) < 10, 0.2, 1.5)
    values = 0.1 * rng.normal(size=(7, 1, 1)) + rng.normal(size=SHAPE) + 0.03 * lively * rng.normal(size=(7, *SHAPE))
    return np.where(rng.uniform(size=values.shape) < 0.3, np.nan, values)


def change(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """v and n of the module's equation, one pixel and one look at a time."""
    value, number = np.zeros(SHAPE), np.zeros(SHAPE)
    for i, b in enumerate(BEFORE):
        if b < 0:
            continue
        differ = {p: planes[i][p] - planes[b][p] for p in np.ndindex(*SHAPE) if np.isfinite(planes[i][p]) and np.isfinite(planes[b][p])}
        step = np.mean([*differ.values()])
        swing = np.mean([(d - step) ** 2 for d in differ.values()])
        for place, d in differ.items():
            value[place] += SHARE[i] * (d - step) ** 2 / swing
            number[place] += SHARE[i]
    return value / np.maximum(number, 1e-9), number


def found(planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    steps = liveliness.differences(planes, BEFORE)
    return liveliness.change(steps, *liveliness.usual(steps), SHARE)


def test_change_is_the_equation(planes: np.ndarray) -> None:
    value, number = found(planes)
    wanted = change(planes)
    assert (wanted[1] == 0).any()  # pixels that no band saw twice in a row
    np.testing.assert_allclose(value, wanted[0], rtol=1e-9)
    np.testing.assert_allclose(number, wanted[1])
    assert np.average(value, weights=number) == pytest.approx(1)  # in units of the average over the ground


def test_a_pixel_is_its_class_until_it_was_seen_to_change(planes: np.ndarray) -> None:
    cover = Cover.learn(planes[:, None], count=1, before=BEFORE, share=SHARE)
    classes = np.ones((1, *SHAPE), np.float32)
    got = cover.liveliness(classes, planes).astype(float) ** 2
    own, number = change(planes)
    np.testing.assert_allclose(cover.lively, 1, rtol=1e-6)
    np.testing.assert_allclose(got[number == 0], 1, rtol=1e-5)
    wanted = (liveliness.GUESS + number * own) / (liveliness.GUESS + number)
    np.testing.assert_allclose(got, np.clip(wanted, CALMEST, LIVELIEST), rtol=1e-4)
    assert got[:, :10].mean() < 0.7 < 1.1 < got[:, 10:].mean()
    np.testing.assert_allclose(cover.liveliness(classes, np.full_like(planes, np.nan)), 1, rtol=1e-6)  # a tile that saw nothing
    alone = Cover.learn(planes[:1, None], count=1, before=BEFORE[:1], share=SHARE[:1])
    np.testing.assert_array_equal(alone.liveliness(classes, planes[:1]), 1)  # one look tells nothing of change


def test_a_part_of_the_planes_keeps_what_was_learned_of_them(planes: np.ndarray) -> None:
    """Looks from the second on: the second has none before it any more, the third still has the second."""
    cover = Cover.learn(planes[:, None], count=1, before=BEFORE, share=SHARE)
    part = cover.part([2, 3, 4, 5, 6])
    np.testing.assert_array_equal(part.before, [-1, -1, 0, 1, -1])
    wanted = cover.liveliness(np.ones((1, *SHAPE), np.float32), np.where(np.arange(7)[:, None, None] < 2, np.nan, planes))
    np.testing.assert_array_equal(part.liveliness(np.ones((1, *SHAPE), np.float32), planes[2:]), wanted)


def test_what_the_images_cannot_tell_a_coarse_sensor_may(planes: np.ndarray) -> None:
    """Two kinds of ground in one image; the coarse sensor's change counts where no band was seen twice, and only there."""
    image = np.where(np.arange(SHAPE[1]) < 10, 0.0, 1.0) + 0.01 * np.random.default_rng(0).normal(size=SHAPE)
    coarse = np.where(np.arange(SHAPE[1]) < 10, 0.5, 2.0)[None] * np.ones((1, *SHAPE))
    told = Cover.learn(image[None, None], count=2, change=coarse)
    alive = told.liveliness(told.classes(told.features(image[None]), 2), image[None])
    assert (alive[:, 10:] ** 2).min() > 1.5 * (alive[:, :10] ** 2).max()  # of 4, as memberships are soft
    np.testing.assert_array_equal(Cover.learn(image[None, None], count=2).lively, 1)
    both = (Cover.learn(planes[:, None], count=2, before=BEFORE, share=SHARE, change=c) for c in (None, coarse))
    np.testing.assert_array_equal(*(c.lively for c in both))
