"""Simulation-based calibration of the whole engine: hyperparameters and field together, worlds drawn from the joint model.

    python benchmarks/calibration.py [--worlds 200] [--engine variational|mcmc]

Every world is simulated: theta ~ prior, field ~ theta, data ~ field, by `fusion.infer.model.joint` itself. An engine
then sees the data only. If it is right, the rank of each true value among its draws is uniform (Talts et al. 2018,
arXiv:1804.06788). Tested are the exact field for the true theta (engine `gaussian`), and theta and field of an engine that
learns theta. The rank histograms are drawn in docs/figures/sbc.png.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import numpyro
from numpy.typing import NDArray
from numpyro.infer import Predictive
from scipy.stats import binom, chi2

from fusion.infer import gaussian, mcmc, variational
from fusion.infer.looks import Looks, stack
from fusion.infer.model import joint
from fusion.infer.problem import whole
from fusion.infer.theta import Theta, start
from fusion.observe.operator import Separable
from fusion.process.hierarchy import Hierarchy, Hyper, build
from fusion.process.space import Objects, Smooth

SENSORS = ("fine", "coarse")
THETAS, FIELDS, PLACES = 15, 7, 12
"""independent draws of theta, of the field, and places in a world at which the field is ranked"""
STEPS, RANK, SIDE = 4, 2, 4
SMALL_RANKS = {"class": 2, "object": 2, "place": 2, "pixel": 2}
INK, BAR, BAND = "#1d2733", "#35919f", "#e9edf1"


def scene() -> tuple[Hierarchy, tuple[Looks, ...]]:
    """4 x 4 pixels at 4 times; three fine looks with a hole each, four coarse ones with a discrepancy; data still zero."""
    rng = np.random.default_rng(0)
    shape, days = (SIDE, SIDE), np.arange(STEPS) * 8.0
    labels = np.arange(SIDE)[:, None] // 2 * 2 + np.arange(SIDE)[None] // 2
    memberships = rng.dirichlet(np.ones(2), size=shape).transpose(2, 0, 1)
    colours = np.array([[1.0, 0.3], [0.8, -0.6], [1.2, 0.9]]), np.array([[0.9, 0.4], [1.1, -0.5]])
    prior = 0.1**2 * np.array([[1.0, 0.2], [0.2, 0.5]])
    hierarchy = trimmed(build(days, prior, colours[0], memberships, labels, spacing=4.0, ranks=SMALL_RANKS))
    ones, eye = jnp.ones(shape), jnp.eye(SIDE)
    fine = Separable(ones, shape, shape, ones, eye, eye)
    halves, cells = jnp.asarray(np.kron(np.eye(2), np.full((1, 2), 0.5)), jnp.float32), jnp.ones((2, 2))
    coarse = Separable(cells, (2, 2), shape, cells, halves, halves)
    looks = []
    for i, index in enumerate((0, 1.4, 3)):
        precision = np.full((3, *shape), 1 / 0.02**2, np.float32)
        precision[:, i : i + 2, 2:] = 0
        tau = np.maximum(1 - np.abs(np.arange(STEPS) - index), 0)
        looks.append(_look("fine", i, fine, colours[0], tau, precision, 0.01, 0.0))
    for i in range(STEPS):
        precision = np.full((2, 2, 2), 1 / 0.01**2, np.float32)
        looks.append(_look("coarse", i, coarse, colours[1], np.eye(STEPS)[i], precision, 0.005, 0.02))
    return hierarchy, stack(looks, hierarchy, SENSORS, lambda when: when)


def trimmed(hierarchy: Hierarchy) -> Hierarchy:
    """Without the units that no pixel touches, which tiles are padded with: the density of theta is dense in the coefficients."""
    objects, place = hierarchy.spaces["object"], hierarchy.spaces["place"]
    count = int(objects.label.max()) + 1
    rows, cols = (np.flatnonzero(np.abs(np.asarray(weight)).max(0) > 0) for weight in (place.rows, place.cols))
    return replace(hierarchy, spaces={
        **hierarchy.spaces,
        "object": Objects(objects.label, objects.order[:count], objects.owner[:count, :count]),  # one chunk each
        "place": Smooth(place.rows[:, rows], place.cols[:, cols], place.node_rows[rows], place.node_cols[cols]),
    })


def _look(
    sensor: str, number: int, footprint: Any, colour: Any, tau: Any, precision: Any, offset: float, discrepancy: float
) -> SimpleNamespace:
    bands = len(colour)
    layer = SimpleNamespace(footprint=footprint, colour=colour, mean=np.full(bands, 0.2), tau=tau)
    return SimpleNamespace(
        sensor=sensor, scene_id=f"{sensor}-{number}", bands=tuple(map(str, range(bands))),
        data=np.zeros(precision.shape, np.float32), precision=precision,
        layer=layer, offset_sd=np.full(bands, offset), gain_sd=np.zeros(bands), residual_var=np.zeros(bands),
        discrepancy_sd=discrepancy, fleeting_sd=None,
        discrepancy_days=10.0, when=float(tau @ np.arange(STEPS)) * 8.0,
    )


def unseen(series: tuple[Looks, ...], hierarchy: Hierarchy, sensors: tuple[str, ...]) -> None:
    """The joint model with its data still to be drawn: observed sites become latent ones."""
    with numpyro.handlers.uncondition():
        joint(series, hierarchy, sensors)


@dataclass(frozen=True)
class Ranked:
    """Ranks of the truth of one world among posterior draws, and the field's errors in units of the sd that was claimed."""

    given: NDArray[np.int_]
    """(PLACES,) of the field among FIELDS draws for the true theta"""
    theta: NDArray[np.int_]
    """(D,) of theta among THETAS draws of the engine"""
    field: NDArray[np.int_]
    """(PLACES,) of the field among FIELDS draws, each with a theta of its own"""
    score: NDArray[np.float64]
    """(2, PLACES) error over sd: for the true theta, and for the engine's"""


