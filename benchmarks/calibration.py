"""Simulation-based calibration of the whole engine: hyperparameters and field together, worlds drawn from the joint model.

    python benchmarks/calibration.py [--worlds 200] [--engine variational|mcmc]

Every world is simulated: theta ~ prior, field ~ theta, data ~ field, by `fusion.infer.model.joint` itself. The engine
then sees the data only. If it is right, the rank of each true value among its draws is uniform (Talts et al. 2018,
arXiv:1804.06788). The rank histograms are drawn in docs/figures/sbc.png.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
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
from fusion.infer.theta import Theta
from fusion.observe.operator import Dense, Separable
from fusion.process.hierarchy import Hierarchy, Hyper, build

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
    hierarchy = build(days, prior, colours[0], memberships, labels, spacing=4.0, ranks=SMALL_RANKS)
    ones, eye = jnp.ones(shape), jnp.eye(SIDE)
    fine = Separable(ones, shape, shape, ones, eye, eye)
    matrix = np.kron(np.eye(2), np.full((1, 2), 0.5))
    blocks = jnp.asarray(np.kron(matrix, matrix), jnp.float32)
    coarse = Dense(jnp.ones((2, 2)), (2, 2), shape, blocks, jnp.arange(4), jnp.arange(4))
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


def _look(
    sensor: str, number: int, footprint: Any, colour: Any, tau: Any, precision: Any, offset: float, discrepancy: float
) -> SimpleNamespace:
    bands = len(colour)
    layer = SimpleNamespace(footprint=footprint, colour=colour, mean=np.full(bands, 0.2), tau=tau)
    return SimpleNamespace(
        sensor=sensor, scene_id=f"{sensor}-{number}", data=np.zeros(precision.shape, np.float32), precision=precision,
        layer=layer, offset_sd=np.full(bands, offset), gain_sd=np.zeros(bands), residual_var=np.zeros(bands),
        discrepancy_sd=discrepancy,
        discrepancy_days=10.0, when=float(tau @ np.arange(STEPS)) * 8.0,
    )


def unseen(series: tuple[Looks, ...], hierarchy: Hierarchy, sensors: tuple[str, ...]) -> None:
    """The joint model with its data still to be drawn: observed sites become latent ones."""
    with numpyro.handlers.uncondition():
        joint(series, hierarchy, sensors)


def ranks(
    seed: int, hierarchy: Hierarchy, empty: tuple[Looks, ...], engine: str, simulate: Any, hyper: Hyper
) -> tuple[NDArray[np.int_], NDArray[np.int_], NDArray[np.float64]]:
    """Ranks of theta (D,) among THETAS draws, of the field (PLACES,) among FIELDS, and the field's errors in claimed sd."""
    world = {name: value[0] for name, value in simulate(jax.random.key(seed), empty, hierarchy, SENSORS).items()}
    series = tuple(replace(s, data=jnp.where(s.precision > 0, world[f"y_{i}"], 0.0)) for i, s in enumerate(empty))
    theta = learn(engine, series, hierarchy, hyper, seed)
    rng = np.random.default_rng(seed)
    if engine == "mcmc":
        drawn = theta.draws[rng.permutation(len(theta.draws))[: THETAS + FIELDS]]
    else:
        drawn = theta.mean + rng.standard_normal((THETAS + FIELDS, len(theta.mean))) @ theta.root.T
    fields, means, variances = [], [], []
    for i, u in enumerate(drawn[THETAS:]):
        one = Hyper.from_white(u, RANK, SENSORS)
        found = gaussian.posterior(hierarchy, series, one, jax.random.key(1000 * seed + i), pairs=1, samples=16)
        deviation = jax.tree.map(lambda a: a[0], found.deviations)
        fields.append(np.asarray(found.mean + hierarchy.field(*hierarchy.coefficients(deviation, hierarchy.factors(one)))))
        means.append(np.asarray(found.mean))
        variances.append(np.asarray(found.sd) ** 2)
    truth = np.asarray(world["z"])
    places = rng.choice(truth.size, PLACES, replace=False)
    below = (np.array(fields).reshape(FIELDS, -1)[:, places] < truth.ravel()[places]).sum(0)
    sd = np.sqrt(np.mean(variances, axis=0) + np.var(means, axis=0, ddof=1))
    score = ((truth - np.mean(means, axis=0)) / sd).ravel()[places]
    return (drawn[:THETAS] < np.asarray(world["u"])).sum(0), below, score


