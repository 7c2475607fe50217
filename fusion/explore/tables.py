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
from fusion.observe.scene import Scene
from fusion.observe.sensor import sensor as sensor_of
from fusion.service.cli_sensors import width_of

EDGES = np.linspace(0, 1, 21)
"""of the bars of a probability integral transform"""
LEVELS = np.linspace(0.02, 0.98, 49)
"""stated probabilities of central intervals"""


def looks_over(scenes: Sequence[Scene], lon: float, lat: float, band: str) -> dict[str, list[tuple[Any, float, float]]]:
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


def channels(dataset: xr.Dataset, lon: float, lat: float, time: Any, sensor: str, scenes: Sequence[Scene] = ()) -> xr.Dataset:
    """The bands of a sensor at a pixel and time: wavelength, width (nm), mean, sd, and what the nearest of its looks saw.

    seen: NaN unless one of `scenes` lies within half a latent step.
    """
    column = dataset.fusion.pixel(lon, lat).sel(time=np.datetime64(time), method="nearest")
    table = column.fusion.bands(sensor)[["mean", "sd"]].compute()
    bands = sensor_of(sensor).bands
    if not bands:
        return table.assign(width=xr.full_like(table["mean"], 10.0), seen=table["mean"] * np.nan)
    step = np.timedelta64(round(43200 * float(np.median(np.diff(dataset.time.values) / np.timedelta64(1, "D")))), "s")
    seen, day = {}, ""
    for band in bands:
        looks = looks_over([s for s in scenes if s.sensor == sensor], lon, lat, band.name).get(sensor, [])
        near = [look for look in looks if abs(look[0] - column.time.values.astype("datetime64[us]")) <= step]
        if near:
            nearest = min(near, key=lambda look: abs(look[0] - column.time.values.astype("datetime64[us]")))
            seen[band.name], day = nearest[1], str(nearest[0])[:10]
    about = {"wavelength": [b.response.centroid for b in bands], "width": [width_of(b.response) for b in bands]}
    values = {name: ("band", value) for name, value in about.items()}
    return table.assign(**values, seen=("band", [seen.get(b.name, np.nan) for b in bands])).assign_attrs(day=day)


def statuses(dataset: xr.Dataset) -> tuple[NDArray[np.intp], list[str]]:
    """(code (tile_y, tile_x) as a position in the list, names of the statuses), as the store's flags say."""
    status = dataset["status"].compute()
    names = str(status.attrs["flag_meanings"]).split()
    place = {int(v): i for i, v in enumerate(np.atleast_1d(status.attrs["flag_values"]))}
    return np.vectorize(lambda v: place[int(v)], otypes=[np.intp])(status.values), names


def calibration(errors: Mapping[str, Any]) -> dict[str, xr.Dataset]:
    """label -> density of the probability integral transform Phi(error) per bar, and the share inside each central interval.

    errors: label -> standardised errors (truth - mean) / sd. attrs: count, and spread = half of the range that holds 99 % of
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
