"""Seams: what two tiles found of one pixel becomes one number, the same from either side; whatever is lost on the way is made again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from distributed import LocalCluster
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.cube.cube import Cube
from fusion.service import run as running
from fusion.service.blend import FOLDER, addressed, around, key_of, senders, weight, widest
from fusion.service.store import CubeStore
from fusion.service.template import DRAW_STEP
from fusion.service.tile import fuse_tile
from fusion.service.weave import Weave, blend_tile
from tests.service.test_run import on, same_cube
from tests.service.worlds import failing_fit, poison_fit, quick_fit, small_job

CORE, HALO, BLEND = 32, 4, 3


def level_of(origin: tuple[int, int]) -> float:
    """What a tile of `apart_fit` has for every value, from its first pixel."""
    row, col = ((o + HALO) // CORE for o in origin)
    return 1.0 + 0.3 * row - 0.7 * col + 0.2 * row * col


def apart_fit(observations: Any, cube: Cube, *, origin: tuple[int, int], **given: Any) -> Any:
    """An engine whose tiles disagree by constants: mean, sd and draws are levels of the tile; draws are one sd above and below."""
    made = quick_fit(observations, cube, origin=origin, **given)
    made.mean[:] = level_of(origin)
    made.sd[:] = 1.0 + 0.1 * level_of(origin) ** 2
    for n in range(len(made.draws)):
        made.draws[n] = made.mean + (-1) ** n * made.sd
    made.canonical_var = (made.sd / 2) ** 2
    return made


@pytest.fixture(scope="module")
def apart(catalog: Path, tmp_path_factory: pytest.TempPathFactory, workers: LocalCluster) -> CubeStore:
    job = small_job(catalog, tmp_path_factory.mktemp("apart") / "cube.zarr", cluster=on(workers))
    assert running.run(job, fit=apart_fit, progress="none").left == 0
    return CubeStore.open(job.output.store)


def expected(store: CubeStore, value: Any) -> np.ndarray:
    """(Y, X) the module's equation, pixel by pixel in float64; value: of a tile's level."""
    rows, cols = store.cube.grid.shape
    out = np.zeros((rows, cols))
    for y in range(rows):
        for x in range(cols):
            total = weights = 0.0
            for i in range(store.layout.tiles[0]):
                for j in range(store.layout.tiles[1]):
                    w = 1.0
                    for g, k in ((y, i), (x, j)):
                        inside = min(g + 0.5 - k * CORE, (k + 1) * CORE - g - 0.5)
                        w *= min(max((inside + BLEND) / (2 * BLEND), 0.0), 1.0)
                    total += w * value(level_of((i * CORE - HALO, j * CORE - HALO)))
                    weights += w
            out[y, x] = total / weights
    return out


def test_a_cube_is_the_blend_of_its_tiles(apart: CubeStore) -> None:
    mean, sd = expected(apart, lambda v: v), expected(apart, lambda v: 1 + 0.1 * v**2)
    got = {name: np.asarray(apart.group[name][...]) for name in apart.layout.pixels()}
    np.testing.assert_allclose(got["mean"], np.broadcast_to(mean, got["mean"].shape), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(got["sd"], np.broadcast_to(sd, got["sd"].shape), rtol=1e-5)
    np.testing.assert_allclose(got["canonical_sd"], np.broadcast_to(sd / 2, got["sd"].shape), rtol=1e-5)
    draws = got["draws"] * DRAW_STEP
    np.testing.assert_allclose(draws[0], 1.0, atol=DRAW_STEP)  # neighbours' deviations agree, so their blend keeps its size
    np.testing.assert_allclose(draws[1], -1.0, atol=DRAW_STEP)
    assert apart.verify() == []


def test_no_step_at_a_border_is_larger_than_the_ramp_allows(apart: CubeStore) -> None:
    mean, sd = (np.asarray(apart.group[name][0, 0]) for name in ("mean", "sd"))
    levels = [level_of((i * CORE - HALO, j * CORE - HALO)) for i in range(3) for j in range(3)]
    for axis in (0, 1):
        apart_by = np.ptp(levels)  # no two neighbours are further apart
        assert np.abs(np.diff(mean, axis=axis)).max() <= 1.001 * apart_by / (2 * BLEND)
    # tiles half an sd apart differ by less than 5 % of it across a border blended over 12 px
    assert 0.5 * np.abs(np.diff(weight(0, 128, widest(16, 128), np.arange(100, 140)))).max() < 0.05
    assert np.isfinite(sd).all()


def test_nothing_is_left_behind(apart: CubeStore) -> None:
    assert addressed(apart) == set()
    assert not any(apart.record(i).get("without") for i in apart.committed())


@given(core=st.integers(8, 64), halo=st.integers(0, 40), tiles=st.integers(1, 4))
def test_weights_of_the_tiles_that_meet_sum_to_one(core: int, halo: int, tiles: int) -> None:
    blend = widest(halo, core)
    assert 0 <= blend <= min(halo, core // 2)
    if blend:
        pixels = np.arange(tiles * core)
        all_of_them = sum(weight(j, core, blend, pixels) for j in range(-1, tiles + 1))
        np.testing.assert_allclose(all_of_them, 1.0, atol=1e-12)
        inner = (pixels >= blend) & (pixels < core - blend)
        assert (weight(0, core, blend, pixels)[inner] == 1).all()


@pytest.fixture
def prepared(catalog: Path, tmp_path: Path) -> CubeStore:
    return running.prepare(small_job(catalog, tmp_path / "cube.zarr"))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**32 - 1), width=st.integers(1, 20), bad=st.floats(0, 0.4))
def test_every_tile_is_blended_once_after_all_its_neighbours(seed: int, width: int, bad: float) -> None:
    class Paper:
        """As much of a store as the order asks for."""

        def __init__(self) -> None:
            self.layout = self
            self.tiles, self.about, self.objects = (7, 5), {"provenance": {}}, self

        def names(self, _: str) -> list[str]:
            return []

    rng = np.random.default_rng(seed)
    work = Weave(Paper(), set())  # type: ignore[arg-type]
    flying: list[Any] = []
    fitted, lost, blended, open_tiles = [], set(), [], 0
    while True:
        while len(flying) < width and (step := work.next()) is not None:
            flying.append(step)
        if not flying:
            break
        step = flying.pop(int(rng.integers(len(flying))))
        if step.task is blend_tile:
            assert set(around(step.index, (7, 5))) <= set(fitted) | lost
            assert set(dict(step.given)["without"]) == lost & set(around(step.index, (7, 5)))
            assert work.landed(step, {})
            blended.append(step.index)
        elif rng.random() < bad:
            assert work.lost(step)
            lost.add(step.index)
        else:
            assert not work.landed(step, {"posted": True})
            fitted.append(step.index)
        open_tiles = max(open_tiles, len(fitted) - len(blended))
    assert sorted([*fitted, *lost]) == sorted(np.ndindex(7, 5))
    assert sorted(blended) == sorted(fitted)
    assert open_tiles <= 2 * 5 + 3 + 2 * width


def test_what_is_lost_or_damaged_on_the_way_is_fitted_again(
    prepared: CubeStore, catalog: Path, tmp_path: Path, workers: LocalCluster
) -> None:
    job = small_job(catalog, tmp_path / "whole.zarr", cluster=on(workers))
    running.run(job, fit=quick_fit, progress="none")
    wanted = CubeStore.open(job.output.store)
    given: dict[str, Any] = {"fit": quick_fit, "read_retries": 0}
    for index in around((0, 0), (3, 3)):
        assert fuse_tile(prepared.url, prepared.about["fingerprint"], index, post=True, **given)["posted"]
    assert prepared.committed() == set()
    assert senders(prepared, (0, 0)) == set(around((0, 0), (3, 3)))
    again = fuse_tile(prepared.url, prepared.about["fingerprint"], (0, 0), post=True, fit=failing_fit)
    assert again["skipped"], "a tile whose message is there is not fitted again"
    # one message is cut short, one is gone
    prepared.objects.put_bytes(key_of((0, 0), (0, 1)), (prepared.objects.get_bytes(key_of((0, 0), (0, 1))) or b"")[:-200])
    prepared.objects.delete(key_of((0, 0), (1, 1)))
    assert blend_tile(prepared.url, prepared.about["fingerprint"], (0, 0), **given)["status"] == "OK"
    # a committed tile of which the messages are gone is fitted again for a neighbour that was forgotten
    assert running.resume(prepared.url, scheduler=workers.scheduler_address, fit=quick_fit, progress="none").left == 0
    assert same_cube(prepared, wanted)
    prepared.forget((1, 1))
    summary = running.resume(prepared.url, scheduler=workers.scheduler_address, fit=quick_fit, progress="none")
    assert (summary.before, summary.done) == (8, 1)
    assert same_cube(prepared, wanted)
    assert addressed(prepared) == set()
    assert prepared.verify() == []


def test_neighbours_of_a_failed_tile_are_blended_again_when_it_is_mended(
    catalog: Path, tmp_path: Path, workers: LocalCluster, apart: CubeStore
) -> None:
    job = small_job(catalog, tmp_path / "cube.zarr", cluster=on(workers))
    running.run(job, fit=failing_fit, progress="none")
    store = CubeStore.open(job.output.store)
    assert {i for i in store.committed() if store.record(i).get("without")} == {(0, 1), (1, 0), (1, 1)}
    assert addressed(store) == {(0, 0), (0, 1), (1, 0), (1, 1)}, "they keep what they need"
    assert np.isfinite(np.asarray(store.group["mean"][..., :32, 32:])).all()
    assert running.resume(store.url, scheduler=workers.scheduler_address, fit=failing_fit, progress="none").failed
    # a crash after the mended tile was committed, before its neighbours were: they are still known
    fuse_tile(store.url, store.about["fingerprint"], (0, 0), fit=quick_fit, post=True)
    blend_tile(store.url, store.about["fingerprint"], (0, 0), fit=poison_fit)
    summary = running.resume(store.url, scheduler=workers.scheduler_address, fit=quick_fit, progress="none")
    assert (summary.before, summary.done, summary.failed) == (9, 0, {})
    assert not any(store.record(i).get("without") for i in store.committed())
    assert store.objects.names(FOLDER) == []
    fresh = small_job(catalog, tmp_path / "fresh.zarr", cluster=on(workers))
    running.run(fresh, fit=quick_fit, progress="none")
    assert same_cube(store, CubeStore.open(fresh.output.store))


def test_without_a_blend_every_tile_is_its_own(catalog: Path, tmp_path: Path, workers: LocalCluster) -> None:
    job = small_job(catalog, tmp_path / "cube.zarr", cluster=on(workers), tiles={"core": 32, "halo": 4, "blend": 0})
    assert running.run(job, fit=apart_fit, progress="none").left == 0
    store = CubeStore.open(job.output.store)
    mean = np.asarray(store.group["mean"][0, 0])
    for tile in store.tiles():
        level = level_of((tile.window[0].start - HALO, tile.window[1].start - HALO))
        np.testing.assert_allclose(mean[tile.window], level, rtol=1e-6)


@pytest.mark.slow
def test_the_real_engine_leaves_no_seam(tmp_path: Path) -> None:
    """A border adds at most 5 % of the posterior sd, where it would add five times that; and a run makes that very cube."""
    from benchmarks.seams import VALUES, measured, two_tiles

    store = two_tiles(tmp_path, 24, 12)
    rows, cubes = measured(store)
    assert rows["alone"]["mean added rms"] > 0.2
    for name in VALUES:
        assert rows["blended"][f"{name} same rms"] == 0.0
        assert rows["blended"][f"{name} added rms"] <= 0.05
    assert rows["landscape"]["correlation"] > rows["alone"]["correlation"] + 0.1
    made_by_a_run(store, cubes["blended"])


def made_by_a_run(store: CubeStore, wanted: dict[str, np.ndarray]) -> None:
    """Runs the job in this process, where the engine is compiled already, and compares."""
    with LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address="127.0.0.1:0") as here:
        assert running.resume(store.url, scheduler=here.scheduler_address, progress="none").left == 0
    for name in ("mean", "sd"):
        made = np.asarray(store.group[name][...], np.float64)
        np.testing.assert_allclose(made, wanted[name], atol=1e-3 * wanted["sd"].min())
