"""What a job will cost, from metadata alone: tiles, looks, bytes, memory and time; refuses before anything is paid for.

Projected peak memory of one tile at a time in a worker, from shapes (float32):

    base + 4 K Y X (T (FIELDS + S) + BLOCKS R^2) + 4 OBSERVED sum_n B_n H_n W_n + 4 TOP (K U^2 + (K T)^2)

with Y, X including the halo, S draws, R temporal functions of a pixel, n over the tile's looks; U = T + looks + classes R_class + nodes R_place the
unknowns that every pixel shares, whose dense matrix preconditions the solver, as does that of the scene in all components; a node per cell of
the coarsest sensor. The constants were measured by `benchmarks/memory.py`, TOP on 35 to 70 px of a job with 23 temporal functions and cells of 7 px.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import shapely
import shapely.geometry
from dask.utils import format_bytes
from numpy.typing import NDArray
from pyproj import Transformer

from fusion.cube.cube import Cube
from fusion.cube.grid import Grid, Tile, halo_for
from fusion.errors import JobError
from fusion.observe.sensor import Sensor, sensor
from fusion.process.courses import temporal_functions
from fusion.service.blend import LEAST_HALO, widest
from fusion.service.catalog import Found
from fusion.service.cluster import Workers, workers_of
from fusion.service.job import Job
from fusion.service.policy import Item
from fusion.service.template import Layout
from fusion.service.timing import timing_notes

BASE_BYTES = 1.3e9
"""Python, JAX and its compiled programs"""
FIELDS = 14.0
"""copies of the latent field that an engine holds at its peak, draws apart"""
BLOCKS = 45.0
"""copies of the (R, R) matrices, one per pixel and component, that the elimination of the pixels holds at its peak"""
TOP = 5.5
"""copies of the dense matrix of the shared unknowns"""
CLASSES, SPACING = 64, 16.0
"""the engine's default number of classes, and pixels between its nodes where no sensor is coarse (`fusion.infer.problem.pose`)"""
OBSERVED = 5.0
"""copies of a look: data, precision, residual, and the scene while it is read"""
SECONDS = {"gaussian": 25e-6, "variational": 250e-6, "mcmc": 7e-3}
"""core-seconds per latent value with everything compiled: gaussian measured, the others by how often they solve, roughly"""
SECONDS_DRAW = 0.45e-6
"""per value and draw: half a solve, because draws come in pairs"""
SECONDS_LOOK = 0.4
"""core-seconds to read one window of one scene and to observe it; waiting for storage comes beside it, eight scenes at a time"""
SECONDS_START = 70.0
"""core-seconds to compile for a new shape of tile; a worker with a filled compile cache saves most of it"""
IN_FLIGHT = 3
"""tasks per worker thread that the scheduler knows of"""
COMPRESSION = 0.7
"""of float32 fields by blosc-zstd with bitshuffle"""


