"""The job: what to fuse, where it comes from, where it goes; one TOML file or the same as Python objects.

Every key has a default but the area, the period, the sensors and the output. A key that is not known is an error with the nearest
known one. What decides the values of the cube (area, grid, period, sensors, spectrum, engine, tiles, draws) enters the job's
fingerprint; what only decides how it is computed (cluster, retries) does not, so that a cube may be resumed on another machine.
"""

from __future__ import annotations

import hashlib
import json
import math
import tomllib
from datetime import date, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal

from odc.geo import CRS
from odc.geo.geom import Geometry
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from fusion.cube.calendar import Calendar, instant_of
from fusion.cube.grid import Grid
from fusion.errors import FusionError, JobError

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

    bbox: tuple[float, float, float, float] | None = Field(None, description="west, south, east, north in `crs`")
    geojson: str | None = Field(None, description="path of a GeoJSON file (Feature, FeatureCollection or geometry) in `crs`")
    crs: str = Field("EPSG:4326", description="CRS of the box or the file")

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

    crs: str | None = Field(None, description="projected CRS in metres; default: the UTM zone of the area's centre")
    resolution: float = Field(30.0, gt=0, description="pixel edge, metres")
    align: float = Field(0.0, description="where pixel edges sit, metres modulo the resolution; USGS Landsat: 15, HLS and Sentinel-2: 0")


class Period(Record):
    """WHEN: the latent times."""

    start: Moment
    end: Moment
    step_days: float = Field(8.0, gt=0, description="days between latent times")


class FileEntry(Record):
    """One file that has no STAC item."""

    href: str
    datetime: Moment | None = Field(None, description="acquisition time; default: read from the file's name")


class Source(Record):
    """One sensor and where its scenes are: a STAC API, a static catalog, or files."""

    name: str = Field(description="`fusion sensors` lists the installed ones")
    catalog: str | None = Field(None, description="STAC API address, or path of a catalog.json, collection.json or ItemCollection")
    collection: str | None = Field(None, description="collection in that catalog; default: the sensor's usual one there")
    query: dict[str, Any] = Field(default_factory=dict, description='property filter, {"eo:cloud_cover" = {lt = 60}}')
    files: tuple[Annotated[FileEntry, BeforeValidator(lambda v: {"href": v} if isinstance(v, str) else v)], ...] = Field(
        (), description="paths (globs allowed) or {href, datetime}"
    )
    max_items: int = Field(10_000, gt=0, description="refuse a search that finds more")

    @model_validator(mode="after")
    def _one(self) -> Source:
        if self.catalog is not None and self.files:
            raise ValueError("give either `catalog` or `files`, not both")
        return self


class Spectrum(Record):
    """WHICH COLOUR: the spectral basis of the latent field."""

    rank: int = Field(8, ge=1, le=64, description="components K")


class Engine(Record):
    """How the posterior is computed."""

    name: Literal["gaussian", "variational", "mcmc"] = "variational"
    seed: int = Field(0, ge=0)
    pool: int = Field(0, ge=0, description="tiles sampled to learn the population of hyperparameters first; 0 = every tile by itself")
    settings: dict[str, Any] = Field(default_factory=dict, description="passed on to the engine by name")


class Tiles(Record):
    """How the area is cut."""

    core: int = Field(128, ge=8, le=4096, description="pixels along a tile's edge")
    halo: int | None = Field(None, ge=0, le=1024, description="pixels around it; default: half of the coarsest footprint")


class Output(Record):
    """What is kept, and where."""

    store: str = Field(description="local path, s3://, gs:// or az:// address of the cube")
    draws: int = Field(16, ge=0, le=1000, description="posterior draws that are kept")


class Cluster(Record):
    """Who works; none of it changes the result."""

    scheduler: str | None = Field(None, description="address of a running Dask scheduler, tcp://host:8786; default: this machine")
    workers: int | None = Field(None, ge=1, le=10_000, description="processes on this machine; default: one per core, or one per GPU")
    threads: int = Field(1, ge=1, le=64, description="tiles at a time per worker")
    gpus: tuple[int, ...] = Field((), description="device numbers: one process each")
    memory: str | None = Field(None, description="limit per worker, such as 8GiB; default: the machine's memory shared evenly")
    retries: int = Field(2, ge=0, le=20, description="times a failing tile is tried again")
    read_retries: int = Field(3, ge=0, le=20, description="times a scene that cannot be reached is tried again")
    dashboard: str = Field("127.0.0.1:0", description="address of the Dask dashboard and its /metrics")
    cache: str | None = Field(None, description="folder of the persistent compile cache; default: the user's cache folder")


