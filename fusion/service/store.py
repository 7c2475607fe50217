"""The cube on disk: a sharded Zarr v3 group, template first, then one whole-shard region per tile and its record last.

    mean, sd        (time, component, y, x)        float32   posterior of z; NaN = not yet fused
    canonical_sd    (time, component, y, x)        float32   posterior sd of x, independent components: z = mixing x
    mixing          (tile_y, tile_x, component, canonical)   so Cov(z) = mixing diag(canonical_sd^2) mixing^T: any band's sd
    draws           (draw, time, component, y, x)  int16     standardised: z_draw = mean + sd * draws
    decomposition   (level, component, y, x)       float32   variance per level of the hierarchy, where the engine reports it
    status          (tile_y, tile_x)               uint8     CF flags, see CODES
    chi_square      (sensor, tile_y, tile_x)       float32   reduced chi-square
    looks           (sensor, tile_y, tile_x)       uint16    scenes fused
    tail            (tile_y, tile_x)               float32   index of the law of errors, in units of sd: 0 = normal
    time y x component sensor spatial_ref                    CF coordinates; x, y in metres at pixel centres

A draw is stored relative to its own mean and sd, in steps of 1/256: quantising costs 1/256/sqrt(12) = .11 % of an sd, whatever
the tile. Group attributes: `fusion` (cube, job, tile size, provenance), `proj:` and `spatial:` of the Zarr conventions
(https://github.com/zarr-conventions) beside CF's `grid_mapping`, so that xarray, rioxarray, odc-geo and GDAL 3.13 find the CRS.

Documents that are not arrays lie inside the folder of `status`, where Zarr's own listings do not look:
`status/claim.json` (whose store this is), `status/items.json` (the frozen catalog), `status/tiles/ROW.COL.json` (a committed
tile: status, checksums, diagnostics), `status/failed/ROW.COL.json` (a tile to try again). While a job of several tiles runs,
`status/overlap/ROW.COL/` holds what its neighbours found of a tile (`fusion.service.blend`); it is gone when the cube is whole.

Why writes are safe: a tile is a whole number of shards, so no two tasks touch one object; a write puts whole objects that
depend on the tile alone, so it may be repeated or cut short; the record follows the data, so a tile that has one is complete.
"""

from __future__ import annotations

import re
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from fusion.cube.cube import Cube
from fusion.cube.grid import Tile
from fusion.errors import FusionError, StoreError
from fusion.service.objects import Objects, finite, normal_url, store_errors
from fusion.service.template import CODES, DRAW_STEP, Layout, write_template

FORMAT = 2
NAME = re.compile(r"^(\d{1,9})\.(\d{1,9})\.json$")


class Damaged(StoreError):
    """A tile whose data are not what was written."""


@dataclass(frozen=True)
class Finding:
    """One thing that `verify` found wrong."""

    kind: str
    """hole, damaged, failed, foreign"""
    tile: tuple[int, int] | None
    detail: str


