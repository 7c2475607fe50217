"""From draws to numbers: variances and quantiles that a handful of posterior draws can carry, pooled over neighbouring pixels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from fusion.errors import JobError
from fusion.process import tails

POOL = 5
"""pixels: what draws say about correlation and shape is pooled over POOL x POOL neighbours, where it varies little"""


def _smooth_ratio(of: NDArray[np.floating], to: NDArray[np.floating]) -> NDArray[np.floating]:
    """of / to, each summed over POOL x POOL neighbours of the last two axes; 1 where `to` is 0."""
    size = (*(1,) * (of.ndim - 2), POOL, POOL)
    seen = np.isfinite(of) & np.isfinite(to)
    top, bottom = (uniform_filter(np.where(seen, a, 0).astype(np.float32), size, mode="nearest") for a in (of, to))
    return np.where(bottom > 0, np.maximum(top, 0) / np.where(bottom > 0, bottom, 1), 1.0).astype(np.float32)


def pooled(independent: xr.DataArray, deviation: xr.DataArray | None, space: tuple[str, str] = ("y", "x")) -> xr.DataArray:
    """Variance of which the draws tell the size and `independent` the pattern.

        var(p) = independent(p) * sum_N mean_s deviation_s^2 / sum_N independent,   N: POOL x POOL neighbours of p

    S draws alone scatter by 1/sqrt(2 S) (18 % of a sd with 16); a ratio that varies slowly over the ground may be pooled. Without
    draws: `independent` as it is. Where there are no neighbours: what the draws say.
    """
    if deviation is None:
        return independent
    sampled = (deviation**2).mean("draw").transpose(*independent.dims)
    if not set(space) <= set(independent.dims):
        return sampled
    ratio = xr.apply_ufunc(
        _smooth_ratio, sampled, independent, dask="parallelized", output_dtypes=[np.float32], input_core_dims=[list(space)] * 2,
        output_core_dims=[list(space)], dask_gufunc_kwargs={"allow_rechunk": True},
    )
    return independent * ratio


def quantiles(estimate: xr.Dataset, q: Sequence[float] | float) -> xr.DataArray:
    """Posterior quantiles of an estimate, over (quantile, ...).  q: in 0..1.

        linear in the field (bands, wavelengths):   mean + sd F^-1(q), F the law of errors of the tail index `tail`, normal without one
        nonlinear (indices; it has `plug_in`):      mean + sd Q(q), Q: the quantile of the draws' standardised deviations, pooled
                                                    over POOL x POOL neighbours

    Raises JobError for a q outside 0..1, or one that is farther out than the draws can tell.
    """
    levels = tails.levels(q)
    if "plug_in" not in estimate or "draws" not in estimate:
        law = estimate.coords.get("tail", xr.DataArray(0.0))
        shape = xr.apply_ufunc(
            lambda tail: tails.quantile(levels, tail), law, output_core_dims=[["quantile"]], dask="parallelized", output_dtypes=[np.float64],
            dask_gufunc_kwargs={"output_sizes": {"quantile": levels.size}},
        ).assign_coords(quantile=levels)
        return (estimate["mean"] + estimate["sd"] * shape).transpose("quantile", ...)
    deviation = estimate["draws"] - estimate["draws"].mean("draw")
    white = deviation / (deviation**2).mean("draw") ** 0.5
    over = ["draw"]
    if {"y", "x"} <= set(white.dims):
        white = white.rolling(y=POOL, x=POOL, center=True).construct(y="_row", x="_col")
        over += ["_row", "_col"]
    count = int(np.prod([white.sizes[d] for d in over]))
    if levels.min() < 1 / (count + 1) or levels.max() > count / (count + 1):
        raise JobError(
            f"asked for quantiles {q}; {count} draws tell {1 / (count + 1):.3f} to {count / (count + 1):.3f}: ask for less, keep "
            "neighbouring pixels in the view, or run the job with more draws"
        )
    shape = white.chunk(dict.fromkeys(over, -1)).quantile(levels, over, method="median_unbiased", skipna=True)
    return (estimate["mean"] + estimate["sd"] * shape).transpose("quantile", ...)


def normal_errors(estimate: xr.Dataset, truth: Any) -> xr.DataArray:
    """Errors (truth - mean) in sd, on a scale on which the law of errors is standard normal: what `plots.calibration` judges."""
    z = (truth - estimate["mean"]) / estimate["sd"]
    return xr.apply_ufunc(tails.normal_score, z, estimate.coords.get("tail", xr.DataArray(0.0)), dask="parallelized", output_dtypes=[np.float64])


def interval(estimate: xr.Dataset, level: float = 0.9) -> xr.Dataset:
    """The central credible interval: lower, upper.  level: 0..1, such as 0.9."""
    if not 0 < level < 1:
        raise JobError(f"asked for a credible level of {level}: give one between 0 and 1, such as 0.9")
    found = quantiles(estimate, [0.5 - level / 2, 0.5 + level / 2])
    return xr.Dataset({"lower": found.isel(quantile=0, drop=True), "upper": found.isel(quantile=1, drop=True)})
