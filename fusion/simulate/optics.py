"""What a look weighs, found by throwing points: an evaluation of footprints of its own, which shares no code with the layers.

Every observed value is the mean of the ground under points drawn from its kernel: uniform in the native cell (mapped through
its four corners in the native projection), plus the triangle and rectangle of a scanner, plus a Gaussian. The points are a
scrambled Sobol sequence, so that the error falls nearly as 1 / points.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from scipy.sparse import csr_matrix
from scipy.stats import norm, qmc

from fusion.errors import JobError
from fusion.observe.psf import COMPOSITE_ZENITH, PSF, scan_growth
from fusion.observe.scene import View

Array = NDArray[np.float64]
POINTS = {"gaussian": 128, "scanner": 1024}
BLOCK = 2_000_000
"""points held at once"""
EARTH, ORBIT = 6371.0, 7076.0
"""km: radii of the Earth and of the orbit of Terra and Aqua"""


def shares(
    geobox: GeoBox, psf: PSF, ground: GeoBox, *, view: View | None = None, shift: tuple[float, float] = (0.0, 0.0),
    seen: NDArray[np.bool_] | None = None, points: int | None = None,
) -> csr_matrix:
    """(H*W, N) weights of the ground's pixels in every native pixel; rows sum to 1, the ground goes on beyond its edge.

    view: angles of a scanner; None = a composite of looks at all positions across the swath. shift: (north, east) metres by which
    this look is misplaced. seen: (H, W) pixels to evaluate, the others have empty rows.
    """
    count = points or POINTS[psf.kind]
    unit = qmc.Sobol(8, rng=np.random.default_rng(7)).random(count)
    height, width = (int(n) for n in geobox.shape)
    corner = _corners(geobox, ground)
    wanted = np.flatnonzero(np.ones(height * width, bool) if seen is None else seen.ravel())
    rows, cols = np.divmod(wanted, width)
    metres = abs(ground.transform.a)
    parts, step = [], max(1, BLOCK // count)
    for start in range(0, wanted.size, step):
        row, col = rows[start : start + step], cols[start : start + step]
        u, v = (unit[:, 0], unit[:, 1]) if psf.cell else (np.full(count, 0.5), np.full(count, 0.5))
        quad = [corner[row + i, col + j][:, None, :] for i, j in ((0, 0), (0, 1), (1, 0), (1, 1))]
        weight = [(1 - v) * (1 - u), (1 - v) * u, v * (1 - u), v * u]
        place = sum(q * w[:, None] for q, w in zip(quad, weight, strict=True))  # (p, points, 2) x, y in ground pixels
        east, north = _spread(psf, unit, view, row, col)
        x = place[..., 0] + (east + shift[1]) / metres
        y = place[..., 1] - (north + shift[0]) / metres
        index = np.clip(np.floor(y), 0, ground.shape[0] - 1) * ground.shape[1] + np.clip(np.floor(x), 0, ground.shape[1] - 1)
        pairs = np.repeat(wanted[start : start + step], count)
        values = np.full(index.size, 1.0 / count)
        parts.append(csr_matrix((values, (pairs, index.ravel().astype(np.int64))), (height * width, int(np.prod(ground.shape)))))
    total = parts[0] if parts else csr_matrix((height * width, int(np.prod(ground.shape))))
    for part in parts[1:]:
        total = total + part
    return total


def _corners(geobox: GeoBox, ground: GeoBox) -> Array:
    """(H+1, W+1, 2) corners of the native pixels as (column, row) of the ground."""
    assert geobox.crs is not None
    assert ground.crs is not None
    row, col = np.meshgrid(np.arange(geobox.shape[0] + 1.0), np.arange(geobox.shape[1] + 1.0), indexing="ij")
    a, b, c, d, e, f = geobox.transform[:6]
    to_ground = Transformer.from_crs(geobox.crs.proj, ground.crs.proj, always_xy=True)
    x, y = to_ground.transform(a * col + b * row + c, d * col + e * row + f)
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise JobError(f"pixels in {str(geobox.crs)[:60]} have no place in {str(ground.crs)[:60]}: too far away")
    top = ground.transform
    return np.stack([(x - top.c) / top.a, (y - top.f) / top.e], axis=-1)


def _spread(psf: PSF, unit: Array, view: View | None, row: NDArray[np.int64], col: NDArray[np.int64]) -> tuple[Array, Array]:
    """((p or 1, points), same) displacement towards east and north, metres."""
    normal = norm.ppf(np.clip(unit[:, 2:4], 1e-9, 1 - 1e-9))
    if psf.kind == "gaussian":
        sd = psf.fwhm / np.sqrt(8 * np.log(2))
        return sd * normal[None, :, 0], sd * normal[None, :, 1]
    if view is None:
        across = np.linspace(0.0, COMPOSITE_ZENITH, 500)
        swath = np.radians(across) - np.arcsin(EARTH / ORBIT * np.sin(np.radians(across)))  # angle at the Earth's centre
        zenith, azimuth = np.interp(unit[:, 7] * swath[-1], swath, across)[None], np.full((1, 1), 90.0)
    else:
        zenith, azimuth = view.zenith[row, col][:, None].astype(np.float64), view.azimuth[row, col][:, None].astype(np.float64)
        zenith, azimuth = np.nan_to_num(zenith, nan=0.0), np.nan_to_num(azimuth, nan=90.0)
    scan, track = scan_growth(zenith)
    along = (unit[:, 4] + unit[:, 5] - 1.0) * psf.fwhm * scan
    cross = (unit[:, 6] - 0.5) * psf.fwhm * track
    sine, cosine = np.sin(np.radians(azimuth)), np.cos(np.radians(azimuth))
    return along * sine - cross * cosine, along * cosine + cross * sine


def blocks(shape: tuple[int, int], finer: int, margin: int) -> csr_matrix:
    """(Y*X, N) exact means over the world pixels of each latent pixel.  shape: (Y, X); margin: world pixels around them."""
    rows, cols = shape
    wide = cols * finer + 2 * margin
    row, col = np.indices((rows * finer, cols * finer)).reshape(2, -1)
    target = (row // finer) * cols + col // finer
    source = (row + margin) * wide + col + margin
    size = (rows * finer + 2 * margin) * wide
    return csr_matrix((np.full(row.size, 1.0 / finer**2), (target, source)), (rows * cols, size))
