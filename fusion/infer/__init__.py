"""BELIEF MEETS DATA: engines that turn observations into one `Posterior`."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from fusion.cube.cube import Cube
from fusion.errors import JobError
from fusion.infer.posterior import Expectation, Posterior, Status

ENGINES = {"variational": "fusion.infer.variational", "gaussian": "fusion.infer.engine", "mcmc": "fusion.infer.mcmc"}
"""name -> module with the same `fit`; imported when first used"""


def fit(
    observations: Sequence[Any], cube: Cube, *, engine: str = "variational", hyper: Any = None, draws: int = 16, seed: int = 0,
    origin: tuple[int, int] = (0, 0), **settings: Any,
) -> Posterior:
    """The posterior of one tile's field.

    observations: what `fusion.observe` made of the scenes; any number, also none. cube: the tile's own. hyper: theta to use
    (gaussian) or to start from (variational, mcmc). draws: S. origin: global (row, column) of the first pixel, so that neighbouring
    tiles draw alike. settings: the engine's own. Bad data end in a status, not in an exception; JobError for what cannot be asked.
    """
    if engine not in ENGINES:
        raise JobError(f"asked for engine {engine!r}: there are {', '.join(ENGINES)}")
    if draws < 0:
        raise JobError(f"asked for {draws} draws: give 0 or more")
    return import_module(ENGINES[engine]).fit(observations, cube, hyper=hyper, draws=draws, seed=seed, origin=origin, **settings)


def summarise(posterior: Posterior, tile: Any, group: str = "") -> dict[str, Any]:
    """What a fitted tile sends to its region (JSON-ready): see `fusion.infer.mixture.summarise`."""
    from fusion.infer import mixture

    return mixture.summarise(posterior, tile, group)


def population(summaries: Sequence[Any]) -> Any:
    """The region behind the summaries of its tiles; `.prior(tile)` is what `fit(prior=...)` takes: `fusion.infer.mixture.Region`."""
    from fusion.infer import mixture

    return mixture.population(summaries)


__all__ = ["ENGINES", "Expectation", "Posterior", "Status", "fit", "population", "summarise"]
