"""The point-spread function of a sensor: facts in metres, and the mass that it lays on the pixels of a grid.

Every kernel of this package is a sum of independent random displacements: uniform on segments (the sides of a cell, the
smear of a scanner, the latent pixel itself) and one Gaussian. Its characteristic function is therefore a product of sincs
and an exponential,

    phi(k) = prod_i sinc(k . d_i / 2) exp(-k' C k / 2),        sinc(t) = sin(t) / t,

and the weight of a latent pixel is the Fourier series of that product: spectrally exact, with no quadrature to tune.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

FWHM_PER_SD = 2.354820045
REACH_SD = 5.3
"""the Gaussian is followed this far: 1e-7 of its mass lies beyond"""
CUT = 5.5
"""frequencies beyond CUT / sd are dropped: exp(-CUT^2 / 2) = 3e-7, times the sincs there"""
CHUNK = 200_000
"""frequencies x pixels evaluated together: they fit into the cache"""
EARTH_RADIUS, ALTITUDE = 6371.0, 705.0
"""km: sphere and orbit of Terra and Aqua (MODIS specification, https://modis.gsfc.nasa.gov/about/specifications.php)"""
COMPOSITE_ZENITH = 45.0
"""degrees: composites favour looks nearer to nadir than this; their mean footprint averages over them"""

Array = NDArray[np.float64]


@dataclass(frozen=True)
class PSF:
    """How an observed value weighs the ground around its pixel centre: scan shape (*) track shape (*) cell (*) Gaussian.

    Distances are metres at nadir. `cell` convolves with the pixel's own outline in the native projection.
    """

    kind: Literal["gaussian", "scanner"]
    """gaussian: a round blur of `fwhm`. scanner: triangle along scan x rectangle along track, growing with view zenith."""
    fwhm: float
    """gaussian: full width at half maximum of the blur alone, without the cell. scanner: nominal pixel (half the base of
    the triangle)."""
    cell: bool = True
    """convolve with the outline of the native cell"""
    geolocation: float = 0.0
    """1-sigma geolocation error, metres, added as a Gaussian"""
    fwhm_prior: float = 0.15
    """relative standard deviation of the width, for engines that learn it"""

    @property
    def sd(self) -> float:
        """Standard deviation of the Gaussian part, metres: blur and geolocation in quadrature."""
        blur = self.fwhm / FWHM_PER_SD if self.kind == "gaussian" else 0.0
        return float(np.hypot(blur, self.geolocation))

    def reach(self, pixel: float) -> float:
        """Radius beyond which no look at nadir or in a composite weighs the ground, metres.  pixel: native edge, metres."""
        scan, track = composite_growth() if self.kind == "scanner" else (0.0, 0.0)
        half = np.hypot(scan * self.fwhm, 0.5 * track * self.fwhm) + (pixel if self.cell else 0.0)
        return float(half + 3.0 * self.sd)


def scan_growth(zenith: Array) -> tuple[Array, Array]:
    """(along scan, along track) size of a whisk-broom pixel relative to nadir, at view zenith angles in degrees.

    Spherical Earth: scan angle theta = asin(R / (R + H) sin v), slant range r = R sin(v - theta) / sin theta;
    track grows as r / H and scan as r / (H cos v): 2.0 and 4.8 at the edge of MODIS (Wolfe et al. 1998, IEEE TGRS 36:1324).
    """
    view = np.radians(np.clip(np.where(np.isfinite(zenith), zenith, 0.0), 0.0, 80.0))
    orbit = EARTH_RADIUS + ALTITUDE
    slant = np.sqrt(orbit**2 - (EARTH_RADIUS * np.sin(view)) ** 2) - EARTH_RADIUS * np.cos(view)
    track = slant / ALTITUDE
    return track / np.cos(view), track


@cache
def composite_growth() -> tuple[float, float]:
    """Root-mean-square growth of a composite's looks: cross-track positions uniform out to `COMPOSITE_ZENITH`."""
    view = np.linspace(0.0, COMPOSITE_ZENITH, 4001)
    ground = np.radians(view) - np.arcsin(EARTH_RADIUS / (EARTH_RADIUS + ALTITUDE) * np.sin(np.radians(view)))
    mean = [float(np.trapezoid(growth**2, ground) / ground[-1]) for growth in scan_growth(view)]
    return float(np.sqrt(mean[0])), float(np.sqrt(mean[1]))


def aligned_mass(offset: Array, cell: float, pixel: float, sd: float) -> Array:
    """Mass that box(cell) (*) N(0, sd) lays on pixels of width `pixel` whose centres lie `offset` away: one axis, closed form.

    With F2(x) = x Phi(x / sd) + sd phi(x / sd), the twice integrated Gaussian, it is the second difference
    [F2(o + p/2 + c/2) - F2(o + p/2 - c/2) - F2(o - p/2 + c/2) + F2(o - p/2 - c/2)] / c.
    """

    def once(x: Array) -> Array:
        return ndtr(x / sd) if sd > 0 else np.asarray(x > 0, dtype=np.float64) + 0.5 * (x == 0)

    def twice(x: Array) -> Array:
        if sd == 0:
            return np.maximum(x, 0.0)
        return x * ndtr(x / sd) + sd * np.exp(-0.5 * (x / sd) ** 2) / np.sqrt(2 * np.pi)

    if cell == 0:
        return once(offset + pixel / 2) - once(offset - pixel / 2)
    high, low = offset + pixel / 2, offset - pixel / 2
    return (twice(high + cell / 2) - twice(high - cell / 2) - twice(low + cell / 2) + twice(low - cell / 2)) / cell


def extent(segments: Array, covariance: Array, pixel: float) -> Array:
    """(P, 2) half width of the kernels' support in x and y, latent pixel included; arguments as in `mass`."""
    sd = np.sqrt(np.stack([covariance[:, 0, 0], covariance[:, 1, 1]], axis=-1))
    return np.abs(segments).sum(axis=1) / 2 + REACH_SD * sd + pixel / 2


def mass(corner: Array, segments: Array, covariance: Array, pixel: float, shape: tuple[int, int]) -> Array:
    """(P, ny, nx) mass that kernels lay on windows of square north-up pixels: the Fourier series of the module's equation.

    corner: (P, 2) centre (x, y) of each window's first pixel minus the kernel's centre; rows run south. segments: (P, N, 2)
    the uniform displacements d_i; covariance: (P, 2, 2) of the Gaussian, positive definite. All in metres.
    """
    ny, nx = shape
    span = extent(segments, covariance, pixel).max(axis=0)
    # the series repeats after one period: the window's far side and the next copy of the kernel must not meet
    far = np.maximum(np.abs(corner), np.abs(corner + np.array([nx - 1, 1 - ny]) * pixel)).max(axis=0)
    period = span + far
    sd = np.sqrt(np.linalg.eigvalsh(covariance)[:, 0].min())
    count = np.ceil(CUT / sd * period / (2 * np.pi)).astype(int)
    kx = 2 * np.pi / period[0] * np.arange(-count[0], count[0] + 1)
    ky = 2 * np.pi / period[1] * np.arange(count[1] + 1)
    fold = np.where(ky > 0, 2.0, 1.0) * np.sinc(ky * pixel / (2 * np.pi)) * (pixel / period[1])  # phi is even: half a plane
    base = fold[:, None] * np.sinc(kx * pixel / (2 * np.pi)) * (pixel / period[0])
    out = np.empty((len(corner), ny, nx))
    step = max(1, CHUNK // base.size)
    for p in range(0, len(corner), step):
        part = slice(p, p + step)
        c = covariance[part]
        phi = base * np.exp(
            -0.5 * (c[:, 0, 0, None, None] * kx**2 + c[:, 1, 1, None, None] * ky[:, None] ** 2)
            - c[:, 0, 1, None, None] * kx * ky[:, None]
        )
        for i in range(segments.shape[1]):
            d = segments[part, i]
            phi *= np.sinc((d[:, 0, None, None] * kx + d[:, 1, None, None] * ky[:, None]) / (2 * np.pi))
        x = (corner[part, 0, None] + np.arange(nx) * pixel)[:, :, None] * kx
        y = (corner[part, 1, None] - np.arange(ny) * pixel)[:, :, None] * ky
        out[part] = np.cos(y) @ (phi @ np.cos(x).swapaxes(1, 2)) - np.sin(y) @ (phi @ np.sin(x).swapaxes(1, 2))
    return out
