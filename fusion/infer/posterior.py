"""What every engine returns: the field's posterior, its hyperparameters and a status with its paragraph. Plain numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.cube.calendar import instant_of
from fusion.cube.cube import Cube
from fusion.cube.spectrum import Response
from fusion.errors import JobError
from fusion.process.tails import levels, quantile

Floats = NDArray[np.float32]


class Status(Enum):
    """How a tile ended; the value is the paragraph a user reads."""

    OK = "The fit converged and the data agree with it (chi-square per sensor within its expected range)."
    NO_DATA = (
        "No sensor saw this tile in the period, so the result is the prior. Causes: clouds throughout, a period outside the "
        "sensors' lifetimes, a catalog search that found nothing. Widen the period or add a sensor."
    )
    NOT_CONVERGED = (
        "The solver stopped at its iteration cap before its error fell under the tolerance (in posterior standard "
        "deviations). Causes: sensors that contradict each other, noise set far too small, an extreme tile. The values are "
        "usable with care; raise `max_iterations` or look at the chi-square per sensor."
    )
    MISFIT = (
        "The fit converged, but at least one sensor's residuals are far larger than its noise says. Causes: unmasked cloud, "
        "misregistration, a wrong scale or offset, a change that the calendar is too coarse to follow. The uncertainty was "
        "widened by the robust weights; look at `residuals(sensor)`."
    )
    BAD_SAMPLES = (
        "The sampler's chains disagree (R-hat above 1.05) or diverged. Causes: too few warm-up steps, a hyperparameter the "
        "data do not determine. Run longer chains or use the variational engine."
    )
    READ_FAILED = (
        "At least one scene could not be read for this tile, after retries; the rest was fused without it. The log and the "
        "store's diagnostics name the scenes."
    )


@dataclass(frozen=True, eq=False)
class Expectation:
    """E[f(reflectance)] of a nonlinear index and its plug-in value f(E[reflectance]): their difference is the Jensen gap."""

    mean: Floats
    sd: Floats
    plug_in: Floats


@dataclass(frozen=True, eq=False)
class Posterior:
    """The posterior of one tile's field z, and of what any sensor would see of it.

    Across components z = M x with the x independent given theta (M: `mixing`), so any band, wavelength or index gets its full
    variance from `canonical_var`, not from the sd of the components one by one.
    """

    mean: Floats
    """(T, K, Y, X) of z"""
    sd: Floats
    """(T, K, Y, X)"""
    draws: Floats
    """(S, T, K, Y, X); S = 0 if none were asked for"""
    cube: Cube
    hyper: Any
    """theta: posterior median or the value given"""
    status: Status
    message: str
    """what happened here, with numbers; the status' paragraph says what it means in general"""
    chi_square: Mapping[str, float]
    """sensor -> expected squared residual in noise sd, per value: 1 where data and model agree"""
    decomposition: Mapping[str, Floats]
    """level -> (K, Y, X) share of the variance over time, per canonical component: what each level explains, and "unresolved",
    what is left of the prior. The shares sum to 1."""
    mixing: Floats
    """(K, K) M"""
    canonical_var: Floats
    """(T, K, Y, X) variance of x"""
    diagnostics: Mapping[str, Any] = field(default_factory=dict)
    tail: float = 0.0
    """tail index of the law of errors in units of their sd (`fusion.process.tails`), 0 = normal: what intervals are made with"""

    def _colour(self, what: Any) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
        """(H (B, K), mean (B,), out-of-subspace variance (B,)) of a sensor, responses or wavelengths (nm)."""
        basis = self.cube.basis
        responses = tuple(b.response for b in what.bands) if hasattr(what, "bands") else tuple(np.atleast_1d(what).tolist())
        if responses and all(isinstance(r, Response) for r in responses):
            return basis.responses(responses)
        nodes = basis.wavelengths
        try:
            points = np.atleast_1d(np.asarray(what, np.float64))
        except (TypeError, ValueError) as error:
            raise JobError(f"asked to predict {what!r}: give a sensor, spectral responses or wavelengths in nm") from error
        if points.size == 0 or not ((points >= nodes[0]) & (points <= nodes[-1])).all():
            raise JobError(f"wavelengths {points} nm: the cube knows {nodes[0]:.0f} to {nodes[-1]:.0f} nm")
        colour = np.stack([np.interp(points, nodes, column) for column in basis.components.T], axis=1)
        return colour, np.interp(points, nodes, basis.mean), np.interp(points, nodes, basis.residual_var)

    def _times(self, times: Sequence[Any] | None) -> NDArray[np.float64]:
        """(N, T) weights of the latent times."""
        if times is None:
            return np.eye(len(self.cube.calendar))
        days = np.array([self.cube.calendar.day_of(instant_of(t)) for t in np.atleast_1d(np.asarray(times, object))])
        weights = self.cube.calendar.weights_at(days)
        if not (weights.sum(1) > 0).all():
            first, last = self.cube.calendar.times[[0, -1]]
            raise JobError(f"asked for times outside of the cube's calendar ({first} to {last}): nothing is known there")
        return weights

    def predict(self, what: Any, times: Sequence[Any] | None = None, *, noise: Any = None) -> tuple[Floats, Floats]:
        """(mean, sd), each (N, B, Y, X), of the reflectance that a sensor, responses or wavelengths (nm) would have at some times.

        times: instants, default the latent ones; between two latent times mean and sd are interpolated, which assumes their errors
        are alike (never too small). The variance that the basis cannot express is included. noise: sd of the observation (scalar
        or (B,)) to be included too.
        """
        colour, level, residual = self._colour(what)
        tau = self._times(times)
        mean = np.einsum("nt,bk,tkyx->nbyx", tau, colour, self.mean, optimize=True) + level[:, None, None]
        variance = np.einsum("bk,tkyx->tbyx", (colour @ self.mixing) ** 2, self.canonical_var, optimize=True)
        sd = np.einsum("nt,tbyx->nbyx", tau, np.sqrt(variance))
        extra = residual + (0.0 if noise is None else np.broadcast_to(np.asarray(noise, float), residual.shape) ** 2)
        return mean.astype(np.float32), np.sqrt(sd**2 + extra[:, None, None]).astype(np.float32)

    def quantiles(
        self, q: Sequence[float] | float, what: Any, times: Sequence[Any] | None = None, *, noise: Any = None
    ) -> NDArray[np.float32]:
        """(Q, N, B, Y, X) quantiles of what `predict` gives, in 0..1: mean + sd F^-1(q), F the law of errors."""
        shape = quantile(levels(q), self.tail)[:, None, None, None, None]
        mean, sd = self.predict(what, times, noise=noise)
        return (mean + sd * shape).astype(np.float32)

    def expectation(self, f: Callable[..., Any], what: Any, times: Sequence[Any] | None = None) -> Expectation:
        """E and sd of f(band, band, ...) over the draws.  f: takes the B reflectances of `what`, each (N, Y, X), returns (N, Y, X)."""
        if len(self.draws) < 2:
            raise JobError("an expectation needs at least 2 draws of the posterior: fit with draws=16 or more")
        colour, level, _ = self._colour(what)
        tau = self._times(times)

        def value(z: Floats) -> NDArray[np.float64]:
            bands = np.einsum("nt,bk,tkyx->bnyx", tau, colour, z, optimize=True) + level[:, None, None, None]
            return np.asarray(f(*bands), np.float64)

        values = np.stack([value(z) for z in self.draws])
        return Expectation(values.mean(0).astype(np.float32), values.std(0, ddof=1).astype(np.float32), value(self.mean).astype(np.float32))
