"""What a cube looks like: one self-contained HTML page with pictures, from nothing but the store."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg", force=False)
import matplotlib.dates as mdates
import numpy as np
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from fusion.cube.spectrum import Response
from fusion.errors import SensorError, StoreError
from fusion.infer.posterior import Status
from fusion.observe.sensor import sensor as sensor_of
from fusion.service.pictures import COLOURS, STATUS, stretch
from fusion.service.plan import Plan
from fusion.service.policy import interval
from fusion.service.store import CubeStore
from fusion.service.template import CODES

RGB = ((655.0, 37.0), (561.0, 57.0), (482.0, 60.0))
"""(centre, width) nm of red, green and blue: the Landsat 8 OLI bands, by which eyes are used to judge such pictures"""
EDGE = 900
"""pixels: larger cubes are thinned for the pictures"""

OTHER = {
    "FAILED": "The task itself failed, after retries; `fusion status` tells why, `fusion resume` tries again.",
    "PENDING": "Not yet run: `fusion resume` goes on.",
}


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
    return buffer.getvalue()


def _ticks(looks: Mapping[str, Sequence[Any]], first: np.datetime64, last: np.datetime64) -> bytes:
    """One row of ticks per sensor; the latent times are the grey lines behind them."""
    figure = Figure(figsize=(10, 1.1 + 0.38 * len(looks)), layout="constrained")
    axes = figure.subplots()
    for row, times in enumerate(looks.values()):
        axes.plot(np.array(times, "datetime64[us]"), np.full(len(times), row), "|", ms=13, mew=1.8, color=COLOURS[row % len(COLOURS)])
    axes.set_yticks(range(len(looks)), [f"{name} ({len(times)})" for name, times in looks.items()])
    axes.set_ylim(len(looks) - 0.4, -0.6)
    day = np.timedelta64(1, "D")
    axes.set_xlim(first - day, last + day)  # type: ignore[arg-type]  # matplotlib converts dates
    axes.xaxis.set_major_formatter(mdates.ConciseDateFormatter(mdates.AutoDateLocator()))
    axes.set_xlabel("date (UTC)")
    axes.grid(axis="x", alpha=0.3)
    for side in ("top", "left", "right"):
        axes.spines[side].set_visible(False)
    return png(figure)


def _looks(items: Mapping[str, Sequence[dict[str, Any]]], times: NDArray[np.datetime64]) -> bytes:
    found = {name: [first + (last - first) // 2 for first, last in map(interval, listed)] for name, listed in items.items()}
    dates = np.concatenate([np.array(listed, "datetime64[us]") for listed in (*found.values(), times[[0, -1]])])
    return _ticks(found, dates.min(), dates.max())


def calendar_picture(plan: Plan) -> bytes:
    """The calendar of looks of a plan, PNG."""
    return _looks(plan.found.items, plan.cube.calendar.times)


def _maps(store: CubeStore) -> bytes:
    """RGB of the posterior mean at the middle time, and the posterior sd of red."""
    cube = store.cube
    weights, mean, floor = cube.basis.responses(tuple(Response.gaussian(*band) for band in RGB))
    middle = len(cube.calendar) // 2
    step = max(1, int(np.ceil(max(cube.grid.shape) / EDGE)))
    where = (middle, slice(None), slice(None, None, step), slice(None, None, step))
    z = np.asarray(store.group["mean"][where])
    rgb = np.einsum("bk,kyx->yxb", weights, z) + mean
    # components are taken for independent here: a picture of where the cube is sure, not a number to use
    sd = np.sqrt(np.einsum("bk,kyx->byx", weights[:1] ** 2, np.asarray(store.group["sd"][where]) ** 2)[0] + floor[0])
    figure = Figure(figsize=(11, 4.9), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    day = str(np.datetime_as_string(cube.calendar.times[middle], "D"))
    box = cube.grid.bounds
    extent = (box.left / 1000, box.right / 1000, box.bottom / 1000, box.top / 1000)
    shown = stretch(rgb)
    left.imshow(np.where(np.isfinite(shown), shown, 0.9), extent=extent, interpolation="nearest")
    left.set_title(f"posterior mean: red, green, blue, {day}")
    picture = right.imshow(sd, cmap="magma", extent=extent, interpolation="nearest")
    right.set_title(f"posterior standard deviation of red, {day}")
    figure.colorbar(picture, ax=right, label="reflectance", shrink=0.85)
    for axes in (left, right):
        axes.set_xlabel("easting (km)")
        axes.xaxis.set_major_locator(MaxNLocator(5))
        axes.yaxis.set_major_locator(MaxNLocator(6))
    left.set_ylabel("northing (km)")
    return png(figure)


def _statuses(status: NDArray[np.uint8]) -> bytes:
    codes = sorted(CODES.values())
    names = {code: name for name, code in CODES.items()}
    figure = Figure(figsize=(8, 3.6), layout="constrained")
    axes = figure.subplots()
    colours = ListedColormap([STATUS[names[c]] for c in codes])
    axes.imshow(np.searchsorted(codes, status), cmap=colours, norm=BoundaryNorm(np.arange(len(codes) + 1) - 0.5, len(codes)))
    for code in np.unique(status):
        name = names[int(code)]
        axes.plot([], [], "s", ms=10, mec="0.6", color=STATUS[name], label=f"{name}: {int((status == code).sum())}")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    for axis, count, label in ((axes.xaxis, status.shape[1], "tile column"), (axes.yaxis, status.shape[0], "tile row")):
        axis.set_ticks(np.arange(0, count, -(-count // 10)))
        axis.set_label_text(label)
    return png(figure)


def _chi(names: Sequence[str], chi: NDArray[np.float32]) -> bytes:
    """A dot per tile and the median; a tile's place across its row is arbitrary."""
    figure = Figure(figsize=(10, 1.1 + 0.45 * len(names)), layout="constrained")
    axes = figure.subplots()
    for row, values in enumerate(chi):
        one = values[np.isfinite(values) & (values > 0)]
        spread = 0.3 * (np.arange(one.size) * 0.618034 % 1 - 0.5)
        axes.plot(one, row + spread, "o", ms=5, alpha=0.6, zorder=3, color=COLOURS[row % len(COLOURS)])
        if one.size:
            axes.plot(np.median(one), row, "|", ms=24, mew=2.5, color="0.1")
    axes.axvline(1.0, color="0.5", lw=1, zorder=0)
    axes.set_xscale("log")
    low, high = (float(v) for v in np.nanpercentile(np.where(chi > 0, chi, np.nan), (0, 100)))
    axes.set_xlim(min(low, 0.3) / 1.2, max(high, 3) * 1.2)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.set_xlabel("reduced chi-square of a tile (log scale); bar: median")
    axes.grid(axis="x", alpha=0.3)
    return png(figure)


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<link rel="icon" href="data:,">
<style>
body{{font:15px/1.55 system-ui,sans-serif;max-width:1060px;margin:2em auto;padding:0 1.2em;color:#1f2933}}
h1{{font-size:1.7em;margin:0 0 .4em}} h2{{font-size:1.2em;margin:2em 0 .4em;border-bottom:2px solid #00796b;padding-bottom:.15em}}
img{{max-width:100%;display:block;margin:.4em 0}} p{{margin:.5em 0;max-width:52em}}
table{{border-collapse:collapse;margin:.6em 0}} td,th{{padding:.25em 1em .25em 0;text-align:left;vertical-align:top;
border-bottom:1px solid #e4e7eb;overflow-wrap:anywhere}} td:first-child{{white-space:nowrap}} th{{font-weight:600;white-space:nowrap}}
.warn{{background:#fff3cd;border-left:4px solid #e69f00;padding:.5em 1em}} .small{{color:#52606d;font-size:.92em}}
.dot{{display:inline-block;width:.8em;height:.8em;border:1px solid #999;border-radius:2px;margin-right:.5em}}
pre{{background:#f5f7fa;padding:.8em 1em;overflow-x:auto}} details{{margin:.6em 0}} summary{{cursor:pointer}}
</style></head><body><h1>{title}</h1>
{body}
</body></html>
"""


def _table(rows: Sequence[tuple[Any, ...]], head: Sequence[str] = ()) -> str:
    top = "<tr>" + "".join(f"<th>{html.escape(h)}</th>" for h in head) + "</tr>" if head else ""
    cells = ("".join(f"<td>{html.escape(str(c))}</td>" for c in row) for row in rows)
    return f"<table>{top}" + "".join(f"<tr>{c}</tr>" for c in cells) + "</table>"


def _folded(summary: str, inside: str) -> str:
    return f"<details><summary>{html.escape(summary)}</summary>{inside}</details>"


def _meanings(status: NDArray[np.uint8]) -> str:
    """What each status that occurs means."""
    rows = []
    for name, code in CODES.items():
        if count := int((status == code).sum()):
            text = Status[name].value if name in Status.__members__ else OTHER[name]
            dot = f'<span class="dot" style="background:{STATUS[name]}"></span>'
            rows.append(f"<tr><td>{dot}{name}</td><td>{count}</td><td>{html.escape(text)}</td></tr>")
    return "<table><tr><th>status</th><th>tiles</th><th>what it means</th></tr>" + "".join(rows) + "</table>"


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
    sensors = store.items()
    body = []
    if simulated:
        said = "The scenes of all tiles are" if simulated == len(records) else f"The scenes of {simulated} of {len(records)} tiles are"
        body.append(f'<p class="warn">{said} simulated: this cube shows no real place.</p>')
    if len(records) < status.size:
        body.append(
            f'<p class="warn">{status.size - len(records)} of {status.size} tiles are not there yet: '
            "<code>fusion resume</code> with the address below goes on.</p>"
        )
    drawn = about["job"].get("land_cover")
    body.append(_table([
        ("area", f"{grid.shape[1]} x {grid.shape[0]} pixels of {grid.resolution:g} m, {grid.crs}"),
        ("times", f"{times.size}, {day[0]} to {day[1]}"), ("tiles", f"{len(records)} of {status.size} committed"),
        ("spectrum", f"{store.cube.basis.rank} components"), ("posterior draws", store.layout.draws),
        ("engine", (about["job"].get("engine") or {}).get("name", "")), *([("land-cover map", drawn)] if drawn else []),
        ("address", store.url), ("fingerprint", about["fingerprint"]),
    ]))  # fmt: skip
    body.append("<h2>The cube</h2>" + _picture(_maps(store), "posterior mean and standard deviation"))
    body.append('<p class="small">Bright on the right: where the cube is least sure, for want of clear looks. Numbers to work with, '
                "for any band, wavelength or index, come from Python:</p>")  # fmt: skip
    body.append(f"<pre>import fusion\ncube = fusion.open_cube({html.escape(repr(store.url))})\n"
                'cube.fusion.index("NDVI")          # mean, sd and draws</pre>')  # fmt: skip
    body.append("<h2>Looks</h2>" + _picture(_looks(sensors, times), "calendar of looks"))
    body.append(_table([(n, sensor_title(n), len(i)) for n, i in sensors.items()], ("sensor", "product", "scenes")))
    body.append("<h2>Tiles</h2>" + _picture(_statuses(status), "status of every tile") + _meanings(status))
    if np.isfinite(chi).any():
        body.append("<h2>Do the data agree with the cube?</h2>" + _picture(_chi(store.layout.sensors, chi), "chi-square per sensor"))
        body.append('<p class="small">1: the residuals are as large as the noise says. Far above: unmasked cloud, misregistration or '
                    "change that the model does not know. Far below: noise or effects were allowed for that these data do not "
                    "have.</p>")  # fmt: skip
    if unread:
        rows = [(*key, reason) for key, reason in sorted(unread.items())[:200]]
        body.append(f"<h2>Scenes that could not be read ({len(unread)})</h2>" + _table(rows, ("sensor", "scene", "reason")))
    if notes := list(about["provenance"].get("notes") or []):
        body.append("<h2>Notes of the search</h2>" + _table([(note,) for note in notes[:200]]))
    body.append("<h2>Made with</h2>" + _folded("versions", _table(sorted((about["provenance"].get("versions") or {}).items()))))
    body.append(_folded("the job", f"<pre>{html.escape(json.dumps(about['job'], indent=2, default=str))}</pre>"))
    return PAGE.format(title=html.escape(f"{about['job'].get('name', 'cube')}: fused cube"), body="\n".join(body))


def sensor_title(name: str) -> str:
    """What a sensor is, if its plug-in is installed here."""
    try:
        return sensor_of(name).title
    except SensorError:
        return "not installed here"
