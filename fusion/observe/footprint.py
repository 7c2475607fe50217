"""W of the data model: how observed pixels weigh latent pixels, y(p) = sum_s W(p, s) z(s), and its adjoint.

W(p, s) is the integral over latent pixel s of [PSF (*) native cell (*) geolocation], the native cell and the scan axes being
mapped to the latent grid by the projection's local Jacobian. The data are never resampled.

The rule for partial pixels: a row with less than `PARTIAL` of its mass inside the grid is zero (its pixel must get precision
zero); every other row is divided by its mass inside, so that it sums to one. A kernel is symmetric about its centre, hence at
`PARTIAL` = 1/2 a kept row has its centre inside the grid, and `window` loses none.
"""

from __future__ import annotations

import hashlib
import threading
import weakref
from dataclasses import replace
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import DTypeLike, NDArray
from odc.geo.geobox import GeoBox

from fusion.cube.grid import Grid
from fusion.observe.geometry import Frame, frame, refuse_antimeridian
from fusion.observe.operator import Dense, Footprint, Gathered, Separable, Stencil, Tangent, Weights
from fusion.observe.psf import PSF, REACH_SD, aligned_mass, composite_growth, extent, mass, scan_growth
from fusion.observe.scene import View

PARTIAL = 0.5
"""least mass inside the grid"""
BLUR_FLOOR = 0.2
"""outside the aligned regime a kernel's Gaussian has at least this sd, in units of the smaller of the two pixels"""
DENSE_LIMIT = 2**24
"""weights: forward and adjoint of 64 planes (what an engine sends) take gathered rows 4, 1.5 and 1.2 times as long as one dense
matrix at 2.5, 13 and 44 million weights; with 8 planes they draw level at 13 million (two CPU cores, benchmarks/layers.py)"""

_made: weakref.WeakValueDictionary[tuple[Any, ...], Footprint] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def footprint(
    geobox: GeoBox, psf: PSF, grid: Grid, *, view: View | None = None, subset: NDArray[np.bool_] | None = None,
    widen: float = 1.0, shift: tuple[float, float] = (0.0, 0.0), dtype: DTypeLike = np.float32,
) -> Footprint:
    """W between native pixels and a latent grid.

    geobox: (H, W) native pixels, any CRS and affine. view: per-pixel angles of a scanner; None = a composite, whose looks grow
    by `composite_growth` along a scan that runs east-west on average. subset: (H, W), rows not in it are dropped.
    widen: multiplies the PSF's width; shift: (north, east) metres of the map that the look is displaced by. Equal arguments give
    the same object for as long as anyone holds it. Raises JobError where the grid crosses the antimeridian.
    """
    key = (_raster_key(geobox), psf, grid.geobox, _digest(view, subset), float(widen), tuple(map(float, shift)), np.dtype(dtype))
    with _lock:
        found = _made.get(key)
    if found is None:
        refuse_antimeridian(grid)
        made = _build(geobox, replace(psf, fwhm=psf.fwhm * widen), grid, view, subset, shift, np.dtype(dtype))
        with _lock:
            found = _made.setdefault(key, made)
    return found


def tangents(geobox: GeoBox, psf: PSF, grid: Grid, *, view: View | None = None) -> dict[str, Footprint]:
    """dW/d(shift north, m) as "y", dW/d(shift east, m) as "x" and dW/d(relative width) as "width", at no shift and width 1.

    A look displaced by (dy, dx) and widened by a factor 1 + e is W z + dy W_y z + dx W_x z + e W_width z to first order.
    """
    step, stretch = 0.1 * grid.resolution, 0.05
    made = partial(footprint, geobox, psf, grid, view=view)
    pairs = {
        "y": (made(shift=(step, 0.0)), made(shift=(-step, 0.0)), 0.5 / step),
        "x": (made(shift=(0.0, step)), made(shift=(0.0, -step)), 0.5 / step),
        "width": (made(widen=1 + stretch), made(widen=1 - stretch), 0.5 / stretch),
    }
    return {
        name: Tangent(plus.seen, plus.shape, plus.grid_shape, plus, minus, np.float32(scale))
        for name, (plus, minus, scale) in pairs.items()
    }