def learn(engine: str, series: tuple[Looks, ...], hierarchy: Hierarchy, hyper: Hyper, seed: int) -> Theta:
    """q(theta) by the engine that is put to the test."""
    if engine == "mcmc":
        return mcmc.sample(series, hierarchy, hyper, draws=THETAS + FIELDS, samples=200, warmup=100, chains=2, seed=seed)
    return variational.learn(series, hierarchy, hyper, draws=2, seed=seed)


def figure(theta: NDArray[np.int_], field: NDArray[np.int_], names: list[str], path: Path, engine: str) -> list[str]:
    """Rank histograms per kind of parameter and of the field, with the band of a uniform one (99 %); lines of a report."""
    kinds: dict[str, list[int]] = {}
    for i, name in enumerate(names):
        if name not in ("discrepancy[fine]", "discrepancy_days[fine]") and not name.startswith("gain"):  # not in these worlds
            kinds.setdefault(name.split("[")[0], []).append(i)
    panels = {kind: (theta[:, index], THETAS) for kind, index in kinds.items()} | {"field": (field, FIELDS)}
    lines = []
    shape = (2, -(-len(panels) // 2))
    drawn, axes = plt.subplots(*shape, figsize=(2.3 * shape[1], 4.2), squeeze=False, layout="constrained")
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (kind, (rank, draws)) in zip(axes.flat, panels.items(), strict=False):
        bins = 8
        counts = np.histogram(rank * bins // (draws + 1), bins=np.arange(bins + 1))[0]
        low, high = binom.ppf([0.005, 0.995], rank.shape[0], 1 / bins) * rank.shape[1]  # values of one world are not independent
        axis.axhspan(low, high, color=BAND)
        axis.bar(np.arange(bins), counts, width=0.9, color=BAR)
        axis.set(title=kind.replace("_", " "), xticks=[], yticks=[], ylim=(0, 1.3 * max(high, counts.max())))
        each = [np.bincount(r * bins // (draws + 1), minlength=bins) for r in rank.T]
        square = [float(((c - len(rank) / bins) ** 2 / (len(rank) / bins)).sum()) for c in each]
        p = chi2.sf(square, bins - 1)
        told = f"smallest p of {len(p):2d} rank tests {p.min():.3f}, share below .05: {(p < 0.05).mean():.2f}"
        lines.append(f"{kind:18s} {rank.size:6d} ranks, {told}")
        for side in ("top", "right", "left"):
            axis.spines[side].set_visible(False)
    drawn.suptitle(
        f"Rank of the truth among posterior draws: {len(theta)} simulated worlds, engine {engine} (band: 99 % if calibrated)",
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
    simulate = Predictive(unseen, num_samples=1)
    began, found = time.perf_counter(), []
    for seed in range(arguments.worlds):
        found.append(ranks(seed, hierarchy, empty, arguments.engine, simulate, hyper))
        if seed % 20 == 19:
            print(f"{seed + 1} worlds, {(time.perf_counter() - began) / (seed + 1):.1f} s each", flush=True)
    theta, field, score = (np.stack([f[i] for f in found]) for i in range(3))
    for line in figure(theta, field, hyper.names(), arguments.figure, arguments.engine):
        print(line)
    inside = [float((abs(score) < z).mean()) for z in (0.6745, 1.645, 1.960)]
    covers = " / ".join(f"{share:.3f}" for share in inside)
    print(f"field: rms z {np.sqrt((score**2).mean()):.3f}, covers {covers} of .5 / .9 / .95")


if __name__ == "__main__":
    main()