@dataclass(frozen=True, eq=False)
class Coverage:
    """Which scenes reach which tile."""

    items: dict[str, list[Item]]

    @cached_property
    def _trees(self) -> dict[str, shapely.STRtree]:
        return {
            name: shapely.STRtree([shapely.geometry.shape(i["geometry"]) for i in items]) for name, items in self.items.items()
        }

    def of(self, tile: Tile) -> dict[str, list[Item]]:
        """The scenes of each sensor whose outline meets the padded tile, in time order."""
        polygon = outlines(tile.grid, tile.grid.shape[0], 0, np.zeros((1, 2), int))[0]
        return {
            name: [self.items[name][i] for i in sorted(tree.query(polygon, predicate="intersects"))]
            for name, tree in self._trees.items()
        }

    def counts(self, grid: Grid, core: int, halo: int) -> dict[str, NDArray[np.int64]]:
        """(tiles,) scenes per padded tile of each sensor, tiles in row-major order."""
        down, across = (-(-s // core) for s in grid.shape)
        polygons = outlines(grid, core, halo, np.argwhere(np.ones((down, across), bool)))
        return {
            name: np.bincount(tree.query(polygons, predicate="intersects")[0], minlength=len(polygons))
            for name, tree in self._trees.items()
        }


def outlines(grid: Grid, core: int, halo: int, indices: NDArray[np.int64]) -> NDArray[Any]:
    """(N,) shapely polygons, longitude and latitude, of the padded tiles at `indices` (N, 2)."""
    low = indices * core - halo
    edge = core + 2 * halo
    along = np.array([0.0, 0.5, 1.0, 1.0, 1.0, 0.5, 0.0, 0.0]) * edge
    down = np.array([0.0, 0.0, 0.0, 0.5, 1.0, 1.0, 1.0, 0.5]) * edge
    x = grid.transform.c + (low[:, 1:] + along) * grid.resolution
    y = grid.transform.f - (low[:, :1] + down) * grid.resolution
    lon, lat = Transformer.from_crs(grid.crs.proj, "EPSG:4326", always_xy=True).transform(x, y)
    rings = np.stack([lon, lat], axis=-1)
    return np.asarray(shapely.polygons(np.concatenate([rings, rings[:, :1]], axis=1)))


def tile_at(grid: Grid, core: int, halo: int, index: tuple[int, int]) -> Tile:
    """One tile of `grid.tiles(core, halo)` without making the others."""
    top, left = index[0] * core, index[1] * core
    padded = grid.crop(slice(top - halo, top + core + halo), slice(left - halo, left + core + halo))
    window = (slice(top, min(top + core, grid.shape[0])), slice(left, min(left + core, grid.shape[1])))
    return Tile(index, padded, window, halo)


def halo_of(job: Job, grid: Grid) -> int:
    """Pixels of halo: what the job says, else half of the coarsest footprint (half a cell and one blur width).

    Where tiles meet it is wide enough to blend them.
    """
    if job.tiles.halo is not None:
        return job.tiles.halo
    reach = 0.0
    for source in job.sensors:
        facts = sensor(source.name)
        for psf in [facts.psf, *(b.psf for b in facts.bands if b.psf is not None)]:
            reach = max(reach, psf.fwhm + (facts.pixel / 2 if psf.cell else 0.0))
    least = LEAST_HALO if max(grid.shape) > job.tiles.core and job.tiles.blend != 0 else 0
    return max(halo_for(reach, grid), least, job.tiles.blend or 0)


def blend_of(job: Job, grid: Grid) -> int:
    """Pixels on either side of a border over which tiles are blended; 0 where there is one tile only."""
    if max(grid.shape) <= job.tiles.core:
        return 0
    return widest(halo_of(job, grid), job.tiles.core) if job.tiles.blend is None else job.tiles.blend


@dataclass(frozen=True, eq=False)
class Plan:
    """What a job will cost."""

    job: Job
    cube: Cube
    halo: int
    blend: int
    """pixels on either side of a border over which tiles are blended"""
    found: Found
    tiles: int
    looks: dict[str, NDArray[np.int64]]
    """(tiles,) scenes per tile of each sensor"""
    read_bytes: float
    peak_bytes: float
    """projected peak memory of one worker"""
    workers: Workers
    seconds: float
    """projected wall time"""
    output_bytes: float
    """after compression"""
    passing_bytes: float = 0.0
    """what lies in the store beside it while tiles wait for their neighbours, at most"""
    notes: list[str] = field(default_factory=list)

    @property
    def layout(self) -> Layout:
        """The store's template."""
        return layout_of(self.job, self.cube)

    @property
    def meeting(self) -> dict[str, int]:
        """What makes tiles agree where they meet, as a store remembers it: halo and blend in pixels, and how many tiles are surveyed."""
        return {"halo": self.halo, "blend": self.blend, "landscape": min(self.job.engine.landscape, self.tiles) if self.tiles > 1 else 0}

    @property
    def fits(self) -> bool:
        """Whether the projected memory fits a worker, as far as its limit is known."""
        return self.peak_bytes <= (self.workers.memory or math.inf)

    def require(self) -> None:
        """JobError with both numbers and a tile size that fits, if the memory does not."""
        if self.fits:
            return
        core, limit = self.job.tiles.core, self.workers.memory or math.inf
        smaller = [c for c in (512, 384, 256, 192, 128, 96, 64, 48, 32, 16) if c < core and self._peak_with(c) <= limit]
        advice = f"use tiles.core = {smaller[0]}" if smaller else "no tile size fits: fewer draws, times or components would"
        need, have = format_bytes(int(self.peak_bytes)), format_bytes(int(limit))
        raise JobError(
            f"a tile of {core} px with its halo of {self.halo} px needs {need} in a worker, which has {have}: {advice}, "
            "or give workers more memory (cluster.memory, fewer workers)"
        )

    def rows(self) -> list[tuple[str, str]]:
        """What a reader wants to see, as (name, text)."""
        grid, times, period = self.cube.grid, self.cube.calendar.times, self.job.period
        day = np.datetime_as_string(times[[0, -1]], "D")
        rows = [
            ("area", f"{grid.shape[1]} x {grid.shape[0]} px of {grid.resolution:g} m in {grid.crs}"),
            ("times", f"{times.size} from {day[0]} to {day[1]}" + ("" if period.times else f", every {period.step_days:g} days")),
            ("components", str(self.cube.basis.rank)),
            ("tiles", f"{self.tiles} of {self.job.tiles.core} px with a halo of {self.halo} px"),
        ]
        for name, per_tile in self.looks.items():
            spread = f"per tile {per_tile.min()} to {per_tile.max()}, mean {per_tile.mean():.1f}"
            rows.append((f"looks of {name}", f"{len(self.found.items[name])} scenes; {spread}"))
        if self.job.land_cover is not None:
            rows.append(("land-cover map", self.job.land_cover))
        limit = self.workers.memory
        fit = "limit not known" if limit is None else f"{'fits' if self.fits else 'does NOT fit'} in {format_bytes(int(limit))}"
        return [
            *rows, ("to read", format_bytes(int(self.read_bytes))),
            ("peak memory per worker", f"{format_bytes(int(self.peak_bytes))}, {fit}"),
            ("time", f"about {_duration(self.seconds)} on {self.workers.number} workers"),
            ("output", f"about {format_bytes(int(self.output_bytes))} in {self.job.output.store}" + (
                f", and up to {format_bytes(int(self.passing_bytes))} while tiles wait for their neighbours" if self.passing_bytes else ""
            )),
        ]

    def numbers(self) -> dict[str, Any]:
        """The same for programs."""
        return {
            "tiles": self.tiles, "halo": self.halo, "shape": list(self.cube.shape),
            "scenes": {n: len(i) for n, i in self.found.items.items()}, "looks": {n: int(v.sum()) for n, v in self.looks.items()},
            "read_bytes": self.read_bytes, "peak_bytes": self.peak_bytes, "limit_bytes": self.workers.memory, "fits": self.fits,
            "workers": self.workers.number, "seconds": self.seconds, "output_bytes": self.output_bytes,
            "passing_bytes": self.passing_bytes, "blend": self.blend, "notes": self.notes,
        }

    def _peak_with(self, core: int) -> float:
        looks = {n: float(v.max(initial=0)) for n, v in self.looks.items()}
        return peak_bytes(self.job, self.cube, core, self.halo, looks, self.workers.threads)


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def window_bytes(facts: Sensor, edge: float) -> float:
    """float32 bytes of one look's window, `edge` metres wide."""
    side = math.ceil(edge / facts.pixel) + 1
    return 4.0 * side**2 * max(1, len(facts.bands) or len(facts.example_channels))


def peak_bytes(job: Job, cube: Cube, core: int, halo: int, looks: dict[str, float], threads: int = 1) -> float:
    """Projected peak memory of one worker (the formula above) with that many tiles at a time."""
    edge = core + 2 * halo
    times, rank = cube.shape[:2]
    asked = job.engine.settings
    given = asked.get("ranks")
    ranks = temporal_functions(times, given if isinstance(given, dict) else None)
    latent = 4.0 * rank * edge**2 * (times * (FIELDS + job.output.draws) + BLOCKS * ranks["pixel"] ** 2)
    observed = sum(n * window_bytes(sensor(name), edge * cube.grid.resolution) for name, n in looks.items())
    coarsest = max((sensor(name).pixel for name in looks), default=0.0) / cube.grid.resolution
    nodes = (math.ceil(edge / float(asked.get("spacing") or (coarsest if coarsest > 1.5 else SPACING))) + 3) ** 2
    shared = times + sum(looks.values()) + int(asked.get("classes", CLASSES)) * ranks["class"] + nodes * ranks["place"]
    latent += 4.0 * TOP * (rank * shared**2 + (rank * times) ** 2)
    return BASE_BYTES + threads * (latent + OBSERVED * observed)


LEVELS = ("scene", "class", "object", "place", "pixel", "unresolved")
"""levels of the variance decomposition that every engine reports"""


def layout_of(job: Job, cube: Cube) -> Layout:
    """The template of a job's store."""
    return Layout(cube, job.tiles.core, job.output.draws, tuple(s.name for s in job.sensors), LEVELS)


def make_plan(job: Job, cube: Cube, found: Found) -> Plan:
    """The plan of a job over the scenes that were found; reads no pixels."""
    halo, blend = halo_of(job, cube.grid), blend_of(job, cube.grid)
    core = job.tiles.core
    count = math.prod(-(-s // core) for s in cube.grid.shape)
    if count > 2_000_000:
        raise JobError(f"the area makes {count} tiles of {core} px: choose larger tiles or split the area")
    looks = Coverage(found.items).counts(cube.grid, core, halo)
    notes = list(found.notes)
    for name, per_tile in looks.items():
        if (per_tile == 0).all():
            notes.append(f"{name}: no scene reaches any tile")
    notes += timing_notes(job, cube, found.items)
    edge = core + 2 * halo
    times, rank = cube.shape[:2]
    latent = times * rank * edge**2
    workers = workers_of(job.cluster)
    notes += [workers.note] if workers.note else []
    engine = latent * (SECONDS[job.engine.name] + job.output.draws * SECONDS_DRAW)
    total_looks = sum(int(v.sum()) for v in looks.values())
    read = sum(float(v.sum()) * window_bytes(sensor(n), edge * cube.grid.resolution) / 2 for n, v in looks.items())
    layout = layout_of(job, cube)
    return Plan(
        job=job, cube=cube, halo=halo, blend=blend, found=found, tiles=count, looks=looks, read_bytes=read,
        peak_bytes=peak_bytes(job, cube, core, halo, {n: float(v.max(initial=0)) for n, v in looks.items()}, workers.threads),
        workers=workers, seconds=SECONDS_START + (count * engine + total_looks * SECONDS_LOOK) / (workers.number * workers.threads),
        output_bytes=layout.bytes() * COMPRESSION, passing_bytes=_passing(layout, blend, workers.number * workers.threads), notes=notes,
    )


def _passing(layout: Layout, blend: int, parallel: int) -> float:
    """Bytes of what tiles told their neighbours, uncompressed: of one row of tiles and of those in flight, or of all there are."""
    if not blend:
        return 0.0
    down, across = layout.tiles
    share = min(down * across, across + 2 + IN_FLIGHT * parallel) / (down * across)
    return layout.bytes() * (1 + 2 * blend / layout.core) ** 2 * share
