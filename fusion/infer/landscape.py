"""What tiles of one area learn together, so that they see the same ground where they meet.

Before anything is fitted, the observations tell how the ground is arranged (features, classes, segments: `fusion.process.landscape`), how
places change together in time (E), which components the finest sensor tells apart (the mixing M), how wide a coarse cell is, and what coarse
sensors get wrong (`fusion.infer.empirical`). A tile that learns these alone speaks another language than its neighbour: components,
classes and covariances differ at their border. So a sample of tiles is surveyed, the surveys are learned from together, and
every tile is posed with the result. A tile by itself is a survey of one: the same code, on all its pixels.

Classes and segments are drawn from the fine images, so they explain these images better than they will any other. Whoever learned from the
same images how much classes matter would think too much of them, and be too sure. Hence `halves`: covers drawn from every other
date alone, for the dates between to judge.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fusion.cube.cube import Cube
from fusion.errors import StoreError
from fusion.infer import steps
from fusion.infer.empirical import Learned, calibrated, pooled
from fusion.infer.images import ALWAYS, MAP, Key, changes, images, mean_seen, parted, with_map
from fusion.infer.sight import Sight, adapted, finest
from fusion.process import kernels
from fusion.process.hierarchy import Hyper, level_covariance
from fusion.process.landscape import Cover
from fusion.process.liveliness import ASIDE

Array = NDArray[np.float64]
EDGE = 5
"""pixels along a sampled patch: enough for a gradient inside it"""
PATCHES = 64
"""per surveyed tile, fewer if there are so many planes that a survey would have more than VALUES values"""
VALUES = 2_000_000


@dataclass(frozen=True, eq=False)
class Survey:
    """What one tile says of the ground."""

    keys: tuple[Key, ...]
    patches: NDArray[np.float32]
    """(N, Q, h, w) of the planes named by keys, NaN = missing"""
    series: Mapping[str, tuple[bool, int, Array, Array]]
    """sensor -> (is it coarse, its looks, (J, T) series of places' deviations, (J, T) weights)"""
    change: Mapping[str, NDArray[np.float32]]
    """coarse sensor -> (B, Q, h, w) how much each band changed over time in the patches (`changes`); one with one look is not there"""
    sights: Mapping[str, Sight]
    """by sensor"""
    cell: float | None
    """pixels across a cell of the coarsest sensor, if there is a coarse one"""
    learned: tuple[Learned, ...]

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Named arrays without objects; `from_arrays` reads them back."""
        arrays: dict[str, NDArray[Any]] = {"patches": self.patches}
        for name, (_, _, series, weight) in self.series.items():
            arrays |= {f"series/{name}": series, f"weight/{name}": weight}
        arrays |= {f"change/{name}": planes for name, planes in self.change.items()}
        told = {
            "keys": self.keys, "cell": self.cell, "learned": [_plain(one) for one in self.learned],
            "series": {name: [coarse, looks] for name, (coarse, looks, _, _) in self.series.items()},
            "sights": {name: _plain(sight) for name, sight in self.sights.items()},
        }
        return arrays | {"told": _text(told)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Survey:
        """The inverse of `to_arrays`."""
        told = json.loads(arrays["told"].tobytes())
        series = {n: (bool(c), int(k), arrays[f"series/{n}"], arrays[f"weight/{n}"]) for n, (c, k) in told["series"].items()}
        change = {name.removeprefix("change/"): planes for name, planes in arrays.items() if name.startswith("change/")}
        sights = {name: Sight.from_attrs(one) for name, one in told["sights"].items()}
        learned = tuple(_learned(d) for d in told["learned"])
        return cls(_keys(told["keys"]), arrays["patches"], series, change, sights, told["cell"], learned)


@dataclass(frozen=True, eq=False)
class Landscape:
    """What `pose` needs to know of the ground beyond one tile's own looks."""

    keys: tuple[Key, ...]
    cover: Cover
    """of the planes named by keys"""
    halves: tuple[Cover, ...]
    """of every other of their latent times, and of those between; () where there are fewer than two"""
    colour: Array
    """(B, K) of the finest sensor in units of its noise; the identity where no sensor sees anything"""
    prior: Array
    """(K, K) covariance of z: the library's, moved towards what the images show and what they change (`sight.adapted`)"""
    spacing: float
    """pixels between nodes of the smooth level"""
    empirical: NDArray[np.float32] | None
    """(T, T) temporal covariance of places' deviations from the mean of their tile; None where nothing tells it"""
    learned: tuple[Learned, ...] = ()
    """what is known of coarse rasters"""

    def planes(self, keys: Sequence[Key], stack: NDArray[np.float32]) -> NDArray[np.float32]:
        """(N, Y, X) a tile's images in the order of the landscape's keys; what the tile has not seen is NaN."""
        if tuple(keys) == self.keys:
            return stack
        return _arranged(self.keys, keys, stack)

    def since(self, first: int) -> Landscape:
        """The same for the latent times from `first` on."""
        if first == 0:
            return self
        kept = [i for i, key in enumerate(self.keys) if key[2] == ALWAYS or key[2] >= first]
        cover, *halves = (c.part(kept) for c in (self.cover, *self.halves))
        keys = tuple((sensor, band, t if t == ALWAYS else t - first) for sensor, band, t in (self.keys[i] for i in kept))
        part = None if self.empirical is None else self.empirical[first:, first:]
        return replace(self, keys=keys, cover=cover, halves=tuple(halves), empirical=None if part is None else part / np.mean(np.diag(part)))

    def to_arrays(self) -> dict[str, NDArray[Any]]:
        """Named arrays without objects; `from_arrays` reads them back, to the bit."""
        covers = {f"cover{i}/{n}": np.asarray(v) for i, cover in enumerate((self.cover, *self.halves)) for n, v in vars(cover).items()}
        empirical = {} if self.empirical is None else {"empirical": self.empirical}
        told = {"keys": self.keys, "spacing": self.spacing, "learned": [_plain(one) for one in self.learned]}
        return {"colour": self.colour, "prior": self.prior, **covers, **empirical, "told": _text(told)}

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]]) -> Landscape:
        """The inverse of `to_arrays`.  Raises StoreError for arrays that an earlier version wrote."""
        told = json.loads(arrays["told"].tobytes())
        lost = {f.name for f in fields(Learned)}.difference(*told["learned"]) if told["learned"] else set()
        if missing := ({"colour", "prior", "cover0/factors"} - set(arrays)) | lost:
            raise StoreError(
                f"a landscape was asked for and one without {', '.join(sorted(missing))} was found: its cube was begun with an earlier version; "
                "make a new cube of the same job"
            )
        cover, *halves = (_cover(arrays, f"cover{i}") for i in range(3) if f"cover{i}/mean" in arrays)
        learned = tuple(_learned(d) for d in told["learned"])
        return cls(
            _keys(told["keys"]), cover, tuple(halves), arrays["colour"], arrays["prior"], float(told["spacing"]), arrays.get("empirical"), learned,
        )


