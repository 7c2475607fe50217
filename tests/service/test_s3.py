"""The same store laws on an object store: an S3 server of the test's own."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import boto3
import numpy as np
import pytest
import s3fs
import xarray as xr

from fusion.errors import StoreError
from fusion.service import objects
from fusion.service import run as running
from fusion.service.store import CubeStore
from fusion.service.tile import fuse_tile
from tests.service.ceph import KEY, SECRET, rgw
from tests.service.faults import faulty
from tests.service.test_run import same_cube
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


# --- the real thing: Ceph's gateway, which checks every signature, with a proxy before it that breaks things ------------------


@pytest.fixture(scope="module")
def gateway() -> Iterator[str]:
    with rgw() as address:
        wanted = {"aws_access_key_id": KEY, "aws_secret_access_key": SECRET, "region_name": "us-east-1"}
        boto3.client("s3", endpoint_url=address, **wanted).create_bucket(Bucket="cubes")
        yield address


@pytest.fixture
def known(gateway: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The environment of a user of the gateway."""
    for key, value in {
        "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_REGION": "us-east-1", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": gateway, "AWS_EC2_METADATA_DISABLED": "true",
    }.items():
        monkeypatch.setenv(key, value)
    yield monkeypatch
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.mark.slow
def test_a_cube_on_ceph_behind_faults(gateway: str, known: pytest.MonkeyPatch, client: str, record_property: object) -> None:
    parts = urlsplit(gateway)
    url, cube = f"s3://cubes/{client}/cube.zarr", small_cube((40, 40), 2, 2)
    with faulty((str(parts.hostname), parts.port or 80), rate=0.15, seed=5) as proxy:
        known.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{proxy.port}")
        store = create(url, cube)
        write_all(store)
        store.finish()
        assert store.verify() == []
        assert proxy.faults.total() > 10, proxy.faults
        record_property("requests", proxy.requests)  # type: ignore[operator]
        record_property("faults", dict(proxy.faults))  # type: ignore[operator]
    s3fs.S3FileSystem.clear_instance_cache()
    known.setenv("AWS_ENDPOINT_URL", gateway)
    clean = create(f"s3://cubes/{client}/clean.zarr", cube)
    write_all(clean)
    clean.finish()
    assert same_cube(CubeStore.open(url), clean)
    with pytest.raises(StoreError, match="another job"):
        create(url, cube, fingerprint="0" * 64)


@pytest.mark.slow
def test_a_run_on_ceph_is_interrupted_and_resumed(
    gateway: str, known: pytest.MonkeyPatch, catalog: Path, tmp_path: Path
) -> None:
    job = small_job(catalog, "s3://cubes/run/cube.zarr")
    store = running.prepare(job)
    for index in ((0, 0), (2, 1)):
        fuse_tile(store.url, store.about["fingerprint"], index, fit=quick_fit)
    summary = running.resume(store.url, fit=quick_fit, progress="none")
    assert (summary.before, summary.done, summary.failed) == (2, 7, {})
    here = small_job(catalog, tmp_path / "cube.zarr")
    running.run(here, fit=quick_fit, progress="none")
    assert same_cube(CubeStore.open(store.url), CubeStore.open(here.output.store))


@pytest.mark.slow
def test_ceph_refuses_a_wrong_key(gateway: str, known: pytest.MonkeyPatch) -> None:
    known.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match=r"rights"):
        create("s3://cubes/wrong/cube.zarr", small_cube((40, 40), 1, 1))
