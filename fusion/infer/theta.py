"""The posterior of the hyperparameters: a normal in the white space u of `Hyper.from_white`, where N(0, I) is the prior."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from typing import Any

import jax
import jax.custom_batching
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax import Array
from numpy.typing import NDArray
from scipy.optimize import minimize

from fusion.infer.collapsed import count, exact, probed
from fusion.infer.looks import Looks
from fusion.infer.posterior import Status
from fusion.infer.probes import Probes, probe
from fusion.infer.problem import View
from fusion.process.hierarchy import LEVELS, Hierarchy, Hyper

Vector = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Theta:
    """q(u): what an engine learned of the hyperparameters."""

    mean: Vector
    """(D,)"""
    root: NDArray[np.float64]
    """(D, D) lower triangle, root root^T the covariance"""
    draws: NDArray[np.float64]
    """(S, D) of the posterior of u: antithetic normal draws, or the sampler's own, thinned"""
    rank: int
    sensors: tuple[str, ...]
    status: Status = Status.OK
    message: str = ""
    diagnostics: dict[str, Any] = field(default_factory=dict)

    @property
    def sd(self) -> Vector:
        """(D,)"""
        return np.sqrt((self.root**2).sum(1))

    @property
    def hyper(self) -> Hyper:
        """theta at the mean of u."""
        return Hyper.from_white(self.mean, self.rank, self.sensors)

    @property
    def hypers(self) -> list[Hyper]:
        """theta of every draw."""
        return [Hyper.from_white(u, self.rank, self.sensors) for u in self.draws]

    def table(self) -> dict[str, tuple[float, float, float]]:
        """name -> (median, low, high) of each parameter, central 90 %."""
        ends = [np.concatenate([np.ravel(np.asarray(v)) for v in _leaves(u, self)]) for u in (
            self.mean, self.mean - 1.645 * self.sd, self.mean + 1.645 * self.sd)]
        return {name: (float(a), float(b), float(c)) for name, a, b, c in zip(self.hyper.names(), *ends, strict=True)}


def _leaves(u: Vector, theta: Theta) -> list[Array]:
    return jax.tree_util.tree_leaves(Hyper.from_white(u, theta.rank, theta.sensors))


Prior = tuple[Array, Array]
"""mean and sd (D,) of u"""
TINY = 512
"""tiles with at most so many white coefficients are given the exact density instead of probes"""
GAIN = 1e-6
"""of a log posterior that float32 knows to about 1e-7 of itself: below, a line search climbs rounding errors"""
Evidence = tuple[tuple[Probes, ...] | tuple[Looks, ...], Hierarchy, Prior]
"""all arrays that the log posterior of u needs: arguments of what is compiled, never constants in it"""


def evidence(views: Sequence[View], hyper: Hyper, prior: tuple[Any, Any] | None, seed: int) -> Evidence:
    """Probes, or the looks themselves on a tiny tile that one hierarchy describes. prior: of u, None = N(0, I)."""
    size = Hyper.size(hyper.rank, len(hyper.sensors))
    mean, sd = prior if prior is not None else (np.zeros(size), np.ones(size))
    known = jnp.asarray(mean, jnp.float32), jnp.asarray(sd, jnp.float32)
    series, hierarchy, _ = views[0]
    if len(views) == 1 and count(hierarchy) <= TINY:
        return tuple(series), hierarchy, known
    # Without the tile's own spaces all tiles of one calendar share a compile.
    bare = replace(hierarchy, spaces={}, liveliness=jnp.zeros((0, 0)), rows=jnp.zeros(0, jnp.int32), cols=jnp.zeros(0, jnp.int32))
    return probe(views, hyper, seed), bare, known


def log_posterior(u: Array, known: Evidence, sensors: tuple[str, ...]) -> Array:
    """log prior of u plus what the data say of it (`collapsed`), up to a constant."""
    data, hierarchy, (mean, sd) = known
    density: Any = exact if data and isinstance(data[0], Looks) else probed
    return density(u, data, hierarchy, sensors) - 0.5 * (((u - mean) / sd) ** 2).sum()


Place = tuple[Array, Array]
"""(mode (D,), root (D, D)): u = mode + root e, so that e is about N(0, I) under the posterior"""


def whitened(known: Evidence, place: Place, sensors: tuple[str, ...]) -> None:
    """The collapsed model as numpyro sees it, for SVI and NUTS alike: e with the density of u = mode + root e."""
    mode, root = place
    free = dist.ImproperUniform(dist.constraints.real_vector, (), (mode.shape[0],))
    e = numpyro.sample("e", free)
    numpyro.factor("log_posterior", one_by_one(sensors)(mode + root @ e, known))


@cache
def one_by_one(sensors: tuple[str, ...]) -> Any:
    """(u, evidence) -> log posterior of u, differentiable in u; on a CPU particles are done one after the other.

    All at once they leave the caches of a core: four take half as long again (measured). The gradient is found with the value.
    """

    def value(u: Array, known: Evidence) -> Array:
        return log_posterior(u, known, sensors)

    if jax.default_backend() != "cpu":
        return value
    both = jax.custom_batching.sequential_vmap(jax.value_and_grad(value))
    single = jax.custom_vjp(lambda u, known: both(u, known)[0])
    single.defvjp(both, lambda slope, change: (change * slope, None))
    return single


