"""A folder like the one that `make demo` leaves: a small simulated archive, and a cube that holds the truth. No fit is run."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fusion.cube.calendar import Calendar
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis
from fusion.demo import PERIOD
from fusion.service.catalog import find
from fusion.service.job import Job
from fusion.service.store import CubeStore
from fusion.service.template import Layout
from fusion.simulate import world

LEVELS = ("scene", "class", "pixel", "unresolved")


def demo(folder: Path, sensors: tuple[str, ...] = ("landsat-8",), draws: int = 8, core: int = 64) -> str:
    """Makes FOLDER/demo/archive and FOLDER/demo/cube.zarr; returns the address of the cube."""
    grid = Grid.from_bbox((-105.300, 40.000, -105.293, 40.006), "EPSG:32613", 30.0, align=15.0)
    made = world(grid, *PERIOD, seed=7, finer=1)
    made.archive(folder / "demo/archive", list(sensors))
    west, south, east, north = grid.lonlat.boundingbox.bbox
    job = Job.of({
        "name": "demo (simulated)", "area": {"bbox": (west, south, east, north)},
        "period": {"start": PERIOD[0], "end": PERIOD[1]},
        "sensors": [{"name": name, "catalog": str(folder / "demo/archive/catalog.json")} for name in sensors],
        "output": {"store": str(folder / "demo/cube.zarr"), "draws": draws},
    })  # fmt: skip
    address = Cube(grid, Calendar.regular(*PERIOD, 8), SpectralBasis.library(4))
    store = CubeStore.create(
        job.output.store, Layout(address, core, draws, sensors, LEVELS), job=job.document(), fingerprint=job.fingerprint,
        items=find(job).items, provenance={"seed": 0, "versions": {"numpy": np.__version__}},
    )
    mean = made.truth(address)
    sd, rng = np.full_like(mean, 0.01), np.random.default_rng(0)
    drawn = mean + sd * rng.normal(size=(draws, *mean.shape)).astype(np.float32)
    parts = dict(zip(LEVELS, (0.4, 0.3, 0.2, 0.1), strict=True))
    for number, tile in enumerate(grid.tiles(core, 0)):
        rows, cols = tile.window
        here = (..., rows, cols)
        shape = mean[here].shape[1:]
        store.write_tile(
            tile, mean=mean[here], sd=sd[here], draws=drawn[here],
            decomposition={level: np.full(shape, share, np.float32) for level, share in parts.items()},
            record={
                "status": ("OK", "MISFIT")[number % 2], "chi_square": dict.fromkeys(sensors, 0.9 + 0.3 * number), "simulated": True,
                "looks": dict.fromkeys(sensors, 8),
            },
        )  # fmt: skip
    store.finish()
    return store.url
