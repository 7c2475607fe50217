"""NUTS with the field collapsed, and the variational engine, against plain NUTS on everything; and what failure looks like."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest
from numpyro.infer import MCMC, NUTS, init_to_median

from fusion.infer import gaussian, mcmc, variational
from fusion.infer.model import joint
from fusion.infer.posterior import Status
from fusion.infer.problem import whole
from fusion.infer.theta import Theta, start
from tests.infer import small

pytestmark = pytest.mark.timeout(3600)  # the reference alone takes minutes on two cores

SENSORS = ("fine", "coarse")
BATCHES = 10
"""of the reference chain, long beside its autocorrelation"""
DRAWS = 300
"""per chain of the sampler under test, two chains"""


@pytest.fixture(scope="module")
def tiny() -> Any:
    with small.shrunk():
        world = small.world()
        small.simulator(world)(1)
        yield world


@pytest.fixture(scope="module")
def reference(tiny: Any) -> dict[str, np.ndarray]:
    """Plain NUTS on theta, every white coefficient and every error: mean, sd, effective sizes of u and z."""
    kernel = NUTS(joint, init_strategy=init_to_median, max_tree_depth=7, target_accept_prob=0.9)
    chain = MCMC(kernel, num_warmup=600, num_samples=4000, progress_bar=False)
    chain.run(jax.random.key(3), tiny.series, tiny.hierarchy, SENSORS)
    drawn = {name: np.asarray(v, np.float64)[None] for name, v in chain.get_samples().items() if name in ("u", "z")}
    out = {}
    for name, value in drawn.items():
        out |= {f"{name}_mean": value[0].mean(0), f"{name}_sd": value[0].std(0), f"{name}_size": mcmc.effective(value)}
    out["z_log_sd_error"] = monte_carlo(np.log(np.sqrt(((drawn["z"][0] - out["z_mean"]).reshape(BATCHES, -1, *out["z_mean"].shape) ** 2).mean(1))))
    return out


def monte_carlo(logs: np.ndarray) -> np.ndarray:
    """Standard error of the mean of log sd over all values, from the scatter of independent parts (first axis), correlation included."""
    each = logs.reshape(len(logs), -1).mean(1)
    return np.asarray(each.std(ddof=1) / np.sqrt(len(each)))


@pytest.fixture(scope="module")
def sampled(tiny: Any) -> Theta:
    return mcmc.sample(start([whole(tiny.series, tiny.hierarchy)], tiny.hyper, seed=1), draws=8, samples=DRAWS, warmup=100, chains=2, seed=1)


@pytest.fixture(scope="module")
def learned(tiny: Any) -> Theta:
    return variational.learn(start([whole(tiny.series, tiny.hierarchy)], tiny.hyper, seed=1), draws=8, seed=1)


def field(world: Any, theta: Theta) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean and sd of z mixed over the draws of theta, from the exact Gaussian of each (the closed form is a tenth too wide on a tile of
    4 x 4 pixels; `test_gaussian` judges it); and the error of the mean log sd that few draws leave."""
    parts = [
        gaussian.posterior(world.hierarchy, world.series, hyper, jax.random.key(i), pairs=64, batch=65, exact=True, tolerance=0.002)
        for i, hyper in enumerate(theta.hypers)
    ]
    means, sds = np.array([p.mean for p in parts]), np.array([p.sd for p in parts])
    total = sds**2 + len(parts) / (len(parts) - 1) * (means - means.mean(0)) ** 2
    return means.mean(0), np.sqrt(total.mean(0)), monte_carlo(0.5 * np.log(total))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sampled", "learned"])
