"""Sensors much finer than the latent grid: their pixels are averaged to latent pixels before anything else happens."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from fusion.cube.grid import Grid
from fusion.observe.geometry import centres, frame
from fusion.observe.psf import FWHM_PER_SD, PSF, composite_growth

FINER = 3.0
"""a native pixel that fits this many times into a latent one is averaged"""
COVERED = 0.5
"""least share of a latent pixel's area that must be seen"""


def pixel_on(geobox: GeoBox, grid: Grid) -> float:
    """Edge of the square of equal area to the middle native pixel, metres of the latent map; infinite off the map."""
    high, wide = map(int, geobox.shape)
    middle = frame(geobox[high // 2 : high // 2 + 1, wide // 2 : wide // 2 + 1], grid)
    (a, b), (c, d) = middle.column[0, 0], middle.row[0, 0]
    area = abs(a * d - b * c)
    return float(np.sqrt(area)) if np.isfinite(area) else np.inf


def precisions(
    values: NDArray[np.floating], sigma: NDArray[np.floating], weight: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(values with 0 for NaN, weight / sigma^2 with 0 where there is none), float64.  weight: (H, W) share of a full look."""
    seen = np.isfinite(values) & (weight > 0)
    with np.errstate(invalid="ignore"):
        return np.where(seen, values, 0.0).astype(np.float64), np.where(seen, weight / sigma.astype(np.float64) ** 2, 0.0)


def aggregate(
    values: NDArray[np.floating], sigma: NDArray[np.floating], weight: NDArray[np.float64], geobox: GeoBox, psf: PSF, grid: Grid
) -> tuple[NDArray[np.float64], NDArray[np.float64], PSF]:
    """Precision-weighted means (B, Y, X) of native pixels (B, H, W) whose centre lies in each latent pixel, and a mean's PSF.

    mean = sum q y / sum q, precision = sum q, q as in `precisions`: white noise averages down, the acquisition's offset and what a
    spectral basis leaves out do not, so both come after this. A latent pixel of which less than `COVERED` is seen is missing.
    Nested grids: the footprint is exactly latent box (*) PSF. Otherwise centres fall anywhere, and the mean footprint is latent
    box (*) native cell (*) PSF, the cell entering as a Gaussian of its variance.
    """
    pixel, count = pixel_on(geobox, grid), grid.shape[0] * grid.shape[1]
    xy = centres(geobox, grid)
    col = np.floor((np.nan_to_num(xy[..., 0], nan=-np.inf) - grid.bounds.left) / grid.resolution)
    row = np.floor((grid.bounds.top - np.nan_to_num(xy[..., 1], nan=np.inf)) / grid.resolution)
    inside = (col >= 0) & (col < grid.shape[1]) & (row >= 0) & (row < grid.shape[0])
    target = (row[inside] * grid.shape[1] + col[inside]).astype(np.intp)
    least = COVERED * (grid.resolution / pixel) ** 2
    mean, total = (np.zeros((len(values), *grid.shape)) for _ in range(2))
    for band, (value, own) in enumerate(zip(values, sigma, strict=True)):  # one band at a time: there may be hundreds
        y, q = (a[inside] for a in precisions(value, own, weight))
        whole, seen = np.bincount(target, q, count), np.bincount(target, q > 0, count)
        whole = np.where(seen >= least, whole, 0.0)
        sums = np.bincount(target, q * y, count)
        total[band] = whole.reshape(grid.shape)
        mean[band] = np.divide(sums, whole, out=np.zeros(count), where=whole > 0).reshape(grid.shape)
    jitter = 0.0 if _nested(xy, pixel, grid) else pixel / np.sqrt(12)
    if psf.kind == "scanner":  # by variance: F^2 / 6 of the triangle, F^2 / 12 of the rectangle
        scan, track = composite_growth()
        sd = psf.fwhm * np.sqrt((scan**2 / 6 + track**2 / 12) / 2)
    else:
        sd = psf.fwhm / FWHM_PER_SD
    return mean, total, PSF("gaussian", float(np.hypot(sd, jitter)) * FWHM_PER_SD, True, psf.geolocation, psf.fwhm_prior)


def _nested(xy: NDArray[np.float64], pixel: float, grid: Grid) -> bool:
    """Whether native pixels tile every latent pixel: same axes, whole ratio, common edges."""
    ratio = grid.resolution / pixel
    if not np.isfinite(xy).all() or abs(ratio - round(ratio)) > 1e-6:
        return False
    edge = np.stack([xy[..., 0] - grid.bounds.left, grid.bounds.top - xy[..., 1]], axis=-1) / pixel - 0.5
    return bool(np.abs(edge - np.rint(edge)).max() < 1e-6) and bool(np.ptp(xy[..., 0], axis=0).max() < 1e-6 * pixel)
