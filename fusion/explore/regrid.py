"""Another grid, other dates: estimates moved with their uncertainty, draw by draw."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import odc.geo.xr
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox

from fusion.cube.grid import Grid
from fusion.errors import JobError, StoreError
from fusion.explore.moments import pooled

COARSER = 1.5
"""a target pixel that is this many times larger is the average of those under it; a smaller one is interpolated between four"""


def regrid(
    estimate: xr.Dataset, like: Any = None, *, crs: Any = None, resolution: float | None = None, times: Sequence[Any] | None = None
) -> xr.Dataset:
    """An estimate (mean, sd, draws) on another grid or at other times, its sd that of the averaged or interpolated value.

        mean' = A mean,   draws' = A draws,   var' = var_s(draws') pooled over neighbours + what the spectral basis cannot express

    A: average over a coarser pixel, bilinear onto a finer or turned one; linear in time, as the field is between its latent times.
    What the basis cannot express belongs to the material, so it is not averaged away.

    like: a fusion Grid, an odc-geo GeoBox, or an xarray object with a CRS; or give crs and resolution (units of that CRS).
    Raises JobError for a grid that cannot be made or a time outside the cube, StoreError without draws.
    """
    if "draws" not in estimate:
        raise StoreError("the uncertainty of a mixture of pixels or dates needs posterior draws: run the job with draws >= 8")
    parts = xr.Dataset({"mean": estimate["mean"], "draws": estimate["draws"], "var": estimate["sd"] ** 2})
    if times is not None:
        parts = _in_time(parts, times)
    space = ("y", "x")
    if like is not None or crs is not None or resolution is not None:
        parts, space = _in_space(parts, like, crs, resolution)
    floor = estimate.coords["basis_sd"] ** 2 if "basis_sd" in estimate.coords else 0.0
    within = (parts["var"] - floor).clip(min=0).transpose(*parts["mean"].dims)
    variance = pooled(within, parts["draws"] - parts["mean"], space) + floor
    out = xr.Dataset({"mean": parts["mean"], "sd": (variance**0.5).transpose(*parts["mean"].dims), "draws": parts["draws"]})
    for name in out.data_vars:
        out[name].attrs = dict(estimate[name].attrs)
    return out.assign_attrs(estimate.attrs)


def _in_time(parts: xr.Dataset, times: Sequence[Any]) -> xr.Dataset:
    if "time" not in parts.dims:
        raise JobError("the estimate has no time axis: regrid it before a time is selected")
    wanted = np.array([np.datetime64(t, "ns") for t in np.atleast_1d(np.asarray(times, dtype=object))])
    first, last = parts.time.values[[0, -1]]
    if wanted.size == 0 or wanted.min() < first or wanted.max() > last:
        raise JobError(f"asked for times outside of the cube, which knows {str(first)[:10]} to {str(last)[:10]}")
    return parts.chunk(time=-1).interp(time=wanted, method="linear")


def _in_space(parts: xr.Dataset, like: Any, crs: Any, resolution: float | None) -> tuple[xr.Dataset, tuple[str, str]]:
    source: Any = parts["mean"].odc.geobox
    if source is None or source.crs is None:
        raise JobError("the estimate has lost its coordinate reference system: regrid it before other coordinates are dropped")
    target = _target(source, like, crs, resolution)
    here = source.to_crs(target.crs) if target.crs != source.crs else source
    larger = abs(target.resolution.x) > COARSER * abs(here.resolution.x)
    done = {
        name: odc.geo.xr.xr_reproject(array.astype(np.float32), target, resampling="average" if larger else "bilinear")
        for name, array in parts.data_vars.items()
    }
    if not bool(np.isfinite(done["var"].isel({d: 0 for d in done["var"].dims if d not in target.dimensions})).any()):
        raise JobError(f"the grid asked for does not meet the cube: it spans {target.geographic_extent.boundingbox}")
    return xr.Dataset(done), target.dimensions


def _target(source: GeoBox, like: Any, crs: Any, resolution: float | None) -> GeoBox:
    if like is not None:
        box = like.geobox if isinstance(like, Grid) else like if isinstance(like, GeoBox) else getattr(getattr(like, "odc", None), "geobox", None)
        if not isinstance(box, GeoBox):
            raise JobError(f"cannot read a grid from {type(like).__name__}: give a fusion Grid, a GeoBox or an array with a CRS")
        return box
    if resolution is not None and not resolution > 0:
        raise JobError(f"asked for a resolution of {resolution}: give a positive number, in units of the CRS")
    try:
        if crs is None:
            assert resolution is not None
            edges = source.boundingbox
            rows, cols = (max(1, round(span / resolution)) for span in (edges.span_y, edges.span_x))
            return GeoBox((rows, cols), Affine(resolution, 0, edges.left, 0, -resolution, edges.top), source.crs)
        asked: Any = resolution if resolution is not None else "auto"
        return source.to_crs(crs, resolution=asked)
    except (ValueError, RuntimeError) as error:
        raise JobError(f"no grid can be made in {crs!r} at {resolution}: {error}") from error