@cache
def climb(sensors: tuple[str, ...]) -> Any:
    """(u, evidence) -> (log posterior of u, its gradient), compiled once per shape."""
    return jax.jit(jax.value_and_grad(lambda u, known: log_posterior(u, known, sensors)))


def _down(u: Vector, known: Evidence, sensors: tuple[str, ...]) -> tuple[float, Vector]:
    """Minus the log posterior of u, and its slope (D,)."""
    value, slope = climb(sensors)(jnp.asarray(u, jnp.float32), known)
    return -float(value), -np.nan_to_num(np.asarray(slope, np.float64))


def mode(known: Evidence, sensors: tuple[str, ...], near: Vector | None = None, steps: int = 60) -> tuple[Vector, float]:
    """(mode (D,), log posterior there) by quasi-Newton ascent, which ends where a step gains less than GAIN of it.

    near: (D,) where the ascent begins, default the prior mean.
    """
    begin, limits = np.asarray(known[2][0], np.float64) if near is None else near, {"maxiter": steps, "maxfun": 2 * steps, "ftol": GAIN}
    found = minimize(_down, begin, args=(known, sensors), jac=True, method="L-BFGS-B", options=limits)
    return np.asarray(found.x), -float(found.fun)


def covariance(at: Vector, known: Evidence, sensors: tuple[str, ...]) -> NDArray[np.float64]:
    """(D, D) of the Laplace approximation at a mode, the curvature by differences of gradients.

    It is never taken as weaker than half the prior's: a flat or rising direction keeps about its prior width.
    """
    sd = np.asarray(known[2][1], np.float64)

    def down(u: Vector) -> Vector:
        return _down(u, known, sensors)[1]

    centre, width = down(at), 0.1 * sd
    curvature = np.stack([(down(at + e) - centre) / w for e, w in zip(np.diag(width), width, strict=True)])
    scaled = sd[:, None] * (curvature + curvature.T) / 2 * sd[None, :]
    values, vectors = np.linalg.eigh(scaled)
    inverse = (vectors / np.maximum(values, 0.5)) @ vectors.T
    return np.asarray(sd[:, None] * inverse * sd[None, :])


def antithetic(mean: Vector, root: NDArray[np.float64], draws: int, seed: int) -> NDArray[np.float64]:
    """(draws, D) of N(mean, root root^T) in pairs mean +- d, whose average is the mean; one draw is the mean itself."""
    if draws <= 1:
        return np.asarray(mean, np.float64)[None]
    rng = np.random.default_rng([seed, 17])
    half = rng.standard_normal((-(-draws // 2), len(mean))) @ root.T
    return np.concatenate([mean + half, mean - half])[:draws]


@dataclass(frozen=True, eq=False)
class Start:
    """Where both engines begin: the evidence and its Laplace approximation."""

    known: Evidence
    mean: Vector
    """(D,) the mode, or the prior mean where nothing can be judged"""
    rank: int
    sensors: tuple[str, ...]
    status: Status
    diagnostics: dict[str, Any]

    @cached_property
    def root(self) -> NDArray[np.float64]:
        """(D, D) of the covariance, the prior's where nothing can be judged; it takes longer than the mode, which may be all that is asked for."""
        if not self.judged:
            return np.diag(np.asarray(self.known[2][1], np.float64))
        return np.asarray(np.linalg.cholesky(covariance(self.mean, self.known, self.sensors)), np.float64)

    @property
    def judged(self) -> bool:
        """Whether the looks say anything of theta."""
        return bool(self.known[0])

    @property
    def place(self) -> Place:
        """The coordinates in which theta is about N(0, I)."""
        return jnp.asarray(self.mean, jnp.float32), jnp.asarray(self.root, jnp.float32)

    def theta(self, draws: int, seed: int, shift: Vector | None = None, turn: NDArray[np.float64] | None = None) -> Theta:
        """q(u) of e ~ N(shift, turn turn^T), u = mean + root e, default N(0, I): where nothing can be judged, the prior."""
        mean = self.mean if shift is None else self.mean + self.root @ shift
        root = self.root if turn is None else self.root @ turn
        drawn = antithetic(mean, root, draws, seed)
        return Theta(mean, root, drawn, self.rank, self.sensors, self.status, self.status.value, self.diagnostics)


def start(
    views: Sequence[View], hyper: Hyper, prior: tuple[Any, Any] | None = None, seed: int = 0, near: Vector | None = None
) -> Start:
    """Probes of the looks and the Laplace approximation of what they say, the ascent begun at the prior mean or `near`.

    views: what foretells which looks, as `Problem.views` gives them. hyper: names the sensors and guesses theta.
    prior: mean and sd (D,) of u, as `mixture.aligned` gives it; None = N(0, I).
    Fewer than two fine looks judge nothing: the answer is the prior then; without any data with status NO_DATA.
    """
    known = evidence(views, hyper, prior, seed)
    status = Status.OK if any(series for series, *_ in views) else Status.NO_DATA
    if not known[0]:
        return Start(known, np.asarray(known[2][0], np.float64), hyper.rank, hyper.sensors, status, {})
    highest, value = mode(known, hyper.sensors, near)
    found: dict[str, Any] = {"log_posterior_at_mode": value}
    scales = [np.asarray(batch.scale) for batch in known[0] if isinstance(batch, Probes)]
    if scales:
        found["probes"] = {name: int((np.concatenate(scales) == i).sum()) for i, name in enumerate(LEVELS)}
    return Start(known, highest, hyper.rank, hyper.sensors, status, found)
