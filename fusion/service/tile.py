"""One tile of work, as it happens inside a worker: read, observe, fit, write; idempotent, and tiny in what it returns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import prometheus_client

from fusion.cube.cube import Cube
from fusion.cube.grid import Tile
from fusion.errors import FusionError, SceneError
from fusion.infer.posterior import Status
from fusion.service import blend, land_cover
from fusion.service.job import Job
from fusion.service.objects import finite
from fusion.service.plan import Coverage, halo_of, tile_at
from fusion.service.policy import Item
from fusion.service.reading import look
from fusion.service.store import CubeStore

Fit = Callable[..., Any]
"""(observations, cube, *, engine, draws, seed, origin, ...) -> Posterior; the default is `fusion.infer.fit`"""

LANDSCAPE, SURVEYS = "status/landscape.npz", "status/surveys"
TILES = prometheus_client.Counter("fusion_tiles", "Tiles fused by this worker", ["status"])
SECONDS = prometheus_client.Histogram(
    "fusion_tile_seconds", "Wall time of a tile", ["part"], buckets=(1, 2, 5, 10, 20, 60, 300, 1800)
)
"""on the /metrics page of every worker, beside Dask's own"""


@dataclass(frozen=True, eq=False)
class Desk:
    """What every tile of one store needs, opened once per worker process."""

    store: CubeStore
    job: Job
    coverage: Coverage
    halo: int
    blend: int
    """pixels on either side of a border over which neighbours are blended"""

    def tile(self, index: tuple[int, int]) -> Tile:
        """The padded tile at an index."""
        return tile_at(self.store.cube.grid, self.store.layout.core, self.halo, index)

    def origin(self, tile: Tile) -> tuple[int, int]:
        """Row and column of a padded tile's first pixel, counted from where the first of the cubes that this one continues began."""
        row, col = self.store.provenance.get("anchor", (0, 0))
        return tile.origin[0] + row, tile.origin[1] + col


@lru_cache(maxsize=4)
def desk(url: str, fingerprint: str) -> Desk:
    """The desk of a store; the fingerprint keeps a store that was replaced under the same address apart."""
    store = CubeStore.open(url)
    if store.about["fingerprint"] != fingerprint:
        raise FusionError(f"{url} is of another job now: it was replaced while this one ran")
    job = Job.of(store.about["job"], f"the job in {url}")
    known = store.provenance
    halo = int(known["halo"]) if "halo" in known else halo_of(job, store.cube.grid)
    return Desk(store, job, Coverage(store.items()), halo, int(known.get("blend", 0)))


@lru_cache(maxsize=4)
def region(url: str, fingerprint: str) -> Any:
    """The population of hyperparameters that the sampled tiles told of; None where the job asked for none."""
    from fusion.infer import population

    told = desk(url, fingerprint).store.objects.get("status/population.json")
    return None if told is None else population(told)


@lru_cache(maxsize=4)
def _landscape(url: str, fingerprint: str) -> Any:
    from fusion.infer.landscape import Landscape

    arrays = desk(url, fingerprint).store.objects.get_arrays(LANDSCAPE)
    if arrays is None:
        raise LookupError(LANDSCAPE)  # not kept in the cache: it may be learned later
    return Landscape.from_arrays(arrays) if "told" in arrays else None


def landscape_of(store: CubeStore) -> Any:
    """The landscape that all tiles of a cube are fitted with (`fusion.infer.landscape`); None where each learns its own."""
    if not store.provenance.get("landscape"):
        return None
    try:
        return _landscape(store.url, store.about["fingerprint"])
    except LookupError:
        return None


