"""log p(y | theta) with the field integrated out: what the variational engine and the sampler climb.

`exact` is the density itself, dense in the white coefficients, for tiny tiles. `probed` is cheap on any tile: how well each
fine look of a probe (`fusion.infer.probes`) is predicted by the probe's other looks, coarse and fine,

    w sum_n log N(r_n; 0, v_n),     r_n = [S^-1 q]_n / [S^-1]_nn,    v_n = 1 / [S^-1]_nn + what may have changed at one moment (`moment`),
    S[n, n'] = sum_l G_l[n, n'] (tau_n^T C_l tau_n') sum_j g_nj sd_lj^2 g_n'j + noise + offset + gain + discrepancy

(leave-one-out predictive score: Sundararajan & Keerthi 2001, Neural Computation 13). It asks what theta is used for, a fine look from
all others. The joint density of the probes also asks how the coarse series come about; where their errors are not quite as the model has
them (composites), it bent theta to them, and predictions of hidden images were half again as wrong (fusion/DESIGN.md). The score is Gaussian as
the field is: one that forgives outliers finds the spread of most places, and intervals are then too narrow where something changes.

What is approximated: (1) only a sample of the contrasts of the data is used, so theta is learned a little less sharply than
the tile allows; (2) different probes, the channels and the looks of one probe are taken as independent (a composite
likelihood: the score of every term has mean zero at the true theta, so the maximum is consistent; Varin, Reid & Firth 2011,
Statistica Sinica 21). Terms of one date do hang together: w = INDEPENDENT makes the curvature what the scatter of the score between dates
says it is (magnitude adjustment; Pauli, Racugno & Ventura 2011, Statistica Sinica 21).
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from fusion.infer.blocks import invert, invert_lower
from fusion.infer.looks import Looks
from fusion.infer.probes import Probes
from fusion.process.hierarchy import LEVELS, Hierarchy, Hyper

LEAST, SHARPEST = 1e-4, 1e6
"""variance that is added to every value, and more than the 1 / LEAST that a precision then can be: a pivot that rounding made negative"""
INDEPENDENT = 0.2
"""share of the terms of the score that count as independent: its variance between the dates of Salton is 4 to 5 times its curvature"""


def temporal(hierarchy: Hierarchy, hyper: Hyper) -> Array:
    """(5, T, T) how each level hangs together in time, whole courses: once for all batches, since the kernels are slow to compile."""
    return jnp.stack([hierarchy.covariance(hyper, name) for name in LEVELS])


def between_looks(tau: Array, dates: Array) -> Array:
    """(J, 5, n, n) covariance of each level between the looks of a probe, for unit sd.  tau: (J, n, T)."""
    return jnp.einsum("jnlt,jmt->jlnm", jnp.einsum("jns,lst->jnlt", tau, dates), tau)


def covariance(probes: Probes, hyper: Hyper, dates: Array) -> Array:
    """(J, K, n, n) the covariance S of every probe and channel.  dates: `temporal` of the same theta."""
    between = between_looks(probes.tau, dates) * probes.gram
    signal = _signal(probes.response, hyper.sd**2, between)

    def both(factor: Array) -> Array:
        """Factor of a sensor pair (J, 1, n, n): used where both looks are of one sensor."""
        own = factor[probes.sensor]
        return (own[:, :, None] * own[:, None, :])[:, None]

    noise, offset = (factor[probes.sensor][..., None] ** 2 for factor in (hyper.noise, hyper.offset))
    own = probes.noise * noise + probes.offset * offset + probes.fixed
    days = hyper.discrepancy_days[probes.sensor]
    decay = jnp.exp(-probes.lag / jnp.sqrt(days[:, :, None] * days[:, None, :]))[:, None]
    total = signal + probes.gain * both(hyper.gain) + probes.discrepancy * both(hyper.discrepancy) * decay
    seen = jnp.swapaxes(probes.seen, 1, 2)  # (J, K, n)
    total = total * seen[..., :, None] * seen[..., None, :]
    diagonal = jnp.where(seen > 0, jnp.swapaxes(own, 1, 2) + LEAST, 1.0)
    return total + diagonal[..., None] * jnp.eye(total.shape[-1])


@jax.custom_vjp
def _signal(response: Array, strength: Array, dates: Array) -> Array:
    """sum_i response_kinm sum_l strength_li dates_lnm: (J, K, K, n, n), (5, K), (J, 5, n, n) -> (J, K, n, n).

    The response is met in open sums, here and in the gradient: they fuse into one loop over memory, where XLA's small batched
    products take ten times as long on a CPU (measured).
    """
    return _signal_of(response, strength, dates)[0]


def _signal_of(response: Array, strength: Array, dates: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    mixed = sum(row[:, None, None] * dates[:, n, None] for n, row in enumerate(strength))
    return jnp.asarray(sum(response[:, :, i] * mixed[:, None, i] for i in range(response.shape[2]))), (response, strength, dates)


def _pull_signal(saved: tuple[Array, Array, Array], change: Array) -> tuple[None, Array, Array]:
    response, strength, dates = saved
    channels, rank = response.shape[1:3]
    back = jnp.stack([jnp.asarray(sum(response[:, k, i] * change[:, k] for k in range(channels))) for i in range(rank)], 1)
    return None, jnp.einsum("jinm,jlnm->li", back, dates), jnp.einsum("jinm,li->jlnm", back, strength)


_signal.defvjp(_signal_of, _pull_signal)


@jax.custom_vjp
def log_normal(covariance: Array, value: Array) -> Array:
    """log N(value; 0, covariance) + n/2 log 2 pi, (n, n) and (n,).

    Its gradient 1/2 (a a^T - S^-1), a = S^-1 value, is written out: reverse mode through a Cholesky factor is
    several times slower on a CPU.
    """
    return _log_normal(covariance, value)[0]


def _log_normal(covariance: Array, value: Array) -> tuple[Array, tuple[Array, Array]]:
    root = jnp.linalg.cholesky(covariance)
    inverse = invert_lower(root)
    white = inverse @ value
    return -0.5 * (white**2).sum() - jnp.log(jnp.diagonal(root)).sum(), (inverse, white)


def _pull(saved: tuple[Array, Array], change: Array) -> tuple[Array, Array]:
    inverse, white = saved
    back = white @ inverse
    return change * 0.5 * (jnp.outer(back, back) - inverse.T @ inverse), -change * back


log_normal.defvjp(_log_normal, _pull)


@jax.custom_vjp
def leave_one_out(covariance: Array, value: Array, judged: Array, sudden: Array) -> Array:
    """The leave-one-out predictive score of `value` over the last axis, up to a constant: (..., n, n), thrice (..., n) -> (...).

    judged: 1 for the values that are predicted, each from all others; 0 for those that only predict. sudden: variance beside theirs.
    Its gradient is written out, as for `log_normal`: with S^-1 = A and a = A y, dA = -A dS A and da = -A dS a.
    """
    return _leave_one_out(covariance, value, judged, sudden)[0]


def _left_out(covariance: Array, value: Array) -> tuple[Array, Array, Array]:
    """(S^-1, its diagonal, NaN where rounding spoiled it, S^-1 y): r = S^-1 y / diagonal, of variance 1 / diagonal."""
    precision = jnp.moveaxis(invert(jnp.moveaxis(covariance, (-2, -1), (0, 1)))[0], (0, 1), (-2, -1))
    own = jnp.diagonal(precision, axis1=-2, axis2=-1)
    return precision, jnp.where((own > 0) & (own < SHARPEST), own, jnp.nan), jnp.einsum("...nm,...m->...n", precision, value)


def _leave_one_out(covariance: Array, value: Array, judged: Array, sudden: Array) -> tuple[Array, Any]:
    precision, own, weighted = _left_out(covariance, value)

    def score(own: Array, weighted: Array) -> Array:
        variance = 1 / own + sudden
        return -0.5 * (judged * (jnp.log(variance) + (weighted / own) ** 2 / variance)).sum(-1)

    found, back = jax.vjp(score, own, weighted)
    return found, (precision, weighted, *back(jnp.ones_like(found)))


def _pull_leave_one_out(saved: Any, change: Array) -> tuple[Array, Array, None, None]:
    precision, weighted, of_own, of_weighted = saved
    back = jnp.einsum("...nm,...m->...n", precision, of_weighted)
    mixed = back[..., :, None] * weighted[..., None, :]
    slope = -(precision * of_own[..., None, :]) @ precision - 0.5 * (mixed + jnp.swapaxes(mixed, -1, -2))
    return change[..., None, None] * slope, change[..., None] * back, None, None


leave_one_out.defvjp(_leave_one_out, _pull_leave_one_out)


def terms(probes: Probes, hyper: Hyper, dates: Array) -> Array:
    """(J, K) the score of every probe and channel; 0 where nothing is judged."""
    return leave_one_out(covariance(probes, hyper, dates), *_values(probes))


def _values(probes: Probes) -> tuple[Array, Array, Array]:
    """(value, judged, sudden), each (J, K, n)."""
    seen = jnp.swapaxes(probes.seen, 1, 2)
    return jnp.swapaxes(probes.value, 1, 2) * seen, probes.judged[:, None] * seen, jnp.swapaxes(probes.sudden, 1, 2)


@jax.jit
def errors(probes: Probes, hyper: Hyper, dates: Array) -> Array:
    """(J, K, n) r / sqrt(v): how many of its sd each judged look lies from what the others say of it; NaN for those that only predict."""
    value, judged, sudden = _values(probes)
    _, own, weighted = _left_out(covariance(probes, hyper, dates), value)
    return jnp.where(judged > 0, weighted / own / jnp.sqrt(1 / own + sudden), jnp.nan)


def probed(white: Array, batches: tuple[Probes, ...], hierarchy: Hierarchy, sensors: tuple[str, ...]) -> Array:
    """w times the score of theta on all probes; a theta at which a covariance cannot be inverted scores nothing.

    white: u (D,) of `Hyper.from_white`. A pure function of arrays: pass the batches as arguments of what is compiled.
    """
    hyper = Hyper.from_white(white, hierarchy.mixing.shape[0], sensors)
    dates = temporal(hierarchy, hyper)
    total = INDEPENDENT * jnp.asarray(sum(terms(batch, hyper, dates).sum() for batch in batches))
    return jnp.where(jnp.isfinite(total), total, -1e30)


def exact(white: Array, series: tuple[Looks, ...], hierarchy: Hierarchy, sensors: tuple[str, ...]) -> Array:
    """log p(y | theta) up to a constant, by a dense Cholesky factor of Q = I + A^T N^-1 A over all white coefficients.

        log p = 1/2 (log|N^-1| - y^T N^-1 y + b^T Q^-1 b - log|Q|),    b = A^T N^-1 y
    """
    hyper = Hyper.from_white(white, hierarchy.mixing.shape[0], sensors)
    factors, shapes = hierarchy.factors(hyper), hierarchy.white_shapes
    size = count(hierarchy)

    def see(flat: Array) -> list[Array]:
        parts, start = {}, 0
        for name, shape in shapes.items():
            parts[name] = flat[start : start + math.prod(shape)].reshape(shape)
            start += math.prod(shape)
        mean, planes = hierarchy.coefficients(parts, factors)
        return [s.forward(mean, planes, hierarchy.temporal) for s in series]

    curvature, slope, total = jnp.eye(size), jnp.zeros(size), jnp.zeros(())
    for s, columns in zip(series, jax.vmap(see)(jnp.eye(size)), strict=True):
        noise = s.noise(hyper)
        weighted = noise.apply(s.data)
        flat = columns.reshape(size, -1)
        curvature = curvature + flat @ jax.vmap(noise.apply)(columns).reshape(size, -1).T
        slope = slope + flat @ weighted.ravel()
        total = total + 0.5 * (noise.log_det - (s.data * weighted).sum())
    curvature = 0.5 * (curvature + curvature.T)
    # b^T Q^-1 b / 2 is the largest b^T w - w^T Q w / 2, so w needs no derivative (nor has the result a second one): a factor's is slow
    w = jax.lax.stop_gradient(jax.scipy.linalg.cho_solve((jnp.linalg.cholesky(curvature), True), slope))
    total = total + slope @ w - 0.5 * w @ curvature @ w + log_normal(curvature, jnp.zeros(size))
    return jnp.where(jnp.isfinite(total), total, -1e30)


def count(hierarchy: Hierarchy) -> int:
    """The number of white coefficients of a tile."""
    return sum(math.prod(shape) for shape in hierarchy.white_shapes.values())
