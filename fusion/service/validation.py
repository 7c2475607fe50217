"""Is a cube right, and as uncertain as it claims, about scenes that it never saw?  `fusion validate` asks a sample of its tiles.

Each tile is read as a run reads it and learns theta as a run does (a cube's committed tile brings its own). Then every acquisition
in turn is hidden, predicted from the others and compared: `fusion.infer.checks`. What is said holds for the sampled tiles.
"""

from __future__ import annotations

import inspect
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from distributed import as_completed
from matplotlib.figure import Figure
from scipy.special import ndtr, ndtri

from fusion.cube.cube import Cube
from fusion.cube.grid import Tile
from fusion.errors import FusionError, JobError, StoreError
from fusion.service import land_cover
from fusion.service.cluster import connected
from fusion.service.job import Engine, Job
from fusion.service.objects import finite
from fusion.service.plan import Coverage, tile_at
from fusion.service.policy import Item
from fusion.service.progress import Summary, shown
from fusion.service.reading import look
from fusion.service.run import plan
from fusion.service.store import CubeStore
from fusion.service.tile import desk, landscape_of

log = logging.getLogger("fusion")

Index = tuple[int, int]
Measure = Callable[..., pd.DataFrame]
"""(observations, cube, *, most, hyper, seed, origin, ...) -> one row per compared value; default `fusion.infer.checks.validate`"""
TABLES = (("sensor", "band"), ("sensor", "class"), ("sensor", "gap"))
"""what is shown; the file has all four together as well"""


@dataclass(frozen=True, eq=False)
class Exam:
    """One tile to be examined, with all that its worker needs."""

    tile: Tile
    cube: Cube
    """of the padded tile"""
    items: Mapping[str, Sequence[Item]]
    engine: Engine
    read_retries: int
    most: int
    """acquisitions that are left out"""
    origin: Index
    """global row and column of the padded tile's first pixel"""
    theta: Mapping[str, Any] | None = None
    """what a committed tile learned; None = learned anew"""
    tail: float | None = None
    """its index of the law of errors"""
    landscape: Any = None
    """what the cube's tiles learned together, which a committed theta belongs to"""
    land_cover: str | None = None
    """the job's map"""


@dataclass(frozen=True, eq=False)
class Validation:
    """What the sampled tiles said."""

    source: str
    values: pd.DataFrame
    """one row per compared value, see `fusion.infer.checks.validate`, and the tile"""
    tiles: list[Index]
    failed: dict[Index, str] = field(default_factory=dict)
    """tiles that could not be examined, with the reason"""
    simulated: bool = False

    def document(self) -> dict[str, Any]:
        """The scores, JSON-ready: overall per sensor, per table of TABLES, and by all four."""
        from fusion.infer.checks import BY, score

        tables = {",".join(by): score(self.values, by).to_dict("records") for by in (("sensor",), *TABLES, BY)}
        return finite({
            "source": self.source, "simulated": self.simulated, "tiles": self.tiles, "values": len(self.values),
            "failed": [{"tile": list(index), "reason": reason} for index, reason in self.failed.items()], "scores": tables,
        })  # type: ignore[no-any-return]

    def write(self, path: Path) -> Path:
        """Writes the document to `path` and its picture beside it; returns the picture's path."""
        picture = path.with_suffix(".png")
        try:
            path.write_text(json.dumps(self.document(), indent=1) + "\n")
            calibration_picture(self.values).savefig(picture, dpi=110, bbox_inches="tight")
        except OSError as error:
            raise StoreError(f"{path} cannot be written: {error.strerror}; name another file") from error
        return picture


def validate(
    target: Job | CubeStore, *, tiles: int = 4, looks: int = 8, scheduler: str | None = None, measure: Measure | None = None,
    progress: str = "auto",
) -> Validation:
    """Leaves acquisitions out on a sample of the tiles of a job (not run yet, or not here) or of a cube.

    tiles: sampled by the job's seed among those that at least two scenes reach. looks: acquisitions left out per tile, spread evenly.
    measure: replaces `fusion.infer.checks.validate`. Raises JobError if nothing could be compared.
    """
    if tiles < 1 or looks < 1:
        raise JobError(f"asked for {tiles} tiles and {looks} acquisitions of each: give at least one")
    job, source, exams = _of_job(target, tiles, looks) if isinstance(target, Job) else _of_store(target, tiles, looks)
    job = job.on(scheduler)
    parts: list[pd.DataFrame] = []
    failed: dict[Index, str] = {}
    simulated = False
    summary = Summary(source, len(exams))
    with connected(job.cluster) as client, client.as_current(), shown(progress, summary) as show:
        resources = {"GPU": 1} if job.cluster.gpus else None
        futures = {client.submit(examine, e, measure, pure=False, resources=resources): e.tile.index for e in exams}
        for future in as_completed(futures):
            index = futures[future]
            if future.status != "finished":
                failed[index] = summary.failed[index] = f"{type(future.exception()).__name__}: {future.exception()}"
                log.error("tile %s could not be examined: %s", index, failed[index])
            else:
                values, made = future.result()
                parts.append(values)
                simulated |= made
                summary.add({"status": "OK"})
            show(summary)
            future.release()
    if not sum(map(len, parts)):
        reason = next(iter(failed.values()), "no acquisition has clear values there")
        raise JobError(f"none of the {len(exams)} sampled tiles could be validated: {reason}")
    joined = pd.concat([p for p in parts if len(p)], ignore_index=True).sort_values(["tile", "scene", "band"], kind="stable")
    done = sorted(e.tile.index for e in exams if e.tile.index not in failed)
    return Validation(source, joined.reset_index(drop=True), done, failed, simulated)


