"""The shipped response tables against what the agencies publish."""

from __future__ import annotations

from importlib.resources import files

import numpy as np
import pytest

from fusion.cube.spectrum import Response
from fusion.errors import SensorError
from sensors.responses import responses, source

TABLES = ("landsat-4", "landsat-5", "landsat-7", "landsat-8", "landsat-9", "modis", "sentinel-2a", "sentinel-2b", "sentinel-2c",
          "viirs-snpp", "viirs-noaa20", "viirs-noaa21")  # fmt: skip


def half_maximum(response: Response) -> tuple[float, float]:
    """Outermost half-maximum crossings, nm."""
    w, v = response.wavelengths, response.values / response.values.max()
    fine = np.linspace(w[0], w[-1], 100 * w.size)
    above = fine[np.interp(fine, w, v) >= 0.5]
    return float(above[0]), float(above[-1])


@pytest.mark.parametrize("table", TABLES)
def test_tables_are_responses(table: str) -> None:
    for response in responses(table).values():
        assert (np.diff(response.wavelengths) == 1).all()
        assert (response.values >= 0).all()
        assert response.values.max() == pytest.approx(1.0, abs=2e-3)
        assert 400 < response.centroid < 2400
    assert any(agency in source(table) for agency in ("NASA", "USGS", "ESA", "NOAA"))


@pytest.mark.parametrize(
    ("band", "low", "high"),
    [("1", 435, 451), ("2", 452, 512), ("3", 533, 590), ("4", 636, 673), ("5", 851, 879), ("6", 1566, 1651), ("7", 2107, 2294)],
)
def test_oli_edges_are_those_the_usgs_publishes(band: str, low: float, high: float) -> None:
    """https://www.usgs.gov/faqs/what-are-band-designations-landsat-satellites"""
    assert half_maximum(responses("landsat-8")[band]) == pytest.approx((low, high), abs=1.0)


@pytest.mark.parametrize(
    ("band", "centre"), [("1", 645.8), ("2", 856.9), ("3", 466.1), ("4", 553.9), ("5", 1241.5), ("6", 1628.1), ("7", 2114.0)]
)
def test_modis_centroids_are_the_true_ones(band: str, centre: float) -> None:
    """Bands 6 and 7 are 12 and 16 nm below their nominal 1640 and 2130 nm."""
    assert responses("modis")[band].centroid == pytest.approx(centre, abs=0.1)


def test_sentinel_2_red_edges_differ_between_units() -> None:
    a, c = responses("sentinel-2a"), responses("sentinel-2c")
    assert [round(a[b].centroid, 1) for b in ("5", "6", "7", "8A")] == [704.1, 740.5, 782.8, 864.7]
    assert c["5"].centroid - a["5"].centroid == pytest.approx(3.0, abs=0.1)


def test_the_tables_are_small_and_name_only_agencies() -> None:
    folder = files("sensors") / "srf"
    texts = {path.name: path.read_text(encoding="utf-8") for path in folder.iterdir()}
    assert sum(map(len, texts.values())) < 300_000
    assert set(texts) == {f"{table}.txt" for table in TABLES} | {"PROVENANCE.csv"}
    for text in texts.values():
        assert not any(word in text.lower() for word in ("acolite", "pyrsr", "github", "/work"))


def test_an_unknown_table_names_the_known_ones() -> None:
    with pytest.raises(SensorError, match="landsat-8"):
        responses("landsat-6")