class Job(Record):
    """All of it."""

    name: str = "cube"
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
            raise JobError(f"{where}:\n" + "\n".join(f"  {_explained(e)}" for e in error.errors() if not (e["type"] == "too_short" and e.get("input")))) from error
        except RecursionError as error:
            raise JobError(f"{where}: nested too deep to be a job") from error

    def document(self) -> dict[str, Any]:
        """JSON-ready, complete with defaults; `of` reads it back."""
        return self.model_dump(mode="json")

    @property
    def fingerprint(self) -> str:
        """SHA-256 over what decides the cube's values; equal jobs have equal fingerprints on every machine."""
        document = self.document()
        values = {k: document[k] for k in ("sensors", "spectrum", "engine", "tiles")}
        values |= {"grid": self.grid().to_attrs(), "times": self.calendar().to_attrs(), "draws": self.output.draws}
        text = json.dumps(values, sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def grid(self) -> Grid:
        """The latent pixels; refused before anything is allocated if they are absurdly many."""
        grid = Grid.from_bbox(
            self.area.box(), self.target.crs, self.target.resolution, bbox_crs=self.area.crs, align=self.target.align
        )
        if math.prod(grid.shape) > MAX_PIXELS:
            raise JobError(
                f"area and resolution ask for {grid.shape[0]} x {grid.shape[1]} pixels, at most {MAX_PIXELS:.0e} fit one job: "
                "choose coarser pixels or split the area"
            )
        return grid

    def calendar(self) -> Calendar:
        """The latent times."""
        start, end = instant_of(self.period.start), instant_of(self.period.end)
        count = float((end - start).astype("int64")) / 86.4e9 / self.period.step_days
        if count > MAX_TIMES:
            raise JobError(f"period and step ask for {count:.0f} latent times, at most {MAX_TIMES} fit one job: choose a longer step")
        return Calendar.regular(start, end, self.period.step_days)


def _rooted(document: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Paths in a job file start at the file's own folder."""

    def rooted(value: Any) -> Any:
        return str(folder / value) if isinstance(value, str) and value and "://" not in value else value

    area, output, sources = document.get("area"), document.get("output"), document.get("sensors")
    if isinstance(area, dict) and "geojson" in area:
        area["geojson"] = rooted(area["geojson"])
    if isinstance(output, dict) and "store" in output:
        output["store"] = rooted(output["store"])
    for source in sources if isinstance(sources, list) else []:
        if not isinstance(source, dict):
            continue
        if "catalog" in source:
            source["catalog"] = rooted(source["catalog"])
        if isinstance(source.get("files"), list):
            source["files"] = [
                {**f, "href": rooted(f["href"])} if isinstance(f, dict) and "href" in f else rooted(f) for f in source["files"]
            ]
    return document


def _explained(error: Any) -> str:
    """One validation error as: where, what was found, what to do."""
    path = [str(p) for p in error["loc"]]
    where = ".".join(path) or "job"
    got = repr(error.get("input"))[:80]
    if error["type"] == "extra_forbidden":
        model: Any = Job
        for part in error["loc"][:-1]:
            if isinstance(part, str) and isinstance(model, type) and part in getattr(model, "model_fields", {}):
                model = model.model_fields[part].annotation
            model = next((a for a in getattr(model, "__args__", ()) if isinstance(a, type) and issubclass(a, Record)), model)
        known = list(getattr(model, "model_fields", {}))
        near = get_close_matches(path[-1], known, 1, 0.5)
        return f"{where}: no such key" + (f", did you mean {near[0]!r}?" if near else "") + f" Known here: {', '.join(known)}"
    if error["type"] == "missing":
        return f"{where}: missing, and it has no default"
    return f"{where}: {error['msg'].removeprefix('Value error, ')}, got {got}"


def check(job: Job) -> None:
    """Every rule that needs no network: sensors installed, place and period possible. JobError or SensorError says which fails."""
    from fusion.observe.sensor import sensor

    job.grid(), job.calendar()
    for source in job.sensors:
        sensor(source.name)
    try:
        from fusion.service.objects import normal_url

        normal_url(job.output.store)
    except FusionError as error:
        raise JobError(f"output.store: {error}") from error


def job_schema() -> dict[str, Any]:
    """The JSON schema of a job file."""
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **Job.model_json_schema()}


def job_template() -> str:
    """A commented job file to start from; it is a valid job."""
    return TEMPLATE


TEMPLATE = """\
# A fusion job. `fusion plan job.toml` says what it costs, `fusion run job.toml` makes the cube.
name = "boulder-2024"

[area]                                    # WHERE
bbox = [-105.32, 39.98, -105.20, 40.06]   # west, south, east, north
# geojson = "area.geojson"                # instead of bbox: an outline
crs = "EPSG:4326"                         # of the box or the outline

[target]                                  # the pixels of the cube
# crs = "EPSG:32613"                      # projected, metres; default: the UTM zone of the area's centre
resolution = 30.0                         # metres
align = 15.0                              # pixel edges modulo the resolution; USGS Landsat 15, HLS and Sentinel-2 0

[period]                                  # WHEN
start = "2024-05-01"
end = "2024-09-30"
step_days = 8.0                           # between latent times

[[sensors]]                               # one block per sensor; `fusion sensors` lists them
name = "modis-mcd43a4"
catalog = "https://planetarycomputer.microsoft.com/api/stac/v1"
collection = "modis-43A4-061"

[[sensors]]
name = "landsat-8"
catalog = "https://planetarycomputer.microsoft.com/api/stac/v1"
collection = "landsat-c2-l2"
query = { "eo:cloud_cover" = { lt = 80 } }

# [[sensors]]
# name = "airborne"
# files = ["flights/*.nc"]                # plain files, or { href = "...", datetime = "2024-07-01T18:00:00Z" }

[spectrum]                                # WHICH COLOUR
rank = 8                                  # spectral components

[engine]
name = "variational"                      # gaussian (fastest), variational (default), mcmc (reference)
seed = 0
pool = 0                                  # tiles sampled first to learn what all tiles share; 0 = each by itself
# settings = { }                          # passed on to the engine

[tiles]
core = 128                                # pixels; `fusion plan` proposes another where memory is short

[output]
store = "cube.zarr"                       # or s3://bucket/cube.zarr, gs://, az:// (credentials from the environment)
draws = 16                                # posterior draws to keep; 0 = mean and sd only

[cluster]                                 # none of this changes the result
# scheduler = "tcp://host:8786"           # a running Dask scheduler; default: this machine
# workers = 4
# gpus = [0, 1]                           # one process per GPU
# memory = "8GiB"                         # per worker
retries = 2
"""
