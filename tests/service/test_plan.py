"""Plans: counts agree with brute force, no pixel is read, memory that does not fit is refused with both numbers."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import shapely
import shapely.geometry
from distributed import LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.cube.grid import Grid
from fusion.errors import JobError
from fusion.service import cluster
from fusion.service import run as running
from fusion.service.blend import LEAST_HALO
from fusion.service.catalog import find
from fusion.service.job import Tiles
from fusion.service.plan import Coverage, blend_of, halo_of, make_plan, tile_at
from fusion.service.report import calendar_picture
from tests.service.worlds import BBOX, small_cube, small_job


@settings(max_examples=50, deadline=None)
@given(core=st.integers(8, 60), halo=st.integers(0, 30))
def test_one_tile_is_the_one_of_the_list(core: int, halo: int) -> None:
    grid = small_cube().grid
    for tile in grid.tiles(core, halo):
        assert tile_at(grid, core, halo, tile.index) == tile


def test_looks_per_tile_agree_with_geometry_done_the_slow_way() -> None:
    grid = Grid.from_bbox(BBOX, "EPSG:32613")
    rng = np.random.default_rng(0)
    items = []
    for n in range(40):
        lon, lat = rng.uniform(BBOX[0] - 0.01, BBOX[2]), rng.uniform(BBOX[1] - 0.01, BBOX[3])
        shape = shapely.box(lon, lat, lon + rng.uniform(0.001, 0.03), lat + rng.uniform(0.001, 0.02))
        items.append({"id": str(n), "geometry": shapely.geometry.mapping(shape)})
    coverage = Coverage({"a": items, "b": items[:3]})
    counts = coverage.counts(grid, 16, 5)
    for row, tile in enumerate(grid.tiles(16, 5)):
        slow = [i["id"] for i in items if tile.grid.lonlat.geom.intersects(shapely.geometry.shape(i["geometry"]))]
        assert [i["id"] for i in coverage.of(tile)["a"]] == slow
        assert counts["a"][row] == len(slow)


def test_a_plan_reads_no_pixels(catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import rasterio

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a plan opened a file")

    monkeypatch.setattr(rasterio, "open", refuse)
    made = running.plan(small_job(catalog, tmp_path / "c.zarr"))
    assert made.tiles == 9
    assert made.fits
    assert (made.looks["landsat-8"] == 2).all()
    rows = dict(made.rows())
    assert rows["tiles"] == "9 of 32 px with a halo of 4 px"
    assert "fits" in rows["peak memory per worker"]
    assert made.numbers()["scenes"] == {"landsat-8": 2}
    assert calendar_picture(made).startswith(b"\x89PNG")
    assert not (tmp_path / "c.zarr").exists()


def test_memory_that_does_not_fit_is_refused_with_both_numbers_and_a_way_out(catalog: Path, tmp_path: Path) -> None:
    changes = {"tiles": {"core": 1024}, "cluster": {"memory": "1.7GiB", "workers": 1}}
    made = running.plan(small_job(catalog, tmp_path / "c.zarr", **changes))
    with pytest.raises(JobError) as told:
        made.require()
    said = str(told.value)
    assert "1.70 GiB" in said
    assert "tiles.core = " in said
    proposed = int(said.split("tiles.core = ")[1].split(",")[0])
    smaller = running.plan(small_job(catalog, tmp_path / "c.zarr", **{**changes, "tiles": {"core": proposed}}))
    smaller.require()
    with pytest.raises(JobError, match=r"needs .* in a worker"):
        running.prepare(small_job(catalog, tmp_path / "c.zarr", **changes))
    assert not (tmp_path / "c.zarr").exists()


def test_more_of_anything_never_needs_less(catalog: Path, tmp_path: Path) -> None:
    def peak(**changes: object) -> float:
        return running.plan(small_job(catalog, tmp_path / "c.zarr", **changes)).peak_bytes

    assert peak() < peak(tiles={"core": 64, "halo": 4}) < peak(tiles={"core": 64, "halo": 8})
    assert peak() < peak(output={"store": "c.zarr", "draws": 20})
    assert peak() < peak(spectrum={"rank": 8})


def test_the_halo_holds_half_of_the_coarsest_footprint(catalog: Path) -> None:
    job = small_job(catalog, "c.zarr", tiles={"core": 32}, sensors=[{"name": "landsat-8"}, {"name": "modis-mcd43a4"}])
    alone = small_job(catalog, "c.zarr", tiles={"core": 32})
    assert halo_of(job, job.grid()) * 30 >= 463.3
    assert halo_of(alone, alone.grid()) == LEAST_HALO
    assert blend_of(alone, alone.grid()) == 9
    one = small_job(catalog, "c.zarr")
    one = one.model_copy(update={"tiles": Tiles(core=128)})
    assert halo_of(one, one.grid()) <= 4
    assert blend_of(one, one.grid()) == 0
    assert blend_of(one.model_copy(update={"tiles": Tiles(core=32, blend=0)}), one.grid()) == 0


def test_absurdly_many_tiles_are_refused(catalog: Path) -> None:
    job = small_job(catalog, "c.zarr", tiles={"core": 8, "halo": 0}, area={"bbox": [-110, 30, -100, 45]})
    found = find(job)
    cube = small_cube()
    big = type(cube)(job.grid(), cube.calendar, cube.basis)
    with pytest.raises(JobError, match="tiles"):
        make_plan(job, big, found)


def test_the_plan_asks_the_scheduler_for_its_workers(catalog: Path, tmp_path: Path, workers: LocalCluster) -> None:
    address = workers.scheduler_address
    made = running.plan(small_job(catalog, tmp_path / "c.zarr", cluster={"scheduler": address}))
    assert (made.workers.number, made.workers.threads, made.workers.memory) == (2, 1, 4 * 2**30)
    assert not [note for note in made.notes if "scheduler" in note]
    huge = {"tiles": {"core": 1024}, "output": {"store": "c.zarr", "draws": 100}}
    too_large = running.plan(small_job(catalog, tmp_path / "c.zarr", **huge, cluster={"scheduler": address}))
    with pytest.raises(JobError, match=r"which has 4\.00 GiB"):
        too_large.require()
    stated = running.plan(small_job(catalog, tmp_path / "c.zarr", cluster={"scheduler": address, "memory": "64GiB", "workers": 9}))
    assert (stated.workers.number, stated.workers.memory) == (9, 64 * 2**30)


def test_memory_that_nobody_knows_refuses_nothing_and_is_said(
    catalog: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = {"tiles": {"core": 1024}, "output": {"store": "c.zarr", "draws": 100}}
    with monkeypatch.context() as impatient:  # of the address where nobody is; a scheduler on a busy machine is given its time
        impatient.setattr(cluster, "CONNECT", "1s")
        made = running.plan(small_job(catalog, tmp_path / "c.zarr", **huge, cluster={"scheduler": "tcp://127.0.0.1:9"}))
    made.require()
    assert made.numbers()["limit_bytes"] is None
    assert "limit not known" in dict(made.rows())["peak memory per worker"]
    assert any("no Dask scheduler answers" in note for note in made.notes)
    quiet = {"dashboard_address": None, "silence_logs": logging.CRITICAL}
    with LocalCluster(n_workers=1, threads_per_worker=2, processes=False, memory_limit=0, **quiet) as unlimited:
        made = running.plan(small_job(catalog, tmp_path / "c.zarr", **huge, cluster={"scheduler": unlimited.scheduler_address}))
        assert made.workers.threads == 2
        made.require()
        assert any("no memory limit" in note for note in made.notes)
    with LocalCluster(n_workers=0, **quiet) as empty:
        made = running.plan(small_job(catalog, tmp_path / "c.zarr", **huge, cluster={"scheduler": empty.scheduler_address}))
        made.require()
        assert any("no worker yet" in note for note in made.notes)
