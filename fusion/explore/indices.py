"""Indices and other nonlinear quantities: expectations over the posterior, with the catalogue of spectral indices by name."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
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


def expectation(f: Callable[[xr.Dataset], xr.DataArray], bands: xr.Dataset, residual: NDArray[np.float64]) -> xr.Dataset:
    """E[f(bands)] with its sd, draws, and the plug-in f(E[bands]).

        draws = f(b_s + e_s),   mean = mean_s draws,   var = V r,   V = sum_b g_b^2 sd_b^2

    b_s: draws of the bands; e_s ~ N(0, residual): what the spectral basis cannot express, one error per draw for all pixels and
    dates, as it belongs to materials; g: gradient of f at E[bands] by central differences; r: what the draws' variance of f is to V,
    pooled over neighbours (it holds the covariance between bands and the curvature of f). Where f is flat or a step, the draws'
    own variance stands for V r.

    bands: mean, sd, draws over (band, ...); residual: (B, B).
    """
    names = [str(b) for b in bands.band.values]
    errors = xr.DataArray(
        balanced(bands.sizes["draw"], residual).astype(np.float32), dims=("draw", "band"),
        coords={"draw": bands["draws"].draw, "band": names},
    )  # fmt: skip
    value = f((bands["draws"] + errors).clip(min=DARKEST).to_dataset("band"))
    middle = bands["mean"].clip(min=DARKEST).to_dataset("band")
    plug_in = f(middle)
    linear: Any = 0.0
    for name in names:
        sd = bands["sd"].sel(band=name, drop=True)
        top, bottom = ((middle[name] + sign * STEP * sd).clip(min=DARKEST) for sign in (1, -1))
        rise = f(middle.assign({name: top})) - f(middle.assign({name: bottom}))
        linear = linear + (xr.where(top > bottom, rise / (top - bottom).where(top > bottom, 1), 0.0) * sd) ** 2
    linear = linear.transpose(*plug_in.dims)
    deviation = value - value.mean("draw")
    sampled = (deviation**2).mean("draw").transpose(*linear.dims)
    variance = xr.where(linear > FLAT * sampled, pooled(linear, deviation), sampled)
    mean = value.mean("draw").transpose(*linear.dims)
    return xr.Dataset({"mean": mean, "sd": variance**0.5, "draws": value, "plug_in": plug_in})


def balanced(count: int, covariance: NDArray[np.float64]) -> NDArray[np.float64]:
    """(count, B) draws of N(0, covariance) in antithetic pairs, orthogonalised so that their variances are exact, always the same."""
    half, size = max(1, count // 2), len(covariance)
    values, vectors = np.linalg.eigh(covariance)
    white = np.random.default_rng(20240501).normal(size=(half, size))
    if half >= size:
        white = np.linalg.qr(white)[0] * np.sqrt(half)
    drawn = white @ (vectors * np.sqrt(values.clip(min=0))).T
    drawn *= np.sqrt(np.diag(covariance) / (drawn**2).mean(0).clip(min=1e-30))
    return np.concatenate([drawn, -drawn, np.zeros((count - 2 * half, size))])[:count]


@dataclass(frozen=True)
class Index:
    """An index of a sensor's bands; calling it evaluates it on a Dataset with one variable per band."""

    name: str
    formula: str
    letters: Mapping[str, str]
    """name in the formula -> name of the band"""
    constants: Mapping[str, float]

    @property
    def bands(self) -> list[str]:
        """The bands that it needs."""
        return list(dict.fromkeys(self.letters.values()))

    def __call__(self, values: xr.Dataset) -> xr.DataArray:
        """The index per pixel; JobError if the formula cannot be evaluated."""
        known = {letter: values[band] for letter, band in self.letters.items()}
        try:
            result = values.assign({**known, **self.constants}).eval(f"({self.formula})")
        except (ValueError, NameError, TypeError, SyntaxError, AttributeError) as error:
            raise JobError(f"{self.name!r} cannot be evaluated: {error}") from error
        if not isinstance(result, xr.DataArray):
            raise JobError(f"{self.name!r} gives {type(result).__name__}, not a value per pixel")
        return result


def index_of(name: str, bands: Sequence[str], sensor: str) -> Index:
    """An index by its catalogue name, or the expression itself, of the bands of a sensor.

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
    return Index(name, formula, chosen, constants)


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
    defaults = {b: spyndex.constants[b].default for b in entry.bands if b in spyndex.constants}
    constants = {b: float(value) for b, value in defaults.items() if value is not None}
    if missing := [b for b in entry.bands if b not in ROLES and b not in constants]:
        raise JobError(
            f"index {name} needs {', '.join(missing)}, neither a reflectance band nor a constant with a default: "
            f"write the expression yourself ({entry.formula})"
        )
    return entry.formula, constants
