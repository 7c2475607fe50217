"""Cubes that grow: what is taken over is equal to the bit, what is fused again is said, whatever dies is continued, the old cube stays."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.cube.calendar import Calendar
from fusion.errors import JobError, StoreError
from fusion.service import extend as extending
from fusion.service import run as running
from fusion.service.continued import before_of, continue_tile, turned, window_of
from fusion.service.job import Job
from fusion.service.store import FORMAT, CubeStore
from fusion.service.tile import fuse_tile
from tests.service.test_store import snapshot
from tests.service.worlds import BBOX, archive, quick_fit, small_job

SMALL = (BBOX[0] + 0.011, BBOX[1], BBOX[2], BBOX[3] - 0.0088)
"""the south-east part of the area: two tiles by two of 32 px, the last ones of each row and column cut by its edge"""
DAYS = ("2024-05-05", "2024-05-21", "2024-06-06", "2024-06-22")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four scenes in two months."""
    return archive(tmp_path_factory.mktemp("grown"), days=DAYS)


def smooth_fit(observations: Any, cube: Any, **given: Any) -> Any:
    """`quick_fit` whose mean depends on the instant and the place alone, so that two fits agree at every time that both know."""
    made = quick_fit([], cube, **given)
    days = (cube.calendar.times - np.datetime64("2024-05-01")) / np.timedelta64(1, "D")
    made.mean[:] = np.sin(days / 9)[:, None, None, None]
    made.sd[:] = 0.5
    return made


def rough_fit(observations: Any, cube: Any, **given: Any) -> Any:
    """`smooth_fit` that lands one sd away where it does not begin at the cube's first time."""
    made = smooth_fit(observations, cube, **given)
    made.mean += 0.5 * (cube.calendar.times[0] > np.datetime64("2024-05-02"))
    return made


def made_of(scenes: Path, folder: Path, workers: LocalCluster, fit: Any = quick_fit) -> CubeStore:
    address = {"scheduler": workers.scheduler_address, "retries": 1}
    period = {"start": "2024-05-01", "end": "2024-06-10", "step_days": 4}
    job = small_job(scenes, folder / "old.zarr", cluster=address, area={"bbox": list(SMALL)}, period=period)
    assert running.run(job, fit=fit, progress="none").left == 0
    return CubeStore.open(job.output.store)


@pytest.fixture(scope="module")
def plain(scenes: Path, tmp_path_factory: pytest.TempPathFactory, workers: LocalCluster) -> CubeStore:
    """A cube by `quick_fit`; extending never touches it, which is one of the laws."""
    return made_of(scenes, tmp_path_factory.mktemp("plain"), workers)


@pytest.fixture(scope="module")
def even(scenes: Path, tmp_path_factory: pytest.TempPathFactory, workers: LocalCluster) -> CubeStore:
    """The same by `smooth_fit`."""
    return made_of(scenes, tmp_path_factory.mktemp("even"), workers, fit=smooth_fit)


def blocks(store: CubeStore, name: str, rows: slice, cols: slice) -> Any:
    return np.asarray(store.group[name][..., rows, cols])


