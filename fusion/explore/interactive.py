"""Views to play with in a notebook, with hvplot: a map with a time slider, a pixel's series under the pointer.

Needs the extra `notebooks`. Each function returns a HoloViews object: as the last line of a cell it is shown, and
`hvplot.save(view, "view.html")` writes it into a page.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr

from fusion.errors import JobError
from fusion.explore.plots import COLOURS, MEAN, SPREAD


def _hvplot() -> Any:
    try:
        import hvplot.xarray as backend
    except ImportError as error:
        raise JobError("interactive views need hvplot: pip install 'fusion-cube[notebooks]'") from error
    return backend


def maps(estimate: xr.Dataset, title: str = "", unit: str = "reflectance", edge: int = 600) -> Any:
    """Mean and standard deviation side by side, linked in zoom, with a slider over time.

    estimate: a Dataset with mean, sd over (time, y, x), as `band` and `index` return it. edge: pixels per side beyond which the
    maps are thinned. Colour scales are common to all times, so that what moves is the ground.
    """
    _hvplot()
    if set(estimate["mean"].dims) != {"time", "y", "x"}:
        raise JobError(f"maps need mean and sd over (time, y, x), got {estimate['mean'].dims}: select one band first")
    step = max(1, -(-max(estimate.sizes["y"], estimate.sizes["x"]) // edge))
    shown = estimate[["mean", "sd"]].isel(y=slice(None, None, step), x=slice(None, None, step))
    shown = shown.drop_vars([c for c in shown.coords if c not in ("time", "y", "x")]).compute()
    width = 420
    height = int(width * shown.sizes["y"] / shown.sizes["x"])
    parts = []
    for name, cmap, words in (("mean", MEAN, "posterior mean"), ("sd", SPREAD, "posterior standard deviation")):
        low, high = (float(v) for v in np.nanpercentile(shown[name], [2, 98]))
        parts.append(
            shown[name].hvplot.image(
                x="x", y="y", groupby="time", cmap=cmap, clim=(low, max(high, low + 1e-6)), clabel=unit,
                width=width + 90, height=height, rot=30, xlabel="easting (m)", ylabel="northing (m)",
                title=f"{title} · {words}".strip(" ·"), widget_location="bottom",
            )
        )
    return parts[0] + parts[1]


def point(
    dataset: xr.Dataset, lon: float, lat: float, bands: tuple[str, ...] = ("red", "nir08"), sensor: str = "landsat-8"
) -> Any:
    """A pixel through time: mean and 90 % credible band of some bands, with values under the pointer."""
    _hvplot()
    series = dataset.fusion.series(lon, lat, sensor).compute()
    figure = None
    for band, colour in zip(bands, COLOURS, strict=False):
        one = series.sel(band=band)[["mean", "sd"]]
        span = dataset.fusion.interval(one, 0.9)
        table = xr.Dataset({"mean": one["mean"], "lower": span["lower"], "upper": span["upper"]}).reset_coords(drop=True)
        area = table.hvplot.area(x="time", y="lower", y2="upper", color=colour, alpha=0.2, line_alpha=0, hover=False)
        line = table["mean"].hvplot.line(x="time", color=colour, label=f"{band}, 90 % credible")
        figure = area * line if figure is None else figure * area * line
    if figure is None:
        raise JobError("a series needs at least one band: bands=('red', 'nir08')")
    return figure.opts(
        width=820, height=320, xlabel="", ylabel="surface reflectance", title=f"{lat:.4f}, {lon:.4f} as {sensor} would see it",
        legend_position="top_left",
    )
