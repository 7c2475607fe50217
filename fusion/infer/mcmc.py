"""NUTS over the hyperparameters with the field collapsed; the field is drawn exactly for some of its draws afterwards.

Chains run in the whitened space of the Laplace approximation, where the posterior is close to N(0, I): a unit mass matrix
fits and trajectories are short. R-hat (split), effective sample sizes and divergences decide between OK and BAD_SAMPLES
(Vehtari et al. 2021, Bayesian Analysis 16).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial
from typing import Any

import jax
import numpy as np
from numpy.typing import NDArray
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import MCMC, NUTS

from fusion.cube.cube import Cube
from fusion.infer.mixture import fit_with
from fusion.infer.posterior import Posterior, Status
from fusion.infer.theta import Evidence, Place, Start, Theta, whitened
from fusion.process.hierarchy import Hyper

R_HAT = 1.05
DIVERGENT = 0.01
"""share of divergent transitions that is still accepted"""


@cache
def _sampler(sensors: tuple[str, ...], warmup: int, samples: int, chains: int, depth: int) -> MCMC:
    """One sampler object per setting, so that tiles of one shape share its compile.

    On a CPU chains run one after the other: side by side each waits for the longest trajectory of all, which is nearly twice the mean.
    """

    def model(known: Evidence, place: Place) -> None:
        whitened(known, place, sensors)

    kernel = NUTS(model, step_size=0.3, adapt_mass_matrix=False, max_tree_depth=depth, target_accept_prob=0.7)
    return MCMC(
        kernel, num_warmup=warmup, num_samples=samples, num_chains=chains, progress_bar=False, jit_model_args=True,
        chain_method="sequential" if jax.default_backend() == "cpu" else "vectorized",
    )


def sample(
    begun: Start, *, draws: int = 16, samples: int = 500, warmup: int = 150, chains: int = 4, depth: int = 6, seed: int = 0
) -> Theta:
    """The posterior of theta by NUTS: chains x samples draws, of which `draws` evenly spaced ones are kept for the field.

    Deterministic by seed.
    """
    if not begun.judged:
        return begun.theta(draws, seed)
    place, found = begun.place, dict(begun.diagnostics)
    sampler = _sampler(begun.sensors, warmup, samples, chains, depth)
    key, first = jax.random.split(jax.random.key(seed))
    size = place[0].shape[0]
    initial = {"e": 0.5 * jax.random.normal(first, (chains, size) if chains > 1 else (size,))}
    sampler.run(key, begun.known, place, init_params=initial, extra_fields=("diverging", "num_steps"))
    e = np.asarray(sampler.get_samples(group_by_chain=True)["e"], np.float64)
    extra = sampler.get_extra_fields(group_by_chain=True)
    u = begun.mean + e @ begun.root.T
    with np.errstate(all="ignore"):
        r_hat, size_e = split_gelman_rubin(u), effective(u)
    divergent = float(np.asarray(extra["diverging"]).mean())
    found |= {
        "r_hat": float(np.nanmax(r_hat)), "effective_samples": float(np.nanmin(size_e)), "divergent": divergent,
        "steps": float(np.asarray(extra["num_steps"]).mean()),
    }
    names = Hyper.from_white(begun.mean, begun.rank, begun.sensors).names()
    bad = not np.isfinite(u).all() or not found["r_hat"] <= R_HAT or divergent > DIVERGENT
    flat = np.nan_to_num(u.reshape(-1, u.shape[-1]))
    covariance = np.atleast_2d(np.cov(flat.T)).astype(np.float64) + 1e-9 * np.eye(flat.shape[1])
    message = Status.OK.value
    if bad:
        worst = int(np.nanargmax(r_hat)) if np.isfinite(r_hat).any() else 0
        message = f"{Status.BAD_SAMPLES.value} Worst: {names[worst]}, R-hat {r_hat[worst]:.3f}; {divergent:.1%} diverged."
    picked = flat[np.linspace(0, len(flat) - 1, draws).round().astype(int)]
    return Theta(
        flat.mean(0), np.asarray(np.linalg.cholesky(covariance), np.float64), picked, begun.rank, begun.sensors,
        Status.BAD_SAMPLES if bad else Status.OK, message, found,
    )


def effective(chains: NDArray[np.float64]) -> NDArray[np.float64]:
    """(D,) effective sample sizes of (chains, N, D), at most n log10 n of the n draws in all.

    The bound is that of Vehtari et al. 2021, section 3.2: chains that step from side to side make the estimated autocorrelation time
    arbitrarily small, and negative.
    """
    count = chains.shape[0] * chains.shape[1]
    size = np.asarray(effective_sample_size(chains), np.float64)
    most = count * np.log10(count)
    return np.where(size < 0, most, np.minimum(size, most))


def fit(
    observations: Sequence[Any], cube: Cube, *, hyper: Hyper | None = None, draws: int = 16, seed: int = 0,
    origin: tuple[int, int] = (0, 0), prior: Any = None, thetas: int = 8, samples: int = 500, warmup: int = 150,
    chains: int = 4, robust: bool = True, tolerance: float = 0.02, max_iterations: int = 200, field_samples: int = 64,
    **settings: Any,
) -> Posterior:
    """The posterior of one tile, theta sampled: chains x samples draws, `thetas` of which are mixed.

    Other arguments as for the variational engine; field_samples: its `samples`.
    """

    solver = {"tolerance": tolerance, "max_iterations": max_iterations}
    return fit_with(
        partial(sample, draws=thetas, samples=samples, warmup=warmup, chains=chains, seed=seed), observations, cube, hyper=hyper,
        prior=prior, draws=draws, seed=seed, origin=origin, robust=robust, samples=field_samples, settings=settings, solver=solver,
    )
