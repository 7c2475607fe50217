"""One theta in, one Posterior out: the exact Gaussian engine as every other engine uses it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from fusion.cube.cube import Cube
from fusion.infer import gaussian
from fusion.infer.gaussian import Field, System
from fusion.infer.posterior import Posterior, Status
from fusion.infer.problem import Problem, pose
from fusion.infer.remainder import Remainder
from fusion.infer.tails import tail_of, with_tail
from fusion.infer.theta import evidence
from fusion.process.hierarchy import Factors, Hierarchy, Hyper
from fusion.process.keyed import keyed_normal
from fusion.process.moment import Between, unseen

MISFIT = 4.0
"""mean squared residual, in noise variances, above which a sensor is said not to agree"""


def fit(
    observations: Sequence[Any], cube: Cube, *, hyper: Hyper | None = None, draws: int = 16, seed: int = 0,
    origin: tuple[int, int] = (0, 0), tolerance: float = 0.02, max_iterations: int = 200, samples: int = 32, exact_sd: bool = False,
    tail: float | None = None, **settings: Any,
) -> Posterior:
    """The exact posterior for one theta, default the prior medians.  settings: those of `problem.pose`.

    exact_sd: the sd from the exact draws instead of samples of the preconditioner (unbiased, its scatter falls as 1 / sqrt(draws):
    ask for 200 and more). tail: index of the law of errors, None = learned from left-out looks.
    """
    problem = pose(observations, cube, origin=origin, **settings)
    theta = problem.hyper if hyper is None else matched(hyper, problem.hyper)
    solver: dict[str, Any] = {"tolerance": tolerance, "max_iterations": max_iterations, "samples": samples, "exact_sd": exact_sd}
    found = with_moments(settle(problem, theta, cube, draws=draws, seed=seed, **solver), problem, seed)
    return with_tail(found, tail_of(evidence(problem.views, theta, None, seed), theta) if tail is None else tail)


def matched(hyper: Hyper, like: Hyper) -> Hyper:
    """A theta that knows the sensors of `like`, in their order: values of `hyper` where it has them, prior medians elsewhere."""
    if hyper.sensors == like.sensors:
        return hyper
    pick = [hyper.sensors.index(name) if name in hyper.sensors else -1 for name in like.sensors]
    parts = {
        name: jnp.stack([getattr(hyper, name)[i] if i >= 0 else getattr(like, name)[j] for j, i in enumerate(pick)]) if pick else getattr(like, name)
        for name in ("noise", "offset", "gain", "discrepancy", "discrepancy_days")
    }
    return Hyper(hyper.sd, hyper.shares, hyper.length, hyper.learned, **parts, sensors=like.sensors)


def settle(
    problem: Problem, hyper: Hyper, cube: Cube, *, draws: int = 16, seed: int = 0, weights: gaussian.Weights | None = None,
    tolerance: float = 0.02, max_iterations: int = 200, samples: int = 32, exact_sd: bool = False,
) -> Posterior:
    """Mean, sd and draws for one theta, with status, chi-square and the decomposition of variance."""
    hierarchy, key = problem.hierarchy, jax.random.key(seed)
    found = gaussian.posterior(
        hierarchy, problem.series, hyper, key, weights, pairs=-(-draws // 2), tolerance=tolerance, limit=max_iterations, samples=samples,
        exact=exact_sd,
    )
    mean, sd, canonical = (np.array(a) for a in (found.mean, found.sd, found.canonical_var))
    rest = None if hierarchy.complete else Remainder.of(hierarchy, problem.series, hyper, weights or (None,) * len(problem.series), found.white)
    if rest:
        mean, canonical = mean + _mixed(hierarchy.mixing, rest.mean), canonical + rest.variance
        sd = np.sqrt(sd**2 + _mixed(np.square(hierarchy.mixing), rest.variance))
    bad = ~(np.isfinite(mean) & np.isfinite(sd))
    if bad.any() or not problem.series:  # never a NaN in a store: what no data tell, or could not be solved, is the prior; the status says which
        told = bool(problem.series)
        mean, sd = np.where(bad, 0.0, mean), np.where(~bad & told, sd, hierarchy.prior_sd(hyper))
        canonical = np.where(np.isfinite(canonical) & told, canonical, hierarchy.prior_variance(hyper))
    fields = _draws(problem, hyper, found, mean, draws, rest, jax.random.fold_in(key, 2**22))
    chi = _by_sensor(problem, np.asarray(found.chi_square))
    status, message = _status(problem, found, chi, int(bad.sum()), tolerance, max_iterations)
    diagnostics = {
        "iterations": int(found.iterations), "solver_error_sd": float(found.error), "not_finite": int(bad.sum()), "clipped": clipped(mean, cube),
        "prior_left": float(np.mean(sd**2) / np.mean(np.asarray(hierarchy.prior_sd(hyper)) ** 2)),
        "looks": {s.sensor: int((np.asarray(s.precision) > 0).any((1, 2, 3)).sum()) for s in problem.series},
    }
    return Posterior(
        mean.astype(np.float32), sd.astype(np.float32), fields, cube, hyper, status, message, chi,
        _decomposition(problem, hyper, found, canonical), np.asarray(hierarchy.mixing), canonical.astype(np.float32), diagnostics,
    )


def with_moments(found: Posterior, problem: Problem, seed: int) -> Posterior:
    """The same with what may have changed at moments that no look saw (`moment`), which the pixels of an object share.

    The draws are moved where they lie: a second copy would be the largest array of a fit.
    """
    hierarchy = problem.hierarchy
    amount, objects = float(hierarchy.sudden), hierarchy.spaces["object"]
    if problem.seen is None or not problem.seen.any() or not amount > 0:
        return found
    mixing = found.mixing.astype(np.float64)
    between = Between.of(problem.seen, np.asarray(hierarchy.days, np.float64))
    step = np.sqrt(amount) * unseen(_mixed(np.linalg.pinv(mixing), found.mean), between).astype(np.float32)
    variance = between.spread[:, None] * step**2
    rows, cols = objects.centre(hierarchy.rows, hierarchy.cols)
    for i in range(0, len(found.draws), 2):
        key = jax.random.fold_in(jax.random.key(seed), 2**21 + i)
        white = np.asarray(objects.spread(keyed_normal(key, rows, cols, step.shape[0] * step.shape[1]))).reshape(step.shape)
        deviation = _mixed(found.mixing, step * between.bridge(white))
        found.draws[i] += deviation
        found.draws[i + 1 : i + 2] -= deviation
    sd = np.sqrt(found.sd**2 + _mixed(found.mixing**2, variance))
    return replace(found, sd=sd.astype(np.float32), canonical_var=found.canonical_var + variance)


def clipped(mean: Any, cube: Cube) -> float:
    """Share of the wavelengths, times and pixels whose mean reflectance lies outside 0..1 (on a sample of all three)."""
    nodes = slice(None, None, max(1, cube.basis.wavelengths.size // 16))
    some = mean[:: max(1, mean.shape[0] // 8), :, :: max(1, mean.shape[2] // 32), :: max(1, mean.shape[3] // 32)]
    spectrum = np.einsum("lk,tkyx->tlyx", cube.basis.components[nodes], some) + cube.basis.mean[nodes][:, None, None]
    return float(((spectrum < 0) | (spectrum > 1)).mean())


def _draws(problem: Problem, hyper: Hyper, found: Field, mean: Any, draws: int, rest: Remainder | None, key: Any) -> Any:
    """(S, T, K, Y, X): mean + deviation and mean - deviation in turn."""
    out = np.empty((draws, *mean.shape), np.float32)
    factors = problem.hierarchy.factors(hyper)
    for i in range(-(-draws // 2)):
        white = jax.tree.map(lambda a, i=i: a[i], found.deviations)
        beside = rest.draw(problem.hierarchy, jax.random.fold_in(key, i)) if rest else 0.0
        deviation = np.asarray(_deviation(problem.hierarchy, white, factors, beside))
        out[2 * i] = mean + deviation
        if 2 * i + 1 < draws:
            out[2 * i + 1] = mean - deviation
    return out


@jax.jit
def _deviation(hierarchy: Hierarchy, white: Any, factors: Factors, beside: Any) -> Any:
    """(T, K, Y, X) of z, what is not finite as 0.  beside: as of `Hierarchy.field`."""
    return jnp.nan_to_num(hierarchy.field(*hierarchy.coefficients(white, factors), beside))


def _mixed(mixing: Any, x: Any) -> Any:
    """(T, K, Y, X) M x.  mixing: M (K, K), its squares for variances, its inverse for the way back."""
    return np.einsum("jk,tkyx->tjyx", np.asarray(mixing), x)


def _by_sensor(problem: Problem, chi: Any) -> dict[str, float]:
    """Chi-square per sensor: its series weighted by their number of values."""
    out = {}
    for name in problem.hyper.sensors:
        counts = [(float((np.asarray(s.precision) > 0).sum()), float(c)) for s, c in zip(problem.series, chi, strict=False) if s.sensor == name]
        total = sum(n for n, _ in counts)
        if total:
            out[name] = sum(n * c for n, c in counts) / total
    return out


def _status(problem: Problem, found: Field, chi: dict[str, float], bad: int, tolerance: float, limit: int) -> tuple[Status, str]:
    if not problem.series:
        return Status.NO_DATA, "No usable value in any of the observations: mean and sd are the prior's."
    if bad or not float(found.error) <= tolerance:
        what = f"; {bad} values were not finite and are given as the prior" if bad else ""
        return Status.NOT_CONVERGED, (
            f"The error was still {float(found.error):.3g} posterior sd after {int(found.iterations)} of {limit} iterations "
            f"(asked: {tolerance:g}){what}."
        )
    worst = max(chi, key=lambda name: chi[name])
    if chi[worst] > MISFIT:
        return Status.MISFIT, f"{worst} has a mean squared residual of {chi[worst]:.2g} noise variances (expected about 1)."
    return Status.OK, f"Solved in {int(found.iterations)} iterations; chi-square " + ", ".join(f"{n} {c:.2f}" for n, c in chi.items()) + "."


@jax.jit
def _explained(hierarchy: Hierarchy, hyper: Hyper, white: Any, canonical: Any) -> dict[str, Any]:
    """level -> (K, Y, X) mean over time of the square of what the level adds to x; "unresolved": of the variance left."""
    factors = hierarchy.factors(hyper)
    zero = {name: jnp.zeros_like(value) for name, value in white.items()}
    out = {}
    for name in white:
        mean, planes = hierarchy.coefficients({**zero, name: white[name]}, factors)  # one of them is zero, and Psi is orthonormal
        out[name] = (mean**2).mean(1)[:, None, None] + (planes**2).sum(1) / mean.shape[1]
    out["unresolved"] = jnp.asarray(canonical).mean(0)
    total = jnp.maximum(sum(out.values()), 1e-30)
    return {name: jnp.nan_to_num(value / total) for name, value in out.items()}


def _decomposition(problem: Problem, hyper: Hyper, found: Field, canonical: Any) -> dict[str, Any]:
    shares = _explained(problem.hierarchy, hyper, found.white, canonical)
    return {name: np.asarray(value) for name, value in shares.items()}


__all__ = ["System", "clipped", "fit", "matched", "settle", "with_moments"]
