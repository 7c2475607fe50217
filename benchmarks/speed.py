"""Speed of the exact Gaussian engine on the reference tile (simulated).

128 x 128 pixels of 30 m and a halo of 16, 46 dates of 8 days, K = 8; 46 MODIS looks (7 bands, sinusoidal cells), 22 Landsat looks
(6 bands, 45 % under block-shaped clouds), one imaging spectrometer on a patch; float32. Times are warm (compiled), best of --repeat.

    python -m benchmarks.speed
    python -m benchmarks.speed --size 48 --dates 12 --draws 0
    python -m benchmarks.speed --fits variational mcmc          # whole fits too: calibration, theta, and the field
    python -m benchmarks.speed --peers --draws 0                # and other people's solvers on the same posterior, with docs/figures/speed.png
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from benchmarks.peers import solvers
from fusion.cube.calendar import Calendar
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis
from fusion.infer import ENGINES, fit, gaussian
from fusion.infer.problem import Problem, pose
from fusion.infer.remainder import Remainder
from fusion.observe.footprint import footprint
from fusion.observe.geometry import window
from fusion.observe.layer import Layer
from fusion.observe.observation import Observation
from fusion.observe.psf import PSF
from fusion.observe.sensor import Sensor, sensor


def smooth(rng: np.random.Generator, shape: tuple[int, ...], pixels: float) -> Any:
    """White noise low-passed to a length, unit sd."""
    from scipy.ndimage import gaussian_filter

    out = gaussian_filter(rng.normal(size=shape), (*(0,) * (len(shape) - 2), pixels, pixels), mode="wrap")
    return out / out.std()


def tile(size: int = 160, dates: int = 46, rank: int = 8, seed: int = 0) -> tuple[list[Observation], Cube]:
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
        sigma = np.array([b.noise.a + b.noise.b * m for b, m in zip(bands, mean, strict=True)])
        for i in range(count):
            date = round(i * (dates - 1) / max(count - 1, 1))
            sky = smooth(rng, (size, size), size / 10)
            seen = np.asarray(fp(jnp.asarray(sky < np.quantile(sky, 1 - clouds), jnp.float32))) > 0.999
            data = np.asarray(fp(jnp.asarray(np.einsum("bk,kyx->byx", colour, z[date]), jnp.float32)))
            data = data + rng.normal(size=data.shape) * sigma[:, None, None] + 0.01 * rng.normal(size=(len(bands), 1, 1))
            precision = np.where(np.broadcast_to(seen, data.shape), 1 / sigma[:, None, None] ** 2, 0)
            layer = Layer.of(fp, colour, mean, np.eye(dates)[date])
            observations.append(_observation(instrument, i, data, precision, layer, residual, calendar.times[date], native, instrument.psf))
    psf = PSF("gaussian", 0.0, cell=True)
    patch = np.zeros((rank, size, size))
    patch[:, size // 4 : size // 2, size // 4 : size // 2] = 1 / 0.01**2
    data = z[dates // 2] + 0.01 * rng.normal(size=z[0].shape)
    layer = Layer.of(footprint(grid.geobox, psf, grid), np.eye(rank), np.zeros(rank), np.eye(dates)[dates // 2])
    day = calendar.times[dates // 2]
    observations.append(_observation(sensor("neon-aop"), 0, data, patch, layer, np.zeros(rank), day, grid.geobox, psf))
    return observations, cube


def _observation(
    instrument: Sensor, i: int, data: Any, precision: Any, layer: Layer, residual: Any, when: Any, geobox: GeoBox, psf: PSF
) -> Observation:
    single = partial(np.full, len(data), dtype=np.float32)
    return Observation(
        instrument.name, f"{instrument.name}-{i}", tuple(f"{b}" for b in range(len(data))),
        np.where(precision > 0, data, 0).astype(np.float32), precision.astype(np.float32), layer, single(instrument.offset_sd),
        single(instrument.gain_sd), np.asarray(residual, np.float32), np.full(geobox.shape, instrument.discrepancy_sd, np.float32),
        instrument.discrepancy_days, when, geobox, psf, None, simulated=True,
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

    def rest(white: Any, pairs: int = 0) -> list[Any]:
        left = Remainder.of(*arguments[:2], problem.hyper, (None,) * len(problem.series), white)
        return [left.mean, *(left.draw(problem.hierarchy, jax.random.fold_in(key, i)) for i in range(pairs))]

    def field(pairs: int) -> gaussian.Field:
        out = gaussian.posterior(*arguments, pairs=pairs)
        rest(out.white, pairs)
        return out

    found, *rows["mean + sd"] = timed(lambda: field(0), repeat)
    _, *rows["of these, the remainder"] = timed(lambda: rest(found.white), repeat)
    if draws:
        _, *rows[f"mean + sd + {draws} draws"] = timed(lambda: field(draws // 2), 1)
    _, *rows["one product with Q"] = timed(lambda: _product(system, found.white), repeat)
    _, *rows["one preconditioning"] = timed(lambda: _precondition(system, found.white), repeat)
    return {
        "shape": problem.hierarchy.shape, "iterations": int(found.iterations), "error (posterior sd)": float(found.error),
        "peak memory (GB)": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, "load": os.getloadavg()[0],
        "seconds (first, warm wall, warm CPU)": {name: [round(v, 3) for v in row] for name, row in rows.items()},
        "floor of one iteration": floor(system, found.white, rows["one product with Q"][2] + rows["one preconditioning"][2]),
        "core-microseconds per latent value": 1e6 * rows["mean + sd"][2] / float(np.prod(problem.hierarchy.shape)),
        "device": str(jax.devices()[0]),
    }


def fits(observations: list[Observation], cube: Cube, engines: Sequence[str], repeat: int) -> dict[str, Any]:
    """engine -> seconds of a whole fit with its defaults (calibration, landscape, theta, the field), and what it says of itself."""
    rows = {}
    for name in engines:
        one, *seconds = timed(partial(fit, observations, cube, engine=name), repeat)
        told = {k: one.diagnostics[k] for k in ("r_hat", "effective_samples", "divergent") if k in one.diagnostics}
        rows[name] = {"seconds (first, warm wall, warm CPU)": [round(v, 2) for v in seconds], "status": one.status.name, **told}
    return rows


_product = jax.jit(lambda system, white: system(white))
_precondition = jax.jit(lambda system, white: system.preconditioner.apply(white))


def machine() -> tuple[float, float]:
    """(bytes per CPU second of a copy, read and written; float32 multiply-adds per CPU second of a matrix product) of this machine, now."""
    source, square = np.ones(2**25, np.float32), jnp.ones((1024, 1024))
    target, product = np.zeros_like(source), jax.jit(lambda a: a @ a)
    copied = timed(lambda: np.copyto(target, source), 8)[3]
    return 2 * source.nbytes / copied, square.shape[0] ** 3 / timed(lambda: product(square), 8)[3]


def traffic(system: gaussian.System, white: Any) -> tuple[float, float]:
    """(bytes, multiply-adds) that one iteration of conjugate gradients cannot do without, from the shapes of its arrays.

    Bytes: what the product and the preconditioner hold is read once, and of the five vectors x, r, p, Q p, M^-1 r each is read and written
    once. Multiply-adds: footprints forward and back for every band and temporal function, the looks' sums over time, N^-1, the colouring of
    every level forward and back, and in the preconditioner pixel blocks (two products, and three for the bands of a blur), what the scene is in
    each look (in and out), objects and the top.
    """
    hierarchy, m = system.hierarchy, system.preconditioner
    _, rank, *shape = hierarchy.shape
    pixels, functions = shape[0] * shape[1], hierarchy.temporal.shape[1]
    held = [m, hierarchy.spaces, system.factors, *((s.footprint, s.colour, s.tau, n) for s, n in zip(system.series, system.noise, strict=True))]
    distinct = {id(a): a.nbytes for a in jax.tree_util.tree_leaves(held)}
    vectors = sum(v.nbytes for v in white.values())
    work = 0.0
    for looks, noise in zip(system.series, system.noise, strict=True):
        count, bands, *seen = looks.data.shape
        blurred = min(count, functions) if looks.tau.ndim == 2 else functions
        work += 2 * blurred * bands * looks.footprint.operations + 2 * functions * bands * (rank * pixels + count * seen[0] * seen[1])
        work += bands * seen[0] * seen[1] * count * (2 * count if noise.cell is not None else 3)
    for name, root in system.factors.coefficient.items():
        work += 2 * root.shape[1] ** 2 * rank * hierarchy.spaces[name].size
    classes, nodes = m.kinds.shape[0], hierarchy.spaces["place"]
    work += 4 * functions * rank * classes * pixels + 4 * functions * rank * nodes.cols.size * shape[0]
    width, channels = m.inverse.shape[1], m.lam.shape[0]
    work += (2 + 3 * (len(m.blurred) > 0)) * rank * width**2 * pixels + 2 * rank * channels * width * pixels
    work += 2 * (m.told.size + m.crossed.size + m.object_inverse.size + sum(panel.size for panel in m.top))
    return sum(distinct.values()) + 10 * vectors, work


def floor(system: gaussian.System, white: Any, seconds: float) -> dict[str, Any]:
    """How near one iteration comes to what a core could do with the bytes and the multiply-adds that it needs.  seconds: of CPU."""
    moved, work = traffic(system, white)
    bandwidth, rate = machine()
    least = max(moved / bandwidth, work / rate)
    return {
        "MB": round(moved / 1e6, 1), "million multiply-adds": round(work / 1e6, 1), "copy GB per CPU second": round(bandwidth / 1e9, 1),
        "giga multiply-adds per CPU second": round(rate / 1e9, 1), "least CPU ms": round(1e3 * least, 2), "measured CPU ms": round(1e3 * seconds, 2),
        "fraction": round(least / seconds, 2),
    }


def exact(problem: Problem) -> tuple[Any, float]:
    """(mean of the field, left-over error in posterior sd): conjugate gradients in double precision."""
    with jax.enable_x64(True):
        wide = lambda tree: jax.tree.map(  # noqa: E731
            lambda a: jnp.asarray(np.asarray(a), jnp.float64) if jnp.issubdtype(a.dtype, jnp.floating) else a, tree
        )
        system = gaussian.prepare(wide(problem.hierarchy), wide(problem.series), wide(problem.hyper), None)
        found = jax.jit(lambda s: gaussian.solve(s, s.explain([x.data for x in s.series]), 1e-6, 2000))(system)
        return np.asarray(solvers.field(system, found.white)), float(found.error)


def compare(problem: Problem, steps: int, iterations: int) -> dict[str, list[dict[str, float]]]:
    """method -> its trace: work, seconds of CPU, error of the mean (rms, in posterior sd), and for guides their sd over the exact one."""
    mean, left = exact(problem)
    arguments = problem.hierarchy, problem.series, problem.hyper
    sd = np.asarray(gaussian.posterior(*arguments, jax.random.key(0)).sd)
    system, _, _, prepared = timed(lambda: gaussian.prepare(*arguments, None), 3)
    counts = [round(steps * share) for share in (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0)]
    traces = {
        "this project": solvers.ours(system, (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 0.003, 1e-3)),
        "NIFTy.re": solvers.nifty(system, [5 * 2**i for i in range(20) if 5 * 2**i <= iterations]),
        "numpyro AutoNormal": solvers.svi(system, "normal", counts),
        "numpyro AutoLowRankMultivariateNormal": solvers.svi(system, "lowrank", counts[:5], horizon=steps),
    }
    out: dict[str, list[dict[str, float]]] = {"reference": [{"error left": left}]}
    for name, trace in traces.items():
        before = prepared if name == "this project" else 0.0
        out[name] = []
        for step in trace:
            row = {"work": step.work, "seconds": before + step.seconds, "error": float(np.sqrt(np.mean(((step.mean - mean) / sd) ** 2)))}
            if step.sd is not None:
                row["sd ratio"] = float(np.exp(np.mean(np.log(step.sd / sd))))
            out[name].append(row)
            print(name, {k: round(v, 4) for k, v in row.items()}, flush=True)
    return out


def reached(trace: list[dict[str, float]], error: float) -> float:
    """CPU seconds to an error, interpolated in logarithms; infinite where it is not reached."""
    for before, after in zip([None, *trace], trace, strict=False):
        if after["error"] <= error:
            if before is None:
                return after["seconds"]
            share = np.log(before["error"] / error) / np.log(before["error"] / after["error"])
            return float(before["seconds"] * (after["seconds"] / before["seconds"]) ** share)
    return float("inf")


def draw(traces: dict[str, list[dict[str, float]]], title: str, path: Path) -> None:
    """Error against time, both logarithmic."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axis = plt.subplots(figsize=(6.6, 3.8), layout="constrained")
    for (name, trace), colour in zip(traces.items(), ("#155b73", "#c0643c", "#8a7a2f", "#6b7785"), strict=True):
        axis.loglog([r["seconds"] for r in trace], [r["error"] for r in trace], "o-", color=colour, label=name, ms=3.5, lw=1.5)
    axis.axhline(0.02, color="#1d2733", lw=0.7, ls=":")
    axis.set(xlabel="CPU seconds (compiled)", ylabel="error of the mean (rms, posterior sd)")
    axis.set_title(title, fontsize=9, color="#1d2733")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(fontsize=8, loc="lower right", facecolor="white", framealpha=1, edgecolor="none")
    figure.savefig(path, dpi=150)