def ranked(seed: int, hierarchy: Hierarchy, empty: tuple[Looks, ...], engine: str, simulate: Any, hyper: Hyper) -> Ranked:
    """One world drawn from the prior and what the engines make of its data."""
    world = simulate(jax.random.key(seed))
    series = tuple(replace(s, data=jnp.where(s.precision > 0, world[f"y_{i}"], 0.0)) for i, s in enumerate(empty))
    truth, rng = np.asarray(world["z"]).ravel(), np.random.default_rng(seed)
    places = rng.choice(truth.size, PLACES, replace=False)

    def field(u: Any, key: int) -> tuple[NDArray[np.float64], ...]:
        """(draws (FIELDS, PLACES), mean, variance) for one theta; one draw of each antithetic pair, so they are independent."""
        theta = Hyper.from_white(u, RANK, SENSORS)
        found = gaussian.posterior(hierarchy, series, theta, jax.random.key(key), pairs=FIELDS, samples=32)
        mean, sd = (np.asarray(v, np.float64).ravel()[places] for v in (found.mean, found.sd))
        return np.asarray(_fields(hierarchy, theta, found.deviations)).reshape(FIELDS, -1)[:, places] + mean, mean, sd**2

    known, mean, variance = field(world["u"], 1000 * seed + 999)
    theta = learn(engine, series, hierarchy, hyper, seed)
    if engine == "mcmc":
        drawn = theta.draws[rng.permutation(len(theta.draws))[: THETAS + FIELDS]]
    else:
        drawn = theta.mean + rng.standard_normal((THETAS + FIELDS, len(theta.mean))) @ theta.root.T
    each = [field(u, 1000 * seed + i) for i, u in enumerate(drawn[THETAS:])]
    draws, means, variances = (np.array(part) for part in zip(*each, strict=True))
    within, between = variances.mean(0), means.var(0, ddof=1)
    score = (truth[places] - mean) / np.sqrt(variance), (truth[places] - means.mean(0)) / np.sqrt(within + (1 + 1 / FIELDS) * between)
    return Ranked(
        (known < truth[places]).sum(0), (drawn[:THETAS] < np.asarray(world["u"])).sum(0), (draws[:, 0] < truth[places]).sum(0), np.array(score)
    )


@jax.jit
def _fields(hierarchy: Hierarchy, theta: Hyper, deviations: Any) -> Any:
    factors = hierarchy.factors(theta)
    return jax.vmap(lambda white: hierarchy.field(*hierarchy.coefficients(white, factors)))(deviations)


