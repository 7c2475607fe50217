"""The public conformance test for sensors: what every instrument, built in or a stranger's, must satisfy to be fused.

    >>> from fusion.testing import check_sensor
    >>> assert all(check.passed for check in check_sensor("landsat-8"))

Every law yields a `Check`, never an exception: failure is data, with what was found and what to do about it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pystac
from rich.console import Console
from rich.table import Table

from fusion.cube.grid import Grid
from fusion.observe.sensor import Sensor, sensor
from fusion.testing.api import stac_api
from fusion.testing.laws import Broken, default_window, every_law, example_scene, native_of

__all__ = ["Check", "check_sensor", "default_window", "example_scene", "native_of", "stac_api", "table"]


@dataclass(frozen=True)
class Check:
    """The outcome of one law."""

    law: str
    passed: bool
    got: str
    todo: str = ""
    """what to change, where it failed"""


def check_sensor(
    which: Sensor | str, *, item: pystac.Item | None = None, window: Grid | None = None, only: str = "", show: bool = False
) -> tuple[Check, ...]:
    """The outcome of every law for one sensor.

    which: a Sensor or the name of an installed one. item: one of the sensor's real scenes, read as well if given. window:
    the latent pixels of the reading tests (default: a dozen native pixels at 40 N 105 W). only: just the laws whose name
    contains this text. show: print the table. Raises SensorError for an unknown name.
    """
    one = sensor(which) if isinstance(which, str) else which
    grid = window or default_window(one)
    checks = tuple(_run(law, test) for law, test in every_law(one, item, grid) if only in law)
    if show:
        Console().print(table(one.name, checks))
    return checks


def table(name: str, checks: tuple[Check, ...]) -> Table:
    """The outcomes as a table for the terminal."""
    failed = sum(not c.passed for c in checks)
    out = Table(title=f"{name}: {len(checks) - failed} of {len(checks)} laws hold", title_justify="left")
    for column in ("", "law", "found", "what to do"):
        out.add_column(column, overflow="fold")
    for c in checks:
        out.add_row("[green]pass" if c.passed else "[red]FAIL", c.law, c.got, c.todo)
    return out


def _run(law: str, test: Callable[[], str]) -> Check:
    try:
        return Check(law, True, test())
    except Broken as broken:
        return Check(law, False, *map(str, broken.args))
    except Exception as error:  # a stranger's sensor may raise anything: that is an outcome, not a crash
        return Check(law, False, f"raised {type(error).__name__}: {str(error)[:300]}", "return a value, or raise SceneError")
