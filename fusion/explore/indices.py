"""Indices and other nonlinear quantities: expectations over the posterior, with the catalogue of spectral indices by name."""

from __future__ import annotations

import ast
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from fusion.errors import JobError
from fusion.explore.moments import pooled

DARKEST = 1e-4
"""reflectance: values below it are raised to it before an index is computed; a ratio of values that may cross 0 has no mean"""
STEP = 0.5
"""posterior sd: half the step of the central differences"""
FLAT = 0.1
"""where a linearisation explains less than this share of the draws' variance, the draws alone are used"""

ROLES = {
    "A": ("coastal",), "B": ("blue",), "G": ("green",), "R": ("red",), "RE1": ("rededge1",), "RE2": ("rededge2",),
    "RE3": ("rededge3",), "N": ("nir", "nir08"), "N2": ("nir08",), "S1": ("swir16",), "S2": ("swir22", "swir21"),
}  # fmt: skip
"""the band letters of the Awesome Spectral Indices catalogue (spyndex), and the names that our sensors may have for them"""


def expectation(
    f: Callable[[xr.Dataset], xr.DataArray], bands: xr.Dataset, residual: NDArray[np.float64]
) -> xr.Dataset:
    """E[f(bands)] with its sd, draws, and the plug-in f(E[bands]).

        mean = mean_s f(b_s) + sum_k (f(m + l_k) + f(m - l_k) - 2 f(m)) / 2
        var  = V r + sum_k (f(m + l_k) - f(m - l_k))^2 / 4,     V = sum_b g_b^2 (sd_b^2 - R_bb)

    b_s: draws of the bands; m: their mean; g: gradient of f at m by central differences; r: what the draws' variance of f is to V,
    pooled over neighbours (it holds the covariance between bands and the curvature of f). R, with columns l_k of its root: the
    covariance of what the spectral basis cannot express, which the draws leave out; its share is taken by sigma points. Where f is
    flat or a step, the draws' own variance stands for V r.

    bands: mean, sd, draws over (band, ...); residual: R (B, B).
    """
    names = [str(b) for b in bands.band.values]
    value = f(bands["draws"].clip(min=DARKEST).to_dataset("band"))
    middle = bands["mean"].clip(min=DARKEST).to_dataset("band")
    plug_in = f(middle)

    def ends(steps: dict[str, xr.DataArray | float]) -> tuple[xr.DataArray, xr.DataArray]:
        up, down = (
            f(middle.assign({n: (middle[n] + sign * step).clip(min=DARKEST) for n, step in steps.items()})) for sign in (1, -1)
        )
        return up, down

    linear: Any = 0.0
    for number, name in enumerate(names):
        step = STEP * bands["sd"].sel(band=name, drop=True)
        width = 2 * step - (DARKEST + step - middle[name]).clip(min=0)  # the lower end stops at DARKEST
        up, down = ends({name: step})
        slope = xr.where(width > 0, (up - down) / width.where(width > 0, 1), 0.0)
        linear = linear + slope**2 * ((step / STEP) ** 2 - float(residual[number, number])).clip(min=0)
    linear = linear.transpose(*plug_in.dims)
    values, vectors = np.linalg.eigh(residual)
    shift, beyond = xr.zeros_like(plug_in), xr.zeros_like(plug_in)
    for column in (vectors * np.sqrt(values.clip(min=0))).T:
        up, down = ends(dict(zip(names, column.tolist(), strict=True)))
        shift, beyond = shift + (up + down - 2 * plug_in) / 2, beyond + (up - down) ** 2 / 4
    deviation = value - value.mean("draw")
    sampled = (deviation**2).mean("draw").transpose(*linear.dims)
    variance = xr.where(linear > FLAT * sampled, pooled(linear, deviation), sampled) + beyond
    mean = value.mean("draw").transpose(*linear.dims) + shift
    return xr.Dataset({"mean": mean, "sd": variance**0.5, "draws": value, "plug_in": plug_in})


def formula_of(name: str, bands: Sequence[str], sensor: str) -> tuple[str, dict[str, str], dict[str, float]]:
    """An index as (formula, letter -> band name, constants): by its catalogue name, or the expression itself.

    Raises JobError for a name that is not in the catalogue, for bands that the sensor lacks, and for what is no expression.
    """
    formula, constants = _catalogue(name) if name.isidentifier() and name not in bands else (name, {})
    try:
        tree = ast.parse(formula.strip(), mode="eval")
    except SyntaxError as error:
        raise JobError(f"{name!r} is no expression of bands ({error.msg}): write for example (nir08 - red) / (nir08 + red)") from error
    used = sorted({node.id for node in ast.walk(tree) if isinstance(node, ast.Name)} - {"abs"})
    letters = {role: next((b for b in names if b in bands), "") for role, names in ROLES.items()}
    chosen = {n: n if n in bands else letters.get(n, "") for n in used if n not in constants}
    if unknown := [n for n, band in chosen.items() if not band]:
        raise JobError(
            f"{name!r} needs {', '.join(unknown)}, which {sensor} does not have (its bands: {', '.join(bands)}): "
            "give another sensor=, whose bands the cube can predict as well"
        )
    if not chosen:
        raise JobError(f"{name!r} names no band: {sensor} has {', '.join(bands)}")
    return formula, chosen, constants


def _catalogue(name: str) -> tuple[str, dict[str, float]]:
    """Formula and default constants of a catalogued index; JobError with the nearest names."""
    try:
        import spyndex
    except ImportError as error:
        raise JobError(
            f"index {name!r} by name needs the package spyndex: pip install 'fusion-cube[notebooks]', or write the expression"
        ) from error
    if name not in spyndex.indices:
        near = get_close_matches(name, list(spyndex.indices), 3)
        raise JobError(f"no index is called {name!r}" + (f": did you mean {' or '.join(near)}?" if near else ""))
    entry = spyndex.indices[name]
    constants = {b: float(spyndex.constants[b].default) for b in entry.bands if b in spyndex.constants}
    missing = [b for b in entry.bands if b not in ROLES and b not in constants]
    if missing:
        raise JobError(f"index {name} needs {', '.join(missing)}, which is not a reflectance band: write the expression yourself")
    return entry.formula, constants