def test_more_area_keeps_every_whole_tile_and_fuses_the_rest(plain: CubeStore, tmp_path: Path) -> None:
    old = plain
    before = snapshot(Path(old.url))
    summary = extending.extend(old.url, str(tmp_path / "new.zarr"), bbox=BBOX, fit=quick_fit, progress="none")
    assert snapshot(Path(old.url)) == before
    new = CubeStore.open(tmp_path / "new.zarr")
    assert new.verify() == []
    row, col = new.cube.grid.offset_of(old.cube.grid)
    assert row > 0, "the area was to grow in the north"
    assert col > 0
    assert row % 32 == col % 32 == 0
    told = before_of(new)
    assert told is not None
    assert told.offset == (row // 32, col // 32)
    whole = [(i, j) for i in range(old.cube.grid.shape[0] // 32) for j in range(old.cube.grid.shape[1] // 32)]
    assert summary.origins["copied"] >= len(whole)
    assert summary.origins["copied"] + summary.origins["fused"] == summary.total == np.prod(new.layout.tiles)
    for i, j in whole:
        here = slice(32 * i, 32 * i + 32), slice(32 * j, 32 * j + 32)
        there = slice(row + here[0].start, row + here[0].stop), slice(col + here[1].start, col + here[1].stop)
        for name in old.layout.pixels():
            np.testing.assert_array_equal(blocks(new, name, *there), blocks(old, name, *here))
        assert new.record((i + told.offset[0], j + told.offset[1]))["continued"] == {"how": "copied"}
    assert math.prod(old.layout.tiles) < summary.total
    # a second call finds everything done, and so does resume
    again = extending.extend(old.url, str(tmp_path / "new.zarr"), bbox=BBOX, fit=quick_fit, progress="none")
    assert (again.done, again.before) == (0, summary.total)
    assert running.resume(new.url, progress="none").done == 0


def test_tiles_of_a_grown_area_are_keyed_to_the_old_first_pixel(plain: CubeStore, tmp_path: Path) -> None:
    old = plain
    new = extending.prepare(old.url, str(tmp_path / "new.zarr"), bbox=BBOX)
    # fused anew in the larger cube, a tile that is whole in both comes out as it was: place and data are all that it depends on
    told = before_of(new)
    assert told is not None
    index = told.offset
    fuse_tile(new.url, new.about["fingerprint"], index, fit=quick_fit)
    # (but where it was blended with its neighbours)
    here = slice(32 * index[0], 32 * index[0] + 28), slice(32 * index[1], 32 * index[1] + 28)
    for name in ("mean", "sd", "draws"):
        np.testing.assert_array_equal(blocks(new, name, *here), blocks(old, name, slice(0, 28), slice(0, 28)))


def test_later_dates_keep_what_is_far_from_them(even: CubeStore, tmp_path: Path) -> None:
    old = even
    before = snapshot(Path(old.url))
    given: dict[str, Any] = {"end": "2024-06-30", "overlap": 12.0, "fit": smooth_fit, "progress": "none"}
    summary = extending.extend(old.url, str(tmp_path / "new.zarr"), **given)
    assert snapshot(Path(old.url)) == before
    assert dict(summary.origins) == {"continued": 4}
    new = CubeStore.open(tmp_path / "new.zarr")
    assert new.verify() == []
    told = before_of(new)
    assert told is not None
    times = new.cube.calendar.times
    assert times[told.times] - times[told.join] == np.timedelta64(12, "D")
    assert times[told.join] - times[told.window] == np.timedelta64(12, "D")
    for name in ("mean", "sd", "canonical_sd", "draws"):
        axis = new.layout.arrays()[name].dims.index("time")
        kept = np.take(np.asarray(new.group[name][...]), np.arange(told.join), axis)
        np.testing.assert_array_equal(kept, np.take(np.asarray(old.group[name][...]), np.arange(told.join), axis))
    assert np.isfinite(np.asarray(new.group["mean"][...])).all()
    record = new.record((0, 0))
    assert record["continued"]["how"] == "continued"
    assert record["continued"]["difference_sd"] == pytest.approx(0, abs=1e-5)
    assert record["scenes"]["landsat-8"] == [f"landsat-8-{day}" for day in DAYS]
    assert extending.extend(old.url, new.url, **given).done == 0


def test_a_rough_join_is_refitted_whole_and_said(even: CubeStore, tmp_path: Path) -> None:
    old = even
    given: dict[str, Any] = {"end": "2024-06-30", "overlap": 12.0, "fit": rough_fit, "progress": "none"}
    summary = extending.extend(old.url, str(tmp_path / "new.zarr"), **given)
    assert dict(summary.origins) == {"refitted": 4}
    new = CubeStore.open(tmp_path / "new.zarr")
    assert new.record((0, 0))["continued"]["difference_sd"] == pytest.approx(1, rel=1e-3)
    days = (new.cube.calendar.times - np.datetime64("2024-05-01")) / np.timedelta64(1, "D")
    np.testing.assert_allclose(np.asarray(new.group["mean"][...])[:, 0, 5, 5], np.sin(days / 9), rtol=1e-5)
    loose = extending.extend(old.url, str(tmp_path / "loose.zarr"), tolerance=1.5, **given)
    assert dict(loose.origins) == {"continued": 4}
    del given["overlap"]
    all_again = extending.extend(old.url, str(tmp_path / "all.zarr"), **given)
    assert dict(all_again.origins) == {"refitted": 4}


def test_failed_and_damaged_tiles_are_fused_anew(plain: CubeStore, tmp_path: Path) -> None:
    old = CubeStore.open(shutil.copytree(plain.url, tmp_path / "old.zarr"))
    old.forget((0, 1))
    shard = next(p for p in (Path(old.url) / "sd" / "c").rglob("*") if p.is_file() and p.parent.name == "0" and p.name == "0")
    shard.write_bytes(shard.read_bytes()[:-9] + b"123456789")
    assert {f.kind for f in old.verify()} == {"damaged", "hole"}
    new = extending.prepare(old.url, str(tmp_path / "new.zarr"), bbox=BBOX)
    told = before_of(new)
    assert told is not None
    for index in ((0, 0), (0, 1)):
        there = index[0] + told.offset[0], index[1] + told.offset[1]
        assert continue_tile(new.url, new.about["fingerprint"], there, fit=quick_fit)["how"] == "fused"


def test_an_interrupted_extension_goes_on(plain: CubeStore, tmp_path: Path) -> None:
    old = plain
    target = str(tmp_path / "new.zarr")
    new = extending.prepare(old.url, target, bbox=BBOX)
    done = [(0, 0), (1, 1)]
    for index in done:
        continue_tile(new.url, new.about["fingerprint"], index, fit=quick_fit)
    # as if it had died while the template was written
    new.objects.put("status/claim.json", {"format": FORMAT, "fingerprint": new.about["fingerprint"]})
    summary = extending.extend(old.url, target, bbox=BBOX, fit=quick_fit, progress="none")
    assert summary.before == len(done)
    assert summary.left == 0
    assert CubeStore.open(target).verify() == []


def test_an_extension_of_an_extension(even: CubeStore, tmp_path: Path) -> None:
    old = even
    quiet: dict[str, Any] = {"fit": smooth_fit, "progress": "none"}
    extending.extend(old.url, str(tmp_path / "two.zarr"), end="2024-06-20", overlap=12.0, **quiet)
    summary = extending.extend(str(tmp_path / "two.zarr"), str(tmp_path / "three.zarr"), bbox=BBOX, **quiet)
    assert summary.left == 0
    three = CubeStore.open(tmp_path / "three.zarr")
    row, col = three.cube.grid.offset_of(old.cube.grid)
    assert three.provenance["anchor"] == [-row, -col]
    assert three.verify() == []


def test_what_cannot_be_extended_is_explained(plain: CubeStore, tmp_path: Path) -> None:
    old = plain
    target = str(tmp_path / "new.zarr")
    for asked, words in (
        ({}, "nothing to add"), ({"end": "2024-06-11"}, "nothing to add"), ({"bbox": SMALL}, "nothing to add"),
        ({"end": "2024-05-05"}, "can only grow"), ({"end": "2024-06-30", "overlap": -1.0}, "positive"),
        ({"bbox": (-105.3, 40.01, -105.31, 40.02)}, "west >= east"),
    ):
        with pytest.raises(JobError, match=words):
            extending.prepare(old.url, target, **asked)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="name another address"):
        extending.prepare(old.url, old.url, end="2024-06-30")
    extending.prepare(old.url, target, end="2024-06-30")
    with pytest.raises(StoreError, match="another job"):
        extending.prepare(old.url, target, end="2024-07-30")
    with pytest.raises(StoreError, match="another job"):
        running.prepare(Job.of({**CubeStore.open(target).about["job"]}))
    with pytest.raises(StoreError, match="no cube"):
        extending.prepare(str(tmp_path / "gone.zarr"), target, end="2024-06-30")


@settings(deadline=None)
@given(times=st.integers(1, 40), more=st.integers(1, 9), step=st.floats(1, 16), overlap=st.floats(0.5, 500))
def test_a_window_has_context_before_its_join_or_is_everything(times: int, more: int, step: float, overlap: float) -> None:
    days = (np.arange(times + more) * step * 86_400_000_000).astype("timedelta64[us]")
    calendar = Calendar(np.datetime64("2024-01-01", "us") + days)
    window, join = window_of(calendar, times, overlap)
    if (window, join) == (0, 0):
        assert times == 1 or overlap > (times - 2) * step
        return
    assert 0 <= window < join < times
    seam = days[times] / np.timedelta64(1, "D")
    back = (seam - days / np.timedelta64(1, "D"))
    # nothing nearer to the first new date than the overlap is kept, and the context is as long again where the cube is
    assert (back[:join] > overlap - 1e-9).all() or join == times - 1
    assert window == 0 or back[window] <= max(2 * overlap, back[join - 1]) + 1e-9


@settings(deadline=None)
@given(seed=st.integers(0, 2**32 - 1), rank=st.integers(1, 5))
def test_kept_variances_are_the_same_on_other_axes(seed: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    old = rng.normal(size=(rank, rank)) + 3 * np.eye(rank)
    sd = rng.uniform(0.1, 1, (2, rank, 3, 3)).astype(np.float32)
    # the same axes in another order, scaled and mirrored: nothing is lost
    order = rng.permutation(rank)
    new = old[:, order] * rng.choice([-1, 1], rank) * rng.uniform(0.5, 2, rank)
    found, correlation = turned(old, new, sd)
    assert correlation < 1e-6
    before, after = (np.einsum("jk,tkyx->tjyx", m**2, s.astype(float) ** 2) for m, s in ((old, sd), (new, found)))
    np.testing.assert_allclose(after, before, rtol=1e-4)
    if rank > 1:
        # axes of other directions: the variance of x is exact, and what is left out is told
        other = rng.normal(size=(rank, rank)) + 3 * np.eye(rank)
        found, correlation = turned(old, other, sd)
        back = np.linalg.inv(other)
        full = np.einsum("ij,tjyx,kj->tikyx", back @ old, sd.astype(float) ** 2, back @ old)
        np.testing.assert_allclose(found.astype(float) ** 2, np.einsum("tiiyx->tiyx", full), rtol=1e-4)
        assert 0 < correlation <= 1 + 1e-9
