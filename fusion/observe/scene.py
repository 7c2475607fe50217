"""One acquisition as a sensor adapter hands it over: reflectance on the sensor's own pixels, never resampled."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import When
from fusion.errors import SceneError


@dataclass(frozen=True, eq=False)
class View:
    """Where the sensor stood, per observed pixel; it sets the footprint of a scanner."""

    zenith: NDArray[np.float32]
    """(H, W) degrees from the local vertical; NaN = unknown (taken as nadir)"""
    azimuth: NDArray[np.float32]
    """(H, W) degrees clockwise from north, from the pixel towards the sensor"""
    coverage: NDArray[np.float32] | None = None
    """(H, W) share of the observation that falls on the cell (MOD09GA obscov), 0..1, or None; it multiplies the precision"""


@dataclass(frozen=True, eq=False)
class Scene:
    """One look of one sensor, cropped to a window.  NaN = no look, in any band, is the only mask there is."""

    sensor: str
    id: str
    bands: tuple[str, ...]
    """B names of the sensor's bands, or of its channels"""
    reflectance: NDArray[np.float32]
    """(B, H, W) surface reflectance 0..1; NaN = no look"""
    sigma: NDArray[np.float32]
    """(B, H, W) white-noise standard deviation, reflectance; finite and positive wherever reflectance is finite"""
    geobox: GeoBox
    """(H, W) native pixels: any CRS, any affine (sinusoidal, rotated, geographic)"""
    when: When
    view: View | None = None
    centres: NDArray[np.float64] | None = None
    """(B,) channel centres, nm, for sensors whose channels come with the file"""
    fwhm: NDArray[np.float64] | None = None
    """(B,) channel widths, nm"""
    notes: tuple[str, ...] = ()
    """what was recovered or assumed while reading, one sentence each"""
    simulated: bool = False
    attrs: dict[str, Any] = field(default_factory=dict)
    """provenance: item href without signature, processing version"""

    def __post_init__(self) -> None:
        shape = (len(self.bands), *map(int, self.geobox.shape))
        for name in ("reflectance", "sigma"):
            array = getattr(self, name)
            if array.shape != shape or array.dtype != np.float32:
                raise SceneError(f"{self.where}: {name} is {array.dtype}{array.shape}, must be float32 {shape} (B, H, W)")
        if self.geobox.crs is None:
            raise SceneError(f"{self.where}: no CRS: the file and its STAC item must say one (proj:code or proj:wkt2)")
        seen = np.isfinite(self.reflectance)
        if not (self.sigma[seen] > 0).all() or not np.isfinite(self.sigma[seen]).all():
            raise SceneError(f"{self.where}: sigma must be finite and positive wherever reflectance is finite")
        if seen.any():
            middle = float(np.median(self.reflectance[seen]))
            if not -0.5 < middle < 2.0:
                raise SceneError(
                    f"{self.where}: median reflectance {middle:.4g} is not on the 0..1 scale: check the scale and offset"
                )

    @property
    def where(self) -> str:
        """The name that error messages use."""
        return f"{self.sensor} scene {self.id}"

    @property
    def seen(self) -> float:
        """Fraction of values that are a look."""
        return float(np.isfinite(self.reflectance).mean())

    def select(self, keep: NDArray[np.bool_]) -> Scene:
        """Only some bands.  keep: (B,) bool."""
        pick = np.flatnonzero(keep)
        return replace(
            self, bands=tuple(self.bands[i] for i in pick), reflectance=self.reflectance[pick], sigma=self.sigma[pick],
            centres=None if self.centres is None else self.centres[pick], fwhm=None if self.fwhm is None else self.fwhm[pick],
        )
