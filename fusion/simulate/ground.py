"""The ground of a simulated world: which surfaces make up every small pixel at any moment.

A ground is a list of spectra (E, M) and, at a time, how much of each lies in each of the N world pixels: (N, E). The hundreds of
bands of N pixels are never made; a sensor first sums the shares over its footprint, then turns the few sums into bands.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any, Protocol
from zlib import crc32

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import zoom
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from fusion.cube.calendar import DAY
from fusion.errors import JobError

Array = NDArray[np.float64]


class Ground(Protocol):
    """What a world needs to know of its ground."""

    @property
    def wavelengths(self) -> Array:
        """(M,) nm."""

    @property
    def spectra(self) -> Array:
        """(E, M) reflectance of the surfaces."""

    @property
    def title(self) -> str:
        """What it is, for the label of everything made from it."""

    def at(self, time: np.datetime64) -> Any:
        """(N, E) share of every surface in every world pixel, row-major, sparse or dense."""


def random(seed: int, *keys: object) -> np.random.Generator:
    """A generator of its own for every purpose: the same seed and keys give the same numbers, in any order of calls."""
    return np.random.default_rng([seed, *(crc32(str(key).encode()) for key in keys)])


def smooth(rng: np.random.Generator, shape: tuple[int, int], length: float) -> Array:
    """(Y, X) a smooth random field of unit variance with features of `length` pixels: white noise, cubic between its knots."""
    knots = tuple(int(np.ceil(n / length)) + 4 for n in shape)
    field = zoom(rng.standard_normal(knots), length if length > 1 else 1.0, order=3)
    top, left = (int(v) for v in rng.integers(0, max(int(length), 1), 2))
    field = field[top : top + shape[0], left : left + shape[1]]
    return (field - field.mean()) / max(float(field.std()), 1e-9)


@cache
def surfaces() -> tuple[Array, dict[str, int], Array]:
    """The shipped spectra for simulation: (wavelengths (M,), index by name, spectra (E, M))."""
    with files("fusion.cube").joinpath("data", "endmembers.npz").open("rb") as stream:
        stored = np.load(stream, allow_pickle=False)
        names = {str(name): i for i, name in enumerate(stored["names"])}
        return stored["wavelengths"].astype(np.float64), names, stored["spectra"] * 1e-4


@dataclass(frozen=True)
class Cover:
    """One kind of parcel."""

    chain: tuple[str, ...]
    """surfaces that its stage 0, 1, 2 ... means; between two stages it is a mixture of both"""
    soil: str
    """what shows between them: `soil/dry` and `soil/wet` by the moisture, or a name without stages"""
    share: float
    """of the area"""
    rest: float = 0.0
    """stage outside the season"""
    peak: float = 0.0
    """stage at the height of the season"""
    start: float = 100.0
    """day of year when half of the rise is done"""
    end: float = 250.0
    """day of year when half of the decline is done"""
    rate: float = 9.0
    """days per e-fold of rise and decline (double logistic, Zhang et al. 2003, RSE 84:471)"""
    annual: bool = False
    """sown, ripens to stage 7, is harvested"""
    gap: float = 0.15
    """mean share of `soil`"""


def _plant(name: str) -> tuple[str, ...]:
    return tuple(f"{name}/{stage}" for stage in range(8))


COVERS = (
    Cover(_plant("winter crop"), "soil brown", 0.26, start=85, end=172, annual=True),
    Cover(_plant("summer crop"), "soil bright", 0.26, start=150, end=243, annual=True),
    Cover(_plant("grass"), "soil brown", 0.14, rest=6.3, peak=4.0, start=85, end=265, rate=16),
    Cover(_plant("broadleaf"), "soil dark", 0.12, rest=6.9, peak=4.0, start=115, end=288, rate=8, gap=0.08),
    Cover(_plant("needleleaf"), "soil dark", 0.06, rest=4.7, peak=4.0, start=110, end=270, rate=25, gap=0.06),
    Cover(_plant("shrub"), "soil bright", 0.06, rest=5.6, peak=4.0, start=60, end=180, rate=18, gap=0.35),
    Cover(("roof", "concrete"), "road", 0.06, rest=0.5, peak=0.5, gap=0.3),
    Cover(("water/clear", "water/turbid"), "water/clear", 0.04, rest=0.15, peak=0.35, start=90, end=160, rate=15, gap=0.0),
)
BURNS, FLOODS = ("grass", "shrub", "broadleaf", "needleleaf"), 0.12
"""covers that burn; share of the land that a flood of full height reaches"""


@dataclass(frozen=True, eq=False)
class Landscape:
    """Parcels of one land cover each (Voronoi cells), their seasons, harvests, one flood and one fire, and texture within."""

    shape: tuple[int, int]
    """(rows, columns) of world pixels"""
    seed: int
    period: tuple[np.datetime64, np.datetime64]
    south: bool
    """southern hemisphere: seasons half a year later"""
    label: NDArray[np.int32]
    """(N,) parcel of each pixel"""
    cover: NDArray[np.int32]
    """(Q,) index into COVERS of each parcel"""
    ahead: NDArray[np.float32]
    """(N,) how far a pixel is ahead of its parcel, stages"""
    gap: NDArray[np.float32]
    """(N,) factor on the share of bare soil"""
    light: NDArray[np.float32]
    """(N,) illumination"""
    height: NDArray[np.float32]
    """(N,) rank of the elevation, 0..1"""
    burnt: NDArray[np.bool_]
    """(N,) inside the fire's perimeter"""
    changes: bool = True
    title: str = "parcels of shipped PROSAIL and measured surfaces"

    @property
    def wavelengths(self) -> Array:
        """(M,) nm."""
        return surfaces()[0]

    @property
    def spectra(self) -> Array:
        """(E, M) reflectance."""
        return surfaces()[2]

    @classmethod
    def drawn(
        cls, shape: tuple[int, int], pixel: float, seed: int, period: tuple[np.datetime64, np.datetime64], *, south: bool = False,
        parcel: float = 250.0, texture: float = 1.0, changes: bool = True,
    ) -> Landscape:
        """A landscape of parcels about `parcel` metres wide; texture: 0 = uniform parcels; changes: harvest, flood and fire."""
        rng = random(seed, "landscape")
        rows, cols = shape
        count = max(3, int(rows * cols * (pixel / parcel) ** 2))
        seeds = rng.uniform(0, 1, (count, 2)) * shape
        row, col = np.indices(shape).reshape(2, -1) + 0.5
        tilt = np.array([[1.0, 0.35], [-0.2, 1.6]])  # fields are longer than wide
        label = cKDTree(seeds @ tilt).query(np.stack([row, col], 1) @ tilt)[1].astype(np.int32)
        region = smooth(rng, shape, max(4.0, 5 * parcel / pixel)).ravel()
        here = np.clip(seeds.astype(int), 0, np.array(shape) - 1)
        rank = np.argsort(np.argsort(region[here[:, 0] * cols + here[:, 1]] + 0.6 * rng.standard_normal(count))) / count
        # the order along the smooth field decides who is whose neighbour
        order = np.array([7, 3, 4, 2, 0, 1, 5, 6])
        edges = np.cumsum([COVERS[i].share for i in order])
        cover = order[np.minimum(np.searchsorted(edges, rank), len(order) - 1)].astype(np.int32)
        fine, broad = (smooth(rng, shape, max(1.5, length / pixel)).ravel() for length in (45.0, 160.0))
        hill = smooth(rng, shape, max(4.0, 1500.0 / pixel)).ravel()
        centre = rng.uniform(0.25, 0.75, 2) * shape
        away = np.hypot(row - centre[0], col - centre[1]) * pixel
        burnable = np.isin(cover[label], [i for i, c in enumerate(COVERS) if c.chain[0].split("/")[0] in BURNS])
        return cls(
            shape, seed, period, south, label, cover,
            ahead=(texture * (0.25 * broad + 0.1 * fine)).astype(np.float32),
            gap=np.exp(texture * (0.35 * fine + 0.2 * broad)).astype(np.float32),
            light=np.exp(texture * 0.05 * smooth(rng, shape, max(1.0, 25.0 / pixel)).ravel()).astype(np.float32),
            height=(np.argsort(np.argsort(hill)) / hill.size).astype(np.float32),
            burnt=burnable & (away < 0.22 * min(shape) * pixel * (1 + 0.3 * broad)), changes=changes,
        )  # fmt: skip

    def season(self, time: np.datetime64) -> tuple[Array, Array]:
        """(stage (Q,), days since harvest (Q,), negative before and NaN for perennials) of each parcel."""
        shift = np.timedelta64(182, "D") if self.south else np.timedelta64(0, "D")
        year = (time - shift).astype("datetime64[Y]")
        day = float((time - shift - year.astype("datetime64[us]")) / DAY)
        own, yearly = random(self.seed, "season"), random(self.seed, "season", year)
        count = self.cover.size
        late = 7 * own.standard_normal((2, count)) + 3 * yearly.standard_normal((2, count)) + 4 * yearly.standard_normal((2, 1))
        start, end, rate, rest, peak = (
            np.array([getattr(COVERS[c], name) for c in self.cover]) for name in ("start", "end", "rate", "rest", "peak")
        )
        annual = np.array([COVERS[c].annual for c in self.cover])
        rise = 1 / (1 + np.exp(-np.clip((day - start - late[0]) / rate, -40, 40)))
        fall = 1 / (1 + np.exp(-np.clip((day - end - late[1]) / rate, -40, 40)))
        stage = np.where(annual, 4 * rise + 3 * fall, rest + (peak - rest) * rise * (1 - fall))
        cut = end + late[1] + own.uniform(14, 30, count)
        return stage, np.where(annual & self.changes, day - cut, np.nan)

    def moisture(self, time: np.datetime64) -> float:
        """Share of wet among bare soil: showers that dry within a week."""
        days = np.floor((time - self.period[0]) / DAY) - np.arange(30)
        rain = np.array([random(self.seed, "rain", int(day)).gamma(0.15, 2.0) for day in days])
        return float(1 - np.exp(-(rain * np.exp(-np.arange(30) / 5.0)).sum()))

    def at(self, time: np.datetime64) -> csr_matrix:
        """(N, E) share of every surface in every world pixel."""
        _, index, _ = surfaces()
        stage, since = self.season(time)
        wet = self.moisture(time)
        last = np.array([len(c.chain) - 1 for c in COVERS])[self.cover]
        first = np.array([index[c.chain[0]] for c in COVERS])[self.cover]
        named = [[c.soil if c.soil in index else f"{c.soil}/{s}" for c in COVERS] for s in ("dry", "wet")]
        soils = [np.array([index[name] for name in names])[self.cover] for names in named]
        straw = np.where(since > 0, 0.6 * np.exp(-np.maximum(np.nan_to_num(since), 0.0) / 70.0), 0.0)  # of what was plant
        label, rise = self.label, (last > 1).astype(np.float32)
        place = np.clip(stage.astype(np.float32)[label] + self.ahead * rise[label], 0, last.astype(np.float32)[label])
        lower = np.minimum(place.astype(np.int32), (last - 1).astype(np.int32)[label])
        bare = np.minimum(np.array([c.gap for c in COVERS], np.float32)[self.cover][label] * self.gap, 0.95)
        plant, other, which = 1 - bare, *self._disturbed(time)
        litter = plant * straw.astype(np.float32)[label]
        plant = plant * (~(since > 0))[label]
        light = self.light * (1 - other)
        shares = np.empty((label.size, 6), np.float32)
        shares[:, 1] = light * plant * (place - lower)
        shares[:, 0] = light * plant - shares[:, 1]
        shares[:, 3] = light * (1 - plant - litter) * wet
        shares[:, 2] = light * (1 - plant - litter) - shares[:, 3]
        shares[:, 4], shares[:, 5] = light * litter, other
        at = np.empty(shares.shape, np.int32)
        at[:, 0] = first.astype(np.int32)[label] + lower
        at[:, 1] = at[:, 0] + 1
        at[:, 2], at[:, 3] = soils[0].astype(np.int32)[label], soils[1].astype(np.int32)[label]
        at[:, 4], at[:, 5] = index["litter"], which
        return _sparse(shares, at, len(index))

    def _disturbed(self, time: np.datetime64) -> tuple[NDArray[np.float32], NDArray[np.int32]]:
        """(N,) share of the pixel under flood or char, and which of the two."""
        _, index, _ = surfaces()
        share = np.zeros(self.label.size, np.float32)
        which = np.full(self.label.size, index["water/turbid"], np.int32)
        if not self.changes:
            return share, which
        rng, length = random(self.seed, "events"), (self.period[1] - self.period[0]) / DAY
        fire, flood = rng.uniform(0.45, 0.75) * length, rng.uniform(0.15, 0.4) * length
        day = float((time - self.period[0]) / DAY)
        if day >= fire:
            share[self.burnt] = 0.9 * np.exp(-(day - fire) / 80.0)
            which[self.burnt] = index["char"]
        level = FLOODS * np.clip(1 - abs(day - flood - 6) / 12, 0, 1)  # rises for 12 days, falls for 12
        under = self.height < level
        share[under], which[under] = 0.95, index["water/turbid"]
        return share, which


def _sparse(shares: NDArray[np.float32], at: NDArray[np.int32], width: int) -> csr_matrix:
    """Rows with the same number of entries each."""
    rows = np.arange(0, shares.size + 1, shares.shape[1], dtype=np.int32)
    return csr_matrix((shares.ravel(), at.ravel(), rows), shape=(len(shares), width), copy=False)


@dataclass(frozen=True, eq=False)
class Uniform:
    """One spectrum everywhere and always: the world that every sensor must see as that spectrum."""

    shape: tuple[int, int]
    wavelengths: Array
    spectrum: Array
    """(M,)"""
    title: str = "one constant spectrum"

    def __post_init__(self) -> None:
        if np.shape(self.wavelengths) != np.shape(self.spectrum):
            raise JobError(f"a spectrum of {np.shape(self.spectrum)} values at {np.shape(self.wavelengths)} wavelengths")

    @property
    def spectra(self) -> Array:
        """(1, M)."""
        return np.asarray(self.spectrum, dtype=np.float64)[None]

    def at(self, time: np.datetime64) -> Array:
        """(N, 1) ones."""
        return np.ones((self.shape[0] * self.shape[1], 1))
