"""The job: what to fuse, where it comes from, where it goes; one TOML file or the same as Python objects.

Every key has a default but the area, the period, the sensors and the output. A key that is not known is an error with the nearest
known one. What decides the cube's values (all but name, store and cluster) enters the job's fingerprint, so that another machine may resume it.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from collections.abc import Iterator
from datetime import date, datetime
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from odc.geo import CRS
from odc.geo.geom import Geometry
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fusion.cube.calendar import Calendar, instant_of
from fusion.cube.grid import Grid
from fusion.errors import FusionError, JobError, StoreError
from fusion.observe.sensor import sensor
from fusion.service.objects import normal_url

MAX_PIXELS = 10**11
"""latent pixels of one job: all land of the Earth at 30 m is 1.7e11; split larger jobs"""
MAX_TIMES = 10_000
MAX_FILE = 64 * 2**20

Moment = Annotated[str, BeforeValidator(lambda v: v.isoformat() if isinstance(v, date | datetime) else v)]


class Record(BaseModel):
    """A frozen record that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, str_max_length=4096)


class Area(Record):
    """WHERE: a box, or the outline in a GeoJSON file."""

    bbox: tuple[float, float, float, float] | None = Field(default=None, description="west, south, east, north in `crs`")
    geojson: str | None = Field(default=None, description="path of a GeoJSON file (any kind) in `crs`")
    crs: str = Field(default="EPSG:4326", description="CRS of the box or the file")

    @model_validator(mode="after")
    def _one(self) -> Area:
        if (self.bbox is None) == (self.geojson is None):
            raise ValueError("give either `bbox` or `geojson`, not both and not neither")
        return self

    def box(self) -> tuple[float, float, float, float]:
        """(west, south, east, north) in `crs`."""
        if self.bbox is not None:
            return self.bbox
        assert self.geojson is not None  # validated
        path = Path(self.geojson)
        try:
            if path.stat().st_size > MAX_FILE:
                raise JobError(f"area.geojson {path} has {path.stat().st_size} bytes: simplify the outline to under 64 MB")
            document = json.loads(path.read_text())
            parts = [f["geometry"] for f in document["features"]] if document.get("type") == "FeatureCollection" else [document]
            boxes = [Geometry(p.get("geometry", p), CRS(self.crs)).boundingbox for p in parts]
            west, south = min(b.left for b in boxes), min(b.bottom for b in boxes)
            east, north = max(b.right for b in boxes), max(b.top for b in boxes)
        except JobError:
            raise
        except Exception as error:  # json, shapely and pyproj each raise their own family
            raise JobError(f"area.geojson {path}: not an outline that can be read ({error}): give a GeoJSON polygon") from error
        return west, south, east, north


class Target(Record):
    """The latent pixels."""

    crs: str | None = Field(default=None, description="projected CRS in metres; default: the UTM zone of the area's centre")
    resolution: float = Field(default=30.0, gt=0, le=1e6, description="pixel edge, metres")
    align: float = Field(default=0.0, ge=-1e6, le=1e6, description="where pixel edges sit, metres modulo the resolution; Landsat 15, HLS 0")


class Period(Record):
    """WHEN: the latent times."""

    start: Moment
    end: Moment
    step_days: float = Field(default=8.0, gt=0, description="days between latent times")
    times: tuple[Moment, ...] | None = Field(default=None, min_length=1, description="these latent times instead of a regular step")


class FileEntry(Record):
    """One file that has no STAC item."""

    href: str
    datetime: Moment | None = Field(default=None, description="acquisition time; default: read from the file's name")


class Source(Record):
    """One sensor and where its scenes are: a STAC API, a static catalog, or files."""

    name: str = Field(description="`fusion sensors` lists the installed ones")
    catalog: str | None = Field(default=None, description="address of a STAC API, or path of a static catalog or ItemCollection")
    collection: str | None = Field(default=None, description="collection in that catalog; default: the sensor's usual one there")
    query: dict[str, Any] = Field(default_factory=dict, description='property filter, {"eo:cloud_cover" = {lt = 60}}')
    files: tuple[Annotated[FileEntry, BeforeValidator(lambda v: {"href": v} if isinstance(v, str) else v)], ...] = Field(
        default=(), description="paths (globs allowed) or {href, datetime}"
    )
    max_items: int = Field(default=10_000, gt=0, description="refuse a search that finds more")

    @model_validator(mode="after")
    def _one(self) -> Source:
        if self.catalog is not None and self.files:
            raise ValueError("give either `catalog` or `files`, not both")
        return self


class Spectrum(Record):
    """WHICH COLOUR: the spectral basis of the latent field."""

    rank: int = Field(default=8, ge=1, le=64, description="components K")
    flights: bool = Field(default=False, description="learn the basis also from the job's own imaging spectrometers, read coarsely first")