def _of_job(job: Job, tiles: int, looks: int) -> tuple[Job, str, list[Exam]]:
    made = plan(job)
    made.require()
    return job, f"job {job.name!r}", _sampled(job, made.cube, Coverage(made.found.items), made.halo, tiles, looks, {}, (0, 0))


def _of_store(store: CubeStore, tiles: int, looks: int) -> tuple[Job, str, list[Exam]]:
    at = desk(store.url, store.about["fingerprint"])
    exams = _sampled(at.job, store.cube, at.coverage, at.halo, tiles, looks, store.records(), store.provenance.get("anchor", (0, 0)))
    return at.job, store.url, [replace(exam, landscape=landscape_of(store)) for exam in exams]


def _sampled(
    job: Job, cube: Cube, coverage: Coverage, halo: int, tiles: int, looks: int, records: Mapping[Index, Any], anchor: Sequence[int],
) -> list[Exam]:
    """The exams of some tiles; of a cube, of committed ones first.  records: of those."""
    core = job.tiles.core
    across = -(-cube.grid.shape[1] // core)
    seen = np.flatnonzero(sum(coverage.counts(cube.grid, core, halo).values()) >= 2)
    if not seen.size:
        raise JobError("no tile is reached by two scenes: there is nothing to leave out; widen the period or add a sensor")
    order = np.random.default_rng(job.engine.seed).permutation(seen)
    known = [n for n in order if divmod(int(n), across) in records]
    chosen = sorted([*known, *(n for n in order if divmod(int(n), across) not in records)][:tiles])
    exams = []
    for number in chosen:
        index = divmod(int(number), across)
        tile, record = tile_at(cube.grid, core, halo, index), records.get(index, {})
        exams.append(Exam(
            tile, Cube(tile.grid, cube.calendar, cube.basis), coverage.of(tile), job.engine, job.cluster.read_retries, looks,
            (tile.origin[0] + anchor[0], tile.origin[1] + anchor[1]), record.get("theta"), record.get("tail"),
            land_cover=job.land_cover,
        ))
    return exams


def calibration_picture(values: pd.DataFrame) -> Figure:
    """How honest the predictions of hidden scenes were: probability integral transforms, and coverage against its claim."""
    from fusion.infer.checks import normal_scores

    figure = Figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2)
    claims = np.linspace(0.05, 0.99, 48)
    for name, group in values.groupby("sensor", observed=True):
        z = normal_scores(group)
        left.hist(ndtr(z), bins=20, range=(0, 1), density=True, histtype="step", lw=1.5, label=str(name))
        right.plot(claims, [(np.abs(z) < ndtri(0.5 + p / 2)).mean() for p in claims], lw=1.5, label=str(name))
    left.axhline(1.0, color="0.6", lw=1)
    left.set(xlabel="probability integral transform of hidden values", ylabel="density (flat at 1 where calibrated)", xlim=(0, 1))
    right.plot([0, 1], [0, 1], color="0.6", lw=1)
    right.set(xlabel="claimed coverage", ylabel="share of hidden values inside", xlim=(0, 1), ylim=(0, 1))
    right.legend(frameon=False)
    return figure


def examine(exam: Exam, measure: Measure | None = None) -> tuple[pd.DataFrame, bool]:
    """The compared values of one tile, and whether its scenes are simulated; runs on a worker.

    Classes are those of the tile, numbered from dark to bright, because no two tiles have the same ones.
    """
    from fusion.infer import checks, engine, fit, problem
    from fusion.process.hierarchy import Hyper

    observations, record = look(exam.items, exam.tile, exam.cube, exam.read_retries)
    if len(observations) < 2:
        raise FusionError(f"{len(observations)} acquisitions are clear here, so none can be left out")
    asked, origin = exam.engine, exam.origin
    shared = land_cover.known(exam.land_cover, exam.tile.grid, exam.read_retries) | ({} if exam.landscape is None else {"landscape": exam.landscape})
    theta = None if exam.theta is None else Hyper.from_attrs(exam.theta)
    tail = exam.tail
    if theta is None and measure is None:
        found = fit(observations, exam.cube, engine=asked.name, draws=0, seed=asked.seed, origin=origin, **asked.settings, **shared)
        theta, tail = found.hyper, found.tail
    known = {*inspect.signature(problem.pose).parameters, *inspect.signature(engine.fit).parameters} - {"draws", "hyper", "tail"}
    settings = {name: value for name, value in asked.settings.items() if name in known}
    values = (measure or checks.validate)(
        observations, exam.cube, most=exam.most, hyper=theta, tail=tail, seed=asked.seed, origin=origin, **settings, **shared
    )
    brightness = values.groupby("class")["measured"].mean().rank(method="first").astype(int) - 1
    values = values.assign(tile=f"{exam.tile.index[0]}.{exam.tile.index[1]}", **{"class": values["class"].map(brightness)})
    return values.astype(dict.fromkeys(("sensor", "scene", "band", "tile"), "category")), bool(record["simulated"])
