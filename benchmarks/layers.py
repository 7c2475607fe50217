"""Observation layers: time and accuracy per sensor, and the cost of a reference tile's forward pass.

    python benchmarks/layers.py

The error is against the float64 matrix of the same footprint times the same planes, relative to the largest value. Which float64
matrix is right is the business of tests/observe/test_footprint.py, where it is written from the equation.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rich.console import Console
from rich.table import Table

import fusion.observe.footprint as module
from fusion.cube.calendar import Calendar, Instant, Window
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis
from fusion.observe.footprint import footprint
from fusion.observe.geometry import window
from fusion.observe.layer import Layer, together
from fusion.observe.operator import Footprint
from fusion.observe.sensor import Sensor, sensors

PIXELS, TIMES, RANK = 160, 46, 8
DAY = np.timedelta64(1, "D")


def best(function: Callable[..., Any], *args: Any, repeat: int = 15) -> float:
    """Shortest of several runs, ms, compiled beforehand."""
    jax.block_until_ready(function(*args))
    spent = []
    for _ in range(repeat):
        start = time.perf_counter()
        jax.block_until_ready(function(*args))
        spent.append(time.perf_counter() - start)
    return 1e3 * min(spent)


def tile(size: int) -> Grid:
    """A square of 30 m pixels at 40 N 105 W."""
    x, y = Transformer.from_crs(4326, 32613, always_xy=True).transform(-105.0, 40.0)
    left, top = (round(v / 30) * 30.0 for v in (x, y))
    return Grid(GeoBox((size, size), Affine(30, 0, left, 0, -30, top), "EPSG:32613"))


def pixels_of(one: Sensor, grid: Grid) -> GeoBox | None:
    """The sensor's canonical window; None where its pixels are averaged to latent ones first."""
    if one.pixel * 3 <= grid.resolution:
        return None
    return grid.geobox if one.native is None else window(one.native(grid), grid)


def error_of(one: Sensor) -> float:
    """Largest error of the float32 operator and its adjoint, relative, on a tile small enough for its matrix."""
    grid = tile(60)
    box = pixels_of(one, grid) or grid.geobox
    double, single = (footprint(box, one.psf, grid, dtype=kind) for kind in (np.float64, np.float32))
    rng, matrix = np.random.default_rng(0), double.dense()
    worst = 0.0
    for call, operator, shape in ((single, matrix, single.grid_shape), (single.adjoint, matrix.T, single.shape)):
        planes = rng.normal(size=shape)
        expected = operator @ planes.ravel()
        found = np.asarray(call(jnp.asarray(planes, jnp.float32))).ravel()
        worst = max(worst, float(abs(found - expected).max() / abs(expected).max()))
    return worst


def per_sensor() -> Table:
    """Forward, adjoint, build and error of every installed sensor."""
    table = Table(title=f"Footprints of {RANK} planes of {PIXELS} x {PIXELS} pixels at 30 m", title_justify="left")
    for name in ("sensor", "pixels", "regime", "build ms", "forward ms", "adjoint ms", "Mflop", "error"):
        table.add_column(name, justify="left" if name in ("sensor", "regime") else "right", no_wrap=True)
    grid = tile(PIXELS)
    forward, adjoint = jax.jit(lambda f, z: f(z)), jax.jit(lambda f, v: f.adjoint(v))
    planes = jnp.asarray(np.random.default_rng(0).normal(size=(RANK, *grid.shape)), jnp.float32)
    timed: dict[Any, tuple[Footprint, tuple[float, float, float]]] = {}
    for name, one in sorted(sensors().items()):
        box = pixels_of(one, grid)
        own = box or grid.geobox
        key = (own, one.psf)
        if key not in timed:
            start = time.perf_counter()
            foot = footprint(own, one.psf, grid)
            build = 1e3 * (time.perf_counter() - start)
            timed[key] = foot, (build, best(forward, foot, planes), best(adjoint, foot, forward(foot, planes)))
        foot, (build, there, back) = timed[key]
        regime = type(foot).__name__ + ("" if box else ", after averaging")
        cells = [f"{build:.0f}", f"{there:.2f}", f"{back:.2f}", f"{2e-6 * RANK * foot.operations:.0f}", f"{error_of(one):.0e}"]
        table.add_row(name, f"{foot.shape[0]} x {foot.shape[1]}", regime, *cells)
    return table


