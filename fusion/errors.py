"""The exceptions a caller may see; every message says what was asked, what was found, where, and what to do.

    FusionError
    ├── JobError      a place, period, grid, calendar or setting that cannot be fused as asked
    ├── SensorError   an instrument that is unknown, contradicts itself or breaks the plug-in contract
    ├── SceneError    one acquisition that cannot be read or trusted
    └── StoreError    a cube store that cannot be written, read or resumed

Inside a fused job a failing tile or scene is data, not an exception: see `fusion.infer.posterior.Status`.
"""

from __future__ import annotations


class FusionError(Exception):
    """Root of all errors raised on purpose by this package."""


class JobError(FusionError):
    """A place, period, grid, calendar or setting that cannot be fused as asked."""


class SensorError(FusionError):
    """An instrument that is unknown, contradicts itself or breaks the plug-in contract."""


class SceneError(FusionError):
    """One acquisition that cannot be read or trusted."""


class StoreError(FusionError):
    """A cube store that cannot be written, read or resumed."""
