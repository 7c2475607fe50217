"""What a cube looks like: one self-contained HTML page with pictures, from nothing but the store."""

from __future__ import annotations

import base64
import html
import io
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg", force=False)
import numpy as np
import pandas as pd
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from fusion.cube.spectrum import Response
from fusion.errors import StoreError
from fusion.service.plan import Plan, calendar_of_looks
from fusion.service.policy import interval
from fusion.service.store import CubeStore
from fusion.service.template import CODES

RGB = ((655.0, 37.0), (561.0, 57.0), (482.0, 60.0))
"""(centre, width) nm of red, green and blue: the Landsat 8 OLI bands, by which eyes are used to judge such pictures"""
COLOURS = {
    "OK": "#3b7a57", "NO_DATA": "#bdbdbd", "NOT_CONVERGED": "#e69f00", "MISFIT": "#d55e00", "BAD_SAMPLES": "#cc79a7",
    "READ_FAILED": "#56b4e9", "FAILED": "#7b0000", "PENDING": "#f5f5f5",
}
EDGE = 900
"""pixels: larger cubes are thinned for the pictures"""


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return buffer.getvalue()


def _heat(names: list[str], table: NDArray[np.float64], times: NDArray[np.datetime64]) -> bytes:
    figure = Figure(figsize=(10, 0.8 + 0.35 * len(names)))
    axes = figure.subplots()
    picture = axes.imshow(table, aspect="auto", cmap="viridis", interpolation="nearest", vmin=0)
    axes.set_yticks(range(len(names)), names)
    ticks = np.unique(np.linspace(0, times.size - 1, min(10, times.size)).astype(int))
    axes.set_xticks(ticks, [str(np.datetime_as_string(times[i], "D")) for i in ticks], rotation=30, ha="right")
    axes.set_xlabel("latent time")
    figure.colorbar(picture, ax=axes, label="scenes")
    return png(figure)


def calendar_picture(plan: Plan) -> bytes:
    """The calendar of looks of a plan, PNG."""
    names, table = calendar_of_looks(plan)
    return _heat(names, table, plan.cube.calendar.times)


