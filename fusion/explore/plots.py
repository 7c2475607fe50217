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

from fusion.cube.grid import Grid
from fusion.cube.spectrum import DROPPED
from fusion.explore import tables
from fusion.observe.scene import Scene
from fusion.service.pictures import COLOURS, STATUS

MEAN, SPREAD = "viridis", "magma"
"""perceptually uniform and safe for colour-blind readers"""
DIVERGING = "RdBu_r"
"""for what may be too high or too low; safe for colour-blind readers"""


def _extent(field: xr.Dataset | xr.DataArray) -> tuple[float, float, float, float]:
    """Outer pixel edges: left, right, bottom, top (metres)."""
    half = abs(float(field.x[1] - field.x[0])) / 2 if field.sizes["x"] > 1 else 0.5
    return float(field.x[0]) - half, float(field.x[-1]) + half, float(field.y[-1]) - half, float(field.y[0]) + half


def _ground(ax: Axes, ticks: int = 5) -> None:
    ax.set_xlabel("easting (m)")
    ax.ticklabel_format(style="plain", useOffset=False)
    ax.tick_params(axis="x", rotation=30)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(ticks))


def _maps(axes: Sequence[Axes], fields: Sequence[xr.DataArray], titles: Sequence[str], cmaps: Sequence[str], unit: str) -> None:
    for ax, field, title, cmap in zip(axes, fields, titles, cmaps, strict=True):
        low, high = np.nanpercentile(field, [2, 98])
        shown = ax.imshow(field, cmap=cmap, vmin=low, vmax=max(high, low + 1e-6), interpolation="nearest", extent=_extent(field))
        ax.set_title(title)
        _ground(ax)
        ax.figure.colorbar(shown, ax=ax, shrink=0.8, label=unit, extend="both")
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


def rgb(dataset: xr.Dataset, time: Any, sensor: str = "landsat-8", bands: Sequence[str] = ("red", "green", "blue")) -> Figure:
    """A colour picture of the posterior mean, with the stretch of `FusionAccessor.rgb`, which keeps dark water readable."""
    image = dataset.fusion.rgb(time, sensor, bands)
    figure, ax = plt.subplots(figsize=(5.4, 5), layout="constrained")
    ax.imshow(image, interpolation="nearest", extent=_extent(image))
    _ground(ax)
    ax.set(title=f"{', '.join(bands)} of {sensor} · {image.attrs['time']}", ylabel="northing (m)")
    return figure


def change(found: xr.Dataset) -> Figure:
    """A change, its sd, and the probability that it exceeds the threshold.  found: as `FusionAccessor.change` returns it."""
    found = found[["mean", "sd", "probability"]].transpose("y", "x").compute()
    name, threshold = found.attrs["index"], found.attrs["threshold"]
    figure, axes = plt.subplots(1, 3, figsize=(14, 4.3), layout="constrained", sharey=True)
    top = max(float(np.nanpercentile(abs(found["mean"]), 99)), 1e-6)
    panels = (
        ("mean", f"change of {name}", DIVERGING, -top, top), ("sd", "sd of the change", SPREAD, 0, None),
        ("probability", f"P(|change| > {threshold:g})", "cividis", 0, 1),
    )  # fmt: skip
    for ax, (part, label, cmap, low, high) in zip(axes, panels, strict=True):
        shown = ax.imshow(found[part], cmap=cmap, vmin=low, vmax=high, interpolation="nearest", extent=_extent(found))
        _ground(ax)
        figure.colorbar(shown, ax=ax, shrink=0.8, label=label)
    axes[0].set_ylabel("northing (m)")
    figure.suptitle(f"{found.attrs['from']} to {found.attrs['to']}")
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
        for marker, (name, looks) in zip("osD^vP", tables.looks_over(scenes, lon, lat, band).items(), strict=False):
            when, value, sigma = (np.array(v) for v in zip(*looks, strict=True))
            ax.errorbar(when, value, yerr=sigma, fmt=marker, ms=4, lw=0.8, color="0.25", mfc="none", label=name)
        ax.set_ylabel(f"{band} surface reflectance")
        ax.grid(alpha=0.25)
    axes[0, 0].legend(ncols=5, fontsize="small", loc="lower left", bbox_to_anchor=(0, 1), frameon=False)
    axes[-1, 0].set_xlabel("date (UTC)")
    axes[-1, 0].xaxis.set_major_formatter(mdates.ConciseDateFormatter(mdates.AutoDateLocator()))
    figure.suptitle(f"{lat:.4f}, {lon:.4f} as {sensor} would see it")
    return figure


