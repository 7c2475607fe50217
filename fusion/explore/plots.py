"""The pictures people expect of a cube, in matplotlib: every axis has a unit, every map its uncertainty beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib.dates as mdates
import matplotlib.pyplot as plt
import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from pyproj import Transformer
from scipy.special import ndtr, ndtri

from fusion.cube.calendar import centre_of
from fusion.cube.grid import Grid
from fusion.errors import JobError
from fusion.observe.scene import Scene
from fusion.observe.sensor import sensor as sensor_of

MEAN, SPREAD = "viridis", "magma"
"""perceptually uniform and safe for colour-blind readers"""
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
"""Okabe and Ito's colour-blind safe palette (Color Universal Design, 2008)"""
DIVERGING = "RdBu_r"
"""for what may be too high or too low; safe for colour-blind readers"""


def _maps(axes: Sequence[Axes], fields: Sequence[xr.DataArray], titles: Sequence[str], cmaps: Sequence[str], unit: str) -> None:
    for ax, field, title, cmap in zip(axes, fields, titles, cmaps, strict=True):
        low, high = np.nanpercentile(field, [2, 98])
        shown = ax.imshow(
            field, cmap=cmap, vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest",
            extent=(float(field.x[0]), float(field.x[-1]), float(field.y[-1]), float(field.y[0])),
        )
        ax.set_title(title)
        ax.set_xlabel("easting (m)")
        ax.ticklabel_format(style="plain", useOffset=False)
        ax.tick_params(axis="x", rotation=30)
        ax.figure.colorbar(shown, ax=ax, shrink=0.8, label=unit)
    axes[0].set_ylabel("northing (m)")


def map_pair(estimate: xr.Dataset, time: Any = None, title: str = "", unit: str = "reflectance") -> Figure:
    """Mean and standard deviation side by side.  estimate: a Dataset with mean, sd over (y, x) or (time, y, x)."""
    if "time" in estimate.dims:
        estimate = estimate.sel(time=np.datetime64(time), method="nearest") if time is not None else estimate.isel(time=0)
    estimate = estimate[["mean", "sd"]].transpose("y", "x").compute()
    figure, axes = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    _maps(axes, [estimate["mean"], estimate["sd"]], ["posterior mean", "posterior standard deviation"], [MEAN, SPREAD], unit)
    when = str(estimate.time.values)[:10] if "time" in estimate.coords and estimate.time.ndim == 0 else ""
    figure.suptitle(" · ".join(part for part in (title, when) if part))
    return figure


def look(ax: Axes, scene: Scene, band: str, grid: Grid, **style: Any) -> Any:
    """Draws one scene over the cube's map, each pixel where its own projection puts it; returns what a colour bar needs.

    style: of `pcolormesh`, such as vmin, vmax, cmap.
    """
    rows, cols = (np.arange(n + 1) for n in scene.geobox.shape)
    x, y = scene.geobox.transform * np.meshgrid(cols, rows)
    to_map = Transformer.from_crs(str(scene.geobox.crs), str(grid.crs), always_xy=True)
    values = np.ma.masked_invalid(scene.reflectance[scene.bands.index(band)])
    drawn = ax.pcolormesh(*to_map.transform(x, y), values, **{"cmap": MEAN, "rasterized": True, **style})
    box = grid.bounds
    ax.set(xlim=(box.left, box.right), ylim=(box.bottom, box.top), aspect="equal", facecolor="0.85")
    return drawn


