"""Changes at unseen moments in a posterior: no mean moves, sd and draws grow between looks by what the equation says, and nowhere else."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from fusion.errors import JobError
from fusion.infer import Posterior, Status
from fusion.infer.engine import with_moments
from fusion.infer.problem import Problem, pose
from tests.infer.small import DATES, tile

SHARE, DRAWS = 0.3, 64


@pytest.fixture(scope="module")
def problem() -> Problem:
    """A tile whose first and last dates were seen, two lie between them."""
    looks, cube = tile()
    return pose([looks[0], looks[DATES - 1]], cube, classes=3, segment=4, spacing=4.0, calibrate=False, sudden=SHARE)


@pytest.fixture(scope="module")
def still(problem: Problem) -> Posterior:
    """Any mean, with unit variance of the independent components and draws that are the mean."""
    _, cube = tile()
    mixing = np.asarray(problem.hierarchy.mixing)
    mean = (0.1 * np.random.default_rng(6).normal(size=cube.shape)).astype(np.float32)
    sd = np.broadcast_to(np.sqrt((mixing**2).sum(1))[:, None, None], cube.shape).astype(np.float32)
    return Posterior(
        mean, sd, np.repeat(mean[None], DRAWS, 0), cube, problem.hyper, Status.OK, "", {}, {}, mixing, np.ones(cube.shape, np.float32)
    )


def test_the_mean_stays_and_the_sd_is_the_equations(problem: Problem, still: Posterior) -> None:
    moved = with_moments(replace(still, draws=still.draws.copy()), problem, 0)
    np.testing.assert_array_equal(still.mean, moved.mean)
    mixing = still.mixing.astype(np.float64)
    step = np.einsum("jk,kyx->jyx", np.linalg.inv(mixing), still.mean[-1] - still.mean[0])
    step -= step.mean((1, 2), keepdims=True)
    for t in range(DATES):
        u = t / (DATES - 1)
        canonical = SHARE * u * (1 - u) * step**2
        np.testing.assert_allclose(moved.canonical_var[t], 1 + canonical, rtol=1e-4)
        np.testing.assert_allclose(moved.sd[t] ** 2, np.einsum("jk,kyx->jyx", mixing**2, 1 + canonical), rtol=1e-4)


def test_draws_move_object_by_object_as_much_as_the_sd_says(problem: Problem, still: Posterior) -> None:
    moved = with_moments(replace(still, draws=still.draws.copy()), problem, 0)
    more = np.einsum("jk,stkyx->stjyx", np.linalg.inv(still.mixing.astype(np.float64)), moved.draws - still.mean)
    np.testing.assert_allclose(more[0::2], -more[1::2], atol=1e-3 * np.abs(more).max())
    assert np.abs(more[:, [0, -1]]).max() < 1e-4 * np.abs(more).max()
    found, wanted = (more[:, 1:-1] ** 2).mean((0, 1, 3, 4)), (moved.canonical_var - 1)[1:-1].mean((0, 2, 3))
    np.testing.assert_allclose(found, wanted, rtol=0.25)
    label = np.asarray(problem.hierarchy.spaces["object"].label)
    beta = more[:, 1, 0] / np.sqrt(moved.canonical_var - 1)[1, 0]
    for one in np.unique(label):
        size = np.abs(beta[:, label == one])
        np.testing.assert_allclose(size, size[:, :1].repeat(size.shape[1], 1), rtol=0.02, atol=0.02)


def test_after_the_last_look_a_pixel_may_have_changed_more_or_less_than_foretold(problem: Problem, still: Posterior) -> None:
    """The first date alone was seen: sd^2 grows by the share times the squared change since, about what all ground did."""
    once = replace(problem, seen=problem.seen & (np.arange(DATES) == 0)[:, None, None])
    moved = with_moments(replace(still, draws=still.draws.copy()), once, 0)
    change = np.einsum("jk,tkyx->tjyx", np.linalg.inv(still.mixing.astype(np.float64)), still.mean - still.mean[:1])
    change -= change.mean((2, 3), keepdims=True)
    np.testing.assert_allclose(moved.canonical_var, 1 + SHARE * change**2, rtol=1e-4)
    more = np.einsum("jk,stkyx->stjyx", np.linalg.inv(still.mixing.astype(np.float64)), moved.draws - still.mean)
    np.testing.assert_allclose((more[:, 1:] ** 2).mean((0, 3, 4)), SHARE * (change[1:] ** 2).mean((2, 3)), rtol=0.35)


def test_nothing_is_added_where_it_is_switched_off_or_nothing_was_seen(problem: Problem, still: Posterior) -> None:
    off = replace(problem, hierarchy=replace(problem.hierarchy, sudden=0 * problem.hierarchy.sudden))
    for none in (off, replace(problem, seen=np.zeros_like(problem.seen))):
        assert with_moments(still, none, 0) is still


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_is_a_share(share: float) -> None:
    looks, cube = tile()
    with pytest.raises(JobError, match="sudden"):
        pose(looks, cube, sudden=share)
