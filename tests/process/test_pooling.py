"""Laws of partial pooling; the reference is a dense Gaussian built from the equations and integrated by brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from fusion.errors import JobError
from fusion.process.pooling import Population, Summary, pool

SCHOOLS = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])  # Rubin 1981: Bayesian Data Analysis, table 5.2
SCHOOL_SD = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])


def summaries(mean: NDArray[np.float64], sd: NDArray[np.float64], groups: list[str] | None = None) -> list[Summary]:
    groups = groups or [""] * len(mean)
    rows = zip(mean, sd, groups, strict=True)
    return [Summary(f"t{j}", np.array([m]), np.array([1 / s**2]), g) for j, (m, s, g) in enumerate(rows)]


def brute_force(
    mean: NDArray[np.float64], sd: NDArray[np.float64], groups: list[str], scale: float, prior: tuple[float, float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and sd of every theta_j: joint normal of (theta, y) for each pair of spreads, trapezoid over 60 x 60 spreads."""
    same = np.array([[a == b for b in groups] for a in groups], float)
    spreads = np.linspace(1e-3, 4, 60) * scale
    outer = spreads if len(set(groups)) > 1 else np.zeros(1)
    logs, means, variances = [], [], []
    for within in spreads:
        for between in outer:
            prior_cov = within**2 * np.eye(len(mean)) + between**2 * same + prior[1] ** 2
            total = prior_cov + np.diag(sd**2)
            gap = mean - prior[0]
            gain = np.linalg.solve(total, prior_cov).T
            evidence = -0.5 * gap @ np.linalg.solve(total, gap) - 0.5 * np.linalg.slogdet(total)[1]
            logs.append(evidence - (within**2 + between**2) / 2 / scale**2)
            means.append(prior[0] + gain @ gap)
            variances.append(np.diag(prior_cov - gain @ prior_cov))
    weight = np.exp(np.array(logs) - max(logs))
    weight = (weight / weight.sum())[:, None]
    centre = (weight * means).sum(0)
    return centre, np.sqrt((weight * (np.array(variances) + (np.array(means) - centre) ** 2)).sum(0))


@pytest.mark.parametrize("groups", [["a"] * 8, list("aaabbbcc")])
def test_the_posterior_is_that_of_the_written_model(groups: list[str]) -> None:
    people = pool(summaries(SCHOOLS, SCHOOL_SD, groups), np.array([5.0]), np.array([20.0]), scale=8.0)
    mean, sd = brute_force(SCHOOLS, SCHOOL_SD, groups, 8.0, (5.0, 20.0))
    np.testing.assert_allclose(people.estimate[0, :, 0], mean, atol=0.03 * sd.min())
    np.testing.assert_allclose(people.estimate[1, :, 0], sd, rtol=0.02)


@pytest.mark.parametrize("groups", [["a"] * 8, list("aaabbbcc")])
def test_the_prior_of_a_tile_is_the_population_of_the_others(groups: list[str]) -> None:
    """Leaving tile j out in closed form equals fitting the population without it and asking for a new tile of its group."""
    everyone = summaries(SCHOOLS, SCHOOL_SD, groups)
    people = pool(everyone, np.array([5.0]), np.array([20.0]), scale=8.0)
    for j in (0, 4, 7):
        silent = [s if i != j else Summary(s.tile, s.mean, np.zeros(1), s.group) for i, s in enumerate(everyone)]
        others = pool(silent, np.array([5.0]), np.array([20.0]), scale=8.0)
        row = others.groups.index(groups[j])
        np.testing.assert_allclose(people.tile_prior[:, j], others.group_prior[:, row], rtol=1e-6)
        np.testing.assert_allclose(people.prior(f"t{j}")[0], others.estimate[0, j], rtol=1e-6)


def crowd(own_sd: float) -> Population:
    rng = np.random.default_rng(3)
    mean = np.append(rng.normal(0, 0.4, 30), 1.5)
    return pool(summaries(mean, np.append(np.full(30, 0.1), own_sd)), np.zeros(1), np.ones(1))


def test_no_data_gives_the_population() -> None:
    people = crowd(1e6)
    np.testing.assert_allclose(people.estimate[:, -1], people.group_prior[:, 0], rtol=1e-4)
    assert people.weight[-1, 0] < 1e-6
    assert people.prior("elsewhere")[1] == pytest.approx(people.group_prior[1, -1])


