"""The scenes of one tile, as a worker reads them: a few at a time, in a fixed order, and a scene that cannot be read costs itself."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, TypeVar
from urllib.parse import urlsplit

import numpy as np
import prometheus_client
import pystac

from fusion.cube.cube import Cube
from fusion.cube.grid import Tile
from fusion.errors import FusionError
from fusion.observe.scene import Scene
from fusion.observe.sensor import Sensor, sensor
from fusion.service.policy import Item

log = logging.getLogger("fusion")
Read = TypeVar("Read")

READERS = 8
"""scenes of a tile that are read at the same time: reading waits for storage far more than it computes"""
SIDE_BY_SIDE = (".tif", ".tiff", ".jp2")
"""formats whose library (GDAL) reads different files in different threads; HDF4 and HDF5 do not, and strangers are not trusted to"""
_alone = threading.Lock()

SCENES = prometheus_client.Counter("fusion_scenes", "Scene windows read by this worker", ["sensor", "outcome"])
"""on the /metrics page of every worker, beside Dask's own"""


class Unreadable(Exception):
    """One scene that a tile has to do without."""


def look(
    items: Mapping[str, Sequence[Item]], tile: Tile, cube: Cube, retries: int, readers: int = READERS
) -> tuple[list[Any], dict[str, Any]]:
    """Every observation of a tile and what its record says of them; a scene that cannot be read is recorded, never raised.

    items: of each sensor, those that reach the tile. The result does not depend on `readers`, nor on who is read first.
    """
    observations: list[Any] = []
    scenes: dict[str, list[str]] = {name: [] for name in items}
    failed, notes, simulated = [], set(), False
    for facts, document, reading in _ahead(items, tile, retries, readers):
        try:
            scene = reading.result()
            seen = observed(scene, facts, cube)
        except Unreadable as reason:
            failed.append({"sensor": facts.name, "id": document["id"], "reason": str(reason)})
            SCENES.labels(facts.name, "failed").inc()
            continue
        SCENES.labels(facts.name, "read").inc()
        simulated |= scene.simulated
        notes |= {f"{facts.name}: {note}" for note in scene.notes}
        if seen:
            observations += seen
            scenes[facts.name].append(scene.id)
    return observations, {
        "looks": {name: len(ids) for name, ids in scenes.items()}, "scenes": scenes, "failed_scenes": failed,
        "notes": sorted(notes)[:100], "simulated": simulated,
    }


def _ahead(
    items: Mapping[str, Sequence[Item]], tile: Tile, retries: int, readers: int
) -> Iterator[tuple[Sensor, Item, Future[Scene]]]:
    """Every scene in the order of `items`, with a few of the next ones under way, so that memory holds no more than these."""
    pool = ThreadPoolExecutor(readers, thread_name_prefix="fusion-read")
    waiting: deque[tuple[Sensor, Item, Future[Scene]]] = deque()
    try:
        for name, documents in items.items():
            facts = sensor(name)
            for document in documents:
                waiting.append((facts, document, pool.submit(read, facts, document, tile, retries)))
                if len(waiting) > readers:
                    yield waiting.popleft()
        while waiting:
            yield waiting.popleft()
    finally:
        pool.shutdown(cancel_futures=True)


def read(facts: Sensor, document: Item, tile: Tile, retries: int) -> Scene:
    """One scene's window, read again where that may help; Unreadable for what a tile has to do without."""

    def attempt() -> Scene:
        item = pystac.Item.from_dict(document, preserve_dict=True)
        with nullcontext() if _side_by_side(document) else _alone:
            return facts.read(item, tile.grid)

    try:
        return again(attempt, retries, f"{facts.name} scene {document['id']}")
    except MemoryError:
        raise
    except Exception as error:  # a sensor is a plug-in: whatever it raises costs one scene, not the job
        raise Unreadable(f"{type(error).__name__}: {' '.join(str(error).split())[:500]}") from error


def again(attempt: Callable[[], Read], retries: int, what: str) -> Read:
    """What an attempt gives; one that fails by what may pass (network, file system) is made again with growing pauses, any other is not."""
    for count in range(retries):
        try:
            return attempt()
        except OSError as error:
            if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
                raise
            log.info("%s: attempt %d failed (%s), trying again", what, count + 1, error)
            time.sleep(min(0.5 * 2**count, 20.0))
    return attempt()


def _side_by_side(document: Item) -> bool:
    """Whether every raster of an item has a format that threads may read at the same time; metadata files do not matter."""
    paths = [urlsplit(str(asset.get("href"))).path.lower() for asset in document.get("assets", {}).values()]
    rasters = [p for p in paths if not p.endswith((".json", ".xml", ".txt", ".png", ".jpg", ".jpeg"))]
    return bool(rasters) and all(p.endswith(SIDE_BY_SIDE) for p in rasters)


def observed(scene: Scene, facts: Sensor, cube: Cube) -> list[Any]:
    """The observations of one scene that carry any information; a scene beyond the latent times is no look and no failure."""
    from fusion.observe.observation import looks

    try:
        if not np.asarray(cube.calendar.weights(scene.when)).any():
            return []  # the search reaches a little past the first and the last latent time
        return [o for o in looks(scene, facts, cube) if np.asarray(o.precision).any()]
    except FusionError as error:
        raise Unreadable(f"{type(error).__name__}: {error}") from error