def test_theta_agrees_with_plain_nuts(engine: str, reference: Any, request: pytest.FixtureRequest) -> None:
    theta: Theta = request.getfixturevalue(engine)
    error = (theta.mean - reference["u_mean"]) / reference["u_sd"]
    scatter = np.sqrt(1 / reference["u_size"] + 1 / DRAWS)  # half of the draws count, at the least
    assert np.sqrt(np.mean((error / scatter) ** 2)) < 2.0
    assert (np.abs(error) < 0.2 + 4 * scatter).all(), np.c_[error, scatter]
    ratio = theta.sd / reference["u_sd"]
    assert 0.9 < np.exp(np.log(ratio).mean()) < 1.1
    assert ratio.min() > 0.65
    assert ratio.max() < 1.5


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["sampled", "learned"])
def test_the_field_agrees_with_plain_nuts(engine: str, tiny: Any, reference: Any, request: pytest.FixtureRequest) -> None:
    """Parameter uncertainty reaches the pixels: the mixture has the mean and the sd of the joint posterior."""
    mean, sd, error_of_mixing = field(tiny, request.getfixturevalue(engine))
    error = (mean - reference["z_mean"]) / reference["z_sd"]
    assert np.sqrt(np.mean(error**2)) < 0.15
    ratio = sd / reference["z_sd"]
    # the sd of an engine may be wrong by 3 %, and both sides are Monte-Carlo: a chain of 4,000 draws, and 8 draws of theta
    assert abs(np.log(ratio).mean()) < 0.03 + 3 * np.hypot(reference["z_log_sd_error"], error_of_mixing)
    assert ratio.min() > 0.7
    assert ratio.max() < 1.45


@pytest.mark.slow
def test_diagnostics_decide_the_status(tiny: Any, sampled: Theta) -> None:
    assert sampled.status is Status.OK, sampled.message
    assert sampled.diagnostics["r_hat"] <= mcmc.R_HAT
    assert sampled.diagnostics["effective_samples"] > 30
    assert sampled.draws.shape == (8, len(sampled.mean))
    hurried = mcmc.sample(start([whole(tiny.series, tiny.hierarchy)], tiny.hyper, seed=1), draws=4, samples=6, warmup=0, chains=2, depth=1, seed=1)
    assert hurried.status is Status.BAD_SAMPLES
    assert "R-hat" in hurried.message
    assert np.isfinite(hurried.draws).all()


@pytest.mark.slow
def test_engines_are_deterministic(tiny: Any, learned: Theta) -> None:
    again = variational.learn(start([whole(tiny.series, tiny.hierarchy)], tiny.hyper, seed=1), draws=8, seed=1)
    np.testing.assert_array_equal(again.draws, learned.draws)


@pytest.mark.slow
def test_no_data_is_the_prior(tiny: Any) -> None:
    for theta in (
        mcmc.sample(start([whole((), tiny.hierarchy)], tiny.hyper), draws=4),
        variational.learn(start([whole((), tiny.hierarchy)], tiny.hyper), draws=4),
    ):
        assert theta.status is Status.NO_DATA
        np.testing.assert_allclose(theta.mean, 0)
        np.testing.assert_allclose(theta.sd, 1)


@pytest.mark.slow
def test_a_sharp_prior_is_obeyed(tiny: Any) -> None:
    """Pooling's hand-over: with a prior of sd .01 around a value, that value comes back."""
    wanted = np.full(len(tiny.hyper.names()), 0.4)
    prior = wanted, np.full(wanted.shape, 0.01)
    theta = variational.learn(start([whole(tiny.series, tiny.hierarchy)], tiny.hyper, prior), draws=2)
    np.testing.assert_allclose(theta.mean, wanted, atol=0.02)


@pytest.mark.slow
def test_spoiled_data_still_give_finite_numbers(tiny: Any) -> None:
    """Two sensors that contradict each other by .5, and noise stated a hundred times too small."""
    fine, coarse = sorted(tiny.series, key=lambda s: s.sensor != "fine")
    spoiled = (replace(fine, data=fine.data + 0.5 * (fine.precision > 0), precision=fine.precision * 1e4), coarse)
    theta = variational.learn(start([whole(spoiled, tiny.hierarchy)], tiny.hyper), draws=2)
    assert np.isfinite(theta.draws).all()
    assert np.isfinite(theta.sd).all()


def test_effective_sizes_of_chains_that_stay_and_chains_that_alternate() -> None:
    """Autocorrelation a^lag: N (1 - a) / (1 + a) draws' worth (Gelman et al. 2013, section 11.5); never more than N log10 N, never negative."""
    rng = np.random.default_rng(0)
    chains, wanted = np.zeros((2, 2000, 3)), np.array([0.8, 0.0, -0.98])
    for step in range(1, 2000):
        chains[:, step] = wanted * chains[:, step - 1] + np.sqrt(1 - wanted**2) * rng.standard_normal((2, 3))
    stays, white, alternates = mcmc.effective(chains)
    assert stays == pytest.approx(4000 * 0.2 / 1.8, rel=0.25)
    assert white == pytest.approx(4000, rel=0.15)
    assert 4000 < alternates <= 4000 * np.log10(4000)
