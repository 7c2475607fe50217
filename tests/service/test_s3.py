"""The same store laws on an object store: an S3 server of the test's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from fusion.errors import StoreError
from fusion.service import objects
from fusion.service import run as running
from fusion.service.store import CubeStore
from fusion.service.tile import fuse_tile
from tests.service.test_store import CORE, DRAWS, HALO, create, write_all
from tests.service.worlds import fields, quick_fit, small_cube, small_job


@pytest.fixture(params=["obstore", "fsspec"])
def client(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param == "fsspec":
        import sys

        monkeypatch.setitem(sys.modules, "obstore.store", None)  # as where obstore is not installed
    return str(request.param)


def test_a_cube_in_a_bucket(bucket: str, client: str) -> None:
    store = create(f"{bucket}/{client}/cube.zarr", small_cube((40, 40), 2, 2))
    assert type(store.objects.store).__name__ == ("Steady" if client == "obstore" else "FsspecStore")
    tiles = store.cube.grid.tiles(CORE, HALO)
    write_all(store, tiles[:-1])
    assert [(f.kind, f.tile) for f in store.verify()] == [("hole", tiles[-1].index)]
    write_all(store, tiles[-1:])
    assert store.finish() == {"OK": len(tiles)}
    assert CubeStore.open(store.url, read_only=True).verify() == []
    data = xr.open_zarr(objects.connect(store.url, read_only=True))
    got = data["mean"].values[..., :CORE, :CORE]
    np.testing.assert_array_equal(got, fields(store.cube, tiles[0], DRAWS)["mean"][(..., *tiles[0].core)])


def test_the_first_claim_wins(bucket: str) -> None:
    create(f"{bucket}/claim/cube.zarr", small_cube((40, 40), 1, 1))
    with pytest.raises(StoreError, match="another job"):
        create(f"{bucket}/claim/cube.zarr", small_cube((40, 40), 1, 1), fingerprint="0" * 64)


def test_a_job_writes_to_a_bucket(bucket: str, catalog: Path) -> None:
    store = running.prepare(small_job(catalog, f"{bucket}/job/cube.zarr"))
    assert fuse_tile(store.url, store.about["fingerprint"], (0, 0), fit=quick_fit)["status"] == "OK"
    again = running.prepare(small_job(catalog, f"{bucket}/job/cube.zarr"))
    assert again.committed() == {(0, 0)}


def test_a_bucket_that_is_not_there_is_explained(bucket: str) -> None:
    with pytest.raises(StoreError, match=r"resume|bucket"):
        create("s3://not-there-at-all/cube.zarr", small_cube((40, 40), 1, 1))
