"""What every engine returns: the field's posterior, its hyperparameters and a status with its paragraph."""

from __future__ import annotations

from enum import Enum


class Status(Enum):
    """How a tile ended; the value is the paragraph a user reads."""

    OK = "The fit converged and the data agree with it (chi-square per sensor within its expected range)."
    NO_DATA = (
        "No sensor saw this tile in the period, so the result is the prior. Causes: clouds throughout, a period outside the "
        "sensors' lifetimes, a catalog search that found nothing. Widen the period or add a sensor."
    )
    NOT_CONVERGED = (
        "The solver stopped at its iteration cap before its error fell under the tolerance (in posterior standard "
        "deviations). Causes: sensors that contradict each other, noise set far too small, an extreme tile. The values are "
        "usable with care; raise `max_iterations` or look at the chi-square per sensor."
    )
    MISFIT = (
        "The fit converged, but at least one sensor's residuals are far larger than its noise says. Causes: unmasked cloud, "
        "misregistration, a wrong scale or offset, a change that the calendar is too coarse to follow. The uncertainty was "
        "widened by the robust weights; look at `residuals(sensor)`."
    )
    BAD_SAMPLES = (
        "The sampler's chains disagree (R-hat above 1.05) or diverged. Causes: too few warm-up steps, a hyperparameter the "
        "data do not determine. Run longer chains or use the variational engine."
    )
    READ_FAILED = (
        "At least one scene could not be read for this tile, after retries; the rest was fused without it. The log and the "
        "store's diagnostics name the scenes."
    )