def main() -> None:
    """Print the table as JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("size", 160), ("dates", 46), ("rank", 8), ("draws", 16), ("repeat", 2), ("steps", 2000), ("iterations", 2560)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--fits", nargs="*", choices=ENGINES, default=(), help="whole fits by these engines")
    parser.add_argument("--peers", action="store_true", help="run NIFTy.re (at most --iterations) and numpyro (--steps) on the same posterior")
    parser.add_argument("--figure", type=Path, default=Path(__file__).parents[1] / "docs" / "figures" / "speed.png")
    options = parser.parse_args()
    observations, cube = tile(options.size, options.dates, options.rank)
    problem = pose(observations, cube, calibrate=False)
    print(json.dumps(measure(problem, options.draws, options.repeat), indent=2))
    for name in options.fits:
        print(json.dumps(fits(observations, cube, [name], min(options.repeat, 1 if name == "mcmc" else 2)), indent=2), flush=True)
    if options.peers:
        found = compare(problem, options.steps, options.iterations)
        traces = {name: trace for name, trace in found.items() if name != "reference"}
        seconds = {name: {error: round(reached(trace, error), 3) for error in (0.3, 0.1, 0.02)} for name, trace in traces.items()}
        print(json.dumps({"CPU seconds to an error (posterior sd)": seconds, "reference": found["reference"]}, indent=2))
        steps, rank, *shape = problem.hierarchy.shape
        draw(traces, f"Same posterior, same run: {shape[0]} x {shape[1]} pixels, {steps} dates, K = {rank} (simulated)", options.figure)


if __name__ == "__main__":
    main()
