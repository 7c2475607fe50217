"""Laws of the store: what is written is what is read, alignment is asserted, repeats change nothing, damage is found."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from fusion.cube.cube import Cube
from fusion.errors import StoreError
from fusion.service.plan import tile_at
from fusion.service.store import CODES, FORMAT, CubeStore
from fusion.service.template import DRAW_STEP, Layout
from tests.service.worlds import fields, small_cube

CORE, HALO, DRAWS = 32, 4, 3


def create(url: str | Path, cube: Cube | None = None, fingerprint: str = "f" * 64, **changes: object) -> CubeStore:
    layout = replace(Layout(cube or small_cube(), CORE, DRAWS, ("landsat-8", "modis-mcd43a4")), **changes)  # type: ignore[arg-type]
    items = {"landsat-8": [{"id": "a"}], "modis-mcd43a4": []}
    return CubeStore.create(str(url), layout, job={"name": "test"}, fingerprint=fingerprint, items=items, provenance={"seed": 0})


def write_all(store: CubeStore, tiles: list | None = None) -> None:
    for tile in tiles or store.cube.grid.tiles(CORE, HALO):
        record = {"status": "OK", "chi_square": {"landsat-8": 1.5}, "looks": {}}
        store.write_tile(tile, **fields(store.cube, tile, DRAWS), record=record)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> CubeStore:
    store = create(tmp_path_factory.mktemp("store") / "cube.zarr")
    write_all(store)
    store.finish()
    return store


def test_every_pixel_is_the_one_of_its_tile(whole: CubeStore) -> None:
    data = xr.open_zarr(whole.url)
    for tile in whole.cube.grid.tiles(CORE, HALO):
        wanted = fields(whole.cube, tile, DRAWS)
        rows, cols = tile.window
        core = (..., *tile.core)
        mean, sd = (data[name].values[..., rows, cols] for name in ("mean", "sd"))
        np.testing.assert_array_equal(mean, wanted["mean"][core])
        np.testing.assert_array_equal(sd, wanted["sd"][core])
        draws = mean + sd * data["draws"].values[..., rows, cols]
        # rounding to a step moves a draw by at most half of it
        assert (np.abs(draws - wanted["draws"][core]) <= 0.501 * DRAW_STEP * sd + 1e-5).all()


def test_quantising_costs_less_than_one_percent_of_an_sd(whole: CubeStore) -> None:
    data = xr.open_zarr(whole.url)
    tile = whole.cube.grid.tiles(CORE, HALO)[0]
    wanted = fields(whole.cube, tile, DRAWS)
    core = (..., *tile.core)
    exact = (wanted["draws"][core] - wanted["mean"][core]) / wanted["sd"][core]
    stored = data["draws"].values[..., tile.window[0], tile.window[1]]
    assert np.sqrt(np.mean((stored - exact) ** 2)) < 0.01


def test_other_libraries_read_it_without_us(whole: CubeStore) -> None:
    import odc.geo.xr  # noqa: F401
    import rioxarray  # noqa: F401

    data = xr.open_zarr(whole.url, decode_coords="all")
    assert data["mean"].odc.geobox == whole.cube.grid.geobox
    assert data["mean"].rio.crs.to_epsg() == whole.cube.grid.crs.epsg
    assert data["mean"].rio.transform() == whole.cube.grid.transform
    np.testing.assert_array_equal(data["time"].values.astype("datetime64[us]"), whole.cube.calendar.times)
    np.testing.assert_array_equal(data["x"], whole.cube.grid.x)
    assert data["status"].attrs["flag_meanings"].split() == list(CODES)
    assert data.attrs["proj:code"] == f"EPSG:{whole.cube.grid.crs.epsg}"
    assert data.attrs["spatial:transform"] == list(tuple(whole.cube.grid.transform)[:6])
    json.dumps(data.attrs)


def test_the_cube_comes_back_exactly(whole: CubeStore) -> None:
    opened = CubeStore.open(whole.url, read_only=True)
    assert opened.cube.to_attrs() == whole.cube.to_attrs()
    assert opened.items() == {"landsat-8": [{"id": "a"}], "modis-mcd43a4": []}
    assert opened.verify() == []
    assert zarr.open_group(whole.url, mode="r").metadata.consolidated_metadata is not None


def test_finish_gathers_statuses(tmp_path: Path) -> None:
    store = create(tmp_path / "c.zarr")
    tiles = store.cube.grid.tiles(CORE, HALO)
    write_all(store, tiles[:2])
    store.write_failure(tiles[2].index, "no")
    counts = store.finish()
    assert counts == {"OK": 2, "FAILED": 1, "PENDING": len(tiles) - 3}
    status = xr.open_zarr(store.url)["status"].values
    assert status[tiles[0].index] == CODES["OK"]
    assert status[tiles[2].index] == CODES["FAILED"]
    chi = xr.open_zarr(store.url)["chi_square"].sel(sensor="landsat-8").values
    assert chi[tiles[0].index] == 1.5
    assert np.isnan(chi[tiles[2].index])


GRID_CUBE = small_cube()


@settings(max_examples=200, deadline=None)
@given(core=st.integers(1, 70), tile=st.integers(1, 70), index=st.tuples(st.integers(0, 3), st.integers(0, 3)))
def test_a_window_is_accepted_if_and_only_if_it_is_whole_shards(core: int, tile: int, index: tuple[int, int]) -> None:
    cube, layout = GRID_CUBE, Layout(GRID_CUBE, core, 0, ("a",))
    if any(i * tile >= size for i, size in zip(index, cube.grid.shape, strict=True)):
        return
    piece = tile_at(cube.grid, tile, 0, index)
    window = piece.window
    # the shards that the window touches, and whether it covers each of them within the cube
    touched = [range(w.start // core, -(-w.stop // core)) for w in window]
    covers = all(
        w.start <= s * core and min((s + 1) * core, size) <= w.stop
        for w, shards, size in zip(window, touched, cube.grid.shape, strict=True) for s in shards
    )
    if covers:
        layout.checked(piece)
    else:
        with pytest.raises(StoreError, match="shards"):
            layout.checked(piece)


def test_a_misaligned_tile_is_refused_by_the_writer(tmp_path: Path) -> None:
    store = create(tmp_path / "c.zarr")
    tile = store.cube.grid.tiles(24, HALO)[1]
    with pytest.raises(StoreError, match="shards"):
        store.write_tile(tile, **fields(store.cube, tile, DRAWS), record={"status": "OK"})
    assert store.committed() == set()


def test_writing_again_changes_no_byte(tmp_path: Path) -> None:
    store = create(tmp_path / "c.zarr")
    write_all(store)
    store.finish()
    first = snapshot(tmp_path / "c.zarr")
    write_all(store)
    store.finish()
    assert snapshot(tmp_path / "c.zarr") == first


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_wrong_shapes_and_draws_are_refused(tmp_path: Path) -> None:
    store = create(tmp_path / "c.zarr")
    tile = store.cube.grid.tiles(CORE, HALO)[0]
    good = fields(store.cube, tile, DRAWS)
    with pytest.raises(StoreError, match="shape"):
        store.write_tile(tile, mean=good["mean"][1:], sd=good["sd"][1:], draws=good["draws"][:, 1:], record={})
    with pytest.raises(StoreError, match="draws"):
        store.write_tile(tile, mean=good["mean"], sd=good["sd"], draws=good["draws"][:1], record={})
    with pytest.raises(StoreError, match="draws"):
        store.write_tile(tile, mean=good["mean"], sd=good["sd"], draws=None, record={})
    assert store.committed() == set()


def test_another_job_is_refused_and_the_same_one_goes_on(tmp_path: Path) -> None:
    store = create(tmp_path / "c.zarr")
    write_all(store)
    with pytest.raises(StoreError, match="another job"):
        create(tmp_path / "c.zarr", fingerprint="0" * 64)
    again = create(tmp_path / "c.zarr")
    assert len(again.committed()) == len(store.tiles())
    assert again.verify() == []


def test_a_half_made_template_is_completed(tmp_path: Path) -> None:
    store = create(tmp_path / "c.zarr")
    store.objects.put("status/claim.json", {"format": FORMAT, "fingerprint": "f" * 64})
    shutil.rmtree(tmp_path / "c.zarr" / "sd")
    with pytest.raises(StoreError, match="unfinished"):
        CubeStore.open(store.url)
    write_all(create(tmp_path / "c.zarr"))
    assert CubeStore.open(store.url).verify() == []


def test_a_strangers_group_is_left_alone(tmp_path: Path) -> None:
    zarr.create_group(tmp_path / "c.zarr", attributes={"mine": 1})
    with pytest.raises(StoreError, match="not a cube"):
        create(tmp_path / "c.zarr")
    assert zarr.open_group(tmp_path / "c.zarr", mode="r").attrs["mine"] == 1


def test_verify_finds_every_flipped_byte(tmp_path: Path) -> None:
    store = create(tmp_path / "c.zarr", small_cube((32, 32), 2, 1))
    write_all(store)
    assert store.verify() == []
    shards = [p for name in store.layout.pixels() for p in (tmp_path / "c.zarr" / name / "c").rglob("*") if p.is_file()]
    rng = np.random.default_rng(0)
    for _ in range(60):
        path = shards[rng.integers(len(shards))]
        data = bytearray(path.read_bytes())
        spot = int(rng.integers(len(data)))
        data[spot] ^= 1 << int(rng.integers(8))
        kept = path.read_bytes()
        path.write_bytes(data)
        findings = CubeStore.open(store.url).verify()
        path.write_bytes(kept)
        assert [f.kind for f in findings] == ["damaged"], (path, spot)


def test_verify_finds_holes_truncation_and_lost_shards(tmp_path: Path) -> None:
    store = create(tmp_path / "c.zarr")
    tiles = store.cube.grid.tiles(CORE, HALO)
    write_all(store, tiles[:-1])
    assert [(f.kind, f.tile) for f in store.verify()] == [("hole", tiles[-1].index)]
    shard = tmp_path / "c.zarr" / "mean" / "c" / "0" / "0" / "0" / "0"
    kept = shard.read_bytes()
    shard.write_bytes(kept[: len(kept) // 2])
    assert ("damaged", (0, 0)) in [(f.kind, f.tile) for f in store.verify()]
    os.remove(shard)
    assert ("damaged", (0, 0)) in [(f.kind, f.tile) for f in store.verify()]
    store.forget((0, 0))
    assert (0, 0) not in store.committed()


@pytest.mark.parametrize("text", [
    b"", b"{", b"null", b"[]", b'{"format":1}', b'{"format":99,"ready":true}', b'{"format":1,"ready":true,"fingerprint":"x"}',
    b"\xff\xfe", b"[" * 100_000,
])
@pytest.mark.parametrize("document", ["zarr.json", "status/claim.json"])
def test_a_damaged_store_is_an_explained_error(tmp_path: Path, document: str, text: bytes) -> None:
    store = create(tmp_path / "c.zarr", small_cube((32, 32), 1, 1))
    (tmp_path / "c.zarr" / document).write_bytes(text)
    with pytest.raises(StoreError):
        CubeStore.open(store.url).verify()


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_hostile_group_attributes_never_crash(
    data: st.DataObject, whole: CubeStore, tmp_path_factory: pytest.TempPathFactory
) -> None:
    junk = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3), max_leaves=6,
    )
    folder = tmp_path_factory.mktemp("hostile") / "c.zarr"
    (folder / "status").mkdir(parents=True)
    shutil.copy(Path(whole.url) / "status" / "claim.json", folder / "status" / "claim.json")
    document = json.loads((Path(whole.url) / "zarr.json").read_text())
    fusion = document["attributes"]["fusion"]
    place = data.draw(st.sampled_from([(), ("cube",), ("cube", "grid"), ("cube", "calendar"), ("cube", "basis")]))
    for key in place:
        fusion = fusion[key]
    key = data.draw(st.sampled_from(sorted(fusion)))
    fusion[key] = data.draw(junk)
    (folder / "zarr.json").write_text(json.dumps(document))
    try:
        store = CubeStore.open(folder)
        store.group  # noqa: B018
    except StoreError:
        return
    assert store.cube.shape[0] >= 1


def test_array_metadata_that_overflow_are_a_damaged_store(tmp_path: Path) -> None:
    store = create(tmp_path / "c.zarr", small_cube((32, 32), 1, 1))
    path = tmp_path / "c.zarr" / "draws" / "zarr.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "fill_value": 32768}))
    with pytest.raises(StoreError, match="damaged"):
        CubeStore.open(store.url).group  # noqa: B018


def test_no_key_in_an_address() -> None:
    with pytest.raises(StoreError, match="key"):
        CubeStore.open("s3://user:secret@bucket/cube.zarr")
    with pytest.raises(StoreError, match="scheme"):
        CubeStore.open("ftp://host/cube.zarr")
    with pytest.raises(StoreError, match="no cube"):
        CubeStore.open("/nowhere/cube.zarr")


def test_a_full_disk_is_an_explained_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import zarr.storage._local as local

    store = create(tmp_path / "c.zarr")
    tiles = store.cube.grid.tiles(CORE, HALO)
    write_all(store, tiles[:1])

    def full(path: Path, *_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(path))

    with monkeypatch.context() as patch:
        patch.setattr(local, "_put", full)
        with pytest.raises(StoreError, match=r"No space left.*resume"):
            write_all(store, tiles[1:2])
    assert store.committed() == {tiles[0].index}
    write_all(store, tiles[1:])
    assert store.verify() == []
