"""The point-spread function of a sensor: facts in metres; `fusion.observe.footprint` evaluates them on a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class PSF:
    """How an observed value weighs the ground around its pixel centre: scan shape (*) track shape (*) cell (*) Gaussian.

    Distances are metres at nadir. `cell` convolves with the pixel's own outline in the native projection.
    """

    kind: Literal["gaussian", "scanner"]
    """gaussian: a round blur of `fwhm`. scanner: triangle along scan x rectangle along track, growing with view zenith."""
    fwhm: float
    """gaussian: full width at half maximum of the blur. scanner: nominal pixel (half the base of the triangle)."""
    cell: bool = True
    """convolve with the outline of the native cell"""
    geolocation: float = 0.0
    """1-sigma geolocation error, metres, added as a Gaussian"""
    fwhm_prior: float = 0.15
    """relative standard deviation of the width, for engines that learn it"""
