"""WHEN: the latent times of a cube and how an acquisition in time weighs them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from fusion.errors import JobError

DAY = np.timedelta64(86_400_000_000, "us")


def instant_of(value: Any) -> np.datetime64:
    """A UTC instant, microsecond resolution, from a string, datetime, pandas Timestamp or datetime64."""
    if isinstance(value, str):
        value = value.removesuffix("Z")
    elif getattr(value, "tzinfo", None) is not None:
        from datetime import timezone

        value = value.astimezone(timezone.utc).replace(tzinfo=None)
    try:
        instant = np.datetime64(value, "us")
    except (ValueError, TypeError) as error:
        raise JobError(f"asked for an instant, got {value!r}: write it as 2024-06-01 or 2024-06-01T10:30:00Z") from error
    if np.isnat(instant):
        raise JobError("asked for an instant, got NaT: give a real date")
    return instant


NEAR = DAY
"""an instant at most so far from a latent time counts as lying on it"""


@dataclass(frozen=True)
class Instant:
    """One moment (Landsat, Sentinel-2, an aircraft)."""

    time: np.datetime64


@dataclass(frozen=True)
class Window:
    """A weighted window of days (MCD43A4: 16 days, file date on day 9, observations weighted around it)."""

    start: np.datetime64
    end: np.datetime64
    """inclusive last day"""
    centre: np.datetime64
    decay_days: float = np.inf
    """w(t) = exp(-|t - centre| / decay) inside the window; inf = uniform"""


@dataclass(frozen=True, eq=False)
class PixelDay:
    """One day per observed pixel (MOD09A1 `sur_refl_day_of_year`); NaT = no look."""

    days: NDArray[np.datetime64]
    """(H, W) datetime64[D]"""

    @property
    def centre(self) -> np.datetime64:
        """The median day of the seen pixels."""
        seen = self.days[~np.isnat(self.days)]
        return np.datetime64(np.sort(seen.astype("datetime64[us]"))[seen.size // 2]) if seen.size else np.datetime64("NaT")


When = Instant | Window | PixelDay


def centre_of(when: When) -> np.datetime64:
    """The representative instant of an acquisition."""
    return when.time if isinstance(when, Instant) else when.centre


@dataclass(frozen=True, eq=False)
class Calendar:
    """The latent times of a cube, strictly increasing, in UTC; between them the field is linear in time."""

    times: NDArray[np.datetime64]
    """(T,) datetime64[us]"""

    def __post_init__(self) -> None:
        times = np.asarray(self.times, dtype="datetime64[us]")
        if times.ndim != 1 or times.size == 0 or np.isnat(times).any():
            raise JobError(f"a calendar needs at least one valid time, got {self.times!r}")
        if times.size > 1 and not (np.diff(times) > np.timedelta64(0)).all():
            raise JobError("the times of a calendar must increase strictly: sort them and drop repeats")
        times.setflags(write=False)
        object.__setattr__(self, "times", times)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Calendar) and np.array_equal(self.times, other.times)

    def __hash__(self) -> int:
        return hash(self.times.tobytes())

    def __len__(self) -> int:
        return int(self.times.size)

    @classmethod
    def regular(cls, start: Any, end: Any, step_days: float) -> Calendar:
        """Every `step_days` from `start` until `end` inclusive."""
        first, last = instant_of(start), instant_of(end)
        if last < first:
            raise JobError(f"the period ends ({last}) before it starts ({first}): swap the two dates")
        if not step_days > 0:
            raise JobError(f"asked for a step of {step_days} days: it must be positive")
        count = int(np.floor((last - first) / DAY / step_days + 1e-9)) + 1
        return cls(first + (np.arange(count) * step_days * 86_400_000_000).astype("timedelta64[us]"))

    @property
    def days(self) -> NDArray[np.float64]:
        """(T,) days since the first latent time."""
        return np.asarray((self.times - self.times[0]) / DAY, dtype=np.float64)

    def day_of(self, instant: Any) -> float:
        """Days since the first latent time."""
        return float((instant_of(instant) - self.times[0]) / DAY)

    def nearest(self, days: ArrayLike) -> NDArray[np.intp]:
        """(...) index of the latent time nearest to each day, the earlier of two as near."""
        return np.abs(np.asarray(days)[..., None] - self.days).argmin(-1)

    def _hat(self, days: NDArray[np.float64]) -> NDArray[np.float64]:
        """(..., T) linear-interpolation weights of days; zero row where a day lies more than half a step outside."""
        grid = self.days
        slack = 0.5 * float(np.median(np.diff(grid))) if grid.size > 1 else 8.0
        with np.errstate(invalid="ignore"):
            inside = (days >= grid[0] - slack) & (days <= grid[-1] + slack)
        clipped = np.clip(np.where(np.isnan(days), grid[0], days), grid[0], grid[-1])
        if grid.size == 1:
            return np.asarray(inside[..., None], dtype=np.float64)
        left = np.clip(np.searchsorted(grid, clipped, side="right") - 1, 0, grid.size - 2)
        share = (clipped - grid[left]) / (grid[left + 1] - grid[left])
        weights = np.zeros((*days.shape, grid.size))
        np.put_along_axis(weights, left[..., None], (1 - share)[..., None], axis=-1)
        np.put_along_axis(weights, left[..., None] + 1, share[..., None], axis=-1)
        weights[~inside] = 0.0
        return weights

    def weights_at(self, days: NDArray[np.float64]) -> NDArray[np.float64]:
        """(N, T) weights of instants given as days since the first latent time, as in `weights`."""
        return self._hat(np.asarray(days, dtype=np.float64))

    def weights(self, when: When) -> NDArray[np.float64]:
        """How an acquisition weighs the latent times: tau, rows summing to 1, or to 0 where it falls outside the calendar.

        tau_n(t) of the data model: (T,) for an Instant or a Window, (H, W, T) for a PixelDay. A day between two latent
        times is interpolated linearly; a day up to half a step outside counts as the nearest latent time. The days
        of a Window that fall outside are dropped and the rest renormalised if they carry at least half of its weight.
        """
        if isinstance(when, Instant):
            return self._hat(np.array(self.day_of(when.time)))
        if isinstance(when, PixelDay):
            noon = when.days.astype("datetime64[us]") + DAY // 2
            return self._hat(np.asarray((noon - self.times[0]) / DAY, dtype=np.float64))
        first, last, centre = (self.day_of(t) for t in (when.start, when.end, when.centre))
        days = np.arange(first, last + 1e-9, 1.0)
        share = np.exp(-np.abs(days - centre) / when.decay_days)
        tau = (share / share.sum()) @ self._hat(days)
        total = tau.sum()
        return tau / total if total >= 0.5 else np.zeros_like(tau)

    def missed(self, instants: NDArray[np.datetime64]) -> NDArray[np.bool_]:
        """(N,) whether an instant inside the calendar lies more than a day (NEAR) from every latent time."""
        instants = np.asarray(instants, dtype="datetime64[us]")
        right = np.searchsorted(self.times, instants).clip(0, self.times.size - 1)
        gap = np.minimum(np.abs(self.times[right] - instants), np.abs(self.times[(right - 1).clip(0)] - instants))
        return (gap > NEAR) & (instants > self.times[0]) & (instants < self.times[-1])

    def to_attrs(self) -> dict[str, Any]:
        """JSON-ready attributes, exact to the microsecond."""
        return {"times": [str(t) for t in self.times]}

    @classmethod
    def from_attrs(cls, attrs: dict[str, Any]) -> Calendar:
        """The inverse of `to_attrs`."""
        return cls(np.array(attrs["times"], dtype="datetime64[us]"))


def in_phase(instants: NDArray[np.datetime64], start: Any, end: Any, step_days: float) -> tuple[np.datetime64, int]:
    """(start, count): the day at most half a step from `start` from which regular latent times miss the fewest instants, and how many.

    Of equally good days the one nearest to `start`, the later one first. Why it matters: the field is linear between latent times,
    so a change between two of them contradicts the looks on both sides, and the fit rings.
    """
    first, last = instant_of(start).astype("datetime64[D]"), instant_of(end)
    reach = max(0, int(step_days // 2))
    days = [first + shift for shift in sorted(range(-reach, reach + 1), key=lambda d: (abs(d), -d)) if first + shift <= last]
    counts = [int(Calendar.regular(day, last, step_days).missed(instants).sum()) for day in days]
    best = int(np.argmin(counts))
    return np.datetime64(days[best], "D"), counts[best]
