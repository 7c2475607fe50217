"""What the report and the plots of `fusion.explore` share: the stretch of colour pictures, the colours of sensors and statuses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#F0E442")
"""Okabe and Ito's colour-blind safe palette (Color Universal Design, 2008)"""
STATUS = {
    "OK": "#009E73", "NO_DATA": "#BDBDBD", "NOT_CONVERGED": "#E69F00", "MISFIT": "#D55E00", "BAD_SAMPLES": "#CC79A7",
    "READ_FAILED": "#56B4E9", "FAILED": "#000000", "PENDING": "#F5F5F5",
}  # fmt: skip
"""colour of a tile's status, of the same palette"""
NARROW = 0.02
"""reflectance: an image that spans less is not stretched further, or noise would look like structure"""


def stretch(image: NDArray[np.floating]) -> NDArray[np.floating]:
    """An image of reflectance (all bands together) as 0..1 for the eye; NaN stays NaN.

        shown = asinh((v - low) / soft) / asinh((high - low) / soft),   low, high: 1 and 99 % of all values

    soft is what lies under the darkest quarter: there the stretch is linear and steep, so that dark water keeps its structure;
    above, it is logarithmic, so that bright ground is not lost. One stretch for all bands keeps the hue.
    """
    if not np.isfinite(image).any():
        return np.full_like(image, np.nan)
    low, quarter, high = (float(v) for v in np.nanpercentile(image, [1, 25, 99]))
    span = max(high - low, NARROW)
    soft = float(np.clip(quarter - low, span / 50, span / 2))
    return np.clip(np.arcsinh((image - low).clip(0, span) / soft) / np.arcsinh(span / soft), 0, 1)