def passes() -> Table:
    """A whole forward pass, T x K x Y x X: one Landsat look; twenty MODIS looks one by one and together."""
    table = Table(title=f"Forward pass of {PIXELS} x {PIXELS} x T={TIMES} x K={RANK}, float32", title_justify="left")
    for name in ("look", "forward ms", "adjoint ms", "Mflop", "MB moved", "GB/s"):
        table.add_column(name, justify="left" if name == "look" else "right", no_wrap=True)
    grid, basis = tile(PIXELS), SpectralBasis.library(RANK)
    calendar = Calendar.regular("2021-01-03", np.datetime64("2021-01-03") + (TIMES - 1) * 8 * DAY, 8)
    z = jnp.asarray(np.random.default_rng(0).normal(size=(TIMES, RANK, *grid.shape)), jnp.float32)
    table.caption = f"z itself is {z.nbytes / 1e6:.0f} MB; only the latent times that a look weighs are read"

    def layer(name: str, when: Instant | Window) -> Layer:
        one = sensors()[name]
        colour, mean, _ = basis.responses(tuple(band.response for band in one.bands))
        box = pixels_of(one, grid)
        assert box is not None
        return Layer.of(footprint(box, one.psf, grid), colour, mean, calendar.weights(when))

    def row(title: str, there: float, back: float, layers: list[Layer]) -> None:
        first = layers[0]
        planes = sum(one.near.shape[-1] for one in layers) * RANK * PIXELS**2
        weights = sum(leaf.nbytes for leaf in jax.tree.leaves(first.footprint))
        moved = 4 * (planes + sum(int(np.prod(one.shape)) for one in layers)) + weights
        flop = 2 * sum(one.operations() for one in layers)
        speed = "" if there == 0 else f"{moved / there / 1e6:.1f}"
        table.add_row(title, f"{there:.2f}", f"{back:.2f}", f"{flop / 1e6:.0f}", f"{moved / 1e6:.1f}", speed)

    one = layer("landsat-8", Instant(np.datetime64("2021-06-05T10:30")))
    seen = one(z)
    row("1 Landsat 8", best(one, z), best(one.adjoint, seen), [one])
    starts = [np.datetime64("2021-02-02") + 16 * k * DAY for k in range(20)]
    many = [layer("modis-mcd43a4", Window(s, s + 15 * DAY, s + 8 * DAY, 8.0)) for s in starts]
    one = many[0]
    row("1 MODIS MCD43A4", best(one, z), best(one.adjoint, one(z)), [one])
    alone = best(lambda: [look(z) for look in many], repeat=5)
    back = best(lambda: [look.adjoint(v) for look, v in zip(many, [look(z) for look in many], strict=True)], repeat=3)
    row("20 MODIS, one by one", alone, back, many)
    groups: dict[int, list[Layer]] = {}
    for look in many:
        groups.setdefault(int(look.near.shape[-1]), []).append(look)
    joined = best(lambda: [together(group, z) for group in groups.values()], repeat=5)
    turned = [jax.jit(jax.vjp(lambda a, g=group: together(g, a), z)[1]) for group in groups.values()]
    values = [together(group, z) for group in groups.values()]
    row("20 MODIS together", joined, best(lambda: [t(v) for t, v in zip(turned, values, strict=True)], repeat=5), many)
    return table


def regimes() -> Table:
    """The same broad footprints as one dense matrix and as gathered rows: where `footprint.DENSE_LIMIT` should lie."""
    table = Table(title="MODIS composite: one dense matrix or gathered rows", title_justify="left")
    for name in ("tile", "weights / 2^20", "kept", "planes", "dense ms", "gathered ms", "dense adjoint ms", "gathered adjoint ms"):
        table.add_column(name, justify="right", no_wrap=True)
    forward, adjoint = jax.jit(lambda f, z: f(z)), jax.jit(lambda f, v: f.adjoint(v))
    one, kept = sensors()["modis-mcd43a4"], module.DENSE_LIMIT
    for size in (60, 120, 160, 240, 320):
        grid, found = tile(size), []
        box = pixels_of(one, grid)
        assert box is not None
        for limit in (2**62, 0):
            module.DENSE_LIMIT = limit
            found.append(footprint(box, one.psf, grid, shift=(1e-6 * len(found), 0.0)))  # another key: equal arguments share one
        module.DENSE_LIMIT = kept
        count = found[0].operations
        for many in (RANK, 8 * RANK):  # one field of components; what an engine sends, components x temporal functions
            planes = jnp.asarray(np.random.default_rng(0).normal(size=(many, *grid.shape)), jnp.float32)
            times = [best(forward, f, planes, repeat=5) for f in found] + [best(adjoint, f, forward(f, planes), repeat=5) for f in found]
            row = f"{count / 2**20:.1f}", "dense" if count <= kept else "gathered", str(many), *(f"{t:.2f}" for t in times)
            table.add_row(f"{size} x {size}", *row)
    return table


if __name__ == "__main__":
    console = Console(width=130)
    console.print(f"{jax.devices()[0].device_kind}, {jax.default_backend()}")
    console.print(per_sensor())
    console.print(passes())
    console.print(regimes())
