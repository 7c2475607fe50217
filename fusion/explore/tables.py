"""What the pictures show, as numbers: shared by the matplotlib plots and the interactive views."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from pyproj import Transformer
from scipy.special import ndtr, ndtri

from fusion.cube.calendar import centre_of
from fusion.errors import JobError
from fusion.explore import moments
from fusion.observe.scene import Scene
from fusion.observe.sensor import sensor as sensor_of
from fusion.service.cli_sensors import width_of

EDGES = np.linspace(0, 1, 21)
"""of the bars of a probability integral transform"""
LEVELS = np.linspace(0.02, 0.98, 49)
"""stated probabilities of central intervals"""
FAR = 10.0
"""nm: a channel farther from every channel that saw the ground is not drawn as seen"""


def looks_over(scenes: Sequence[Scene], lon: float, lat: float, band: str) -> dict[str, list[tuple[Any, float, float]]]:
    """sensor -> [(time, reflectance, sigma)] of the native pixel over a point, where the sensor has that band."""
    found: dict[str, list[tuple[Any, float, float]]] = {}
    for scene in scenes:
        where = _pixel(scene, lon, lat)
        if band not in scene.bands or where is None:
            continue
        index = (scene.bands.index(band), *where)
        if np.isfinite(scene.reflectance[index]):
            looks = found.setdefault(scene.sensor, [])
            looks.append((centre_of(scene.when), float(scene.reflectance[index]), float(scene.sigma[index])))
    return found


def _pixel(scene: Scene, lon: float, lat: float) -> tuple[int, int] | None:
    """(row, column) of the native pixel over a point; None outside the scene."""
    x, y = Transformer.from_crs("EPSG:4326", str(scene.geobox.crs), always_xy=True).transform(lon, lat)
    col, row = (int(np.floor(v)) for v in ~scene.geobox.transform * (x, y))
    rows, cols = scene.geobox.shape
    return (row, col) if 0 <= row < rows and 0 <= col < cols else None


def channels(dataset: xr.Dataset, lon: float, lat: float, time: Any, sensor: str, scenes: Sequence[Scene] = ()) -> xr.Dataset:
    """The bands of a sensor at a pixel and time: wavelength, width (nm), mean, sd, half the 90 % interval, what the nearest of its looks saw.

    seen: NaN unless one of `scenes` lies within half a latent step of that time and saw the pixel.
    """
    column = dataset.fusion.pixel(lon, lat).sel(time=np.datetime64(time), method="nearest")
    table = column.fusion.bands(sensor)[["mean", "sd"]].compute()
    table["half"] = moments.interval(table, 0.9)["upper"] - table["mean"]
    bands = sensor_of(sensor).bands
    nearest = _nearest([s for s in scenes if s.sensor == sensor], lon, lat, column.time.values, dataset.time.values)
    day = "" if nearest is None else str(centre_of(nearest[0].when))[:10]
    if not bands:
        centres = table["wavelength"].values
        seen = np.full(centres.size, np.nan)
        if nearest is not None and nearest[0].centres is not None:
            clear = np.isfinite(nearest[1])
            own = nearest[0].centres[clear]
            seen = np.interp(centres, own, nearest[1][clear], left=np.nan, right=np.nan)
            seen[np.abs(centres[:, None] - own).min(1) > FAR] = np.nan
        return table.assign(width=xr.full_like(table["mean"], FAR), seen=("wavelength", seen)).assign_attrs(day=day)
    values = dict(zip(nearest[0].bands, nearest[1], strict=True)) if nearest is not None else {}
    about = {
        "wavelength": [b.response.centroid for b in bands], "width": [width_of(b.response) for b in bands],
        "seen": [float(values.get(b.name, np.nan)) for b in bands],
    }  # fmt: skip
    return table.assign(**{name: ("band", value) for name, value in about.items()}).assign_attrs(day=day)


def _nearest(
    scenes: Sequence[Scene], lon: float, lat: float, time: np.datetime64, times: NDArray[np.datetime64]
) -> tuple[Scene, NDArray[np.float32]] | None:
    """The clear look nearest to a latent time, within half a step, and what it saw of a point."""
    reach = np.median(np.diff(times)) / 2 if len(times) > 1 else np.timedelta64(8, "D")
    found = []
    for scene in scenes:
        apart, where = abs(centre_of(scene.when) - time), _pixel(scene, lon, lat)
        if where is not None and apart <= reach and np.isfinite(scene.reflectance[(slice(None), *where)]).any():
            found.append((apart, scene, scene.reflectance[(slice(None), *where)]))
    return min(found, key=lambda one: one[0])[1:] if found else None


def statuses(dataset: xr.Dataset) -> tuple[NDArray[np.intp], list[str]]:
    """(code (tile_y, tile_x) as a position in the list, names of the statuses), as the store's flags say."""
    status = dataset["status"].compute()
    names = str(status.attrs["flag_meanings"]).split()
    place = {int(v): i for i, v in enumerate(np.atleast_1d(status.attrs["flag_values"]))}
    return np.vectorize(lambda v: place[int(v)], otypes=[np.intp])(status.values), names


def calibration(errors: Mapping[str, Any]) -> dict[str, xr.Dataset]:
    """label -> density of the probability integral transform Phi(error) per bar, and the share inside each central interval.

    errors: label -> standardised errors, as `moments.normal_errors` gives them. attrs: count, and spread = half of the range that holds 99 % of
    the bars of as many independent calibrated values. Raises JobError where nothing is finite.
    """
    out = {}
    for label, values in errors.items():
        error = np.asarray(values, float).ravel()
        error = error[np.isfinite(error)]
        if error.size == 0:
            raise JobError(f"calibration: {label!r} has no finite standardised error: nothing was held out")
        density = np.histogram(ndtr(error), EDGES)[0] / error.size * (EDGES.size - 1)
        inside = (abs(error)[:, None] <= ndtri(0.5 + LEVELS / 2)).mean(0)
        out[label] = xr.Dataset(
            {"density": ("bar", density), "inside": ("stated", inside)}, {"bar": (EDGES[1:] + EDGES[:-1]) / 2, "stated": LEVELS},
            {"count": error.size, "spread": float(2.58 * np.sqrt((EDGES.size - 2) / error.size))},
        )
    return out
