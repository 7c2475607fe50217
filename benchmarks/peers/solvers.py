"""Other people's solvers on the posterior of this project: NIFTy.re's conjugate gradients, and numpyro's automatic guides.

All see the same white coefficients xi ~ N(0, I), the same forward operator and the same noise, through this project's own code, so that
only the algorithms differ. Each runner yields a trace: iterations, seconds of CPU since the start with compilation apart, mean of the field.
NIFTy is no dependency of the product: `pip install "nifty>=9"`, or the extra `bench`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoLowRankMultivariateNormal, AutoNormal
from numpyro.optim import Adam

from fusion.infer.gaussian import System, solve
from fusion.infer.model import joint

Plane = NDArray[np.float32]
DRAWS = 64
"""of a guide, for its sd"""


@dataclass(frozen=True)
class Step:
    """One point of a trace."""

    work: int
    """iterations so far"""
    seconds: float
    """of CPU, so that other work on the machine does not count"""
    mean: Plane
    """(T, K, Y, X)"""
    sd: Plane | None = None
    """of the guide's own draws, after the last step"""


@jax.jit
def field(system: System, white: Any) -> jax.Array:
    """(T, K, Y, X) of white coefficients."""
    return system.hierarchy.field(*system.hierarchy.coefficients(white, system.factors))


@jax.jit
def right_side(system: System) -> Any:
    """A^T N^-1 y."""
    return system.explain([s.data for s in system.series])


def _clock(f: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    out = jax.block_until_ready(f())
    return out, time.process_time() - start


def ours(system: System, tolerances: Sequence[float]) -> Iterator[Step]:
    """This project's preconditioned conjugate gradients, from the right-hand side on; `prepare` is timed by the caller."""
    run = jax.jit(lambda s, t: solve(s, s.explain([x.data for x in s.series]), t, 1000))
    jax.block_until_ready(run(system, 1.0))
    for tolerance in tolerances:
        found, seconds = _clock(partial(run, system, tolerance))
        yield Step(int(found.iterations), seconds, np.asarray(field(system, found.white)))


def nifty(system: System, limits: Sequence[int]) -> Iterator[Step]:
    """NIFTy.re: its Gaussian likelihood, its metric and its conjugate gradients, as in `nifty.re.wiener_filter_posterior`."""
    try:
        import nifty.re as jft
    except ImportError as error:
        raise SystemExit('asked for the comparison with NIFTy, which is not installed: pip install "nifty>=9"') from error

    def inverse_noise(values: Any) -> Any:
        return [noise.apply(v) for noise, v in zip(system.noise, values, strict=True)]

    forward = lambda white: list(system.predict(white.tree if isinstance(white, jft.Vector) else white))  # noqa: E731
    likelihood = jft.Gaussian([s.data for s in system.series], inverse_noise).amend(forward)
    right = jft.Vector(right_side(system))
    zero = jft.zeros_like(right)
    precision = jax.jit(lambda x: likelihood.metric(zero, x) + x)

    def steps(limit: int) -> Any:  # the tolerance is never met: `limit` steps exactly
        return jft.cg(precision, right, resnorm=0.0, maxiter=limit, _raise_nonposdef=False)

    steps(21)  # compiles, the restart of every twentieth step too
    for limit in limits:
        (white, _), seconds = _clock(partial(steps, limit))
        yield Step(limit, seconds, np.asarray(field(system, white.tree)))


def svi(system: System, guide: str, steps: Sequence[int], rate: float = 0.02, rank: int = 16, horizon: int = 0) -> Iterator[Step]:
    """numpyro's stochastic variational inference on the joint model for the same theta.

    guide: normal (AutoNormal) or lowrank (AutoLowRankMultivariateNormal). rate: of Adam, falling to a hundredth by step `horizon`, default
    the last. rank: of the latter. Offsets and discrepancies are further normal unknowns here.
    """
    arguments, hyper = (system.series, system.hierarchy), system.hyper

    def model(series: Any, hierarchy: Any) -> None:
        joint(series, hierarchy, hyper.sensors, hyper=hyper)

    auto: Any = AutoNormal(model, init_scale=0.3) if guide == "normal" else AutoLowRankMultivariateNormal(model, init_scale=0.3, rank=rank)
    last = max(steps)
    optimiser = Adam(lambda i: rate * 0.01 ** (i / (horizon or last)))
    machine = SVI(model, auto, optimiser, Trace_ELBO())
    state = machine.init(jax.random.key(0), *arguments)

    @jax.jit
    def advance(state: Any, arguments: Any, count: Any) -> Any:
        return jax.lax.fori_loop(0, count, lambda _, s: machine.update(s, *arguments)[0], state)

    @jax.jit
    def spread(params: Any, arguments: Any) -> jax.Array:
        drawn = auto.sample_posterior(jax.random.key(1), params, *arguments, sample_shape=(DRAWS,))
        white = {name: drawn[f"xi_{name}"] for name in system.hierarchy.white_shapes}
        return jnp.std(jax.lax.map(lambda w: field(system, w), white), axis=0)

    jax.block_until_ready(advance(state, arguments, 0))
    total, seconds = 0, 0.0
    for target in sorted(steps):
        state, spent = _clock(lambda s=state, n=target - total: advance(s, arguments, n))
        total, seconds = target, seconds + spent
        params = machine.get_params(state)
        median = auto.median(params)
        white = {name: jnp.asarray(median[f"xi_{name}"]) for name in system.hierarchy.white_shapes}
        sd = np.asarray(spread(params, arguments)) if target == last else None
        yield Step(total, seconds, np.asarray(field(system, white)), sd)