def spectrum(
    dataset: xr.Dataset, lon: float, lat: float, time: Any, sensors: Sequence[str] = ("landsat-8",), scenes: Sequence[Scene] = ()
) -> Figure:
    """The spectrum of a pixel with its 90 % credible band, and the channels of sensors on it: width, mean and 90 % interval.

    scenes: what was seen within half a latent step of that time is drawn beside it, as empty squares.
    """
    one = dataset.fusion.spectrum(lon, lat, time).compute()
    span = dataset.fusion.interval(one, 0.9)
    figure, ax = plt.subplots(figsize=(9, 4.2), layout="constrained")
    ax.fill_between(one.wavelength, span.lower, span.upper, color=COLOURS[0], alpha=0.25, linewidth=0, label="90 % credible")
    ax.plot(one.wavelength, one["mean"], color=COLOURS[0], label="posterior mean")
    for name, colour in zip(sensors, COLOURS[1:], strict=False):
        table = tables.channels(dataset, lon, lat, time, name, scenes)
        seen, day = table["seen"], table.attrs["day"]
        if "band" in table.dims:
            ax.errorbar(
                table["wavelength"], table["mean"], xerr=table["width"] / 2, yerr=table["half"], fmt="o", color=colour, ms=4,
                lw=1.4, label=f"{name} bands, 90 %",
            )
        if seen.notnull().any():
            style = {"marker": "s", "ls": "", "ms": 7, "mfc": "none"} if "band" in table.dims else {"marker": ".", "ls": "", "ms": 3}
            ax.plot(table["wavelength"], seen, color=colour, label=f"{name}, seen {day}", **style)
    for low, high in DROPPED:
        ax.axvspan(low, high, color="0.9", zorder=0)
    ax.set(xlabel="wavelength (nm); grey: hidden by water vapour", ylabel="surface reflectance")
    ax.set_title(f"{lat:.4f}, {lon:.4f} · {str(one.time.values)[:10]}")
    ax.legend(fontsize="small")
    ax.grid(alpha=0.25)
    return figure


def decomposition(dataset: xr.Dataset, component: int = 0) -> Figure:
    """Where a pixel's certainty comes from: the share of each level of the hierarchy, one map per level."""
    shares = dataset.fusion.variance_decomposition().isel(component=component).compute()
    count = shares.sizes["level"]
    figure, axes = plt.subplots(1, count, figsize=(2.3 * count + 1, 3), layout="constrained", sharey=True)
    for ax, level in zip(np.atleast_1d(axes), shares.level.values, strict=True):
        shown = ax.imshow(shares.sel(level=level), cmap=MEAN, vmin=0, vmax=1, interpolation="nearest", extent=_extent(shares))
        _ground(ax, 3)
        ax.set_title(str(level))
    np.atleast_1d(axes)[0].set_ylabel("northing (m)")
    figure.colorbar(shown, ax=axes, shrink=0.8, label="share of the variance")
    figure.suptitle(f"spectral component {component}")
    return figure


def calibration(errors: Mapping[str, Any], title: str = "calibration") -> Figure:
    """Are the intervals honest?  errors: label -> standardised errors of values that were held out (`normal_errors`).

    Left, the probability integral transform Phi(error): flat if calibrated, a heap at the ends if over-confident, in the
    middle if too cautious; the grey band holds 99 % of the bars of as many independent values. Right, the share of truth
    that the central intervals cover.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    found = tables.calibration(errors)
    for (label, one), colour in zip(found.items(), COLOURS, strict=False):
        left.stairs(one["density"], tables.EDGES, color=colour, lw=1.8, label=label)
        right.plot(one["stated"], one["inside"], color=colour, label=f"{label} (n = {one.attrs['count']:,})")
    spread = max(one.attrs["spread"] for one in found.values())
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
        ax.set(xlabel="column (native pixels)" if n >= one.sizes["look"] - columns else "")
        ax.set_facecolor("0.85")
    if shown is not None:
        for row in axes[:, 0]:
            row.set_ylabel("row (native pixels)")
        figure.colorbar(shown, ax=axes, shrink=0.8, label="residual (standard deviations of the data)", extend="both")
    figure.suptitle(f"{residuals.attrs.get('sensor', '')} {band}: seen minus predicted (grey: no look)")
    return figure


def tile_status(dataset: xr.Dataset) -> Figure:
    """Which tiles ended how; the legend counts them."""
    coded, names = tables.statuses(dataset)
    colours = ListedColormap([STATUS.get(name, "0.5") for name in names])
    figure, ax = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    ax.imshow(coded, cmap=colours, norm=BoundaryNorm(np.arange(len(names) + 1) - 0.5, len(names)), interpolation="nearest")
    for code in np.unique(coded):
        label = f"{names[code]}: {int((coded == code).sum())}"
        ax.plot([], [], "s", ms=10, mec="0.6", color=STATUS.get(names[code], "0.5"), label=label)
    ax.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    ax.set(xlabel="tile column", ylabel="tile row", title="status of the tiles")
    ax.set_xticks(np.arange(coded.shape[1] + 1) - 0.5, minor=True)
    ax.set_yticks(np.arange(coded.shape[0] + 1) - 0.5, minor=True)
    ax.grid(which="minor", color="white", lw=0.8)
    ax.tick_params(which="minor", length=0)
    for axis, count in ((ax.xaxis, coded.shape[1]), (ax.yaxis, coded.shape[0])):
        axis.set_ticks(np.arange(0, count, -(-count // 10)))
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
    ax.set(title=title, xlabel="date (UTC)")
    ax.grid(axis="x", alpha=0.25)
    for side in ("top", "left", "right"):
        ax.spines[side].set_visible(False)
    return figure
