"""Changes at moments that nobody saw: their law against simulated moments, the looks around each time, and nothing where the looks are."""

from __future__ import annotations

import numpy as np

from fusion.process.moment import Between, foreseen, unseen

DAYS = np.array([0.0, 3.0, 8.0, 16.0, 20.0, 31.0, 40.0])


def test_a_bridge_is_to_a_step_what_its_covariance_says() -> None:
    """Steps of unit height at moments uniform between the looks of days 0 and 31, about the straight line, against draws of beta."""
    rng, number = np.random.default_rng(0), 40_000
    seen = np.isin(DAYS, (0.0, 31.0))[:, None]
    between = Between.of(np.broadcast_to(seen, (len(DAYS), number)), DAYS)
    u = np.where(DAYS <= 31, DAYS / 31, 0.0)
    np.testing.assert_allclose(between.share[:, 0], np.where(u < 1, u, 0.0), rtol=1e-6)
    moment = rng.uniform(0, 31, number)
    steps = np.where(DAYS[:, None] <= 31, (moment < DAYS[:, None]) - u[:, None], 0.0)
    drawn = between.bridge(rng.normal(size=(len(DAYS), 1, number)).astype(np.float32))[:, 0]
    low, high = np.minimum.outer(u, u), np.maximum.outer(u, u)
    wanted = low * (1 - high)
    for found in (steps, np.where(DAYS[:, None] <= 31, drawn, 0.0)):
        np.testing.assert_allclose(found.mean(1), 0, atol=0.01)
        np.testing.assert_allclose(found @ found.T / number, wanted, atol=0.006)


def test_every_gap_has_its_own_moment() -> None:
    seen = np.isin(DAYS, (3.0, 16.0, 40.0))[:, None].repeat(20_000, 1)
    drawn = Between.of(seen, DAYS).bridge(np.random.default_rng(1).normal(size=(len(DAYS), 1, 20_000)).astype(np.float32))[:, 0]
    assert not drawn[[1, 3, 6]].any()  # at looks
    found = drawn @ drawn.T / 20_000
    np.testing.assert_allclose(np.diag(found)[[2, 4, 5]], [5 / 13 * 8 / 13, 4 / 24 * 20 / 24, 15 / 24 * 9 / 24], atol=0.01)
    np.testing.assert_allclose(found[2, [4, 5]], 0, atol=0.01)
    np.testing.assert_allclose(found[4, 5], 4 / 24 * 9 / 24, atol=0.01)


def test_beyond_the_looks_a_change_has_come_or_not() -> None:
    """One normal before the first look and one after the last, whatever the time, and nothing to do with the gap between."""
    seen = np.isin(DAYS, (3.0, 16.0))[:, None].repeat(20_000, 1)
    between = Between.of(seen, DAYS)
    drawn = between.bridge(np.random.default_rng(1).normal(size=(len(DAYS), 1, 20_000)).astype(np.float32))[:, 0]
    np.testing.assert_array_equal(drawn[4:], drawn[[4, 4, 4]])
    found = drawn[[0, 2, 6]] @ drawn[[0, 2, 6]].T / 20_000
    np.testing.assert_allclose(found, np.diag([1.0, 5 / 13 * 8 / 13, 1.0]), atol=0.02)
    np.testing.assert_allclose(between.spread[:, 0], np.array([1, 0, 40 / 169, 0, 1, 1, 1]), rtol=1e-6)
    x = np.random.default_rng(2).normal(size=(len(DAYS), 2, 20_000))
    change = between.change(x)
    for t, (now, then) in enumerate([(0, 1), (1, 1), (3, 1), (3, 3), (4, 3), (5, 3), (6, 3)]):
        np.testing.assert_array_equal(change[t], x[now] - x[then])


def test_the_looks_around_each_time() -> None:
    """Against a search, pixel by pixel; a look's own neighbours are others."""
    seen = np.random.default_rng(2).random((len(DAYS), 60)) < 0.4
    for apart in (False, True):
        got = Between.of(seen, DAYS, apart=apart)
        for t, s in np.ndindex(seen.shape):
            past = [i for i in range(len(DAYS)) if seen[i, s] and (i < t or (i == t and not apart))]
            later = [i for i in range(len(DAYS)) if seen[i, s] and (i > t or (i == t and not apart))]
            if past and later and past[-1] < later[0]:
                first, last = past[-1], later[0]
                assert (got.before[t, s], got.after[t, s]) == (first, last)
                np.testing.assert_allclose(got.share[t, s], (DAYS[t] - DAYS[first]) / (DAYS[last] - DAYS[first]), rtol=1e-6)
            else:
                assert got.share[t, s] == 0
            beyond = not apart and bool(past) != bool(later)
            assert got.alone[t, s] == beyond
            if beyond:
                assert got.before[t, s] == got.after[t, s] == (past[-1] if past else later[0])


def test_what_changed_is_apart_from_what_all_ground_did() -> None:
    rng = np.random.default_rng(3)
    x, seen = rng.normal(size=(len(DAYS), 2, 5, 6)), np.zeros((len(DAYS), 5, 6), bool)
    seen[0], seen[5] = True, True
    seen[:, 2, 3] = False
    found = unseen(x, Between.of(seen, DAYS))
    there = seen[0]
    for t in range(len(DAYS)):
        step = x[t] - x[5] if t > 5 else x[5] - x[0]
        wanted = np.where(there, step - step[:, there].mean(1)[:, None, None], 0.0)
        np.testing.assert_allclose(found[t], 0.0 if t in (0, 5) else wanted, atol=1e-12)


def test_looks_foresee_it_of_their_neighbours() -> None:
    """u (1 - u) d^2 of each look, one look and one channel at a time; channels see components in their own units."""
    rng = np.random.default_rng(4)
    looks, rank = 6, 2
    component, seen = rng.normal(size=(looks, rank)), rng.random((looks, rank)) < 0.8
    response = np.einsum("nk,ki->nki", rng.uniform(1, 3, (looks, rank)), np.array([[1.0, 0.0], [0.0, 1.0]]))
    response[:, 0, 1] = 0.2
    value = np.einsum("nkk->nk", response) * component
    got = foreseen(np.where(seen, value, 99.0), seen, response, DAYS[:looks])
    for n in range(looks):
        spread = np.zeros(rank)
        for i in range(rank):
            past, later = [m for m in range(n) if seen[m, i]], [m for m in range(n + 1, looks) if seen[m, i]]
            if past and later:
                u = (DAYS[n] - DAYS[past[-1]]) / (DAYS[later[0]] - DAYS[past[-1]])
                spread[i] = u * (1 - u) * (component[later[0], i] - component[past[-1], i]) ** 2
        np.testing.assert_allclose(got[n], response[n] ** 2 @ spread, rtol=1e-5)