def _raster_key(geobox: GeoBox) -> tuple[Any, ...]:
    """CRS, shape and affine, the affine to a thousandth of a pixel: products round their corners differently."""
    a, b, c, d, e, f = geobox.transform[:6]
    unit = np.sqrt(abs(geobox.transform.determinant))
    steps = tuple(round(float(v) / unit * 1e6) for v in (a, b, d, e))
    return str(geobox.crs), tuple(map(int, geobox.shape)), steps, round(c / unit * 1e3), round(f / unit * 1e3)


def _digest(view: View | None, subset: NDArray[np.bool_] | None) -> str:
    arrays = [] if view is None else [view.zenith, view.azimuth]
    content = hashlib.sha256()
    for array in (*arrays, subset):
        content.update(b"none" if array is None else np.ascontiguousarray(array).tobytes())
    return content.hexdigest()


def _build(
    geobox: GeoBox, psf: PSF, grid: Grid, view: View | None, subset: NDArray[np.bool_] | None,
    shift: tuple[float, float], dtype: np.dtype[Any],
) -> Footprint:
    place = frame(geobox, grid)
    place = replace(place, centre=place.centre + np.array([shift[1], shift[0]]))
    wanted: NDArray[np.bool_] = np.asarray(np.isfinite(place.centre).all(axis=-1))
    if subset is not None:
        wanted &= subset
    if psf.kind == "gaussian" and _aligned(place, grid):
        return _separable(place, psf, grid, wanted, dtype)
    left, bottom, right, top = grid.bounds.bbox
    slack = 1e-6 * grid.resolution
    x, y = np.nan_to_num(place.centre[..., 0], nan=np.inf), np.nan_to_num(place.centre[..., 1], nan=np.inf)
    wanted &= (x >= left - slack) & (x <= right + slack) & (y >= bottom - slack) & (y <= top + slack)
    return _rows(place, psf, grid, view, np.flatnonzero(wanted), dtype)


def _aligned(place: Frame, grid: Grid) -> bool:
    """Whether native rows and columns run along those of the grid (same projection, perhaps another zone's false northing)."""
    x, y = place.centre[..., 0], place.centre[..., 1]
    if not np.isfinite(place.centre).all():
        return False
    wander = max(np.ptp(x, axis=0).max(), np.ptp(y, axis=1).max(), np.ptp(place.column[..., 0]), np.ptp(place.row[..., 1]))
    return bool(max(wander, abs(place.column[..., 1]).max(), abs(place.row[..., 0]).max()) < 1e-6 * grid.resolution)