def time_series(
    dataset: xr.Dataset, lon: float, lat: float, bands: Sequence[str] = ("red", "nir08"), sensor: str = "landsat-8",
    scenes: Sequence[Scene] = (), levels: Sequence[float] = (0.5, 0.9),
) -> Figure:
    """A pixel through time with credible bands, and the looks of each sensor over it at the same band name.

    A coarse look shows the value of its own footprint: it need not agree with one fine pixel inside it.
    """
    series = dataset.fusion.series(lon, lat, sensor).compute()
    figure, axes = plt.subplots(len(bands), 1, figsize=(9, 2.6 * len(bands)), sharex=True, layout="constrained", squeeze=False)
    for ax, band, colour in zip(axes[:, 0], bands, COLOURS, strict=False):
        one = series.sel(band=band)
        for level in sorted(levels, reverse=True):
            span = dataset.fusion.interval(one, level)
            ax.fill_between(one.time, span.lower, span.upper, color=colour, alpha=0.18, lw=0, label=f"{level:.0%} credible")
        ax.plot(one.time, one["mean"], color=colour, label="posterior mean")
        for marker, (name, looks) in zip("osD^vP", _looks_over(scenes, lon, lat, band).items(), strict=False):
            when, value, sigma = (np.array(v) for v in zip(*looks, strict=True))
            ax.errorbar(when, value, yerr=sigma, fmt=marker, ms=4, lw=0.8, color="0.25", mfc="none", label=name)
        ax.set_ylabel(f"{band} reflectance")
        ax.grid(alpha=0.25)
    axes[0, 0].legend(ncols=5, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    axes[-1, 0].xaxis.set_major_formatter(mdates.ConciseDateFormatter(mdates.AutoDateLocator()))
    figure.suptitle(f"{lat:.4f}, {lon:.4f} as {sensor} would see it")
    return figure


def _looks_over(scenes: Sequence[Scene], lon: float, lat: float, band: str) -> dict[str, list[tuple[Any, float, float]]]:
    """sensor -> [(time, reflectance, sigma)] of the native pixel over a point, where the sensor has that band."""
    found: dict[str, list[tuple[Any, float, float]]] = {}
    for scene in scenes:
        if band not in scene.bands:
            continue
        x, y = Transformer.from_crs("EPSG:4326", str(scene.geobox.crs), always_xy=True).transform(lon, lat)
        col, row = (int(np.floor(v)) for v in ~scene.geobox.transform * (x, y))
        inside = 0 <= row < scene.geobox.shape[0] and 0 <= col < scene.geobox.shape[1]
        index = scene.bands.index(band)
        if inside and np.isfinite(scene.reflectance[index, row, col]):
            value, sigma = float(scene.reflectance[index, row, col]), float(scene.sigma[index, row, col])
            found.setdefault(scene.sensor, []).append((centre_of(scene.when), value, sigma))
    return found


def spectrum(dataset: xr.Dataset, lon: float, lat: float, time: Any, sensors: Sequence[str] = ("landsat-8",)) -> Figure:
    """The spectrum of a pixel with its 90 % credible band, and where the sensors' bands lie on it."""
    one = dataset.fusion.spectrum(lon, lat, time).compute()
    span = dataset.fusion.interval(one, 0.9)
    figure, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    ax.fill_between(one.wavelength, span.lower, span.upper, color=COLOURS[0], alpha=0.25, linewidth=0, label="90 % credible")
    ax.plot(one.wavelength, one["mean"], color=COLOURS[0], label="posterior mean")
    for name, colour in zip(sensors, COLOURS[1:], strict=False):
        bands = dataset.fusion.pixel(lon, lat).sel(time=np.datetime64(time), method="nearest").fusion.bands(name).compute()
        centres = [b.response.centroid for b in sensor_of(name).bands]
        ax.errorbar(centres, bands["mean"], yerr=1.645 * bands["sd"], fmt="o", color=colour, ms=4, label=f"{name} bands")
    for low, high in ((1325, 1465), (1770, 1975)):
        ax.axvspan(low, high, color="0.9", zorder=0)
    ax.set(xlabel="wavelength (nm)", ylabel="surface reflectance", title=f"{lat:.4f}, {lon:.4f} · {str(one.time.values)[:10]}")
    ax.legend(fontsize="small")
    ax.grid(alpha=0.25)
    return figure


def decomposition(dataset: xr.Dataset, component: int = 0) -> Figure:
    """Where a pixel's certainty comes from: the share of each level of the hierarchy, one map per level."""
    shares = dataset.fusion.variance_decomposition().isel(component=component).compute()
    count = shares.sizes["level"]
    figure, axes = plt.subplots(1, count, figsize=(2.3 * count + 1, 3), layout="constrained", sharey=True)
    for ax, level in zip(np.atleast_1d(axes), shares.level.values, strict=True):
        shown = ax.imshow(shares.sel(level=level), cmap=MEAN, vmin=0, vmax=1, interpolation="nearest")
        ax.set(title=str(level), xlabel="column (pixels)")
    np.atleast_1d(axes)[0].set_ylabel("row (pixels)")
    figure.colorbar(shown, ax=axes, shrink=0.8, label="share of the variance")
    figure.suptitle(f"spectral component {component}")
    return figure


def calibration(errors: Mapping[str, Any], title: str = "calibration") -> Figure:
    """Are the intervals honest?  errors: label -> standardised errors (truth - mean) / sd of values that were held out.

    Left, the probability integral transform Phi(error): flat if calibrated, a heap at the ends if over-confident, in the
    middle if too cautious; the grey band holds 99 % of the bars of as many independent values. Right, the share of truth
    that the central intervals cover.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    edges, levels = np.linspace(0, 1, 21), np.linspace(0.02, 0.98, 49)
    smallest = None
    for (label, values), colour in zip(errors.items(), COLOURS, strict=False):
        error = np.asarray(values, float).ravel()
        error = error[np.isfinite(error)]
        if error.size == 0:
            raise JobError(f"calibration: {label!r} has no finite standardised error: nothing was held out")
        smallest = error.size if smallest is None else min(smallest, error.size)
        left.stairs(np.histogram(ndtr(error), edges)[0] / error.size * (edges.size - 1), edges, color=colour, lw=1.8, label=label)
        half = ndtri(0.5 + levels / 2)
        right.plot(levels, (abs(error)[:, None] <= half).mean(0), color=colour, label=f"{label} (n = {error.size:,})")
    if smallest is not None:
        spread = 2.58 * np.sqrt((edges.size - 2) / smallest)
        left.axhspan(1 - spread, 1 + spread, color="0.85", zorder=0)
    left.axhline(1, color="0.4", lw=0.8)
    left.set(xlabel="probability integral transform of the truth", ylabel="density", xlim=(0, 1), ylim=(0, None))
    right.plot([0, 1], [0, 1], color="0.4", lw=0.8)
    right.set(xlabel="stated probability of the interval", ylabel="share of truth inside", aspect="equal")
    right.set(xlim=(0, 1), ylim=(0, 1))
    right.legend(fontsize="small", loc="upper left", frameon=False)
    figure.suptitle(title)
    return figure


def shrinkage(own: Any, own_sd: Any, pooled: Any, pooled_sd: Any, centre: float, label: str = "parameter") -> Figure:
    """Partial pooling: each member's own estimate (grey) beside the pooled one (blue), sorted, with the population's mean.

    own, own_sd, pooled, pooled_sd: (J,), in the same unit, such as the rows of `fusion.process.pooling.Population.estimate`; a
    member without data has own_sd = inf and shows only its pooled estimate.
    """
    own, own_sd, pooled, pooled_sd = (np.asarray(v, float) for v in (own, own_sd, pooled, pooled_sd))
    order = np.argsort(own)
    at = np.arange(own.size)
    told = np.isfinite(own_sd[order])
    figure, ax = plt.subplots(figsize=(9, 4), layout="constrained")
    ax.axhline(centre, color="0.4", lw=1, ls="--", label="population mean")
    half, half_pooled = 1.645 * own_sd[order][told], 1.645 * pooled_sd[order]
    ax.errorbar(at[told] - 0.15, own[order][told], half, fmt="o", ms=4, lw=1, color="0.55", label="own data alone, 90 %")
    ax.errorbar(at + 0.15, pooled[order], half_pooled, fmt="o", ms=4, lw=1.6, color=COLOURS[0], label="partially pooled, 90 %")
    moves = zip(at[told], own[order][told], pooled[order][told], strict=True)
    for x, start, end in moves:
        ax.annotate("", (x + 0.15, end), (x - 0.15, start), arrowprops={"arrowstyle": "->", "color": COLOURS[1], "lw": 0.8})
    ax.set(xlabel="member, sorted by its own estimate", ylabel=label, xticks=[])
    ax.legend(fontsize="small", ncols=3, loc="upper left", frameon=False)
    ax.grid(alpha=0.25, axis="y")
    return figure


def residual_maps(residuals: xr.Dataset, band: str, most: int = 8) -> Figure:
    """Standardised residuals of a band, look by look: structure here is what the model does not explain (`seen.residuals`)."""
    one = residuals["standardised"].sel(band=band)
    seen = one.notnull().mean(("row", "col")) > 0.1
    one = one.isel(look=np.flatnonzero(seen)[:most])
    count = max(1, one.sizes["look"])
    columns = min(4, count)
    rows = -(-count // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3 * columns + 0.8, 3 * rows + 0.3), layout="constrained", squeeze=False)
    shown = None
    for ax in axes.flat[one.sizes["look"]:]:
        ax.axis("off")
    for n, ax in zip(range(one.sizes["look"]), axes.flat, strict=False):
        look = one.isel(look=n)
        shown = ax.imshow(look, cmap=DIVERGING, vmin=-3, vmax=3, interpolation="nearest")
        ax.set_title(str(look.time.values)[:10], fontsize="medium")
        ax.set(xticks=[], yticks=[])
        ax.set_facecolor("0.85")
    if shown is not None:
        figure.colorbar(shown, ax=axes, shrink=0.8, label="residual (standard deviations of the data)", extend="both")
    figure.suptitle(f"{residuals.attrs.get('sensor', '')} {band}: seen minus predicted (grey: no look)")
    return figure


def tile_status(dataset: xr.Dataset) -> Figure:
    """Which tiles ended how."""
    status = dataset["status"].compute()
    values = np.atleast_1d(status.attrs.get("flag_values", np.unique(status)))
    meanings = str(status.attrs.get("flag_meanings", " ".join(map(str, values)))).split()
    order = {int(v): i for i, v in enumerate(values)}
    coded = np.vectorize(lambda v: order[int(v)])(status.values)
    colours = ListedColormap([*COLOURS, "0.4", "0.8"][: len(values)])
    figure, ax = plt.subplots(figsize=(6, 4.5), layout="constrained")
    edges = BoundaryNorm(np.arange(len(values) + 1) - 0.5, len(values))
    shown = ax.imshow(coded, cmap=colours, norm=edges, interpolation="nearest")
    bar = figure.colorbar(shown, ax=ax, ticks=range(len(values)))
    bar.ax.set_yticklabels(meanings)
    ax.set(xlabel="tile column", ylabel="tile row", title="status of the tiles")
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(integer=True))
    return figure


def calendar(looks: Mapping[str, Sequence[Any]], title: str = "looks") -> Figure:
    """When each sensor looked.  looks: sensor -> instants."""
    figure, ax = plt.subplots(figsize=(9, 0.5 * len(looks) + 1.4), layout="constrained")
    for row, times in enumerate(looks.values()):
        when = np.array(times, dtype="datetime64[us]")
        ax.plot(when, np.full(when.size, row), "|", ms=14, mew=2, color=COLOURS[row % len(COLOURS)])
    ax.set_yticks(range(len(looks)), [f"{name} ({len(times)})" for name, times in looks.items()])
    ax.set_ylim(-0.6, len(looks) - 0.4)
    ax.xaxis.set_major_formatter(mdates.ConciseDateFormatter(mdates.AutoDateLocator()))
    ax.set_title(title)
    return figure
