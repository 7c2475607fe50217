"""How much white noise the fine images can hold at most: the grain of the images themselves.

    g = sum_ij k_i k_j y(r + i, c + j),   k = (1, -2, 1),      Var[g] = 36 sigma^2 + what the ground adds

(Immerkaer 1996, Computer Vision and Image Understanding 64, whose mask this is). Stated per-pixel uncertainties hold errors of calibration and
atmosphere that neighbours share; taken for white noise they make a fit smooth over what the images show. So the noise of a sensor's
fine looks is at most what the quieter half of its image allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.signal import convolve2d

MASK = np.outer([1.0, -2.0, 1.0], [1.0, -2.0, 1.0])
WINDOWS = 200
"""least number of clear 3 x 3 windows"""
LEAST = 0.42
"""of the stated noise sd: about the bound of what may be learned of it (`Hyper`)"""
NORMAL = 0.6745
"""median |x| of a standard normal"""


def grain(looks: Sequence[Any]) -> float:
    """Factor <= 1 on the stated white noise of one sensor: the median over its fine looks and bands; 1 where they do not tell.

    Coarse looks and pseudo-bands, whose errors are not white, do not count.
    """
    told = [ratio for o in looks if not (o.layer.footprint.coarse or o.bands[0].startswith("pseudo")) for ratio in _ratios(o)]
    return float(np.clip(np.median(told), LEAST, 1.0)) if told else 1.0


def _ratios(obs: Any) -> list[float]:
    """The robust sd of the mask's response, in units of what the stated noise gives it, of each band with enough clear windows."""
    out = []
    for data, precision in zip(np.asarray(obs.data, np.float64), np.asarray(obs.precision, np.float64), strict=True):
        seen = precision > 0
        if min(data.shape) < 3 or not seen.any():
            continue
        variance = np.where(seen, 1 / np.where(seen, precision, 1.0), np.nan)
        found = convolve2d(np.where(seen, data, np.nan), MASK, "valid") / np.sqrt(convolve2d(variance, MASK**2, "valid"))
        found = found[np.isfinite(found)]
        if found.size >= WINDOWS:
            out.append(float(np.median(np.abs(found))) / NORMAL)
    return out
