"""q(theta) q(field | theta) as one Posterior: exact Gaussians for a few draws of theta, mixed by the law of total variance.

    E[z] = mean_i m_i,     Var[z] = mean_i s_i^2 + Var_i[m_i],     draws of z: an equal share from every theta
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from fusion.cube.cube import Cube
from fusion.infer.engine import matched, settle, with_moments
from fusion.infer.gaussian import System, Weights, solve
from fusion.infer.looks import Looks
from fusion.infer.posterior import Posterior, Status
from fusion.infer.problem import Problem, pose
from fusion.infer.tails import tail_of, with_tail
from fusion.infer.theta import Start, Theta, start
from fusion.process.hierarchy import Hierarchy, Hyper
from fusion.process.pooling import Population, Summary, pool

NU = 4.0
"""degrees of freedom of the robust noise"""
GROSS, EXPECTED = 5.0, 1e-4
"""a tile has outliers where more than this share of residuals lies beyond so many noise sd (Gaussian: 6e-7)"""
SEVERITY = (Status.OK, Status.MISFIT, Status.BAD_SAMPLES, Status.NOT_CONVERGED, Status.NO_DATA)


@jax.jit
def _residuals(hierarchy: Hierarchy, series: tuple[Looks, ...], hyper: Hyper, weights: Weights | None) -> list[Array]:
    """(n, B, H, W) the white part of each residual in stated noise sd, 0 where missing."""
    system = System.of(hierarchy, series, hyper, weights)
    white = solve(system, system.explain([s.data for s in series]), 0.05, 60).white
    out = []
    for s, noise, seen in zip(series, system.noise, system.predict(white), strict=True):
        part = noise.apply(jnp.where(s.precision > 0, s.data - seen, 0.0))  # white precision x E[white noise | residual]
        there = noise.white > 0
        out.append(jnp.where(there, part / jnp.where(there, noise.white, 1.0) * jnp.sqrt(s.precision_for(hyper)), 0.0))
    return out


def robust_weights(problem: Problem, hyper: Hyper, rounds: int = 2) -> tuple[Weights | None, float]:
    """Factors on the precision that make the noise a Student-t, and the share of gross residuals; None where there are none.

    E[w | u] = (NU + 1) / (NU + u^2) for a residual of u noise sd (Lange, Little & Taylor 1989, JASA 84), which is 1 on average
    for Gaussian noise; a tile without outliers keeps its Gaussian noise exactly.
    """
    weights: Weights | None = None
    share = 0.0
    for i in range(rounds):
        found = _residuals(problem.hierarchy, problem.series, hyper, weights)
        if i == 0:
            count = sum(float((s.precision > 0).sum()) for s in problem.series)
            share = sum(float((jnp.abs(u) > GROSS).sum()) for u in found) / max(count, 1.0)
            if not share > EXPECTED:
                return None, share
        weights = tuple(jnp.nan_to_num((NU + 1) / (NU + u**2), nan=0.0, posinf=0.0) for u in found)
    return weights, share


Learn = Callable[[Start], Theta]


def fit_with(
    learn: Learn, observations: Sequence[Any], cube: Cube, *, hyper: Hyper | None, prior: Any, draws: int, seed: int,
    origin: tuple[int, int], robust: bool, samples: int, settings: Mapping[str, Any], solver: Mapping[str, Any],
) -> Posterior:
    """Pose, weigh outliers down where the mode of theta leaves any, learn theta, and mix the fields of its draws.

    A draw whose field comes out not finite is replaced by theta's mean. samples: of the approximate posterior behind the sd, in all.
    """
    problem = pose(observations, cube, origin=origin, folded=True, **settings)
    guess = problem.hyper if hyper is None else matched(hyper, problem.hyper)
    first = aligned(prior, guess)
    begun, gross = start(problem.views, guess, first, seed), 0.0
    if robust and problem.series:
        weights, gross = robust_weights(problem, Hyper.from_white(begun.mean, guess.rank, guess.sensors))
        if weights is not None:
            pairs = zip(problem.series, weights, strict=True)
            series = tuple(replace(s, precision=s.precision * (1.0 if w is None else w)) for s, w in pairs)
            problem = replace(problem, series=series)
            begun = start(problem.views, guess, first, seed, near=begun.mean)
    theta = learn(begun)
    hypers = theta.hypers
    each = -(-samples // len(hypers))

    def settled(i: int, one: Hyper) -> Posterior:
        share = draws // len(hypers) + (i < draws % len(hypers))
        return settle(problem, one, cube, draws=share, seed=seed * 1009 + i, samples=each, **solver)

    parts = [settled(i, one) for i, one in enumerate(hypers)]
    lost = [i for i, part in enumerate(parts) if part.diagnostics["not_finite"]]
    for i in lost:  # an extreme draw of theta that float32 cannot solve would be mixed in as the prior
        parts[i] = settled(i, theta.hyper)
    found = with_moments(mixed(parts, theta, {"gross_residuals": gross, "thetas_replaced": len(lost)}), problem, seed)
    return with_tail(found, tail_of(begun.known, theta.hyper))


@dataclass
class _Moments:
    """Running mean, and variance within and between, of arrays too large to keep side by side."""

    count: int = 0
    mean: Any = 0.0
    within: Any = 0.0
    between: Any = 0.0

    def add(self, mean: Any, variance: Any) -> None:
        self.count += 1
        step = mean - self.mean
        self.mean = self.mean + step / self.count
        self.between = self.between + step * (mean - self.mean)
        self.within = self.within + (variance - self.within) / self.count

    @property
    def variance(self) -> Any:
        return self.within + self.between / max(self.count - 1, 1)


def mixed(parts: Sequence[Posterior], theta: Theta, more: Mapping[str, Any]) -> Posterior:
    """One Posterior from one per draw of theta."""
    first = parts[0]
    z, x = _Moments(), _Moments()
    back = np.linalg.pinv(np.asarray(first.mixing, np.float64)).astype(np.float32)
    for part in parts:
        z.add(part.mean, part.sd**2)
        x.add(np.einsum("jk,tkyx->tjyx", back, part.mean), part.canonical_var)
    worst = max(parts, key=lambda p: SEVERITY.index(p.status))
    status, message = worst.status, worst.message
    if SEVERITY.index(theta.status) > SEVERITY.index(status):
        status, message = theta.status, theta.message
    names = theta.hyper.names()
    learned = {"names": names, "mean": theta.mean.tolist(), "sd": theta.sd.tolist()}
    return replace(
        first, mean=z.mean.astype(np.float32), sd=np.sqrt(z.variance).astype(np.float32),
        canonical_var=x.variance.astype(np.float32),
        draws=np.concatenate([p.draws for p in parts]), hyper=theta.hyper, status=status, message=message,
        chi_square={name: float(np.mean([p.chi_square[name] for p in parts])) for name in first.chi_square},
        decomposition={name: np.mean([p.decomposition[name] for p in parts], axis=0) for name in first.decomposition},
        diagnostics={**first.diagnostics, **theta.diagnostics, **more, "theta": learned, "thetas": len(parts)},
    )


def summarise(posterior: Posterior, tile: Any, group: str = "") -> dict[str, Any]:
    """What one tile sends to the region (JSON-ready): names, means and sds of its white hyperparameters.

    A posterior whose theta was not learned, or that had no data, says nothing.
    """
    told = posterior.diagnostics.get("theta", {"names": [], "mean": [], "sd": []})
    return {"tile": str(tile), "group": group, **(told if posterior.status is not Status.NO_DATA else {k: [] for k in told})}


def population(summaries: Sequence[Mapping[str, Any]]) -> Region:
    """The region behind the summaries of tiles that were fitted under the prior N(0, I)."""
    names = tuple(dict.fromkeys(name for s in summaries for name in s["names"]))
    place = {name: i for i, name in enumerate(names)}
    zero, one = np.zeros(len(names)), np.ones(len(names))
    told = []
    for s in summaries:
        mean, sd = zero.copy(), one.copy()  # of a sensor that the tile never met it says nothing
        index = [place[name] for name in s["names"]]
        mean[index], sd[index] = s["mean"], s["sd"]
        told.append(Summary.of(s["tile"], mean, sd, zero, one, s["group"]))
    return Region(names, pool(told, zero, one))


@dataclass(frozen=True, eq=False)
class Region:
    """The population of hyperparameters behind a set of tiles, which need not have met the same sensors."""

    names: tuple[str, ...]
    population: Population

    def prior(self, tile: Any, group: str = "") -> dict[str, Any]:
        """What a tile's next fit takes as `prior` (JSON-ready); for a tile of the sample, from the other tiles only."""
        mean, sd = self.population.prior(str(tile), group)
        return {"names": list(self.names), "mean": mean.tolist(), "sd": sd.tolist()}

    def shrinkage(self) -> list[dict[str, Any]]:
        """One row per tile and parameter: weight of its own data, its effective size; and the same for its group."""
        p = self.population
        return [
            {
                "tile": tile, "group": p.groups[g], "parameter": name, "weight": float(p.weight[j, d]),
                "effective_size": float(p.effective_size[j, d]), "group_weight": float(p.group_weight[g, d]),
                "group_tiles": float(p.effective_tiles[g, d]),
            }
            for j, (tile, g) in enumerate(zip(p.tiles, p.group_of, strict=True)) for d, name in enumerate(self.names)
        ]


def aligned(prior: Any, hyper: Hyper) -> tuple[Any, Any]:
    """(mean, sd) (D,) in the order of hyper.names(), from `Region.prior`; parameters that it does not name keep N(0, 1).

    Where the images allow less than the stated noise, which `hyper` holds then (`grain`), no more is thought of that sensor's noise.
    """
    names = hyper.names()
    if isinstance(prior, Mapping):
        place = {name: i for i, name in enumerate(prior["names"])}
        pick = [place.get(name) for name in names]
        mean = np.array([0.0 if i is None else prior["mean"][i] for i in pick])
        sd = np.array([1.0 if i is None else prior["sd"][i] for i in pick])
    else:
        mean, sd = prior if prior is not None else (np.zeros(len(names)), np.ones(len(names)))
    allowed = np.asarray(hyper.to_white())
    bounded = np.array([name.startswith("noise[") for name in names]) & (allowed < 0)
    return np.where(bounded, np.minimum(mean, allowed), mean), sd
