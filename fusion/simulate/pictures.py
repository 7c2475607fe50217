"""A ground driven by real images: a full spectrum per pixel from a few bands, linear in time between the images."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import DAY
from fusion.cube.grid import Grid
from fusion.cube.spectrum import Response, SpectralBasis
from fusion.errors import JobError
from fusion.simulate.ground import Array

CLEAR = (4, 5, 6, 7)
"""Sentinel-2 scene classes: vegetation, soil, water, unclassified"""


@dataclass(frozen=True, eq=False)
class Pictures:
    """Spectral components of real images at their dates; the surfaces are the basis' mean and components."""

    grid: Grid
    times: NDArray[np.datetime64]
    """(I,) datetime64[us], increasing"""
    components: NDArray[np.float32]
    """(I, K, Y, X)"""
    basis: SpectralBasis
    title: str

    @property
    def wavelengths(self) -> Array:
        """(M,) nm."""
        return self.basis.wavelengths

    @property
    def spectra(self) -> Array:
        """(1 + K, M) the mean and the components: their "shares" are 1 and z."""
        return np.concatenate([self.basis.mean[None], self.basis.components.T])

    @property
    def period(self) -> tuple[np.datetime64, np.datetime64]:
        """First and last image."""
        return self.times[0], self.times[-1]

    @classmethod
    def of(
        cls, images: NDArray[Any], times: NDArray[Any], responses: tuple[Response, ...], grid: Grid, *, title: str,
        rank: int = 12, sigma: float = 0.005,
    ) -> Pictures:
        """Real images (I, B, Y, X), reflectance, NaN = not seen, in any bands: every pixel takes its most likely spectrum.

        Dates at which a pixel is not seen are filled linearly between its neighbours in time.
        """
        basis = SpectralBasis.library(rank)
        if images.shape[1:] != (len(responses), *grid.shape) or len(times) != len(images):
            raise JobError(f"images {images.shape} for {len(times)} times, {len(responses)} bands and a grid of {grid.shape}")
        count = len(images)
        flat = np.moveaxis(images, 1, -1).reshape(count, -1, len(responses)).astype(np.float64)
        days = (np.asarray(times, "datetime64[us]") - np.asarray(times, "datetime64[us]")[0]) / DAY
        seen: NDArray[np.bool_] = np.asarray(np.isfinite(flat).all(axis=-1))
        if not seen.any(axis=0).all():
            raise JobError(f"{(~seen.any(axis=0)).sum()} pixels of the images are never seen: crop them away")
        for p in np.flatnonzero(~seen.all(axis=0)):
            for b in range(flat.shape[2]):
                flat[:, p, b] = np.interp(days, days[seen[:, p]], flat[:, p, b][seen[:, p]])
        mean, _ = basis.given(basis.weights(responses), flat.reshape(-1, len(responses)), np.full(len(responses), sigma**2))
        z = np.moveaxis(mean.reshape(count, *grid.shape, basis.rank), -1, 1)
        return cls(grid, np.asarray(times, "datetime64[us]"), z.astype(np.float32), basis, title)

    def around(self, rows: int, cols: int, margin: int) -> Pictures:
        """The first `rows` x `cols` pixels with `margin` mirrored pixels on every side."""
        pad = ((0, 0), (0, 0), (margin, margin), (margin, margin))
        padded = np.pad(self.components[:, :, :rows, :cols], pad, mode="symmetric")
        return replace(self, grid=self.grid.crop(slice(-margin, rows + margin), slice(-margin, cols + margin)), components=padded)

    def at(self, time: np.datetime64) -> Array:
        """(N, 1 + K) one, and the components at a moment; before the first and after the last image they stay."""
        days = (self.times - self.times[0]) / DAY
        place = float(np.interp((time - self.times[0]) / DAY, days, np.arange(days.size, dtype=np.float64)))
        left = min(int(place), self.times.size - 2) if self.times.size > 1 else 0
        share = place - left
        z = (1 - share) * self.components[left] + (share * self.components[left + 1] if share else 0.0)
        flat = z.reshape(z.shape[0], -1).T
        return np.concatenate([np.ones((len(flat), 1)), flat], axis=1)


def sentinel2_pictures(clear: float = 0.97) -> Pictures:
    """The real Sentinel-2 series in pip package `nrt` (EUPL-1.2; Romania, 1 km, 10 m): the images that are `clear` enough."""
    try:
        from nrt.data import romania_10m
    except ImportError as error:
        raise JobError("the world of real Sentinel-2 images needs the package nrt: pip install nrt") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        stored = romania_10m().load()
    images = np.stack([stored[b].values for b in ("B2", "B3", "B4", "B8")], axis=1).astype(np.float64) * 1e-4
    seen = np.isin(stored["SCL"].values, CLEAR) & (images > 0).all(axis=1)
    images = np.where(seen[:, None], images, np.nan)
    keep = seen.mean(axis=(1, 2)) > clear
    x, y = stored["x"].values, stored["y"].values
    grid = Grid(GeoBox((y.size, x.size), Affine(10, 0, x[0] - 5, 0, -10, y[0] + 5), "EPSG:3035"))
    bands = tuple(Response.gaussian(c, w) for c, w in ((492.4, 66), (559.8, 36), (664.6, 31), (832.8, 106)))
    title = "driven by real Sentinel-2 images of nrt.data over Romania"
    return Pictures.of(images[keep], stored["time"].values[keep], bands, grid, title=title)
