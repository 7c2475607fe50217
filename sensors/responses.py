"""Spectral response tables of the agencies, one text file per instrument under `srf/`; PROVENANCE.csv names each source."""

from __future__ import annotations

import csv
from functools import cache
from importlib.resources import files

import numpy as np

from fusion.cube.spectrum import Response
from fusion.errors import SensorError

_TABLES = files("sensors") / "srf"


@cache
def _sources() -> dict[str, str]:
    with (_TABLES / "PROVENANCE.csv").open(encoding="utf-8") as file:
        return {row["file"].removesuffix(".txt"): row["source"] for row in csv.DictReader(file)}


def source(table: str) -> str:
    """Where the table comes from: agency and document."""
    if table not in _sources():
        raise SensorError(f"no response table is called {table!r}; the tables are {', '.join(_sources())}")
    return _sources()[table]


@cache
def responses(table: str) -> dict[str, Response]:
    """Relative spectral response by the agency's own band label.  table: landsat-8, modis, sentinel-2a, viirs-snpp ...

    Each line of a table is: label, first wavelength (nm), then the response x 10000 at every further nm.
    """
    source(table)
    found: dict[str, Response] = {}
    for line in (_TABLES / f"{table}.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            label, first, *stored = line.split()
            values = np.array(stored, dtype=np.float64) / 1e4
            found[label] = Response(int(first) + np.arange(values.size, dtype=np.float64), values)
    return found
