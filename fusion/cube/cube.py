"""The address space of the latent field: where x when x which colour."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fusion.cube.calendar import Calendar
from fusion.cube.grid import Grid
from fusion.cube.spectrum import SpectralBasis


@dataclass(frozen=True)
class Cube:
    """The latent cube's coordinates: z has shape (T, K, Y, X)."""

    grid: Grid
    calendar: Calendar
    basis: SpectralBasis

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(T, K, Y, X)."""
        return len(self.calendar), self.basis.rank, *self.grid.shape

    def to_attrs(self) -> dict[str, Any]:
        """JSON-ready attributes from which `from_attrs` rebuilds exactly the same cube."""
        return {"grid": self.grid.to_attrs(), "calendar": self.calendar.to_attrs(), "basis": self.basis.to_attrs()}

    @classmethod
    def from_attrs(cls, attrs: dict[str, Any]) -> Cube:
        """The inverse of `to_attrs`."""
        return cls(
            Grid.from_attrs(attrs["grid"]), Calendar.from_attrs(attrs["calendar"]), SpectralBasis.from_attrs(attrs["basis"])
        )
