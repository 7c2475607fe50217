"""Views to play with in a notebook: every picture of `fusion.explore.plots` with values under the pointer, and a map to click on.

Needs the extra `notebooks` (hvplot, panel). Each function returns a HoloViews or Panel object: as the last line of a cell it is
shown; `save(view, "view.html")` writes a page that works without a network and without Python, sliders included.
"""

from __future__ import annotations

import base64
import io
import mimetypes
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from fusion.cube.spectrum import DROPPED
from fusion.errors import JobError, StoreError
from fusion.explore import tables
from fusion.explore.plots import MEAN, SPREAD
from fusion.observe.scene import Scene
from fusion.service.pictures import COLOURS, STATUS

MARKERS = ("circle", "square", "diamond", "triangle", "inverted_triangle", "star")
ELSEWHERE = re.compile(r"https://cdn\.holoviz\.org/panel/[\w.]+/dist/([\w./-]+)(\?v=[\w.]+)?")


def _views() -> Any:
    """HoloViews with hvplot's bokeh backend; JobError where it is not installed."""
    try:
        import holoviews  # type: ignore[import-untyped]
        import hvplot.xarray  # noqa: F401  registers .hvplot and loads bokeh
    except ImportError as error:
        raise JobError("interactive views need hvplot and panel: install the extra `notebooks` of fusion-cube") from error
    return holoviews


def save(view: Any, path: str | Path, title: str = "fused cube") -> Path:
    """Writes a view into one self-contained page: no network, no server; every state of a slider is stored in it."""
    _views()
    import panel
    from bokeh.resources import INLINE

    target = Path(path)
    if not target.parent.is_dir():
        raise StoreError(f"cannot write {target}: the folder {target.parent} does not exist; make it first")
    page = io.StringIO()
    shown = panel.pane.HoloViews(view, widget_location="bottom_left") if hasattr(view, "kdims") or hasattr(view, "traverse") else view
    panel.panel(shown).save(page, title=title, resources=INLINE, embed=True, max_states=500, max_opts=100, progress=False)
    target.write_text(ELSEWHERE.sub(_inlined, page.getvalue()), encoding="utf-8")
    return target


def _inlined(address: re.Match[str]) -> str:
    """A file of Panel's own distribution as a data URL: even with INLINE, Panel's pages ask the network for their styles."""
    import panel

    file = Path(panel.__file__).parent / "dist" / address[1]
    if not file.is_file():
        return str(address[0])
    kind = mimetypes.guess_type(file.name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(file.read_bytes()).decode()}"