def _separable(place: Frame, psf: PSF, grid: Grid, wanted: NDArray[np.bool_], dtype: np.dtype[Any]) -> Footprint:
    """`Stencil` where one latent pixel is one native pixel, else `Separable`; the mass is exact in both, blur or none."""
    height, width = wanted.shape
    east, north = place.east[height // 2, width // 2], place.north[height // 2, width // 2]
    sd = psf.sd * float(np.sqrt(abs(east[0] * north[1] - east[1] * north[0])))
    step = np.abs([place.row[0, 0, 1], place.column[0, 0, 0]])
    cols = aligned_mass(grid.x - place.centre[0, :, 0][:, None], step[1] * psf.cell, grid.resolution, sd)
    rows = aligned_mass(grid.y - place.centre[:, 0, 1][:, None], step[0] * psf.cell, grid.resolution, sd)
    down, across = rows.sum(axis=1), cols.sum(axis=1)
    seen = np.outer(down, across)
    keep = wanted & (seen >= PARTIAL - 1e-6)
    shape, share = (height, width), _leaf(np.where(keep, seen, 0.0), dtype)
    if (np.abs(step - grid.resolution) < 1e-9 * grid.resolution).all() and place.row[0, 0, 1] < 0 < place.column[0, 0, 0]:
        phase = np.array([(grid.y[0] - place.centre[0, 0, 1]), (place.centre[0, 0, 0] - grid.x[0])]) / grid.resolution
        nearest = np.rint(phase).astype(int)
        half = int(np.ceil((REACH_SD * sd + 0.5 * step[0] * psf.cell) / grid.resolution + 0.5))
        apart = np.arange(-half, half + 1) * grid.resolution
        taps = [aligned_mass(apart - r * grid.resolution, step[0] * psf.cell, grid.resolution, sd) for r in phase - nearest]
        used = [np.flatnonzero(t > 1e-9) for t in taps]
        taps = [t[u[0] : u[-1] + 1] for t, u in zip(taps, used, strict=True)]
        offset = (int(nearest[0]) - half + int(used[0][0]), int(nearest[1]) - half + int(used[1][0]))
        norm = np.divide(1.0, seen, out=np.zeros_like(seen), where=keep)
        return Stencil(share, shape, grid.shape, _leaf(norm, dtype), _leaf(taps[0], dtype), _leaf(taps[1], dtype), offset)
    rows, cols = rows / np.maximum(down, 1e-3)[:, None], cols / np.maximum(across, 1e-3)[:, None]
    return Separable(share, shape, grid.shape, *(_leaf(a, dtype) for a in (keep, rows, cols)))


def _kernels(
    place: Frame, psf: PSF, grid: Grid, view: View | None, pick: NDArray[np.intp]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(segments (P, N, 2), covariance (P, 2, 2)) of the picked pixels, metres of the map."""
    column, row, east, north = (a.reshape(-1, 2)[pick] for a in (place.column, place.row, place.east, place.north))
    segments = [column, row] if psf.cell else []
    if psf.kind == "scanner":
        scan, track = (np.full(len(pick), g) for g in composite_growth())
        azimuth = np.full(len(pick), np.pi / 2)
        if view is not None:
            scan, track = scan_growth(view.zenith.reshape(-1)[pick].astype(np.float64))
            azimuth = np.radians(np.nan_to_num(view.azimuth.reshape(-1)[pick].astype(np.float64), nan=90.0))
        sine, cosine = np.sin(azimuth)[:, None], np.cos(azimuth)[:, None]
        along = psf.fwhm * scan[:, None] * (sine * east + cosine * north)
        segments += [along, along, psf.fwhm * track[:, None] * (cosine * east - sine * north)]  # two equal boxes: a triangle
    area = np.abs(column[:, 0] * row[:, 1] - column[:, 1] * row[:, 0])
    sd = np.maximum(psf.sd, BLUR_FLOOR * np.minimum(grid.resolution, np.sqrt(area)))
    axes = np.stack([east, north], axis=-1) * sd[:, None, None]
    stacked = np.stack(segments, axis=1) if segments else np.zeros((len(pick), 0, 2))
    return stacked, axes @ axes.swapaxes(1, 2)


def _rows(
    place: Frame, psf: PSF, grid: Grid, view: View | None, pick: NDArray[np.intp], dtype: np.dtype[Any]
) -> Footprint:
    shape, (high, wide) = place.centre.shape[:2], grid.shape
    centre = place.centre.reshape(-1, 2)[pick]
    segments, covariance = _kernels(place, psf, grid, view, pick)
    reach = extent(segments, covariance, grid.resolution)
    order = np.argsort(reach.max(axis=1), kind="stable")  # kernels of like size share a window
    found: list[tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float64]]] = []
    for part in np.array_split(order, max(1, len(order) // 256)) if len(order) else []:
        half = np.ceil(reach[part].max(axis=0) / grid.resolution).astype(int)
        first = np.floor((centre[part] - [grid.bounds.left, grid.bounds.top]) * [1, -1] / grid.resolution).astype(int) - half
        size = (min(2 * int(half[1]) + 1, high), min(2 * int(half[0]) + 1, wide))
        first = np.where(np.array(size[::-1]) == (wide, high), 0, first)  # a window as large as the grid is the grid
        corner = np.stack([grid.x[0] + first[:, 0] * grid.resolution, grid.y[0] - first[:, 1] * grid.resolution], axis=-1)
        weight = mass(corner - centre[part], segments[part], covariance[part], grid.resolution, size)
        y = (first[:, 1, None] + np.arange(size[0]))[:, :, None]
        x = (first[:, 0, None] + np.arange(size[1]))[:, None, :]
        inside = (y >= 0) & (y < high) & (x >= 0) & (x < wide) & (weight > 1e-10)
        row = np.broadcast_to(part[:, None, None], inside.shape)
        found.append((row[inside], (y * wide + x)[inside], weight[inside]))
    if not found:
        found.append((np.zeros(0, np.intp), np.zeros(0, np.intp), np.zeros(0)))
    row, col, weight = (np.concatenate(parts) for parts in zip(*found, strict=True))
    total = np.bincount(row, weight, minlength=len(pick))
    kept = total >= PARTIAL - 1e-6
    seen = np.zeros(shape[0] * shape[1])
    seen[pick[kept]] = np.minimum(total[kept], 1.0)
    use = kept[row]
    row, col, weight = row[use], col[use], weight[use] / total[row[use]]
    make = _dense if kept.sum() * high * wide <= DENSE_LIMIT else _gathered
    return make(_leaf(seen.reshape(shape), dtype), shape, grid.shape, pick[row], col, weight, dtype)


def _dense(
    seen: Weights, shape: tuple[int, int], grid_shape: tuple[int, int], row: NDArray[np.intp], col: NDArray[np.intp],
    weight: NDArray[np.float64], dtype: np.dtype[Any],
) -> Dense:
    pixel, local = np.unique(row, return_inverse=True)
    matrix = np.zeros((len(pixel), grid_shape[0] * grid_shape[1]))
    matrix[local, col] = weight
    place = np.full(shape[0] * shape[1], len(pixel))
    place[pixel] = np.arange(len(pixel))
    whole = np.dtype(np.int32)
    return Dense(seen, shape, grid_shape, _leaf(matrix, dtype), _leaf(pixel, whole), _leaf(place, whole))


def _gathered(
    seen: Weights, shape: tuple[int, int], grid_shape: tuple[int, int], row: NDArray[np.intp], col: NDArray[np.intp],
    weight: NDArray[np.float64], dtype: np.dtype[Any],
) -> Gathered:
    forth = _table(row, col, weight, shape[0] * shape[1])
    back = _table(col, row, weight, grid_shape[0] * grid_shape[1])
    leaves = [_leaf(a, np.dtype(np.int32) if a.dtype.kind == "i" else dtype) for a in (*forth, *back)]
    return Gathered(seen, shape, grid_shape, *leaves)


def _table(
    row: NDArray[np.intp], col: NDArray[np.intp], weight: NDArray[np.float64], count: int
) -> tuple[NDArray[np.intp], NDArray[np.float64]]:
    """Sparse entries as padded (J, count) neighbours and weights; padding is neighbour 0 with weight 0."""
    order = np.lexsort((col, row))
    row, col, weight = row[order], col[order], weight[order]
    sizes = np.bincount(row, minlength=count)
    rank = np.arange(len(row)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    index, table = np.zeros((max(1, sizes.max()), count), dtype=np.intp), np.zeros((max(1, sizes.max()), count))
    index[rank, row], table[rank, row] = col, weight
    return index, table


def _leaf(array: NDArray[Any], dtype: np.dtype[Any]) -> Weights:
    """A device array, or numpy where double precision is asked for."""
    return np.asarray(array, dtype=dtype) if dtype == np.float64 else jnp.asarray(np.asarray(array, dtype=dtype))