def survey(
    observations: Sequence[Any], cube: Cube, *, calibrate: bool = True, seed: int = 0, origin: tuple[int, int] = (0, 0), land_cover: Any = None
) -> Survey:
    """A tile's survey from patches of its images, drawn by seed and the global position of its first pixel.  land_cover: as of `pose`."""
    learned: tuple[Learned, ...] = ()
    if calibrate:
        observations, learned = calibrated(observations, cube)
    useful, fine, _ = parted(observations)
    keys, stack = with_map(*images(fine, cube), land_cover)
    height, width = stack.shape[1:]
    number = int(np.clip(VALUES // (len(keys) * EDGE**2), 8, PATCHES))
    rng = np.random.default_rng([seed, *(o + 10**9 for o in origin)])
    tall, wide = min(EDGE, height), min(EDGE, width)
    rows, cols = (rng.integers(0, n - e + 1, number) for n, e in ((height, tall), (width, wide)))

    def cut(planes: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.stack([planes[:, r : r + tall, c : c + wide] for r, c in zip(rows, cols, strict=True)], axis=1)

    return surveyed(useful, keys, stack, learned, cube, cut)


def surveyed(
    useful: Sequence[Any], keys: tuple[Key, ...], stack: NDArray[np.float32], learned: tuple[Learned, ...], cube: Cube,
    cut: Callable[[NDArray[np.float32]], NDArray[np.float32]] = lambda planes: planes[:, None],
) -> Survey:
    """The survey of a tile from its calibrated looks and its images (N, Y, X) by keys.  cut: (N, Y, X) -> (N, Q, h, w), its patches."""
    coarse = [o for o in useful if o.layer.footprint.coarse]
    sights = {name: Sight.of([o for o in useful if o.sensor == name]) for name in sorted({o.sensor for o in useful})}
    told = coarse or useful
    names = sorted({o.sensor for o in told}) if len(cube.calendar) > 1 else []
    series = {n: (bool(coarse), sum(o.sensor == n for o in told), *_series([o for o in told if o.sensor == n], cube)) for n in names}
    found = {name: changes([o for o in coarse if o.sensor == name]) for name in sorted({o.sensor for o in coarse})}
    change = {name: cut(planes) for name, planes in found.items() if planes is not None}
    return Survey(keys, cut(stack), series, change, sights, _cell(coarse, cube) if coarse else None, learned)


def learn(surveys: Sequence[Survey], cube: Cube, *, classes: int = 64, seed: int = 0, halved: bool = True) -> Landscape:
    """The landscape behind the surveys of tiles of one area, in whatever order they come.

    cube: any tile's; its latent times and components count. classes: number of soft land-cover classes. halved: with the halves, which
    only engines that learn theta need.
    """
    if len(surveys) == 1:
        keys, patches = surveys[0].keys, surveys[0].patches
    else:
        edge = tuple(min(s.patches.shape[axis] for s in surveys) for axis in (2, 3))
        keys = tuple(sorted({key for s in surveys for key in s.keys}))
        surveys = sorted((_trimmed(s, keys, edge) for s in surveys), key=lambda s: s.patches.tobytes())
        patches = np.concatenate([s.patches for s in surveys], axis=1)
    cells = sorted(s.cell for s in surveys if s.cell is not None)
    empirical, best = _empirical(surveys, cube), finest([s.sights for s in surveys])
    told = None if best is None else steps.change(*best, keys, patches, cube.calendar, empirical)
    colour, prior = adapted(cube.basis.prior, None if best is None else best[1], told)
    change = _change(surveys)
    bands: dict[str, set[str]] = {}
    for sensor, band, _ in keys:
        bands.setdefault(sensor, set()).add(band)
    share = np.array([0.0 if key[0] == MAP else 1 / len(bands[key[0]]) for key in keys])

    def cover(part: NDArray[np.float32]) -> Cover:
        before = steps.previous(keys, part)
        weight = share * np.where(steps.gaps(keys, before), 1.0, ASIDE)
        return Cover.learn(part, count=classes, seed=seed, before=before, share=share, weight=weight, change=change)

    covers = [cover(part) for part in (patches, *(_halves(keys, patches) if halved else ()))]
    return Landscape(
        keys, covers[0], tuple(covers[1:]), colour, prior, cells[len(cells) // 2] if cells else 16.0, empirical,
        pooled([one for s in surveys for one in s.learned]),
    )


def _trimmed(one: Survey, keys: Sequence[Key], edge: tuple[int, ...]) -> Survey:
    """Its patches no larger than `edge`, their planes in the order of the keys."""
    rows, cols = (slice(0, n) for n in edge)
    change = {name: planes[..., rows, cols] for name, planes in one.change.items()}
    return replace(one, keys=tuple(keys), patches=_arranged(keys, one.keys, one.patches[..., rows, cols]), change=change)


def _halves(keys: Sequence[Key], patches: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    """The patches with the planes of every other latent time alone, and with those between."""
    times = sorted({key[2] for key, plane in zip(keys, patches, strict=True) if np.isfinite(plane).any()} - {ALWAYS})
    if len(times) < 2:
        return []
    mine = [np.array([key[2] in (ALWAYS, *times[first::2]) for key in keys]) for first in (0, 1)]
    return [np.where(one[:, None, None, None], patches, np.nan) for one in mine]


def _change(surveys: Sequence[Survey]) -> NDArray[np.float64]:
    """(Q, h, w) over the patches of all surveys: the mean over coarse sensors of their mean over bands, each band's average 1; NaN = unknown."""
    told = [np.full((1, sum(s.patches.shape[1] for s in surveys), *surveys[0].patches.shape[2:]), np.nan)]
    for name in sorted({name for s in surveys for name in s.change}):
        bands = max(len(s.change[name]) for s in surveys if name in s.change)
        blank = (np.full((bands, *s.patches.shape[1:]), np.nan) for s in surveys)
        mine = [b if len(s.change.get(name, ())) != bands else s.change[name] for s, b in zip(surveys, blank, strict=True)]
        planes = np.concatenate(mine, axis=1)
        average = mean_seen(planes.reshape(bands, -1).T)
        told.append(mean_seen(planes[average > 0] / average[average > 0, None, None, None])[None])
    return mean_seen(np.concatenate(told))


def _arranged(wanted: Sequence[Key], keys: Sequence[Key], planes: NDArray[np.float32]) -> NDArray[np.float32]:
    place = {key: i for i, key in enumerate(keys)}
    out = np.full((len(wanted), *planes.shape[1:]), np.nan, np.float32)
    for i, key in enumerate(wanted):
        if key in place:
            out[i] = planes[place[key]]
    return out


def _cell(coarse: Sequence[Any], cube: Cube) -> float:
    """Pixels across a cell of the coarsest sensor, between 4 and the size of the tile."""
    area = max(np.prod(cube.grid.shape) / max(int((np.asarray(o.layer.footprint.seen) > 0).sum()), 1) for o in coarse)
    return float(np.clip(2 * round(float(np.sqrt(area)) / 2), 4, max(4, *cube.grid.shape)))


def _series(looks: Sequence[Any], cube: Cube) -> tuple[Array, Array]:
    """((J, T) deviations of blocks of one sensor's pixels from the mean of their look, unit rms per band, (J, T) 1 where seen)."""
    steps = len(cube.calendar)
    bands, high, wide = looks[0].data.shape
    step = max(1, int(np.sqrt(high * wide) // 12))
    series = np.zeros((steps, bands, -(-high // step) * -(-wide // step)))
    weight = np.zeros_like(series)
    for obs in (o for o in looks if o.data.shape == (bands, high, wide)):
        index = int(cube.calendar.nearest(cube.calendar.day_of(obs.when)))
        seen = np.asarray(obs.precision) > 0
        values, there = (_blocks(a, step) for a in (np.where(seen, obs.data, 0.0), seen.astype(float)))
        mean = values.sum(-1) / np.maximum(there.sum(-1), 1)
        series[index] += values - there * mean[:, None]
        weight[index] += there
    series = np.where(weight > 0, series / np.maximum(weight, 1e-9), 0.0)
    spread = np.sqrt((series**2).sum((0, 2)) / np.maximum((weight > 0).sum((0, 2)), 1))
    series = series / np.maximum(spread, 1e-9)[None, :, None]
    return series.reshape(steps, -1).T, (weight > 0).astype(float).reshape(steps, -1).T


def _blocks(planes: NDArray[np.floating], step: int) -> NDArray[np.floating]:
    """(B, H, W) -> (B, blocks): sums over step x step blocks."""
    rows, cols = (np.arange(0, n, step) for n in planes.shape[1:])
    return np.add.reduceat(np.add.reduceat(planes, rows, axis=1), cols, axis=2).reshape(len(planes), -1)


def _empirical(surveys: Sequence[Survey], cube: Cube) -> NDArray[np.float32] | None:
    """(T, T) temporal covariance from the series of the coarse sensor with most looks (of the fine one, if there is none coarse)."""
    told = [(name, *one) for s in surveys for name, one in s.series.items()]
    told = [one for one in told if one[1]] or told
    if not told:
        return None
    looks: dict[str, int] = {}
    for name, _, count, _, _ in sorted(told, key=lambda one: one[0]):
        looks[name] = looks.get(name, 0) + count
    best = max(looks, key=lambda name: looks[name])
    anchor = np.asarray(level_covariance(cube.calendar.days, Hyper.default(1, ()), "place"), np.float64)
    mine = [one for one in told if one[0] == best]
    return kernels.empirical(np.concatenate([m[3] for m in mine]), np.concatenate([m[4] for m in mine]), anchor, strength=20.0)


def _keys(rows: Sequence[Any]) -> tuple[Key, ...]:
    return tuple((str(sensor), str(band), int(time)) for sensor, band, time in rows)


def _cover(arrays: Mapping[str, NDArray[Any]], name: str) -> Cover:
    part: dict[str, Any] = {field.name: arrays[f"{name}/{field.name}"] for field in fields(Cover)}
    return Cover(**part | {one: float(part[one]) for one in ("width", "slope", "rest")})


def _plain(one: Learned | Sight) -> dict[str, Any]:
    return {name: np.asarray(value).tolist() if isinstance(value, np.ndarray) else value for name, value in asdict(one).items()}


def _learned(told: Mapping[str, Any]) -> Learned:
    values: dict[str, Any] = {n: np.asarray(v, np.float64) if isinstance(v, list) else v for n, v in told.items()}
    return Learned(**values | {"shift": (float(told["shift"][0]), float(told["shift"][1]))})


def _text(value: Any) -> NDArray[np.uint8]:
    return np.frombuffer(json.dumps(value).encode(), np.uint8)
