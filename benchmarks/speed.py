"""Speed of the exact Gaussian engine on the reference tile (simulated).

128 x 128 pixels of 30 m and a halo of 16, 46 dates of 8 days, K = 8; 46 MODIS looks (7 bands, sinusoidal cells), 22 Landsat looks
(6 bands, 45 % under block-shaped clouds), one imaging spectrometer on a patch; float32. Times are warm (compiled), best of --repeat.

    python benchmarks/speed.py
    python benchmarks/speed.py --size 48 --dates 12 --draws 0
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
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
            precision = np.where(there, 1 / sigma[:, None, None] ** 2, 0)
            when = np.eye(dates)[date], residual, calendar.times[date], instrument
            observations.append(_observation(name, i, data, precision, fp, colour, mean, *when))
    instrument = sensor("neon-aop")
    fp = footprint(grid.geobox, PSF("gaussian", 0.0, cell=True), grid)
    patch = np.zeros((rank, size, size))
    patch[:, size // 4 : size // 2, size // 4 : size // 2] = 1 / 0.01**2
    data = z[dates // 2] + 0.01 * rng.normal(size=z[0].shape)
    middle = np.eye(dates)[dates // 2], np.zeros(rank), calendar.times[dates // 2], instrument
    observations.append(_observation("neon-aop", 0, data, patch, fp, np.eye(rank), np.zeros(rank), *middle))
    return observations, cube


def _observation(
    name: str, i: int, data: Any, precision: Any, fp: Any, colour: Any, mean: Any, tau: Any, residual: Any, when: Any, instrument: Any
) -> Any:
    layer = SimpleNamespace(footprint=fp, colour=colour, mean=mean, tau=tau.astype(np.float32))
    return SimpleNamespace(
        sensor=name, scene_id=f"{name}-{i}", data=np.where(precision > 0, data, 0).astype(np.float32), layer=layer,
        precision=precision.astype(np.float32), residual_var=residual, when=when,
        offset_sd=np.full(len(mean), instrument.offset_sd), gain_sd=np.full(len(mean), instrument.gain_sd),
        discrepancy_sd=instrument.discrepancy_sd, discrepancy_days=instrument.discrepancy_days,
    )


def timed(f: Any, repeat: int) -> tuple[Any, float, float, float]:
    """(result, first call with compile, best warm wall, best warm CPU), seconds."""
    start = time.perf_counter()
    out = jax.block_until_ready(f())
    first = time.perf_counter() - start
    wall, cpu = [], []
    for _ in range(repeat):
        start, busy = time.perf_counter(), time.process_time()
        jax.block_until_ready(f())
        wall.append(time.perf_counter() - start)
        cpu.append(time.process_time() - busy)
    return out, first, min(wall), min(cpu)


def measure(problem: Problem, draws: int, repeat: int) -> dict[str, Any]:
    """Seconds for mean + sd, for mean + sd + draws, and for their parts."""
    key, rows = jax.random.key(0), {}
    arguments = problem.hierarchy, problem.series, problem.hyper, key
    system, *rows["prepare"] = timed(lambda: gaussian.prepare(*arguments[:3], None), repeat)
    found, *rows["mean + sd"] = timed(lambda: gaussian.posterior(*arguments), repeat)
    if draws:
        _, *rows[f"mean + sd + {draws} draws"] = timed(lambda: gaussian.posterior(*arguments, pairs=draws // 2), 1)
    _, *rows["one product with Q"] = timed(lambda: _product(system, found.white), repeat)
    _, *rows["one preconditioning"] = timed(lambda: _precondition(system, found.white), repeat)
    return {
        "shape": problem.hierarchy.shape, "iterations": int(found.iterations), "error (posterior sd)": float(found.error),
        "peak memory (GB)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, "load": os.getloadavg()[0],
        "seconds (first, warm wall, warm CPU)": {name: [round(v, 3) for v in row] for name, row in rows.items()},
        "core-microseconds per latent value": 1e6 * rows["mean + sd"][2] / float(np.prod(problem.hierarchy.shape)),
        "device": str(jax.devices()[0]),
    }


_product = jax.jit(lambda system, white: system(white))
_precondition = jax.jit(lambda system, white: system.preconditioner.apply(white))


def main() -> None:
    """Print the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("size", 160), ("dates", 46), ("rank", 8), ("draws", 16), ("repeat", 2)):
        parser.add_argument(f"--{name}", type=int, default=value)
    options = parser.parse_args()
    observations, cube = tile(options.size, options.dates, options.rank)
    print(json.dumps(measure(pose(observations, cube, calibrate=False), options.draws, options.repeat), indent=2))


if __name__ == "__main__":
    main()
