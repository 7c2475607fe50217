"""What looks show on the latent grid, before anything is fitted: images, and how much places change.

Images are known by (sensor, band, latent time), not by scene, so that tiles that no common scene covers have planes in common. A land-cover map
is images of no time: each code a direction of its own, about as far from every other code's (random ones are: Johnson & Lindenstrauss 1984,
Contemporary Mathematics 26), so that tiles need not know each other's codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from fusion.cube.cube import Cube
from fusion.errors import JobError
from fusion.infer.sight import sharpness

Key = tuple[str, str, int]
"""sensor, band, index of the latent time"""
MAP, ALWAYS, DIRECTIONS = "land cover", -1, 16
"""sensor and time of a land-cover map's images, and how many they are"""


def parted(observations: Sequence[Any]) -> tuple[list[Any], list[Any], list[Any]]:
    """(all that say anything, the fine ones among them, the coarse ones)."""
    useful = [o for o in observations if (np.asarray(o.precision) > 0).any() and np.asarray(o.layer.tau).any()]
    return useful, [o for o in useful if not o.layer.footprint.coarse], [o for o in useful if o.layer.footprint.coarse]


def images(fine: Sequence[Any], cube: Cube) -> tuple[tuple[Key, ...], NDArray[np.float32]]:
    """(keys, (N, Y, X)) every fine sensor, band and latent time on the latent grid, NaN = missing; one empty image if there are none.

    Looks of one sensor at one latent time are averaged by precision.
    """
    made: dict[Key, list[tuple[NDArray[np.float32], float]]] = {}
    for obs in fine:
        planes = _on_grid(np.asarray(obs.data), np.asarray(obs.precision) > 0, obs.layer.footprint)
        time = int(cube.calendar.nearest(cube.calendar.day_of(obs.when)))
        for band, plane, sharp in zip(obs.bands, planes, sharpness(obs), strict=True):
            made.setdefault((str(obs.sensor), str(band), time), []).append((plane, sharp**2))
    if not made:
        return (("", "", 0),), np.full((1, *cube.grid.shape), np.nan, np.float32)
    each = ((np.stack(planes), weights) for planes, weights in (zip(*found, strict=True) for found in made.values()))
    return tuple(made), np.stack([planes[0] if len(planes) == 1 else mean_seen(planes, weights).astype(np.float32) for planes, weights in each])


def with_map(keys: tuple[Key, ...], stack: NDArray[np.float32], codes: Any) -> tuple[tuple[Key, ...], NDArray[np.float32]]:
    """The same images and those of a land-cover map.  codes: (Y, X) integers, negative = unknown; None = no map.

    Raises JobError for a map of another shape or of numbers that are no codes.
    """
    if codes is None:
        return keys, stack
    codes = np.asarray(codes)
    if codes.shape != stack.shape[1:] or not np.issubdtype(codes.dtype, np.integer):
        raise JobError(
            f"asked for land_cover of {stack.shape[1:]} integer codes, got {codes.shape} of {codes.dtype}: "
            "bring the map to the latent pixels without averaging its codes"
        )
    found, place = np.unique(codes, return_inverse=True)
    unit = np.stack([np.random.default_rng(int(c)).normal(size=DIRECTIONS) if c >= 0 else np.full(DIRECTIONS, np.nan) for c in found])
    planes = np.moveaxis(unit[place.reshape(codes.shape)], -1, 0).astype(np.float32)
    return (*keys, *((MAP, str(i), ALWAYS) for i in range(DIRECTIONS))), np.concatenate([stack, planes])


def _on_grid(values: NDArray[Any], there: NDArray[np.bool_], footprint: Any) -> NDArray[np.float32]:
    """(B, Y, X) of values (B, H, W) on native pixels: each latent pixel the mean of what sees it, NaN where little does."""
    both = np.concatenate([np.where(there, values, 0.0), there])
    total, weight = np.split(np.asarray(footprint.adjoint(jnp.asarray(both, jnp.float32))), 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(weight > 0.3 * max(float(weight.max()), 1e-6), total / weight, np.nan), np.float32)


def clear_image(look: Any) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """((B, Y, X) a fine look's pixels with all bands on the latent grid, 0 elsewhere, (Y, X) where they are)."""
    seen, foot = np.asarray(look.precision > 0).all(axis=0), look.layer.footprint
    mass = np.asarray(foot.adjoint(jnp.asarray(seen, jnp.float32)))
    back = np.asarray(foot.adjoint(jnp.asarray(np.where(seen, look.data, 0.0), jnp.float32)), np.float64) / np.maximum(mass, 1e-6)
    clear = mass > 0.5 * max(float(mass.max()), 1e-6)
    return np.where(clear, back, 0.0), clear


def changes(looks: Sequence[Any]) -> NDArray[np.float32] | None:
    """(B, Y, X) variance over time of one sensor's looks, each without its mean over the tile; NaN = seen less than twice, None if all are.

    Looks of another shape than most are left out.
    """
    shapes = [o.data.shape for o in looks]
    alike = [o for o in looks if o.data.shape == max(sorted(set(shapes)), key=shapes.count)]
    count, total, square = np.zeros((3, *alike[0].data.shape))
    for obs in alike:
        seen = np.asarray(obs.precision) > 0
        mean = np.where(seen, obs.data, 0.0).sum((1, 2), dtype=np.float64) / np.maximum(seen.sum((1, 2)), 1)
        off = np.where(seen, obs.data - mean[:, None, None], 0.0)
        count, total, square = count + seen, total + off, square + off**2
    known = count >= 2
    variance = np.where(known, square - total**2 / np.maximum(count, 1), 0.0) / np.maximum(count - 1, 1)
    return _on_grid(np.maximum(variance, 0.0), known, alike[0].layer.footprint) if known.any() else None


def mean_seen(values: NDArray[np.floating], weight: Sequence[float] | None = None) -> NDArray[np.float64]:
    """The weighted mean over the first axis of what is not NaN; NaN where nothing is.  weight: (n,) positive, default 1."""
    seen = np.isfinite(values)
    share = seen * np.reshape(np.ones(len(values)) if weight is None else weight, (-1, *(1,) * (values.ndim - 1)))
    total = (np.where(seen, values, 0.0) * share).sum(0)
    return np.where(seen.any(0), total / np.where(seen.any(0), share.sum(0), 1.0), np.nan)


def moved(pictures: NDArray[np.floating], shift: tuple[float, float], blur: float) -> NDArray[np.float32]:
    """(n, B, Y, X) pictures shifted by (rows, columns) and blurred by an sd, in pixels, the edge carried on.

    One matrix per axis: products in float32 are ten times as fast as interpolating pixel by pixel.
    """
    rows, cols = (ndimage.shift(np.eye(n), (by, 0), order=1, mode="nearest") for n, by in zip(pictures.shape[2:], shift, strict=True))
    if blur > 0:
        rows, cols = (ndimage.gaussian_filter1d(a, blur, axis=0, mode="nearest", truncate=3.0) for a in (rows, cols))
    return np.asarray(rows.astype(np.float32) @ pictures.astype(np.float32) @ cols.T.astype(np.float32))
