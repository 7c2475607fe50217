"""How well two neighbouring tiles agree where they meet, and what keeps them apart; the real engine on a simulated world.

    python -m benchmarks.seams                  # core 24 px with a halo of 12: minutes
    python -m benchmarks.seams --core 96 --halo 16

Two tiles are read by the service and fitted one by one, as a run does. At their common border (the two columns beside it, all dates and
components) both know the field. Printed: rms difference of mean, sd and of the first draw in posterior sd, and the correlation of the
draws' deviations, which are keyed to global pixels. Each line gives the tiles more in common, learned on both together: soft
classes, segments, the temporal covariance; then nothing of the border's disagreement is the landscape's.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

os.environ.setdefault("JAX_PLATFORMS", "cpu")
import numpy as np

from fusion.cube.cube import Cube
from fusion.cube.grid import Grid, Tile
from fusion.infer import fit, problem
from fusion.process.landscape import segments, soft_classes
from fusion.service import run as running
from fusion.service.job import Job
from fusion.service.reading import look
from fusion.service.store import CubeStore
from fusion.service.tile import desk
from fusion.simulate import world

SENSORS = ("landsat-8", "landsat-9")
PERIOD = ("2024-05-01", "2024-07-04")
CASES = ((), ("classes",), ("segments",), ("covariance",), ("classes", "covariance"), ("classes", "segments", "covariance"))


def two_tiles(folder: Path, core: int, halo: int) -> CubeStore:
    """The template of a job of two tiles side by side, over a simulated archive that reaches beyond them."""
    box = (450_015.0, 4_430_025.0, 450_015.0 + 2 * core * 30.0, 4_430_025.0 + core * 30.0)
    grid = Grid.from_bbox(box, "EPSG:32613", 30.0, bbox_crs="EPSG:32613", align=15.0)
    around = grid.crop(slice(-halo - 8, core + halo + 8), slice(-halo - 8, 2 * core + halo + 8))
    world(around, *PERIOD, finer=1).archive(folder / "archive", list(SENSORS))
    catalog = str(folder / "archive" / "catalog.json")
    return running.prepare(Job.of({
        "area": {"bbox": box, "crs": "EPSG:32613"}, "target": {"crs": "EPSG:32613", "align": 15.0},
        "period": {"start": PERIOD[0], "end": PERIOD[1]}, "spectrum": {"rank": 3}, "engine": {"name": "gaussian"},
        "tiles": {"core": core, "halo": halo}, "sensors": [{"name": name, "catalog": catalog} for name in SENSORS],
        "output": {"store": str(folder / "cube.zarr"), "draws": 4}, "cluster": {"memory": "1000GiB"},
    }))


class Pair:
    """The two tiles' observations, and what can be learned from both together."""

    def __init__(self, store: CubeStore, core: int, halo: int) -> None:
        self.core, self.halo = core, halo
        self.desk = desk(store.url, store.about["fingerprint"])
        self.tiles = [self.desk.tile((0, column)) for column in (0, 1)]
        whole = store.cube.grid.crop(slice(-halo, core + halo), slice(-halo, 2 * core + halo))
        union = Tile((0, 0), whole, (slice(0, core), slice(0, 2 * core)), halo)
        self.seen = [self._look(tile) for tile in self.tiles]
        observations, cube = self._look(union)
        images = problem._images(observations, cube.grid.shape)
        self.classes, self.segments = soft_classes(images), segments(images, origin=union.origin)
        self.covariance = problem._empirical(observations, cube)

    def _look(self, tile: Tile) -> tuple[list[Any], Cube]:
        cube = Cube(tile.grid, self.desk.store.cube.calendar, self.desk.store.cube.basis)
        return look(self.desk.coverage.of(tile), tile, cube, 0)[0], cube

    @contextmanager
    def sharing(self, what: tuple[str, ...], number: int) -> Iterator[None]:
        """Gives the fit of one tile what was learned on both."""
        cols = slice(number * self.core, number * self.core + self.core + 2 * self.halo)
        given: dict[str, Any] = {
            "classes": ("soft_classes", lambda *_, **__: self.classes[..., cols]),
            "segments": ("segments", lambda *_, **__: self.segments[..., cols]),
            "covariance": ("_empirical", lambda *_, **__: self.covariance),
        }
        with ExitStack() as stack:
            for name in what:
                stack.enter_context(patch.object(problem, *given[name]))
            yield

    def compared(self, what: tuple[str, ...]) -> dict[str, float]:
        """The disagreement at the border."""
        found = []
        for number, (tile, (observations, cube)) in enumerate(zip(self.tiles, self.seen, strict=True)):
            with self.sharing(what, number):
                found.append(fit(observations, cube, engine="gaussian", draws=4, origin=tile.origin))
        rows, edge = slice(self.halo, self.halo + self.core), self.halo + self.core
        here, there = slice(edge - 1, edge + 1), slice(self.halo - 1, self.halo + 1)
        left = {name: np.asarray(getattr(found[0], name))[..., rows, here] for name in ("mean", "sd", "draws")}
        right = {name: np.asarray(getattr(found[1], name))[..., rows, there] for name in ("mean", "sd", "draws")}
        deviations = [((side["draws"][0] - side["mean"]) / side["sd"]).ravel() for side in (left, right)]
        rms = {
            name: float(np.sqrt(np.mean(((a - b) / left["sd"]) ** 2)))
            for name, a, b in (("mean", left["mean"], right["mean"]), ("sd", left["sd"], right["sd"]),
                               ("draw", left["draws"][0], right["draws"][0]))
        }
        return {**rms, "correlation": float(np.corrcoef(*deviations)[0, 1])}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--core", type=int, default=24)
    parser.add_argument("--halo", type=int, default=12)
    asked = parser.parse_args()
    print(f"simulated world, {', '.join(SENSORS)}; core {asked.core} px, halo {asked.halo} px; differences in posterior sd")
    print(f"{'in common':<34}{'mean':>8}{'sd':>8}{'draw':>8}{'corr. of draws':>16}")
    with tempfile.TemporaryDirectory() as folder:
        pair = Pair(two_tiles(Path(folder), asked.core, asked.halo), asked.core, asked.halo)
        for what in CASES:
            row = pair.compared(what)
            name = ", ".join(what) or "nothing (as a run does it)"
            print(f"{name:<34}{row['mean']:>8.3f}{row['sd']:>8.3f}{row['draw']:>8.3f}{row['correlation']:>16.3f}", flush=True)


if __name__ == "__main__":
    main()