def survey_tile(url: str, fingerprint: str, index: tuple[int, int], *, fit: Fit | None = None, read_retries: int = 3) -> dict[str, Any]:
    """Reads one tile of the sample from which the landscape is learned, and keeps its survey."""
    from fusion.infer.landscape import survey

    at = desk(url, fingerprint)
    key = f"{SURVEYS}/{index[0]}.{index[1]}.npz"
    if at.store.objects.get_arrays(key) is None:
        tile = at.tile(index)
        cube = Cube(tile.grid, at.store.cube.calendar, at.store.cube.basis)
        observations, _ = look(at.coverage.of(tile), tile, cube, read_retries)
        calibrate = bool(at.job.engine.settings.get("calibrate", True))
        ground = land_cover.known(at.job.land_cover, tile.grid, read_retries)
        found = survey(observations, cube, calibrate=calibrate, seed=at.job.engine.seed, origin=at.origin(tile), **ground)
        at.store.objects.put_arrays(key, found.to_arrays())
    return {"tile": index, "status": "OK"}


def learn_tiles(
    url: str, fingerprint: str, index: tuple[int, int], *, sample: Sequence[tuple[int, int]], fit: Fit | None = None, read_retries: int = 3
) -> dict[str, Any]:
    """Learns the landscape from the surveys of a sample and keeps it.  Surveys that are missing or saw nothing are left out."""
    from fusion.infer.landscape import Survey, learn

    at = desk(url, fingerprint)
    found = [at.store.objects.get_arrays(f"{SURVEYS}/{row}.{col}.npz") for row, col in sorted(sample)]
    surveys = [s for s in (Survey.from_arrays(arrays) for arrays in found if arrays is not None) if s.sights]
    classes: dict[str, Any] = {"classes": int(at.job.engine.settings["classes"])} if "classes" in at.job.engine.settings else {}
    made = learn(surveys, at.store.cube, **classes).to_arrays() if surveys else {"nothing": np.zeros(0)}
    at.store.objects.put_arrays(LANDSCAPE, made)
    return {"tile": index, "status": "OK"}


def fuse_tile(
    url: str, fingerprint: str, index: tuple[int, int], *, fit: Fit | None = None, read_retries: int = 3, post: bool = False,
    again: bool = False,
) -> dict[str, Any]:
    """Fuses and commits one tile; returns its record without what is long.  A committed tile is not fused again.

    post: instead of committing it, tells all tiles that it overlaps what it found (`fusion.service.blend`). again: in any case.
    """
    at = desk(url, fingerprint)
    if done := skipped(at.store, index, again, post):
        return done
    began = time.perf_counter()
    tile = at.tile(index)
    posterior, record = fused(at, tile, fit, read_retries, region(url, fingerprint) if at.job.engine.pool else None)
    made = delivered(at, tile, posterior, record, post)
    SECONDS.labels("all").observe(time.perf_counter() - began)
    TILES.labels(record["status"]).inc()
    return {**made, "seconds": time.perf_counter() - began}


def delivered(at: Desk, tile: Tile, posterior: Any, record: Mapping[str, Any], post: bool) -> dict[str, Any]:
    """Commits what a fit found, or leaves it to be blended; returns what the driver is told."""
    kept = kept_of(posterior, at.store)
    return blend.post(at.store, tile, at.blend, kept, record) if post else brief(at.store.write_tile(tile, **kept, record=record))


def pilot_tile(
    url: str, fingerprint: str, index: tuple[int, int], *, fit: Fit | None = None, read_retries: int = 3
) -> dict[str, Any]:
    """Fits one tile of the sample from which the population of hyperparameters is learned; writes nothing but its summary."""
    from fusion.infer import summarise

    at = desk(url, fingerprint)
    key, name = f"status/pilots/{index[0]}.{index[1]}.json", f"{index[0]}.{index[1]}"
    if at.store.objects.get(key) is None:
        posterior, record = fused(at, at.tile(index), fit, read_retries, None)
        told = summarise(posterior, name) if record["status"] != Status.NO_DATA.name else None
        at.store.objects.put(key, finite(told))
    return {"tile": index, "status": "OK"}