def test_much_data_gives_the_own_estimate() -> None:
    people = crowd(1e-4)
    assert people.estimate[0, -1, 0] == pytest.approx(1.5, abs=1e-3)
    assert people.weight[-1, 0] == pytest.approx(1, abs=1e-5)
    assert people.effective_size[-1, 0] > 1e5


def test_weights_grow_with_the_data() -> None:
    sds = (3.0, 1.0, 0.5, 0.2, 0.05)
    weights = [crowd(sd).weight[-1, 0] for sd in sds]
    means = [crowd(sd).estimate[0, -1, 0] for sd in sds]
    assert np.all(np.diff(weights) > 0)
    assert np.all(np.diff(means) > 0)  # towards its own 1.5, away from the crowd's 0


def test_spread_and_centre_of_a_large_population_are_found() -> None:
    rng = np.random.default_rng(0)
    groups = [str(j % 12) for j in range(360)]
    by_group = rng.normal(0, 0.5, 12)
    truth = -2 + by_group[np.arange(360) % 12] + rng.normal(0, 0.3, 360)
    people = pool(summaries(truth + rng.normal(0, 0.2, 360), np.full(360, 0.2), groups), np.zeros(1), np.full(1, 5.0))
    assert people.within[0] == pytest.approx(0.3, rel=0.15)
    assert people.between[0] == pytest.approx(by_group.std(), rel=0.35)
    assert abs(people.centre[0, 0] + 2) < 3 * people.centre[1, 0]
    error = people.estimate[0, :, 0] - truth
    assert np.sqrt(np.mean(error**2)) < 0.185  # complete pooling in a group .3, no pooling .2
    assert 0.9 < np.mean(np.abs(error) < 1.96 * people.estimate[1, :, 0]) < 0.99
    assert people.effective_tiles.sum() == pytest.approx(people.weight.sum())


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.floats(-3, 3), st.floats(0.05, 3), st.sampled_from("ab")), min_size=1, max_size=6), st.randoms())
def test_the_order_of_tiles_does_not_matter_and_estimates_lie_between(
    rows: list[tuple[float, float, str]], shuffle: object
) -> None:
    told = summaries(np.array([r[0] for r in rows]), np.array([r[1] for r in rows]), [r[2] for r in rows])
    people = pool(told, np.zeros(1), np.ones(1), points=12)
    again = pool(told[::-1], np.zeros(1), np.ones(1), points=12)
    np.testing.assert_allclose(people.estimate, again.estimate[:, ::-1], rtol=1e-8, atol=1e-10)
    low, high = np.minimum(people.tile_prior[0], [s.mean for s in told]), np.maximum(people.tile_prior[0], [s.mean for s in told])
    # A mixture's mean leans to spreads that explain the tile better, hence the slack.
    assert np.all(people.estimate[0] >= low - 0.3)
    assert np.all(people.estimate[0] <= high + 0.3)
    assert np.all((people.weight >= 0) & (people.weight <= 1))
    assert np.all(people.estimate[1] > 0)


def test_a_summary_divides_its_prior_out_and_survives_nonsense() -> None:
    """Posterior of N(0, 1) prior and N(2, .5^2) likelihood is N(1.6, .2); the summary recovers the likelihood."""
    told = Summary.of("t", np.array([1.6, 0.0, np.nan, 3.0]), np.array([0.2**0.5, 1.0, 0.1, np.inf]), np.zeros(4), np.ones(4))
    np.testing.assert_allclose(told.mean[0], 2.0)
    np.testing.assert_allclose(told.precision, [4.0, 0, 0, 0], atol=1e-9)
    people = pool([told], np.zeros(4), np.ones(4))
    assert np.isfinite(people.estimate).all()


def test_nothing_said_is_the_prior_exactly() -> None:
    people = pool([], np.array([0.3]), np.array([0.7]), scale=1e-9)
    np.testing.assert_allclose(people.prior("any")[0], 0.3)
    np.testing.assert_allclose(people.prior("any")[1], 0.7, rtol=1e-6)


def test_mixed_models_are_refused_with_a_sentence() -> None:
    with pytest.raises(JobError, match="pool only tiles fitted with one model"):
        pool([Summary("a", np.zeros(2), np.ones(2)), Summary("b", np.zeros(3), np.ones(3))], np.zeros(2), np.ones(2))
    with pytest.raises(JobError, match="same tile name"):
        pool([Summary("a", np.zeros(1), np.ones(1))] * 2, np.zeros(1), np.ones(1))
