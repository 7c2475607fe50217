"""Partial pooling against none and against complete pooling, on held-out values of pixels with few and with many looks.

    python benchmarks/pooling.py

The world is simulated from the hierarchy itself, and seen by one fine sensor whose clear looks differ from pixel to
pixel. Three beliefs are fitted exactly (Gaussian engine, theta given): partial = the hierarchy that made the world;
none = every pixel on its own, with the variance and the temporal covariance of all levels together; complete = scene and
classes only, a pixel is its class. Error against the truth at the times that a pixel was not seen. The figure is docs/figures/pooling.png.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import DAY
from fusion.infer import gaussian
from fusion.infer.looks import Looks, stack
from fusion.observe.layer import Layer
from fusion.observe.observation import Observation
from fusion.observe.operator import Separable
from fusion.observe.psf import PSF
from fusion.process.hierarchy import Hierarchy, Hyper, build

SIDE, STEPS, EVERY, RANK, SIGMA = 40, 12, 16, 2, 0.03
FIRST, SHARP, PIXEL = np.datetime64("2024-01-01", "us"), PSF("gaussian", 0.0, geolocation=0.0), 10.0
COLOURS = {"no pooling": "#c0643c", "complete pooling": "#6b7785", "partial pooling": "#155b73"}


def beliefs(theta: Hyper) -> dict[str, Hyper]:
    """The three ways to believe, as standard deviations of the levels (scene, class, object, place, pixel)."""
    sd = np.asarray(theta.sd, np.float64)
    alone = np.full_like(sd, 1e-3)
    alone[4] = np.sqrt((sd**2).sum(0))
    crowd = sd.copy()
    crowd[2:] = 1e-3
    parts = np.asarray(theta.shares, np.float64)
    weight = (sd**2).mean(1) / (sd**2).mean(1).sum()
    shares, length = parts.copy(), np.asarray(theta.length, np.float64).copy()
    shares[4] = weight @ (parts / parts.sum(1, keepdims=True))
    length[4] = np.exp(weight @ np.log(length))
    lonely = theta.replace(sd=alone, shares=shares, length=length)
    return {"no pooling": lonely, "complete pooling": theta.replace(sd=crowd), "partial pooling": theta}


def world(seed: int, side: int = SIDE) -> tuple[Hierarchy, Hyper, NDArray[np.float64], NDArray[np.bool_], tuple[Looks, ...]]:
    """(hierarchy, theta, truth (T, K, Y, X), seen (T, Y, X), looks): pixels have from none to almost all times clear."""
    rng = np.random.default_rng(seed)
    shape = (side, side)
    labels = np.arange(side)[:, None] // 5 * (side // 5) + np.arange(side)[None] // 5
    kind = rng.integers(0, 4, labels.max() + 1)[labels]
    memberships = (kind[None] == np.arange(4)[:, None, None]).astype(float)
    colour = np.array([[1.0, 0.3], [0.7, -0.6], [1.1, 0.8]])
    hierarchy = build(
        np.arange(STEPS) * float(EVERY), 0.1**2 * np.diag([1.0, 0.5]), colour, memberships, labels, spacing=10.0,
        ranks=dict.fromkeys(("class", "object", "place", "pixel"), STEPS),
    )
    theta = Hyper.default(RANK, ("fine",))
    white = {
        name: jax.random.normal(jax.random.fold_in(jax.random.key(seed), i), size)
        for i, (name, size) in enumerate(hierarchy.white_shapes.items())
    }
    truth = np.asarray(hierarchy.field(*hierarchy.coefficients(white, hierarchy.factors(theta))), np.float64)
    seen = rng.random((STEPS, *shape)) < rng.beta(0.7, 1.5, shape)
    ones = jnp.ones(shape)
    footprint = Separable(ones, shape, shape, ones, jnp.eye(side), jnp.eye(side))
    geobox = GeoBox(shape, Affine.scale(PIXEL, -PIXEL), "EPSG:32633")
    looks, none = [], np.zeros(3, np.float32)
    for t in range(STEPS):
        precision = np.broadcast_to(np.where(seen[t], SIGMA**-2, 0.0), (3, *shape)).astype(np.float32)
        data = np.einsum("bk,kyx->byx", colour, truth[t]) + SIGMA * rng.normal(size=(3, *shape))
        layer = Layer.of(footprint, colour, np.full(3, 0.2), np.eye(STEPS)[t])
        looks.append(Observation(
            "fine", f"fine-{t}", ("1", "2", "3"), np.where(precision > 0, data, 0).astype(np.float32), precision, layer,
            offset_sd=np.full(3, 1e-4, np.float32), gain_sd=none, residual_var=none, discrepancy_sd=np.zeros(shape, np.float32),
            discrepancy_days=1.0, when=FIRST + t * EVERY * DAY, geobox=geobox, psf=SHARP, view=None, simulated=True,
        ))
    return hierarchy, theta, truth, seen, stack(looks, hierarchy, ("fine",), lambda when: float((when - FIRST) / DAY))


def errors(seed: int, side: int = SIDE) -> tuple[NDArray[np.int_], dict[str, tuple[NDArray[np.float64], NDArray[np.float64]]]]:
    """(looks (N,), belief -> (error (N,), claimed sd (N,))) of the first component at every unseen time of every pixel."""
    hierarchy, theta, truth, seen, series = world(seed, side)
    hidden = ~seen
    count = np.broadcast_to(seen.sum(0), seen.shape)[hidden]
    out = {}
    for name, belief in beliefs(theta).items():
        found = gaussian.posterior(hierarchy, series, belief, jax.random.key(seed), samples=32)
        error = (np.asarray(found.mean, np.float64) - truth)[:, 0][hidden]
        out[name] = error, np.asarray(found.sd, np.float64)[:, 0][hidden]
    return count, out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--worlds", type=int, default=3)
    parser.add_argument("--figure", type=Path, default=Path(__file__).parents[1] / "docs" / "figures" / "pooling.png")
    arguments = parser.parse_args()
    found = [errors(seed) for seed in range(arguments.worlds)]
    count = np.concatenate([c for c, _ in found])
    drawn, (left, right) = plt.subplots(1, 2, figsize=(8.6, 3.4), layout="constrained")
    print(f"{'':18s}{'rmse':>8s}{'rms z':>8s}   rmse by looks of the pixel 0 .. 11")
    for name, colour in COLOURS.items():
        error, sd = (np.concatenate([e[name][i] for _, e in found]) for i in range(2))
        by_count, claimed = (
            np.array([np.sqrt((v[count == n] ** 2).mean()) if (count == n).sum() > 50 else np.nan for n in range(STEPS)])
            for v in (error, sd)
        )
        left.plot(range(STEPS), by_count, "o-", color=colour, label=name, ms=3.5, lw=1.4)
        right.plot(range(STEPS), by_count / claimed, "o-", color=colour, ms=3.5, lw=1.4)
        if by_count[0] / claimed[0] > 2:
            wrong = np.sqrt(((error / sd) ** 2).mean())
            right.text(0.98, 0.96, f"{name}: {wrong:.0f}, off the scale", transform=right.transAxes, ha="right", va="top", fontsize=8, color=colour)
        told = " ".join(f"{v:.4f}" for v in by_count)
        print(f"{name:18s}{np.sqrt((error**2).mean()):8.4f}{np.sqrt(((error / sd) ** 2).mean()):8.2f}   {told}")
    left.set(xlabel="clear looks of the pixel", ylabel="error at times not seen (rms, component 1)", ylim=(0, None))
    right.set(xlabel="clear looks of the pixel", ylabel="error / claimed sd (rms)", ylim=(0, 2))
    right.axhline(1, color="#6b7785", lw=0.8, ls=":")
    left.legend(frameon=False, fontsize=8)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    drawn.suptitle("A pixel with few looks borrows, one with many is left alone (simulated)", fontsize=10, color="#1d2733")
    arguments.figure.parent.mkdir(parents=True, exist_ok=True)
    drawn.savefig(arguments.figure, dpi=150)


if __name__ == "__main__":
    main()
