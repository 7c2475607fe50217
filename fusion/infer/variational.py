"""The default engine: q(theta) q(field | theta), the field collapsed while theta is learned and exact afterwards.

q(theta) is a multivariate normal in white space, found by numpyro's SVI on log p(probes | theta) (`collapsed`) from a
Laplace start; q(field | theta) is the exact Gaussian of `gaussian`, mixed over a few draws of theta.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache, partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal
from numpyro.infer.initialization import init_to_value
from numpyro.optim import Adam

from fusion.cube.cube import Cube
from fusion.infer.mixture import fit_with
from fusion.infer.posterior import Posterior
from fusion.infer.theta import Evidence, Place, Start, Theta, whitened
from fusion.process.hierarchy import Hyper


@cache
def _refine(size: int, sensors: tuple[str, ...], rate: float, particles: int) -> Any:
    """(key, evidence, place, keep) -> (losses, loc, root) of the guide in whitened coordinates, averaged with weights `keep`.

    The guide starts as N(0, I), which is the Laplace approximation.
    """

    def model(known: Evidence, place: Place) -> None:
        whitened(known, place, sensors)

    def run(key: Array, known: Evidence, place: Place, keep: Array) -> tuple[Array, Array, Array]:
        # a guide keeps what it saw first: one made outside would carry this trace's values into the next tile shape
        guide = AutoMultivariateNormal(model, init_loc_fn=init_to_value(values={"e": jnp.zeros(size)}), init_scale=1.0)
        svi = SVI(model, guide, Adam(rate), Trace_ELBO(num_particles=particles))
        state = svi.init(key, ((), *known[1:]), place)  # it only asks for the shape of e: a density without data compiles sooner

        def step(carry: Any, share: Array) -> tuple[Any, Array]:
            state, total = carry
            state, loss = svi.update(state, known, place)
            return (state, jax.tree.map(lambda t, p: t + share * p, total, svi.get_params(state))), loss

        zero = jax.tree.map(jnp.zeros_like, svi.get_params(state))
        (_, mean), losses = jax.lax.scan(step, (state, zero), keep)
        return losses, mean["auto_loc"], mean["auto_scale_tril"]

    return jax.jit(run)


def learn(begun: Start, *, draws: int = 4, steps: int = 100, seed: int = 0, rate: float = 0.02, particles: int = 2) -> Theta:
    """q(theta) of one tile, from its Laplace approximation by `steps` of SVI.

    draws: of theta. Deterministic by seed.
    """
    if not begun.judged or not steps:
        return begun.theta(draws, seed)
    keep = np.zeros(steps, np.float32)
    keep[steps // 2 :] = 1 / (steps - steps // 2)
    refine = _refine(len(begun.mean), begun.sensors, rate, particles)
    losses, shift, turn = (np.asarray(v, np.float64) for v in refine(jax.random.key(seed), begun.known, begun.place, jnp.asarray(keep)))
    # A step out of the region where covariances can be factored leaves no finite number: the Laplace start then stands.
    if np.isfinite(losses).all() and np.isfinite(shift).all() and losses.max() < 1e20:
        learned = begun.theta(draws, seed, shift, turn)
        return replace(learned, diagnostics={**learned.diagnostics, "elbo": float(-losses[steps // 2 :].mean())})
    return begun.theta(draws, seed)


def fit(
    observations: Sequence[Any], cube: Cube, *, hyper: Hyper | None = None, draws: int = 16, seed: int = 0,
    origin: tuple[int, int] = (0, 0), prior: Any = None, thetas: int = 4, steps: int = 100, robust: bool = True,
    tolerance: float = 0.02, max_iterations: int = 200, samples: int = 64, **settings: Any,
) -> Posterior:
    """The posterior of one tile with theta learned on it.

    hyper: a first guess of theta. prior: of white theta, as `mixture.Region.prior` gives it, None = N(0, I). thetas: draws
    of theta that are mixed. robust: Student-t noise where residuals ask for it. samples: of the approximate posterior behind
    the sd (`gaussian.posterior`), shared out to the thetas. settings: those of `problem.pose`.
    """
    solver = {"tolerance": tolerance, "max_iterations": max_iterations}
    return fit_with(
        partial(learn, draws=thetas, steps=steps, seed=seed), observations, cube, hyper=hyper, prior=prior, draws=draws, seed=seed,
        origin=origin, robust=robust, samples=samples, settings=settings, solver=solver,
    )
