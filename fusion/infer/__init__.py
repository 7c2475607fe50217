"""BELIEF MEETS DATA: engines that turn observations into one `Posterior`."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from fusion.cube.cube import Cube
from fusion.errors import JobError
from fusion.infer.posterior import Expectation, Posterior, Status

ENGINES = {"variational": "fusion.infer.variational", "gaussian": "fusion.infer.engine", "mcmc": "fusion.infer.mcmc"}
"""name -> module with the same `fit`; imported when first used"""
PROGRAMS = 0.5
"""of the memory mappings that a process may have: past it, compiled programs are let go of before the next fit"""
PROC = Path("/proc")

log = logging.getLogger("fusion")


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
    spare_mappings()
    return import_module(ENGINES[engine]).fit(observations, cube, hyper=hyper, draws=draws, seed=seed, origin=origin, **settings)


def spare_mappings() -> None:
    """Lets go of all compiled programs where they leave the process few memory mappings; does nothing on systems without /proc.

    XLA keeps each kernel in mappings of its own, three to eight thousand for a fit of one shape. Where the kernel allows no more (Linux:
    vm.max_map_count, 65,530 by default), LLVM ends the process, and whoever fits tiles of ten shapes in one process would get there.
    """
    try:
        allowed = int((PROC / "sys/vm/max_map_count").read_text())
        held = (PROC / "self/maps").read_bytes().count(b"\n")
    except OSError:
        return
    if held > PROGRAMS * allowed:
        import jax

        jax.clear_caches()
        log.info("compiled programs held %d of the %d memory mappings that a process may have: they are compiled again when needed", held, allowed)


def summarise(posterior: Posterior, tile: Any, group: str = "") -> dict[str, Any]:
    """What a fitted tile sends to its region (JSON-ready): see `fusion.infer.mixture.summarise`."""
    from fusion.infer import mixture

    return mixture.summarise(posterior, tile, group)


def population(summaries: Sequence[Any]) -> Any:
    """The region behind the summaries of its tiles; `.prior(tile)` is what `fit(prior=...)` takes: `fusion.infer.mixture.Region`."""
    from fusion.infer import mixture

    return mixture.population(summaries)


__all__ = ["ENGINES", "Expectation", "Posterior", "Status", "fit", "population", "summarise"]