def _calendar(store: CubeStore) -> bytes:
    times = store.cube.calendar.times
    items = store.items()
    table = np.zeros((len(items), times.size))
    for row, name in enumerate(items):
        for item in items[name]:
            first, last = interval(item)
            table[row, int(np.abs(times - (first + (last - first) // 2)).argmin())] += 1
    return _heat(list(items), table, times)


def _maps(store: CubeStore) -> bytes:
    """RGB of the posterior mean at the middle time, and the posterior sd of red."""
    cube = store.cube
    weights, mean, _ = cube.basis.responses(tuple(Response.gaussian(*band) for band in RGB))
    middle = len(cube.calendar) // 2
    step = max(1, int(np.ceil(max(cube.grid.shape) / EDGE)))
    where = (middle, slice(None), slice(None, None, step), slice(None, None, step))
    z = np.asarray(store.group["mean"][where])
    rgb = np.einsum("bk,kyx->byx", weights, z) + mean[:, None, None]
    # components are taken for independent here: a picture of where the cube is sure, not a number to use
    sd = np.sqrt(np.einsum("bk,kyx->byx", weights[:1] ** 2, np.asarray(store.group["sd"][where]) ** 2))[0]
    figure = Figure(figsize=(11, 5))
    left, right = figure.subplots(1, 2)
    day = str(np.datetime_as_string(cube.calendar.times[middle], "D"))
    seen = np.isfinite(rgb).all(0)
    low, high = np.percentile(rgb[:, seen], (1, 99)) if seen.any() else (0.0, 1.0)
    shown = np.clip((rgb - low) / max(high - low, 0.02), 0, 1)
    box = cube.grid.bounds
    extent = (box.left / 1000, box.right / 1000, box.bottom / 1000, box.top / 1000)
    left.imshow(np.moveaxis(np.where(seen, shown, 0.9), 0, -1), extent=extent, interpolation="nearest")
    left.set_title(f"posterior mean, red green blue, {day}")
    picture = right.imshow(sd, cmap="cividis", extent=extent, interpolation="nearest")
    right.set_title(f"posterior sd of red (655 nm), {day}")
    figure.colorbar(picture, ax=right, label="reflectance", shrink=0.8)
    for axes in (left, right):
        axes.set_xlabel("easting, km")
        axes.set_ylabel("northing, km")
    return png(figure)


def _statuses(status: NDArray[np.uint8]) -> bytes:
    codes = sorted(CODES.values())
    names = {code: name for name, code in CODES.items()}
    figure = Figure(figsize=(6, 4.5))
    axes = figure.subplots()
    colours = ListedColormap([COLOURS[names[c]] for c in codes])
    axes.imshow(np.searchsorted(codes, status), cmap=colours, norm=BoundaryNorm(np.arange(len(codes) + 1) - 0.5, len(codes)))
    for code in np.unique(status):
        axes.plot([], [], "s", color=COLOURS[names[int(code)]], label=f"{names[int(code)]}: {int((status == code).sum())}")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    axes.set_xlabel("tile column")
    axes.set_ylabel("tile row")
    return png(figure)


def _chi(store: CubeStore, chi: NDArray[np.float32]) -> bytes:
    figure = Figure(figsize=(7, 0.8 + 0.5 * len(chi)))
    axes = figure.subplots()
    values = [row[np.isfinite(row)] for row in chi]
    axes.boxplot([v if v.size else [np.nan] for v in values], orientation="horizontal", tick_labels=list(store.layout.sensors))
    axes.axvline(1.0, color="0.6", lw=1)
    axes.set_xlabel("reduced chi-square per tile (1 = residuals as large as the noise says)")
    return png(figure)


def validation_picture(values: pd.DataFrame) -> bytes:
    """How honest the predictions of hidden scenes were, PNG: probability integral transforms, and coverage against its claim."""
    figure = Figure(figsize=(10, 4))
    left, right = figure.subplots(1, 2)
    claims = np.linspace(0.05, 0.99, 48)
    for name, group in values.groupby("sensor", observed=True):
        z = ((group["measured"] - group["predicted"]) / group["sd"]).to_numpy()
        left.hist(ndtr(z), bins=20, range=(0, 1), density=True, histtype="step", lw=1.5, label=str(name))
        right.plot(claims, [(np.abs(z) < ndtri(0.5 + p / 2)).mean() for p in claims], lw=1.5, label=str(name))
    left.axhline(1.0, color="0.6", lw=1)
    left.set(xlabel="probability integral transform of hidden values", ylabel="density (flat at 1 where calibrated)", xlim=(0, 1))
    right.plot([0, 1], [0, 1], color="0.6", lw=1)
    right.set(xlabel="claimed coverage", ylabel="share of hidden values inside", xlim=(0, 1), ylim=(0, 1))
    right.legend(frameon=False)
    return png(figure)


PAGE = """<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>
<style>body{{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2em auto;padding:0 1em;color:#222}}
img{{max-width:100%}}table{{border-collapse:collapse}}td,th{{padding:.2em .8em .2em 0;text-align:left;vertical-align:top;
border-bottom:1px solid #ddd}}.simulated{{background:#fff3cd;padding:.5em 1em}}</style>
<h1>{title}</h1>{body}</html>
"""


def _table(rows: list[tuple[Any, ...]]) -> str:
    cells = ("".join(f"<td>{html.escape(str(c))}</td>" for c in row) for row in rows)
    return "<table>" + "".join(f"<tr>{c}</tr>" for c in cells) + "</table>"


def _picture(data: bytes, text: str) -> str:
    return f'<p><img alt="{html.escape(text)}" src="data:image/png;base64,{base64.b64encode(data).decode()}"></p>'


def write_report(url: str, to: Path | None = None) -> Path:
    """Writes the report of a cube and returns its path: beside a local cube, in the working folder for a remote one."""
    store = CubeStore.open(url)
    if to is None:
        plain = store.url.split("://", 1)[-1]
        to = Path(plain + ".html") if "://" not in store.url else Path(plain.rsplit("/", 1)[-1] + ".html")
    try:
        to.write_text(page(store), encoding="utf-8")
    except OSError as error:
        raise StoreError(f"the report cannot be written to {to}: {error.strerror}; name another file") from error
    return to


def page(store: CubeStore) -> str:
    """The report as HTML, pictures inside."""
    about, records = store.about, store.records()
    status = np.asarray(store.group["status"][...])
    chi = np.asarray(store.group["chi_square"][...])
    grid, times = store.cube.grid, store.cube.calendar.times
    day = np.datetime_as_string(times[[0, -1]], "D")
    simulated = sum(bool(r.get("simulated")) for r in records.values())
    unread: dict[tuple[str, str], str] = {}
    for record in records.values():
        for scene in record.get("failed_scenes") or []:
            unread.setdefault((str(scene.get("sensor")), str(scene.get("id"))), str(scene.get("reason")))
    facts: list[tuple[Any, ...]] = [
        ("cube", store.url), ("area", f"{grid.shape[1]} x {grid.shape[0]} px of {grid.resolution:g} m, {grid.crs}"),
        ("times", f"{times.size}, {day[0]} to {day[1]}"), ("components", store.cube.basis.rank), ("draws", store.layout.draws),
        ("tiles", f"{len(records)} of {status.size} committed"), ("fingerprint", about["fingerprint"]),
    ]
    body = []
    if simulated:
        body.append(f'<p class="simulated">The scenes of {simulated} tiles are simulated: this cube shows no real place.</p>')
    body.append(_table(facts))
    body.append("<h2>The cube</h2>" + _picture(_maps(store), "posterior mean and standard deviation"))
    body.append("<h2>Looks</h2>" + _picture(_calendar(store), "calendar of looks"))
    body.append(_table([("sensor", "scenes"), *((n, len(i)) for n, i in store.items().items())]))
    body.append("<h2>Tiles</h2>" + _picture(_statuses(status), "status of every tile"))
    if np.isfinite(chi).any():
        body.append("<h2>Agreement</h2>" + _picture(_chi(store, chi), "chi-square per sensor"))
    if unread:
        body.append(f"<h2>Scenes that could not be read ({len(unread)})</h2>")
        body.append(_table([(*key, reason) for key, reason in sorted(unread.items())[:200]]))
    notes = list(about["provenance"].get("notes") or [])
    if notes:
        body.append("<h2>Notes of the search</h2>" + _table([(note,) for note in notes[:200]]))
    versions = about["provenance"].get("versions") or {}
    body.append("<h2>Made with</h2>" + _table(sorted(versions.items())))
    return PAGE.format(title=html.escape(f"{about['job'].get('name', 'cube')}: fused cube"), body="\n".join(body))
