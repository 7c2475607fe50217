"""A job may learn its spectral basis from its own flights: new ground and the flight's error are found, a lost flight is only noted."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from affine import Affine
from odc.geo.geobox import GeoBox

from fusion.cube.calendar import Instant
from fusion.cube.cube import Cube
from fusion.cube.grid import Grid
from fusion.cube.spectrum import DROPPED, NODES, SpectralBasis, within
from fusion.observe.scene import Scene
from fusion.observe.sensor import sensor
from fusion.service.flights import ACROSS, overview
from fusion.service.plan import Coverage, tile_at
from fusion.service.reading import look
from fusion.service.run import prepare
from tests.service.worlds import BBOX, archive, small_job

CHANNELS = np.arange(405.0, 2450.0, 10.0)
FEATURE = 0.06 * np.exp(-0.5 * ((NODES - 2260) / 40) ** 2)
"""a mineral that the library does not know"""


def flight(folder: Path) -> Path:
    """60 x 60 pixels of 10 m: library spectra, the mineral in varying amount, and water vapour left in at 940 nm (a factor)."""
    rng = np.random.default_rng(3)
    library = SpectralBasis.library(12)
    z = 0.6 * rng.standard_normal((3600, 12)) * np.sqrt(np.diag(library.prior))
    truth = np.clip(library.mean + z @ library.components.T + rng.uniform(0, 2, (3600, 1)) * FEATURE, 0.02, 1.5)
    seen = np.stack([np.interp(CHANNELS, NODES, s) for s in truth], axis=1)
    seen *= 1 - 0.2 * np.exp(-0.5 * ((CHANNELS - 940) / 15) ** 2)[:, None]
    grid = Grid.from_bbox(BBOX, align=15)
    box = GeoBox((60, 60), Affine(10, 0, grid.bounds.left + 600, 0, -10, grid.bounds.top - 600), grid.crs)
    values = seen.reshape(-1, 60, 60).astype(np.float32)
    facts = sensor("airborne")
    assert facts.write is not None
    scene = Scene(
        "airborne", "flight-1", tuple(f"{c:.0f}nm" for c in CHANNELS), values, np.full_like(values, 0.005), box,
        Instant(np.datetime64("2024-05-12T18:00:00")), centres=CHANNELS, fwhm=np.full(CHANNELS.size, 6.0), simulated=True,
    )  # fmt: skip
    path = archive(folder)
    listed = json.loads(path.read_text())
    listed["features"].append(facts.write(scene, folder).to_dict(include_self_link=False) | {"collection": "airborne"})
    path.write_text(json.dumps(listed))
    return path


def basis(catalog: Path, store: Path, flights: bool) -> tuple[SpectralBasis, list[str]]:
    sensors = [{"name": name, "catalog": str(catalog)} for name in ("landsat-8", "airborne")]
    made = prepare(small_job(catalog, store, sensors=sensors, spectrum={"rank": 8, "flights": flights}))
    return made.cube.basis, list(made.provenance["notes"])


def test_the_basis_learns_the_ground_and_the_error_of_a_flight(tmp_path: Path) -> None:
    catalog = flight(tmp_path / "archive")
    plain, _ = basis(catalog, tmp_path / "plain.zarr", flights=False)
    sharp, _ = basis(catalog, tmp_path / "sharp.zarr", flights=True)
    assert sharp.rank == plain.rank == 8
    assert "flight-1" in sharp.source
    assert not plain.gains
    clear = ~within(NODES, DROPPED)

    def left(one: SpectralBasis) -> float:
        """What is missed of the mineral by the best guess from all wavelengths."""
        gain = one.components.T @ np.linalg.solve(one.covariance + 1e-6 * np.eye(NODES.size), FEATURE)
        return float(np.linalg.norm((FEATURE - one.components @ gain)[clear]))

    assert left(sharp) < 0.8 * left(plain)
    dip = sharp.gains["flight-1"][NODES == 940][0]
    assert -0.3 < dip < -0.08
    assert abs(sharp.gains["flight-1"][NODES == 700][0]) == 0


def test_a_flight_that_cannot_be_read_leaves_the_library_and_a_note(tmp_path: Path) -> None:
    catalog = flight(tmp_path / "archive")
    for path in (tmp_path / "archive").rglob("*_rfl.img"):
        path.write_bytes(b"not an image")
    plain, _ = basis(catalog, tmp_path / "plain.zarr", flights=False)
    same, notes = basis(catalog, tmp_path / "same.zarr", flights=True)
    assert same == plain
    assert any("flight-1 is not used for the spectral basis" in note for note in notes)
    assert any("the library alone" in note for note in notes)


def test_the_overview_covers_the_area_on_few_pixels() -> None:
    grid = Grid.from_bbox((13.0, 46.0, 13.2, 46.1), resolution=10.0)
    few = overview(grid)
    assert max(few.shape) <= ACROSS
    assert few.bounds.left == grid.bounds.left
    assert few.bounds.top == grid.bounds.top
    assert few.bounds.right >= grid.bounds.right
    assert few.bounds.bottom <= grid.bounds.bottom


def test_a_tile_sees_the_flight_as_pseudo_bands_beside_the_satellite(tmp_path: Path) -> None:
    catalog = flight(tmp_path / "archive")
    sensors = [{"name": name, "catalog": str(catalog)} for name in ("landsat-8", "airborne")]
    store = prepare(small_job(catalog, tmp_path / "cube.zarr", sensors=sensors, spectrum={"rank": 8}))
    tile = tile_at(store.cube.grid, 32, 4, (0, 0))
    cube = Cube(tile.grid, store.cube.calendar, store.cube.basis)
    seen, record = look(Coverage(store.items()).of(tile), tile, cube, 0)
    assert record["failed_scenes"] == []
    assert record["looks"] == {"landsat-8": 2, "airborne": 1}
    (flown,) = (o for o in seen if o.sensor == "airborne")
    assert flown.bands == tuple(f"pseudo-{i + 1}" for i in range(8))
    assert flown.data.shape == (8, *tile.grid.shape)
    x, y = np.meshgrid(tile.grid.x, tile.grid.y)
    left, top = store.cube.grid.bounds.left + 600, store.cube.grid.bounds.top - 600
    over = (x > left) & (x < left + 600) & (y < top) & (y > top - 600)
    assert ((flown.precision[0] > 0) == over).all()