class Engine(Record):
    """How the posterior is computed."""

    name: Literal["gaussian", "variational", "mcmc"] = "variational"
    seed: int = Field(default=0, ge=0)
    landscape: int = Field(default=9, ge=0, le=1000, description="tiles surveyed first for classes, dates and sensors; 0 = each by itself")
    pool: int = Field(default=0, ge=0, description="tiles fitted first to learn what all tiles share; 0 = each by itself")
    settings: dict[str, Any] = Field(default_factory=dict, description="passed on to the engine by name")

    @model_validator(mode="after")
    def _pools_what_it_learns(self) -> Engine:
        if self.pool and self.name == "gaussian":
            raise ValueError("the gaussian engine takes hyperparameters as given: `pool` needs variational or mcmc")
        return self


class Tiles(Record):
    """How the area is cut."""

    core: int = Field(default=128, ge=8, le=4096, description="pixels along a tile's edge")
    halo: int | None = Field(default=None, ge=0, le=1024, description="pixels around it; default: half of the coarsest footprint, or 12")
    blend: int | None = Field(default=None, ge=0, le=1024, description="pixels of it in which neighbours are blended; 0 = none")

    @model_validator(mode="after")
    def _has_room(self) -> Tiles:
        if self.blend and self.blend > min(self.core // 2, self.core if self.halo is None else self.halo):
            raise ValueError(f"`blend` reaches {self.blend} px, no further than `halo` and half of `core` = {self.core} px are possible")
        return self


class Output(Record):
    """What is kept, and where."""

    store: str = Field(description="local path, s3://, gs:// or az:// address of the cube")
    draws: int = Field(default=16, ge=0, le=1000, description="posterior draws that are kept")


class Cluster(Record):
    """Who works; none of it changes the result."""

    scheduler: str | None = Field(default=None, description="a running Dask scheduler, tcp://host:8786; default: this machine")
    workers: int | None = Field(default=None, ge=1, le=10_000, description="processes; default: one per core, or one per GPU")
    threads: int = Field(default=1, ge=1, le=64, description="tiles at a time per worker")
    gpus: tuple[int, ...] = Field(default=(), description="device numbers: one process each")
    memory: str | None = Field(default=None, description="limit per worker, such as 8GiB; default: the machine's, shared")
    retries: int = Field(default=2, ge=0, le=20, description="times a failing tile is tried again")
    read_retries: int = Field(default=3, ge=0, le=20, description="times a scene that cannot be reached is tried again")
    dashboard: str = Field(default="127.0.0.1:0", description="address of the Dask dashboard and its /metrics")
    cache: str | None = Field(default=None, description="folder of the compile cache; default: the user's cache folder")


class Job(Record):
    """All of it."""

    name: str = "cube"
    land_cover: str | None = Field(default=None, description="GeoTIFF of land-cover codes, path or address: one more image to draw classes from")
    area: Area
    target: Target = Target()
    period: Period
    sensors: tuple[Source, ...] = Field(min_length=1, max_length=100)
    spectrum: Spectrum = Spectrum()
    engine: Engine = Engine()
    tiles: Tiles = Tiles()
    output: Output
    cluster: Cluster = Cluster()

    @model_validator(mode="after")
    def _named_once(self) -> Job:
        names = [s.name for s in self.sensors]
        if len(set(names)) < len(names):
            raise ValueError(f"a sensor is listed twice: {', '.join(sorted({n for n in names if names.count(n) > 1}))}")
        return self

    @classmethod
    def load(cls, path: str | Path) -> Job:
        """A job from a TOML file; relative paths in it start at its folder. JobError names every wrong key."""
        path = Path(path)
        try:
            if path.stat().st_size > MAX_FILE:
                raise JobError(f"job {path} has {path.stat().st_size} bytes: that is no job file")
            document = tomllib.loads(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise JobError(f"job {path}: {error.strerror or error}: `fusion job init` writes one to start from") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
            raise JobError(f"job {path} is not TOML ({error}): check quotes and brackets there") from error
        return cls.of(_rooted(document, path.resolve().parent), str(path))

    @classmethod
    def of(cls, document: Any, where: str = "job") -> Job:
        """A job from a plain dictionary, such as the one `document` gives; JobError names every wrong key."""
        try:
            return cls.model_validate(document)
        except ValidationError as error:
            told = [e for e in error.errors() if not (e["type"] == "too_short" and e.get("input"))]  # follows from another one
            raise JobError(f"{where}:\n" + "\n".join(f"  {_explained(e)}" for e in told)) from error
        except RecursionError as error:
            raise JobError(f"{where}: nested too deep to be a job") from error

    def on(self, scheduler: str | None) -> Job:
        """The same job on a running Dask scheduler; None = where the job itself says."""
        return self.model_copy(update={"cluster": self.cluster.model_copy(update={"scheduler": scheduler})}) if scheduler else self

    def document(self) -> dict[str, Any]:
        """JSON-ready, complete with defaults; `of` reads it back."""
        return self.model_dump(mode="json")

    @property
    def fingerprint(self) -> str:
        """SHA-256 over what decides the cube's values; equal jobs have equal fingerprints on every machine."""
        document = self.document()
        values = {k: document[k] for k in ("sensors", "spectrum", "engine", "tiles")}
        for part, key, default in (("spectrum", "flights", False), ("tiles", "blend", None), ("engine", "landscape", 9)):
            values[part] = {k: v for k, v in document[part].items() if k != key or v != default}  # so that older cubes are known
        values["period"] = {k: v for k, v in document["period"].items() if v is not None}
        values |= {} if self.land_cover is None else {"land_cover": self.land_cover}
        values |= {"grid": self.grid().to_attrs(), "times": self.calendar().to_attrs(), "draws": self.output.draws}
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def grid(self) -> Grid:
        """The latent pixels; refused before anything is allocated if they are absurdly many."""
        try:
            grid = Grid.from_bbox(
                self.area.box(), self.target.crs, self.target.resolution, bbox_crs=self.area.crs, align=self.target.align
            )
        except FusionError:
            raise
        except Exception as error:  # pyproj and shapely each raise their own family
            told = f"area in {self.area.crs[:80]!r} cannot be placed ({str(error)[:200]})"
            raise JobError(f"{told}: check area.crs, the area's numbers and target.crs") from error
        if math.prod(grid.shape) > MAX_PIXELS:
            raise JobError(
                f"area and resolution ask for {grid.shape[0]} x {grid.shape[1]} pixels, at most {MAX_PIXELS:.0e} fit one job: "
                "choose coarser pixels or split the area"
            )
        return grid

    def calendar(self) -> Calendar:
        """The latent times."""
        start, end = instant_of(self.period.start), instant_of(self.period.end)
        if self.period.times is not None:
            times = np.array([instant_of(t) for t in self.period.times])
            if times.size > MAX_TIMES or times.min() < start or times.max() > end:
                raise JobError(f"period.times: {times.size} times from {times.min()} to {times.max()}, asked for at most {MAX_TIMES} "
                               f"inside the period {start} to {end}: correct them, or widen the period")
            return Calendar(times)
        count = float((end - start).astype("int64")) / 86.4e9 / self.period.step_days
        if count > MAX_TIMES:
            raise JobError(f"period and step ask for {count:.0f} latent times, at most {MAX_TIMES} fit: choose a longer step")
        return Calendar.regular(start, end, self.period.step_days)


def _rooted(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths in a job file start at the file's own folder."""

    def rooted(value: Any) -> Any:
        return str(folder / value) if isinstance(value, str) and value and "://" not in value else value

    sources = document.get("sensors")
    for part, key in ((document, "land_cover"), (document.get("area"), "geojson"), (document.get("output"), "store")):
        if isinstance(part, dict) and key in part:
            part[key] = rooted(part[key])
    for source in sources if isinstance(sources, list) else []:
        if not isinstance(source, dict):
            continue
        if "catalog" in source:
            source["catalog"] = rooted(source["catalog"])
        if isinstance(source.get("files"), list):
            source["files"] = [{**f, "href": rooted(f["href"])} if isinstance(f, dict) and "href" in f else rooted(f) for f in source["files"]]
    return document


def _explained(error: Any) -> str:
    """One validation error as: where, what was found, what to do."""
    path = [str(p) for p in error["loc"]]
    where = ".".join(path) or "job"
    if error["type"] == "extra_forbidden":
        known = list(_record_at(path[:-1]).model_fields)
        near = get_close_matches(path[-1], known, 1, 0.5)
        return f"{where}: no such key" + (f", did you mean {near[0]!r}?" if near else "") + f" Known here: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{where}: missing, and it has no default"
    return f"{where}: {error['msg'].removeprefix('Value error, ')}, got {str(error.get('input'))[:80]!r}"


def _record_at(path: list[str]) -> type[Record]:
    """The record that a path of keys and positions leads to."""
    record: type[Record] = Job
    for part in path:
        if part in record.model_fields:
            record = next(_records_in(record.model_fields[part].annotation), record)
    return record


def _records_in(annotation: Any) -> Iterator[type[Record]]:
    if isinstance(annotation, type) and issubclass(annotation, Record):
        yield annotation
    for part in getattr(annotation, "__args__", ()):
        yield from _records_in(part)


def check(job: Job) -> None:
    """Every rule that needs no network: sensors installed, place, period and output possible; the error says which fails."""
    job.grid()
    job.calendar()
    for source in job.sensors:
        sensor(source.name)
    try:
        normal_url(job.output.store)
    except StoreError as error:
        raise JobError(f"output.store: {error}") from error


def job_schema() -> dict[str, Any]:
    """The JSON schema of a job file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Job.model_json_schema()}


def job_template() -> str:
    """A commented job file to start from; it is a valid job."""
    return (resources.files("fusion.service") / "job.toml").read_text(encoding="utf-8")
