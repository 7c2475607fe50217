"""Speed of the exact Gaussian engine on the reference tile, against NIFTy.re and numpyro SVI on the same posterior.

The tile is simulated: 128 x 128 pixels of 30 m and a halo of 16, 46 dates of 8 days, K = 8; 46 MODIS looks (7 bands, sinusoidal
cells), 22 Landsat looks (6 bands, 45 % under block-shaped clouds), one imaging spectrometer. Times are warm (compiled) unless said.

    python benchmarks/speed.py                      engine alone
    python benchmarks/speed.py --peers              with NIFTy.re and numpyro (a smaller tile if --size says so)
    python benchmarks/speed.py --size 48 --dates 12 --peers
"""

from __future__ import annotations

import argparse
import json
import resource
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import Calendar
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis
from fusion.infer import gaussian
from fusion.infer.problem import Problem, pose
from fusion.observe.footprint import footprint
from fusion.observe.geometry import window
from fusion.observe.psf import PSF
from fusion.observe.sensor import sensor


def smooth(rng: np.random.Generator, shape: tuple[int, ...], pixels: float) -> Any:
    """White noise low-passed to a length, unit sd."""
    from scipy.ndimage import gaussian_filter

    out = gaussian_filter(rng.normal(size=shape), (*(0,) * (len(shape) - 2), pixels, pixels), mode="wrap")
    return out / out.std()


def tile(size: int = 160, dates: int = 46, rank: int = 8, seed: int = 0) -> tuple[list[Any], Cube]:
    """Observations and cube of the reference tile (simulated)."""
    rng = np.random.default_rng(seed)
    grid = Grid(GeoBox((size, size), Affine(30.0, 0, 500_000, 0, -30.0, 4_400_000), "EPSG:32613"))
    calendar = Calendar(np.datetime64("2023-01-01", "us") + np.arange(dates) * np.timedelta64(8 * 86_400_000_000, "us"))
    cube = Cube(grid, calendar, SpectralBasis.library(rank))
    root = np.linalg.cholesky(cube.basis.prior + 1e-12 * np.eye(rank))
    kinds = (smooth(rng, (4, size, size), 6) * 3).argmax(0)
    season = smooth(rng, (4 * rank, 1, dates), 4).reshape(4, rank, dates)
    still = 0.4 * smooth(rng, (rank, size, size), 1.0)
    z = np.einsum("jk,tkyx->tjyx", root, 0.5 * season[kinds].transpose(3, 2, 0, 1) + still)
    observations = []
    for name, count, clouds in (("landsat-8", dates * 22 // 46, 0.45), ("modis-mcd43a4", dates, 0.1)):
        instrument = sensor(name)
        native = window(instrument.native(grid), grid)
        fp = footprint(native, instrument.psf, grid)
        bands = [b for b in instrument.bands if b.name != "coastal"][: 6 if name == "landsat-8" else 7]
        colour, mean, residual = cube.basis.responses(tuple(b.response for b in bands))
        for i in range(count):
            date = round(i * (dates - 1) / max(count - 1, 1))
            sigma = np.array([b.noise.a + b.noise.b * m for b, m in zip(bands, mean, strict=True)])
            sky = smooth(rng, (size, size), size / 10)
            seen = np.asarray(fp(jnp.asarray(sky < np.quantile(sky, 1 - clouds), jnp.float32))) > 0.999
            data = np.asarray(fp(jnp.asarray(np.einsum("bk,kyx->byx", colour, z[date]), jnp.float32)))
            data = data + rng.normal(size=data.shape) * sigma[:, None, None] + 0.01 * rng.normal(size=(len(bands), 1, 1))
            there = np.broadcast_to(seen, data.shape)
            observations.append(_observation(name, i, data, np.where(there, 1 / sigma[:, None, None] ** 2, 0), fp, colour, mean,
                                             np.eye(dates)[date], residual, calendar.times[date], instrument))
    instrument = sensor("neon-aop")
    fp = footprint(grid.geobox, PSF("gaussian", 0.0, cell=True), grid)
    patch = np.zeros((rank, size, size))
    patch[:, size // 4 : size // 2, size // 4 : size // 2] = 1 / 0.01**2
    data = z[dates // 2] + 0.01 * rng.normal(size=z[0].shape)
    observations.append(_observation("neon-aop", 0, data, patch, fp, np.eye(rank), np.zeros(rank), np.eye(dates)[dates // 2], np.zeros(rank),
                                     calendar.times[dates // 2], instrument))
    return observations, cube


def _observation(name: str, i: int, data: Any, precision: Any, fp: Any, colour: Any, mean: Any, tau: Any, residual: Any, when: Any, instrument: Any) -> Any:
    bands = len(mean)
    return SimpleNamespace(
        sensor=name, scene_id=f"{name}-{i}", data=np.where(precision > 0, data, 0).astype(np.float32), precision=precision.astype(np.float32),
        layer=SimpleNamespace(footprint=fp, colour=colour, mean=mean, tau=tau.astype(np.float32)), offset_sd=np.full(bands, instrument.offset_sd),
        gain_sd=np.full(bands, instrument.gain_sd), residual_var=residual, discrepancy_sd=instrument.discrepancy_sd,
        discrepancy_days=instrument.discrepancy_days, when=when,
    )