@dataclass(frozen=True, eq=False)
class CubeStore:
    """A cube store opened by its address; cheap to make, holds no data, safe to open in any number of processes."""

    url: str
    layout: Layout
    about: Mapping[str, Any]
    """the group attribute `fusion`"""
    objects: Objects

    @classmethod
    def create(
        cls, url: str, layout: Layout, *, job: Mapping[str, Any], fingerprint: str, items: Mapping[str, Any],
        provenance: Mapping[str, Any],
    ) -> CubeStore:
        """Claims the address and writes the template; the same job may do so again, another job is refused (StoreError)."""
        url = normal_url(url)
        objects = Objects(url)
        if objects.get("status/claim.json") is None and objects.get("zarr.json") is not None:
            raise StoreError(f"{url} already holds a Zarr group that is not a cube of ours: choose another output address")
        objects.put("status/claim.json", {"format": FORMAT, "fingerprint": fingerprint}, new=True)
        claim = objects.get("status/claim.json") or {}
        if claim.get("fingerprint") != fingerprint:
            raise StoreError(
                f"{url} is of another job (fingerprint {str(claim.get('fingerprint'))[:12]}, this one's {fingerprint[:12]}): "
                "a cube mixes no two jobs; choose another output address, or restore the job that it was made with"
            )
        if not claim.get("ready"):
            about = {
                "format": FORMAT, "fingerprint": fingerprint, "tile": layout.core, "cube": layout.cube.to_attrs(),
                "sensors": list(layout.sensors), "draws": layout.draws, "levels": list(layout.levels),
                "job": finite(dict(job)), "provenance": finite(dict(provenance)),
            }
            objects.put("status/items.json", finite(dict(items)))
            with store_errors(url, "writing the template"):
                write_template(objects.store, layout, about)
            objects.put("status/claim.json", {"format": FORMAT, "fingerprint": fingerprint, "ready": True})
        return cls.open(url)

    @staticmethod
    def claim(url: Any) -> dict[str, Any] | None:
        """Whose cube lies at an address (format, fingerprint, ready), or None; touches nothing."""
        try:
            found = Objects(normal_url(url), read_only=True).get("status/claim.json")
        except StoreError as error:
            if isinstance(error.__cause__, FileNotFoundError):
                return None
            raise
        return found if isinstance(found, dict) else None

    @classmethod
    def open(cls, url: Any, *, read_only: bool = False) -> CubeStore:
        """An existing cube; StoreError if there is none, if it is half created, or if it was damaged."""
        url = normal_url(url)
        claim = cls.claim(url)
        if claim is None:
            raise StoreError(f"{url} holds no cube: check the address, or make one with `fusion run`")
        objects = Objects(url, read_only=read_only)
        if claim.get("format") != FORMAT:
            raise StoreError(f"{url} has format {claim.get('format')!r}, this version reads {FORMAT}: use the one that wrote it")
        if not claim.get("ready"):
            raise StoreError(f"{url} was claimed but its template is unfinished: run the same job again, it continues there")
        document: Any = objects.get("zarr.json")
        try:
            about = document["attributes"]["fusion"]
            layout = Layout(
                Cube.from_attrs(about["cube"]), int(about["tile"]), int(about["draws"]), tuple(map(str, about["sensors"])),
                tuple(map(str, about["levels"])),
            )
        except Exception as error:  # a damaged document may break any of the libraries that rebuild the cube
            raise StoreError(f"{url}: the group's `fusion` attributes are not a cube's ({error!r}): it was damaged") from error
        if about.get("fingerprint") != claim.get("fingerprint"):
            raise StoreError(f"{url}: template and claim are of different jobs: the store was overwritten; restore or delete it")
        return cls(url, layout, about, objects)

    @property
    def cube(self) -> Cube:
        """The latent cube's coordinates."""
        return self.layout.cube

    @property
    def provenance(self) -> dict[str, Any]:
        """Job, versions and seed that the cube was made with; `items` has the scenes."""
        return {"fingerprint": self.about["fingerprint"], "job": self.about["job"], **self.about["provenance"]}

    @cached_property
    def group(self) -> zarr.Group:
        """The Zarr group, checked against the layout."""
        with store_errors(self.url, "opening the arrays"):
            mode: Any = "r" if self.objects.store.read_only else "r+"
            try:
                group = zarr.open_group(self.objects.store, mode=mode, use_consolidated=False)
                members = {name: group.get(name) for name in self.layout.arrays()}
            except (ArithmeticError, LookupError, TypeError, AttributeError) as error:  # of metadata that only look like Zarr's
                raise StoreError(f"{self.url}: the arrays' metadata make no sense ({error!r}): damaged") from error
            for name, plan in self.layout.arrays().items():
                found = members[name]
                if not isinstance(found, zarr.Array) or found.shape != plan.shape or found.dtype != np.dtype(plan.dtype):
                    raise StoreError(f"{self.url}: array {name!r} is missing or not {plan.dtype}{plan.shape}: damaged")
        return group

    def items(self) -> dict[str, list[dict[str, Any]]]:
        """The frozen catalog: the STAC items of each sensor, hrefs unsigned."""
        found = self.objects.get("status/items.json")
        if not isinstance(found, dict) or not all(isinstance(v, list) for v in found.values()):
            raise StoreError(f"{self.url}: the frozen catalog is missing or damaged: restore status/items.json")
        return found

    # --- writing ----------------------------------------------------------------------------------------------------

    def write_tile(
        self, tile: Tile, *, mean: NDArray[np.float32], sd: NDArray[np.float32], draws: NDArray[np.float32] | None = None,
        canonical_var: NDArray[np.float32] | None = None, decomposition: Mapping[str, NDArray[np.float32]] | None = None,
        record: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Writes one tile's core (T, K, Y, X), then its record; may be repeated. Arrays may be the padded tile or its core."""
        blocks = self.blocks_of(tile, mean=mean, sd=sd, draws=draws, canonical_var=canonical_var, decomposition=decomposition)
        return self.write_blocks(tile, blocks, record)

    def blocks_of(
        self, tile: Tile, *, mean: NDArray[np.float32], sd: NDArray[np.float32], draws: NDArray[np.float32] | None = None,
        canonical_var: NDArray[np.float32] | None = None, decomposition: Mapping[str, NDArray[np.float32]] | None = None,
        part: tuple[slice, slice] | None = None,
    ) -> dict[str, NDArray[Any]]:
        """What the arrays hold of one tile: array name -> its core, or a part of the padded tile, encoded as the array is."""
        rows, cols = self.layout.checked(tile)
        core = part or (slice(0, rows.stop - rows.start), slice(0, cols.stop - cols.start))
        if part is None and mean.shape[-2:] == tile.grid.shape and tile.halo:
            core = tile.core
        blocks: dict[str, NDArray[Any]] = {"mean": _block(mean, core), "sd": _block(sd, core)}
        blocks["canonical_sd"] = np.full_like(blocks["mean"], np.nan)
        if canonical_var is not None:
            blocks["canonical_sd"] = np.sqrt(_block(canonical_var, core))
        if self.layout.draws:
            blocks["draws"] = _standardised(draws, blocks["mean"], blocks["sd"], core, self.layout.draws, tile)
        if self.layout.levels:
            given = decomposition or {}
            empty = np.full(mean.shape[1:], np.nan, np.float32)
            blocks["decomposition"] = np.stack([_block(np.asarray(given.get(v, empty)), core) for v in self.layout.levels])
        return blocks

    def write_blocks(self, tile: Tile, blocks: Mapping[str, NDArray[Any]], record: Mapping[str, Any]) -> dict[str, Any]:
        """Writes one tile's blocks, then its record with their checksums; may be repeated."""
        rows, cols = self.layout.checked(tile)
        sums = {}
        for name, block in blocks.items():
            where = (*self.layout.arrays()[name].shape[:-2], rows.stop - rows.start, cols.stop - cols.start)
            if block.shape != where:
                raise StoreError(f"tile {tile.index}: {name} has shape {block.shape}, the store wants {where}")
            with store_errors(self.url, f"writing {name} of tile {tile.index}"):
                self.group[name][..., rows, cols] = block
            sums[name] = zlib.crc32(np.ascontiguousarray(block).tobytes())
        document = {**finite(dict(record)), "tile": list(tile.index), "crc32": sums}
        self.objects.put(f"status/tiles/{tile.index[0]}.{tile.index[1]}.json", document)
        return document

    def read_blocks(self, tile: Tile) -> dict[str, NDArray[Any]]:
        """One committed tile's blocks as they were written; Damaged if they are not, StoreError if they cannot be reached."""
        sums = self.record(tile.index).get("crc32")
        blocks = {}
        for name in self.layout.pixels():
            try:
                with store_errors(self.url, f"reading {name} of tile {tile.index}"):
                    blocks[name] = np.asarray(self.group[name][..., tile.window[0], tile.window[1]])
            except (ValueError, KeyError, TypeError, RuntimeError) as error:  # what codecs raise for bytes that are not theirs
                raise Damaged(f"{self.url}: tile {tile.index}: {name} cannot be read: {str(error)[:200]}") from error
            if not isinstance(sums, dict) or zlib.crc32(blocks[name].tobytes()) != sums.get(name):
                raise Damaged(f"{self.url}: tile {tile.index}: {name}: the checksum is not the one of when it was written")
        return blocks

    def write_failure(self, index: tuple[int, int], message: str) -> None:
        """Notes that a tile's task failed; `resume` tries it again."""
        document = {"tile": list(index), "status": "FAILED", "message": message[:4000]}
        self.objects.put(f"status/failed/{index[0]}.{index[1]}.json", document)

    def finish(self) -> dict[str, int]:
        """Gathers the records into `status`, `chi_square`, `looks`, `mixing`, `tail` and consolidates the metadata; may be repeated."""
        rows, cols = self.layout.tiles
        status = np.full((rows, cols), CODES["PENDING"], np.uint8)
        chi = np.full((len(self.layout.sensors), rows, cols), np.nan, np.float32)
        looks = np.zeros((len(self.layout.sensors), rows, cols), np.uint16)
        rank = self.cube.basis.rank
        mixing, tail = np.full((rows, cols, rank, rank), np.nan, np.float32), np.zeros((rows, cols), np.float32)
        for index in self.failed():
            status[index] = CODES["FAILED"]
        for index, record in self.records().items():
            status[index] = CODES.get(str(record.get("status")), CODES["FAILED"])
            tail[index] = record.get("tail") or 0.0
            if record.get("mixing"):
                mixing[index] = record["mixing"]
            for n, name in enumerate(self.layout.sensors):
                value = (record.get("chi_square") or {}).get(name)
                chi[(n, *index)] = np.nan if value is None else value
                looks[(n, *index)] = min(int((record.get("looks") or {}).get(name, 0)), 65535)
        with store_errors(self.url, "writing the statuses"), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Consolidated metadata")
            for name, block in {"status": status, "chi_square": chi, "looks": looks, "mixing": mixing, "tail": tail}.items():
                self.group[name][...] = block
            zarr.consolidate_metadata(self.objects.store)
        names = {code: name for name, code in CODES.items()}
        return {names[int(code)]: int(count) for code, count in zip(*np.unique(status, return_counts=True), strict=True)}

    # --- reading ----------------------------------------------------------------------------------------------------

    def _listed(self, folder: str) -> Iterator[tuple[int, int]]:
        rows, cols = self.layout.tiles
        for name in self.objects.names(f"status/{folder}"):
            if found := NAME.match(name):
                index = int(found[1]), int(found[2])
                if index[0] < rows and index[1] < cols:
                    yield index

    def committed(self) -> set[tuple[int, int]]:
        """The tiles that are complete: one listing, no reads."""
        return set(self._listed("tiles"))

    def has(self, index: tuple[int, int]) -> bool:
        """Whether one tile is complete."""
        return min(index) >= 0 and self.objects.get(f"status/tiles/{index[0]}.{index[1]}.json") is not None

    def failed(self) -> set[tuple[int, int]]:
        """The tiles whose last attempt failed and that are not committed since."""
        return set(self._listed("failed")) - self.committed()

    def record(self, index: tuple[int, int], folder: str = "tiles") -> dict[str, Any]:
        """What is known of one committed (or failed) tile."""
        found = self.objects.get(f"status/{folder}/{index[0]}.{index[1]}.json")
        if not isinstance(found, dict):
            raise StoreError(f"{self.url}: the record of tile {index} is missing or damaged: `fusion verify` says what else is")
        return found

    def records(self) -> dict[tuple[int, int], dict[str, Any]]:
        """The records of all committed tiles."""
        tiles = sorted(self.committed())
        with ThreadPoolExecutor(16) as pool:
            return dict(zip(tiles, pool.map(self.record, tiles), strict=True))

    def tiles(self) -> list[Tile]:
        """Every tile, without halo."""
        return self.cube.grid.tiles(self.layout.core, 0)

    def verify(self) -> list[Finding]:
        """Reads everything back: holes, checksums that do not match, failed tiles; an empty list = the cube is whole."""
        findings = []
        done, failed = self.committed(), self.failed()
        for tile in self.tiles():
            if tile.index in failed:
                findings.append(Finding("failed", tile.index, str(self.record(tile.index, "failed").get("message", ""))[:300]))
            elif tile.index not in done:
                findings.append(Finding("hole", tile.index, "no record: not fused yet"))
            else:
                findings += self._damage(tile)
        return findings

    def _damage(self, tile: Tile) -> Sequence[Finding]:
        try:
            self.read_blocks(tile)
        except FusionError as error:
            return [Finding("damaged", tile.index, str(error)[:300])]
        return []

    def forget(self, index: tuple[int, int]) -> None:
        """Drops a tile's record, so that `resume` fuses it anew."""
        self.objects.delete(f"status/tiles/{index[0]}.{index[1]}.json")


def _block(array: NDArray[np.float32], core: tuple[slice, slice]) -> NDArray[np.float32]:
    return np.ascontiguousarray(array[..., core[0], core[1]], dtype=np.float32)


def _standardised(
    draws: NDArray[np.float32] | None, mean: NDArray[np.float32], sd: NDArray[np.float32], core: tuple[slice, slice],
    count: int, tile: Tile,
) -> NDArray[np.int16]:
    """(draw - mean) / sd in steps of DRAW_STEP, clipped at 127 sd; -32768 = missing."""
    if draws is None or len(draws) != count:
        got = "none" if draws is None else str(len(draws))
        raise StoreError(f"tile {tile.index}: the store wants {count} draws, the engine gave {got}")
    out = np.empty((count, *mean.shape), np.int16)
    spread = np.where(sd > 0, sd, np.inf)
    for n in range(count):
        steps = np.rint((_block(draws[n], core) - mean) / (spread * DRAW_STEP))
        out[n] = np.where(np.isfinite(steps), np.clip(steps, -32767, 32767), -32768).astype(np.int16)
    return out