def learn(engine: str, series: tuple[Looks, ...], hierarchy: Hierarchy, hyper: Hyper, seed: int) -> Theta:
    """q(theta) by the engine that is put to the test."""
    if engine == "mcmc":
        return mcmc.sample(start([whole(series, hierarchy)], hyper, seed=seed), draws=THETAS + FIELDS, samples=200, warmup=100, chains=2, seed=seed)
    return variational.learn(start([whole(series, hierarchy)], hyper, seed=seed), draws=2, seed=seed)


def figure(found: list[Ranked], names: list[str], path: Path, engine: str) -> list[str]:
    """Rank histograms of the field and per kind of parameter, with the band of a uniform one (99 %); lines of a report.

    Values of one world are not independent, so chi-square is asked of each parameter (or place) over the worlds; the smallest p of
    a kind is multiplied by their number (Bonferroni), which holds whatever their dependence.
    """
    theta = np.stack([f.theta for f in found])
    kinds: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        if name not in ("discrepancy[fine]", "discrepancy_days[fine]") and not name.startswith("gain"):  # not in these worlds
            kinds.setdefault(name.split("[")[0], []).append(i)
    panels = {
        "field, true theta": (np.stack([f.given for f in found]), FIELDS), f"field, {engine}": (np.stack([f.field for f in found]), FIELDS),
        **{kind.replace("_", " "): (theta[:, index], THETAS) for kind, index in kinds.items()},
    }
    lines = ["| ranks of | values | worlds | chi-square, 7 degrees: mean | smallest p, times values |", "|---|---|---|---|---|"]
    shape = (2, -(-len(panels) // 2))
    drawn, axes = plt.subplots(*shape, figsize=(1.9 * shape[1], 4.2), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    bins = 8
    for axis, (kind, (rank, draws)) in zip(axes.flat, panels.items(), strict=False):
        worlds, values = rank.shape
        each = np.stack([np.bincount(r * bins // (draws + 1), minlength=bins) for r in rank.T])
        low, high = binom.ppf([0.005, 0.995], worlds, 1 / bins) / worlds * bins
        axis.axhspan(low, high, color=BAND)
        axis.axhline(1, color=INK, lw=0.6, ls=":")
        axis.bar(np.arange(bins), each.mean(0) / worlds * bins, width=0.9, color=BAR)
        axis.set_title(kind, fontsize=8.5)
        axis.set(xticks=[], yticks=[0, 1], ylim=(0, 1.8))
        axis.tick_params(labelsize=7)
        square = ((each - worlds / bins) ** 2 / (worlds / bins)).sum(1)
        smallest = min(1.0, float(chi2.sf(square, bins - 1).min()) * values)
        lines.append(f"| {kind} | {values} | {worlds} | {square.mean():.1f} | {smallest:.2g} |")
        axis.spines[["top", "right", "left"]].set_visible(False)
    drawn.suptitle(
        f"Rank of the truth among posterior draws, {len(found)} simulated worlds (1 = calibrated; band: 99 % for one value)",
        fontsize=9, color=INK,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(path, dpi=150)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--worlds", type=int, default=200)
    parser.add_argument("--engine", choices=("variational", "mcmc"), default="variational")
    parser.add_argument("--figure", type=Path, default=Path(__file__).parents[1] / "docs" / "figures" / "sbc.png")
    arguments = parser.parse_args()
    hierarchy, empty = scene()
    hyper = Hyper.default(RANK, SENSORS)
    drawn = jax.jit(lambda key: Predictive(unseen, num_samples=1)(key, empty, hierarchy, SENSORS))

    def simulate(key: Any) -> dict[str, Any]:
        return {name: value[0] for name, value in drawn(key).items()}

    began, found = time.perf_counter(), []
    for seed in range(arguments.worlds):
        found.append(ranked(seed, hierarchy, empty, arguments.engine, simulate, hyper))
        if seed in (0, 9) or seed % 50 == 49:
            print(f"{seed + 1} worlds, {(time.perf_counter() - began) / (seed + 1):.1f} s each", flush=True)
    for line in figure(found, hyper.names(), arguments.figure, arguments.engine):
        print(line)
    for name, score in zip(("true theta", arguments.engine), np.stack([f.score for f in found], axis=1), strict=True):
        inside = " / ".join(f"{float((abs(score) < z).mean()):.3f}" for z in (0.6745, 1.645, 1.960))
        print(f"field, {name}: rms z {np.sqrt((score**2).mean()):.3f}, covers {inside} of .5 / .9 / .95")


if __name__ == "__main__":
    main()
