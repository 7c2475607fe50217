"""How an instrument's band weighs a spectrum: relative spectral responses on the latent wavelength nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fusion.errors import JobError

Array = NDArray[np.float64]

NODES: Array = np.arange(400.0, 2501.0, 10.0)
"""(L,) latent wavelength nodes, nm: linear interpolation between 10 nm nodes adds at most .0016 to any band."""
NODES.setflags(write=False)

DROPPED = ((1325.0, 1465.0), (1770.0, 1975.0))
"""nm; water vapour is opaque here and no surface reflectance can be retrieved from air or space"""
SHOULDERS = ((900.0, 1000.0), (1100.0, 1180.0), (1260.0, 1325.0), (1465.0, 1500.0), (1975.0, 2080.0))
"""nm; retrievals here carry errors of water vapour, oxygen and carbon dioxide: their noise is inflated"""


def within(wavelengths: Array, windows: Sequence[tuple[float, float]]) -> NDArray[np.bool_]:
    """(L,) True where a wavelength lies inside one of the windows, nm."""
    inside = np.zeros(np.shape(wavelengths), bool)
    for low, high in windows:
        inside |= (wavelengths >= low) & (wavelengths <= high)
    return inside


@dataclass(frozen=True, eq=False)
class Response:
    """A relative spectral response, linear between its samples; only its shape matters (bands have unit area)."""

    wavelengths: Array
    """(N,) nm, increasing"""
    values: Array
    """(N,) >= 0"""

    def __post_init__(self) -> None:
        wavelengths, values = (np.asarray(a, dtype=np.float64) for a in (self.wavelengths, self.values))
        if wavelengths.ndim != 1 or wavelengths.shape != values.shape or wavelengths.size < 2:
            raise JobError(f"a response needs two equally long lists of at least 2, got {wavelengths.shape} and {values.shape}")
        if not (np.isfinite(wavelengths).all() and (np.diff(wavelengths) > 0).all()):
            raise JobError("the wavelengths of a response must increase strictly: sort them and drop repeats")
        if not np.isfinite(values).all() or not np.trapezoid(values, wavelengths) > 0:
            raise JobError(f"a response around {wavelengths.mean():.4g} nm has no area, or values that are not finite")
        if wavelengths[-1] < 100:
            raise JobError(f"a response ends at {wavelengths[-1]:.4g} nm: these look like micrometres, multiply them by 1000")
        object.__setattr__(self, "wavelengths", wavelengths)
        object.__setattr__(self, "values", values)

    @classmethod
    def gaussian(cls, centre: float, fwhm: float) -> Response:
        """A Gaussian channel, cut at 3.5 standard deviations.  centre, fwhm: nm."""
        if not (np.isfinite(centre) and np.isfinite(fwhm) and fwhm > 0):
            raise JobError(f"a Gaussian channel at {centre} nm with full width {fwhm} nm: both finite, the width positive")
        sd = fwhm / 2.354820045
        offsets = np.linspace(-3.5, 3.5, 57) * sd
        return cls(centre + offsets, np.exp(-0.5 * (offsets / sd) ** 2))

    @property
    def centroid(self) -> float:
        """Response-weighted mean wavelength, nm."""
        return float(np.trapezoid(self.values * self.wavelengths, self.wavelengths) / np.trapezoid(self.values, self.wavelengths))

    def on(self, nodes: Array) -> Array:
        """(L,) weights h with band = sum_l h_l r(lambda_l); they sum to 1.

        The exact integral of response x spectrum over both piecewise-linear functions; beyond the first and last node
        the spectrum is constant. `inside` says how much of the response that concerns. JobError if it is all of it.
        """
        knots = np.union1d(self.wavelengths, nodes[(nodes > self.wavelengths[0]) & (nodes < self.wavelengths[-1])])
        value = np.interp(knots, self.wavelengths, self.values)
        if knots[0] >= nodes[-1] or knots[-1] <= nodes[0]:
            raise JobError(
                f"a response at {knots[0]:.0f}-{knots[-1]:.0f} nm lies outside the latent wavelengths "
                f"{nodes[0]:.0f}-{nodes[-1]:.0f} nm: drop this band"
            )
        place = np.interp(knots, nodes, np.arange(nodes.size, dtype=np.float64))
        left = np.minimum(np.floor(0.5 * (place[1:] + place[:-1])).astype(int), nodes.size - 2)
        near, far = place[:-1] - left, place[1:] - left  # share of the right-hand node at both ends of each interval
        a, b, width = value[:-1], value[1:], np.diff(knots)
        right = width / 6 * (2 * a * near + a * far + b * near + 2 * b * far)  # product of two linear functions, exactly
        total = width / 2 * (a + b)
        weights = np.bincount(left, total - right, nodes.size) + np.bincount(left + 1, right, nodes.size)
        return np.asarray(weights / weights.sum(), dtype=np.float64)

    def inside(self, nodes: Array = NODES) -> float:
        """The fraction of the response's area that lies between the first and the last node."""
        low, high = self.wavelengths[[0, -1]]
        knots = np.union1d(self.wavelengths, np.clip(nodes[[0, -1]], low, high))
        value = np.interp(knots, self.wavelengths, self.values)
        pick = (knots >= nodes[0]) & (knots <= nodes[-1])
        return float(np.trapezoid(value[pick], knots[pick]) / np.trapezoid(self.values, self.wavelengths))
