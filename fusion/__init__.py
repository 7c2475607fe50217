"""One latent surface-reflectance cube from many instruments, with honest posterior uncertainty.

    cube/      where, when, which colour: Grid, Calendar, SpectralBasis, Cube
    observe/   what a sensor sees: Sensor, Scene, PSF, Footprint, Layer, Observation   (data model)
    process/   belief before looking: kernels, hierarchy, pooling                      (process and parameter model)
    infer/     belief meets data: fit -> Posterior, by an exact, variational or MCMC engine; validate
    service/   at scale: Job, catalog, plan, run, store, command line
    simulate   worlds with known truth, seen by any sensor
    explore    open_cube: xarray with a `.fusion` accessor, pictures
    testing    check_sensor: the conformance test for sensor plug-ins

Imports point down this list. Names below are loaded on first use, so `import fusion` is instant.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import Any

# Linear algebra inside a compiled loop can wait for ever on XLA's own thread pool when there are few cores (seen with jaxlib
# 0.10.2 on two). Tiles are the unit of parallel work here, so one thread per operation costs nothing.
if "xla_cpu_multi_thread_eigen" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (os.environ.get("XLA_FLAGS", "") + " --xla_cpu_multi_thread_eigen=false").strip()

_HOME = {
    "Calendar": "fusion.cube.calendar",
    "Cube": "fusion.cube.cube",
    "Grid": "fusion.cube.grid",
    "Response": "fusion.cube.spectrum",
    "SpectralBasis": "fusion.cube.spectrum",
    "FusionError": "fusion.errors",
    "JobError": "fusion.errors",
    "SceneError": "fusion.errors",
    "SensorError": "fusion.errors",
    "StoreError": "fusion.errors",
    "PSF": "fusion.observe.psf",
    "Scene": "fusion.observe.scene",
    "Band": "fusion.observe.sensor",
    "Noise": "fusion.observe.sensor",
    "Sensor": "fusion.observe.sensor",
    "sensor": "fusion.observe.sensor",
    "sensors": "fusion.observe.sensor",
    "Observation": "fusion.observe.observation",
    "looks": "fusion.observe.observation",
    "Posterior": "fusion.infer.posterior",
    "Status": "fusion.infer.posterior",
    "fit": "fusion.infer",
    "validate": "fusion.infer.checks",
    "Job": "fusion.service.job",
    "plan": "fusion.service.run",
    "run": "fusion.service.run",
    "open_cube": "fusion.explore",
    "world": "fusion.simulate",
    "check_sensor": "fusion.testing",
}

__all__ = sorted(_HOME)
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load a public name from its home."""
    if name not in _HOME:
        raise AttributeError(f"module 'fusion' has no attribute {name!r}; it offers {', '.join(__all__)}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__