def maps(estimate: xr.Dataset, title: str = "", unit: str = "reflectance", edge: int = 600) -> Any:
    """Mean and standard deviation side by side, linked in zoom, with a slider over time.

    estimate: a Dataset with mean, sd over (time, y, x), as `band` and `index` return it. edge: pixels per side beyond which the
    maps are thinned. Colour scales are common to all times, so that what moves is the ground.
    """
    hv = _views()
    if set(estimate["mean"].dims) != {"time", "y", "x"}:
        raise JobError(f"maps need mean and sd over (time, y, x), got {estimate['mean'].dims}: select one band first")
    step = max(1, -(-max(estimate.sizes["y"], estimate.sizes["x"]) // edge))
    shown = estimate[["mean", "sd"]].isel(y=slice(None, None, step), x=slice(None, None, step))
    shown = shown.drop_vars([c for c in shown.coords if c not in ("time", "y", "x")]).compute()
    width = 430
    height = int((width - 120) * shown.sizes["y"] / shown.sizes["x"]) + 90
    times = hv.Dimension("time", value_format=lambda t: str(np.datetime64(t, "D")))
    parts = []
    for name, cmap, words in (("mean", MEAN, "posterior mean"), ("sd", SPREAD, "posterior standard deviation")):
        low, high = (float(v) for v in np.nanpercentile(shown[name], [2, 98]))
        one = shown[name].hvplot.image(
            x="x", y="y", groupby="time", dynamic=False, cmap=cmap, clim=(low, max(high, low + 1e-6)), clabel=unit, width=width,
            height=height, rot=30, xlabel="easting (m)", ylabel="northing (m)", title=f"{title} · {words}".strip(" ·"),
            xformatter="%.0f", yformatter="%.0f",
        )  # fmt: skip
        parts.append(one.redim(time=times).opts(hv.opts.Image(xticks=4, yticks=5)))
    return parts[0] + parts[1]


def point(
    dataset: xr.Dataset, lon: float, lat: float, bands: Sequence[str] = ("red", "nir08"), sensor: str = "landsat-8",
    scenes: Sequence[Scene] = (),
) -> Any:
    """A pixel through time: mean and 90 % credible band of some bands, and what each sensor saw over it, with its sigma."""
    hv = _views()
    series = dataset.fusion.series(lon, lat, sensor).compute()
    layers = []
    for band, colour in zip(bands, COLOURS, strict=False):
        one = series.sel(band=band)
        span = dataset.fusion.interval(one[["mean", "sd"]], 0.9)
        table = pd.DataFrame({
            "time": one.time.values, "mean": one["mean"].values, "lower": span["lower"].values, "upper": span["upper"].values,
        })  # fmt: skip
        layers.append(hv.Area(table, "time", ["lower", "upper"]).opts(color=colour, alpha=0.2, line_alpha=0))
        line = hv.Curve(table, "time", ["mean", "lower", "upper"], label=f"{band}, 90 % credible")
        layers.append(line.opts(color=colour, tools=["hover"], line_width=2))
        for marker, (name, looks) in zip(MARKERS, tables.looks_over(scenes, lon, lat, band).items(), strict=False):
            seen = pd.DataFrame(looks, columns=["time", "seen", "sigma"])
            seen["time"] = pd.to_datetime(seen["time"])
            layers.append(hv.ErrorBars(seen, "time", ["seen", "sigma"]).opts(line_color=colour, line_alpha=0.6))
            dots = hv.Scatter(seen, "time", ["seen", "sigma"], label=f"{name}, {band}")
            layers.append(dots.opts(color=colour, fill_alpha=0, marker=marker, size=7, tools=["hover"]))
    if not layers:
        raise JobError("a series needs at least one band: bands=('red', 'nir08')")
    return hv.Overlay(layers).opts(
        width=860, height=360, xlabel="date (UTC)", ylabel="surface reflectance", legend_position="right",
        title=f"{lat:.4f}, {lon:.4f} as {sensor} would see it", show_grid=True,
    )


def spectrum(
    dataset: xr.Dataset, lon: float, lat: float, time: Any, sensors: Sequence[str] = ("landsat-8",), scenes: Sequence[Scene] = ()
) -> Any:
    """The spectrum of a pixel with its 90 % credible band, and the bands of sensors on it: width, mean, interval, what was seen."""
    hv = _views()
    one = dataset.fusion.spectrum(lon, lat, time)[["mean", "sd"]].compute()
    span = dataset.fusion.interval(one, 0.9)
    table = pd.DataFrame({"wavelength": one.wavelength.values, "mean": one["mean"], "lower": span["lower"], "upper": span["upper"]})
    layers = [hv.VSpan(low, high).opts(color="#E5E5E5") for low, high in DROPPED]
    layers.append(hv.Area(table, "wavelength", ["lower", "upper"]).opts(color=COLOURS[0], alpha=0.2, line_alpha=0))
    layers.append(hv.Curve(table, "wavelength", ["mean", "lower", "upper"], label="posterior mean, 90 %").opts(
        color=COLOURS[0], tools=["hover"], line_width=2
    ))
    for name, colour in zip(sensors, COLOURS[1:], strict=False):
        channels = tables.channels(dataset, lon, lat, time, name, scenes).reset_coords(drop=False).to_dataframe().reset_index()
        channels["reach"] = channels["width"] / 2
        if "band" not in channels:  # a spectrometer: its channels lie on the curve, what it saw does not
            dots = hv.Scatter(channels.dropna(subset=["seen"]), "wavelength", ["seen"], label=f"{name}, seen")
            layers.append(dots.opts(color=colour, size=3, tools=["hover"]))
            continue
        layers.append(hv.ErrorBars(channels, "wavelength", ["mean", "half"]).opts(line_color=colour))
        across = hv.ErrorBars(channels, "wavelength", ["mean", "reach"], horizontal=True)
        layers.append(across.opts(line_color=colour))
        layers.append(hv.Scatter(channels, "wavelength", ["mean", "sd", "band"], label=f"{name} bands").opts(color=colour, size=7, tools=["hover"]))
        seen = channels.dropna(subset=["seen"])
        if len(seen):
            dots = hv.Scatter(seen, "wavelength", ["seen"], label=f"{name}, seen")
            layers.append(dots.opts(color=colour, fill_alpha=0, marker="square", size=10, tools=["hover"]))
    return hv.Overlay(layers).opts(
        width=860, height=380, xlabel="wavelength (nm); grey: hidden by water vapour", ylabel="surface reflectance",
        title=f"{lat:.4f}, {lon:.4f} · {str(one.time.values)[:10]}", legend_position="right", show_grid=True,
    )


def calendar(looks: Mapping[str, Sequence[Any]], title: str = "looks") -> Any:
    """When each sensor looked.  looks: sensor -> instants."""
    hv = _views()
    rows = [
        hv.Scatter(pd.DataFrame({"date": pd.to_datetime(np.array(times, "datetime64[ns]")), "sensor": f"{name} ({len(times)})"}),
                   "date", "sensor").opts(color=COLOURS[n % len(COLOURS)], marker="dash", angle=90, size=18, tools=["hover"])
        for n, (name, times) in enumerate(looks.items())
    ]  # fmt: skip
    if not rows:
        raise JobError("a calendar needs the looks of at least one sensor")
    return hv.Overlay(rows).opts(width=860, height=80 + 45 * len(rows), xlabel="date (UTC)", ylabel="", title=title, show_legend=False)


def tile_status(dataset: xr.Dataset) -> Any:
    """Which tiles ended how, with the looks and chi-square of each sensor under the pointer."""
    hv = _views()
    coded, names = tables.statuses(dataset)
    rows, cols = np.indices(coded.shape)
    table = pd.DataFrame({"column": cols.ravel(), "row": rows.ravel(), "status": [names[v] for v in coded.ravel()]})
    numbers = dataset[["looks", "chi_square"]].compute()
    for n, sensor in enumerate(numbers.sensor.values):
        table[f"looks of {sensor}"] = numbers["looks"].values[n].ravel()
        table[f"chi-square of {sensor}"] = numbers["chi_square"].values[n].ravel().round(3)
    shown = hv.HeatMap(table, ["column", "row"], [c for c in table.columns if c not in ("column", "row")])
    ticks = [list(range(0, count, -(-count // 10))) for count in coded.shape]
    present = [n for n in names if n in set(table["status"])]
    return shown.opts(
        xticks=ticks[1], yticks=ticks[0], cmap={n: STATUS.get(n, "#888888") for n in present}, width=520, height=420,
        tools=["hover"], invert_yaxis=True,
        xlabel="tile column", ylabel="tile row", line_color="white", line_width=1,
        title="status of the tiles: " + ", ".join(f"{n} {int((table['status'] == n).sum())}" for n in present),
    )


def calibration(errors: Mapping[str, Any], title: str = "calibration") -> Any:
    """Are the intervals honest?  See `fusion.explore.plots.calibration`: PIT on the left, coverage on the right."""
    hv = _views()
    found = tables.calibration(errors)
    spread = max(one.attrs["spread"] for one in found.values())
    left, right = [hv.HSpan(1 - spread, 1 + spread).opts(color="#E0E0E0")], [hv.Slope(1, 0).opts(color="#666666", line_width=1)]
    for (label, one), colour in zip(found.items(), COLOURS, strict=False):
        bars = hv.Histogram((tables.EDGES, one["density"].values), label=label)
        left.append(bars.opts(fill_alpha=0.15, color=colour, line_color=colour, line_width=2, tools=["hover"]))
        stated = pd.DataFrame({"stated": one["stated"].values, "inside": one["inside"].values})
        right.append(hv.Curve(stated, "stated", "inside", label=label).opts(color=colour, tools=["hover"], line_width=2))
    words = {"xlabel": "probability integral transform of the truth", "ylabel": "density", "ylim": (0, None), "title": title}
    share = {"xlabel": "stated probability of the interval", "ylabel": "share of truth inside", "xlim": (0, 1), "ylim": (0, 1)}
    size = {"width": 460, "height": 380, "legend_position": "top_left"}
    return hv.Overlay(left).opts(**words, **size, show_legend=False) + hv.Overlay(right).opts(**share, **size, title="coverage")


def shrinkage(own: Any, own_sd: Any, pooled: Any, pooled_sd: Any, centre: float, label: str = "parameter") -> Any:
    """Partial pooling: each member's own estimate (grey) beside the pooled one (blue); see `fusion.explore.plots.shrinkage`."""
    hv = _views()
    table = pd.DataFrame({"own": own, "own_sd": own_sd, "pooled": pooled, "pooled_sd": pooled_sd}, dtype=float)
    table = table.sort_values("own").reset_index(drop=True)
    table["member"] = np.arange(len(table))
    table["half"], table["pooled_half"] = 1.645 * table["own_sd"], 1.645 * table["pooled_sd"]
    told = table[np.isfinite(table["own_sd"])]
    moves = told.assign(end=told["pooled"])[["member", "own", "member", "end"]]
    moves.columns = ["x0", "y0", "x1", "y1"]
    layers = [
        hv.HLine(centre).opts(color="#666666", line_dash="dashed", line_width=1),
        hv.Segments(moves, ["x0", "y0", "x1", "y1"]).opts(color=COLOURS[1]),
        hv.ErrorBars(told, "member", ["own", "half"]).opts(line_color="#999999"),
        hv.Scatter(told, "member", ["own", "own_sd"], label="own data alone, 90 %").opts(color="#888888", size=6, tools=["hover"]),
        hv.ErrorBars(table, "member", ["pooled", "pooled_half"]).opts(line_color=COLOURS[0]),
        hv.Scatter(table, "member", ["pooled", "pooled_sd"], label="partially pooled, 90 %").opts(
            color=COLOURS[0], size=7, tools=["hover"]
        ),
    ]
    return hv.Overlay(layers).opts(
        width=860, height=380, xlabel="member, sorted by its own estimate", ylabel=label, legend_position="top_left", show_grid=True,
        title="dashed: mean of the population",
    )


def browse(dataset: xr.Dataset, band: str = "nir08", sensor: str = "landsat-8", scenes: Sequence[Scene] = ()) -> Any:
    """A map to click on: the pixel's series and spectrum follow. Needs a live notebook or `panel serve`."""
    hv = _views()
    import panel

    view = maps(dataset.fusion.band(sensor, band), f"{sensor} {band}")
    grid = dataset.fusion.cube.grid
    x, y = float(dataset.x[dataset.sizes["x"] // 2]), float(dataset.y[dataset.sizes["y"] // 2])
    days = {str(t)[:10]: t for t in dataset.time.values}
    day = panel.widgets.DiscreteSlider(name="time", options=days, value=dataset.time.values[dataset.sizes["time"] // 2])
    picture = hv.DynamicMap(panel.bind(lambda when: view[0][when], day))
    spread = hv.DynamicMap(panel.bind(lambda when: view[1][when], day))
    tap = hv.streams.Tap(source=picture, x=x, y=y)

    def here(x: float, y: float) -> tuple[float, float]:
        left, bottom, right, top = grid.bounds.bbox
        place = float(np.clip(x, left + 1, right - 1)), float(np.clip(y, bottom + 1, top - 1))
        lon, lat = grid.to_crs("EPSG:4326").transform(*place)
        return float(lon), float(lat)

    def series_of(x: float, y: float) -> Any:
        return point(dataset, *here(x, y), bands=("red", band) if band != "red" else ("red",), sensor=sensor, scenes=scenes)

    def spectrum_of(x: float, y: float, when: str) -> Any:
        return spectrum(dataset, *here(x, y), when, (sensor,), scenes)

    return panel.Column(
        day, panel.Row(picture, spread), panel.bind(series_of, tap.param.x, tap.param.y),
        panel.bind(spectrum_of, tap.param.x, tap.param.y, day),
    )
