"""What the sensors saw, beside what the cube says they should have seen, on their own pixels."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pystac
import xarray as xr

from fusion.cube.calendar import centre_of
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.errors import FusionError, JobError, StoreError
from fusion.observe.observation import Observation, looks
from fusion.observe.scene import Scene
from fusion.observe.sensor import Sensor
from fusion.observe.sensor import sensor as sensor_of
from fusion.service.store import CubeStore

MOST = 512
"""pixels: the largest edge of a view that is read at once"""


def residuals(dataset: xr.Dataset, sensor: str) -> xr.Dataset:
    """Every look of a sensor minus the cube's prediction of it, over (look, band, row, col) of the sensor's own pixels.

        residual = y - layer(E z),    standardised = residual / sqrt(noise + offset + discrepancy + basis residual)

    The scenes of the frozen catalog are read again; one that cannot be read is left out and named in attrs["failed"]. The
    variance is that of the data alone: where the cube leans on these data, standardised residuals are below 1. The view may
    be a window of the cube, at most 512 pixels along an edge, with all its times. Raises JobError for another view, StoreError
    if the store does not know the sensor.
    """
    store, grid = _store(dataset, sensor), _window(dataset)
    cube, facts = Cube(grid, dataset.fusion.cube.calendar, dataset.fusion.cube.basis), sensor_of(sensor)
    z = np.asarray(dataset["mean"].transpose("time", "component", "y", "x"), np.float32)
    found: list[xr.Dataset] = []
    failed: list[str] = []
    for scene in _read(store, facts, grid, failed):
        try:
            found += [_of(look, z) for look in looks(scene, facts, cube) if look.precision.any()]
        except FusionError as error:
            failed.append(str(error))
    if not found:
        raise StoreError(f"no look of {sensor} can be compared here: " + ("; ".join(failed[:3]) or "it never saw this window"))
    same = [one for one in found if one.sizes == found[0].sizes]  # bands of another footprint (Sentinel-2 60 m) are left out
    out: xr.Dataset = xr.concat(
        same, "look", coords=["time", "scene"], join="override", compat="override", combine_attrs="override"
    )
    return out.sortby("time").assign_attrs(sensor=sensor, failed=failed)


def scenes(dataset: xr.Dataset, sensor: str) -> list[Scene]:
    """The scenes of a sensor from which the cube was made, read again around the view's window, in order of time.

    One that cannot be read is left out with a warning. Raises StoreError if the store does not know the sensor.
    """
    failed: list[str] = []
    found = sorted(_read(_store(dataset, sensor), sensor_of(sensor), _window(dataset), failed), key=lambda s: centre_of(s.when))
    for reason in failed:
        warnings.warn(f"left out: {reason}", stacklevel=2)
    return found


def _store(dataset: xr.Dataset, sensor: str) -> CubeStore:
    """The store behind a view, if it was made with the sensor."""
    if "url" not in dataset.attrs:
        raise StoreError("this view has lost its address (attrs['url']): start from fusion.open_cube(url)")
    store = CubeStore.open(dataset.attrs["url"], read_only=True)
    if sensor not in (known := store.items()):
        raise StoreError(f"{store.url} was not made with {sensor!r}: it knows {', '.join(known)}")
    return store


def _read(store: CubeStore, facts: Sensor, window: Grid, failed: list[str]) -> Iterator[Scene]:
    """The scenes of the frozen catalog; the reason of one that cannot be read goes to `failed`."""
    for document in store.items()[facts.name]:
        try:
            yield facts.read(pystac.Item.from_dict(document, preserve_dict=True), window)
        except (FusionError, OSError) as error:
            failed.append(f"{document['id']}: {error}")


def _window(dataset: xr.Dataset) -> Grid:
    """The part of the cube's grid that a view covers."""
    cube = dataset.fusion.cube
    if not {"time", "y", "x"} <= set(dataset["mean"].dims) or dataset.sizes["time"] != len(cube.calendar):
        raise JobError("the looks need a window of the cube with all its times: select along y and x only")
    if max(dataset.sizes["y"], dataset.sizes["x"]) > MOST:
        raise JobError(
            f"a view of {dataset.sizes['y']} x {dataset.sizes['x']} pixels is too large to read at once: "
            f"take a window, such as cube.isel(y=slice(0, {MOST}), x=slice(0, {MOST}))"
        )
    starts = [int(np.abs(axis - float(dataset[name][0])).argmin()) for name, axis in (("y", cube.grid.y), ("x", cube.grid.x))]
    part = cube.grid.crop(*(slice(start, start + dataset.sizes[n]) for start, n in zip(starts, "yx", strict=True)))
    if not (np.allclose(part.y, dataset.y) and np.allclose(part.x, dataset.x)):
        raise JobError("the looks need a view of neighbouring pixels: select slices along y and x, without steps")
    return part


def _of(look: Observation, z: Any) -> xr.Dataset:
    """One look's residuals."""
    seen = look.precision > 0
    residual = np.where(seen, look.data - np.asarray(look.layer(z)), np.nan).astype(np.float32)
    noise = np.where(seen, 1 / np.where(seen, look.precision, 1), np.nan)
    common = (look.offset_sd**2 + look.residual_var)[:, None, None] + look.discrepancy_sd**2
    dims = ("band", "row", "col")
    out = xr.Dataset(
        {"residual": (dims, residual), "standardised": (dims, (residual / np.sqrt(noise + common)).astype(np.float32))},
        coords={"band": list(look.bands), "time": look.when.astype("datetime64[ns]"), "scene": look.scene_id},
    )
    out["residual"].attrs = {"units": "1", "long_name": "observed minus predicted surface reflectance"}
    out["standardised"].attrs = {"units": "1", "long_name": "residual in standard deviations of the data"}
    return out
