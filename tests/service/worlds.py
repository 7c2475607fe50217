"""Small worlds for the tests of the service: simulated scenes on disk in the agencies' formats, and engines that cost nothing."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd

from fusion.cube.calendar import Calendar, Instant
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid, Tile
from fusion.cube.spectrum import SpectralBasis
from fusion.infer.posterior import Status
from fusion.observe.scene import Scene
from fusion.observe.sensor import sensor
from fusion.service.job import Job

BBOX = (-105.30, 40.00, -105.27, 40.02)
DAYS = ("2024-05-05", "2024-05-21")


def small_basis(rank: int = 2) -> SpectralBasis:
    return SpectralBasis.library(rank)


def small_cube(shape: tuple[int, int] = (50, 70), times: int = 3, rank: int = 2) -> Cube:
    grid = Grid.from_bbox(BBOX, "EPSG:32613").crop(slice(0, shape[0]), slice(0, shape[1]))
    return Cube(grid, Calendar.regular("2024-05-01", str(np.datetime64("2024-05-01") + 8 * (times - 1)), 8), small_basis(rank))


def fields(cube: Cube, tile: Tile, draws: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random fields of a padded tile, a function of its place alone."""
    rng = np.random.default_rng([seed, *(o + 10**6 for o in tile.origin)])
    shape = (len(cube.calendar), cube.basis.rank, *tile.grid.shape)
    mean = rng.normal(size=shape).astype(np.float32)
    sd = rng.uniform(0.01, 2.0, shape).astype(np.float32)
    return {"mean": mean, "sd": sd, "draws": mean + sd * rng.normal(size=(draws, *shape)).astype(np.float32)}


def archive(folder: Path, names: tuple[str, ...] = ("landsat-8",), days: tuple[str, ...] = DAYS) -> Path:
    """Scenes of a flat simulated world in each sensor's own file format, and the ItemCollection that lists them."""
    folder.mkdir(parents=True, exist_ok=True)
    grid = Grid.from_bbox(BBOX, align=15)
    rng = np.random.default_rng(0)
    features = []
    for name in names:
        facts = sensor(name)
        assert facts.native is not None
        assert facts.write is not None
        for day in days:
            geobox = facts.native(grid)
            shape = (len(facts.bands), *map(int, geobox.shape))
            values = (0.2 + 0.02 * rng.normal(size=shape)).clip(0.02, 0.9).astype(np.float32)
            scene = Scene(
                name, f"{name}-{day}", tuple(b.name for b in facts.bands), values, np.full(shape, 0.01, np.float32), geobox,
                Instant(np.datetime64(f"{day}T17:30:00")), simulated=True,
            )
            features.append(facts.write(scene, folder).to_dict(include_self_link=False) | {"collection": name})
    path = folder / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return path


def job_document(catalog: Path | str, store: Path | str, **changes: Any) -> dict[str, Any]:
    return {
        "area": {"bbox": list(BBOX)}, "target": {"align": 15.0}, "period": {"start": "2024-05-01", "end": "2024-05-25"},
        "sensors": [{"name": "landsat-8", "catalog": str(catalog)}], "spectrum": {"rank": 2}, "tiles": {"core": 32, "halo": 4},
        "engine": {"landscape": 0},
        "output": {"store": str(store), "draws": 2}, "cluster": {"workers": 2, "memory": "4GiB", "retries": 1, "read_retries": 1},
    } | changes


def small_job(catalog: Path | str, store: Path | str, **changes: Any) -> Job:
    return Job.of(job_document(catalog, store, **changes))


def quick_fit(observations: Any, cube: Cube, *, engine: str, draws: int, seed: int, origin: tuple[int, int], **_: Any) -> Any:
    """An engine that costs nothing: numbers from seed, place and data, so that equal inputs give equal cubes."""
    rng = np.random.default_rng([seed, origin[0] + 10**6, origin[1] + 10**6])
    level = np.float32(sum(float(np.asarray(o.data, np.float64).sum()) for o in observations))
    mean = rng.normal(size=cube.shape).astype(np.float32) + level
    sd = rng.uniform(0.1, 1.0, cube.shape).astype(np.float32)
    found = mean + sd * rng.normal(size=(draws, *cube.shape)).astype(np.float32)
    return SimpleNamespace(
        mean=mean, sd=sd, draws=found, status=Status.OK if observations else Status.NO_DATA, message="",
        chi_square={o.sensor: 1.0 for o in observations}, diagnostics={"observations": len(observations)}, hyper=None,
        canonical_var=(sd / 2) ** 2, mixing=2 * np.eye(cube.basis.rank), decomposition={"pixel": (sd**2).mean(0)}, tail=0.25,
    )


def slow_fit(*args: Any, **kwargs: Any) -> Any:
    """`quick_fit` that takes long enough to be interrupted."""
    time.sleep(0.25)
    return quick_fit(*args, **kwargs)


def poison_fit(observations: Any, cube: Cube, *, origin: tuple[int, int], **kwargs: Any) -> Any:
    """Kills its own process on the tile whose halo starts at (-4, -4), every time."""
    if origin == (-4, -4):
        os.kill(os.getpid(), signal.SIGKILL)
    return quick_fit(observations, cube, origin=origin, **kwargs)


def failing_fit(observations: Any, cube: Cube, *, origin: tuple[int, int], **kwargs: Any) -> Any:
    """Fails on one tile with an ordinary exception."""
    if origin == (-4, -4):
        raise ValueError("this tile cannot be fitted")
    return quick_fit(observations, cube, origin=origin, **kwargs)


def honest_measure(observations: Any, cube: Cube, *, most: int, hyper: Any, seed: int, origin: tuple[int, int], **_: Any) -> Any:
    """Stands for leave-one-out: predictions that miss by exactly the sd that they claim (0.01 reflectance), and say which theta they had."""
    rng = np.random.default_rng([seed, origin[0] + 10**6, origin[1] + 10**6])
    rows = []
    for obs in observations[:most]:
        for band, data, level in zip(obs.bands, np.asarray(obs.data), np.asarray(obs.layer.mean), strict=True):
            measured = data[np.isfinite(data)].astype(float) + float(level)
            rows.append(pd.DataFrame({
                "sensor": obs.sensor, "scene": obs.scene_id, "band": band, "class": np.arange(measured.size) % 2, "gap": 16.0,
                "measured": measured + 0.1 * (np.arange(measured.size) % 2 == 0), "sd": 0.01, "tail": 0.0, "linear": np.nan,
                "theta": "given" if hyper is not None else "learned",
            }).assign(predicted=lambda t: t["measured"] + 0.01 * rng.normal(size=len(t))))
    return pd.concat(rows, ignore_index=True)


def failing_measure(observations: Any, cube: Cube, *, origin: tuple[int, int], **given: Any) -> Any:
    """`honest_measure` that fails on one tile."""
    if origin == (-4, -4):
        raise ValueError("this tile cannot be examined")
    return honest_measure(observations, cube, origin=origin, **given)