def skipped(store: CubeStore, index: tuple[int, int], again: bool = False, post: bool = False) -> dict[str, Any] | None:
    """What a task returns for a tile that is committed, or has posted what it found; None if it is not, or is to be fitted `again`.

    What was taken over from another cube is never fitted again.
    """
    if store.has(index):
        record = store.record(index)
        return None if again and not taken_over(record) else {**brief(record), "skipped": True}
    if post and not again and index in blend.senders(store, index):
        return {"tile": index, "posted": True, "skipped": True}
    return None


def taken_over(record: Mapping[str, Any]) -> bool:
    """Whether a tile was kept from another cube, in all or in part: it is what it was, and tells its neighbours nothing."""
    return (record.get("continued") or {}).get("how") in ("copied", "continued")


def brief(record: dict[str, Any]) -> dict[str, Any]:
    """A tile's record without what is long."""
    short = {k: record.get(k) for k in ("tile", "status", "chi_square", "looks")}
    return {**short, "failed": len(record.get("failed_scenes") or []), "how": (record.get("continued") or {}).get("how")}


def kept_of(posterior: Any, store: CubeStore) -> dict[str, Any]:
    """What a store keeps of a posterior, as its writers take it."""
    return {
        "mean": posterior.mean, "sd": posterior.sd, "draws": posterior.draws if store.layout.draws else None,
        "canonical_var": getattr(posterior, "canonical_var", None), "decomposition": getattr(posterior, "decomposition", None),
    }


def _engines() -> Fit:
    """`fusion.infer.fit`, imported where the work is: a driver that only schedules needs no JAX."""
    from fusion.infer import fit

    return fit


def fused(
    at: Desk, tile: Tile, fit: Fit | None, read_retries: int, shared: Any, *, cube: Cube | None = None,
    items: Mapping[str, Sequence[Item]] | None = None, prior: Any = None,
) -> tuple[Any, dict[str, Any]]:
    """The posterior of a tile and its record.

    shared: the population whose prior the tile gets. cube, items, prior: other times than the store's, with the scenes that
    count then, and the prior of theta.
    """
    engine = at.job.engine
    cube = cube or Cube(tile.grid, at.store.cube.calendar, at.store.cube.basis)
    began = time.perf_counter()
    observations, record = look(at.coverage.of(tile) if items is None else items, tile, cube, read_retries)
    SECONDS.labels("read").observe(time.perf_counter() - began)
    known = {"prior": prior if shared is None else shared.prior(f"{tile.index[0]}.{tile.index[1]}")}
    try:
        known |= land_cover.known(at.job.land_cover, tile.grid, read_retries)
    except SceneError as error:
        record["failed_scenes"].append({"sensor": "land cover", "id": "map", "reason": str(error)})
    if (landscape := landscape_of(at.store)) is not None:
        known["landscape"] = landscape.since(len(at.store.cube.calendar) - len(cube.calendar))
    posterior = (fit or _engines())(
        observations, cube, engine=engine.name, draws=at.job.output.draws, seed=engine.seed, origin=at.origin(tile),
        **engine.settings, **{name: value for name, value in known.items() if value is not None},
    )
    core = (..., *tile.core)
    if not (np.isfinite(posterior.mean[core]).all() and np.isfinite(posterior.sd[core]).all()):
        raise FusionError(f"tile {tile.index}: the engine returned values that are not finite: raise the noise floors")
    status = posterior.status
    message = posterior.message
    if record["failed_scenes"] and status is Status.OK:
        status = Status.READ_FAILED
        message = f"{len(record['failed_scenes'])} scenes could not be read: {record['failed_scenes'][0]['reason']}"
    hyper: Any = getattr(posterior, "hyper", None)
    mixing: Any = getattr(posterior, "mixing", None)
    return posterior, {
        "status": status.name, "message": message, "chi_square": posterior.chi_square, **record,
        "theta": hyper.to_attrs() if hasattr(hyper, "to_attrs") else None, "diagnostics": getattr(posterior, "diagnostics", {}),
        "mixing": None if mixing is None else np.asarray(mixing).tolist(), "tail": float(getattr(posterior, "tail", 0.0)),
    }
