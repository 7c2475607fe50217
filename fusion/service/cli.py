"""`fusion`: from a job file to a cube, from a terminal.

Exit codes: 0 done, 1 an error that is explained, 2 wrong usage, 3 the cube is there but some tiles failed or `verify` found
damage, 130 stopped by Ctrl-C (resumable).
"""

from __future__ import annotations

import json
import logging
import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from fusion.errors import FusionError
from fusion.service.cli_sensors import register

out = Console()
err = Console(stderr=True)
app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, pretty_exceptions_enable=False,
    help="Fuse satellites and aircraft into one surface-reflectance cube with honest posterior uncertainty.",
)
jobs = typer.Typer(no_args_is_help=True, help="Job files: write one to start from, print their schema.")
app.add_typer(jobs, name="job")
_VERBOSE = [0]
ORIGINS = {
    "copied": "copied as they were", "continued": "continued: early times kept, late ones fitted again",
    "refitted": "refitted over all times, because old and new fit differ too much at the join or nothing was to be kept",
    "fused": "fused anew: not in the old cube, cut by its edge, failed or damaged there",
}
"""how tiles of a cube that continues another came about"""

JobFile = Annotated[Path, typer.Argument(help="the job file (TOML); `fusion job init` writes one", show_default=False)]
Store = Annotated[str, typer.Argument(help="the cube: a local path, s3://, gs:// or az:// address", show_default=False)]
Scheduler = Annotated[str | None, typer.Option(help="address of a running Dask scheduler, tcp://host:8786")]


def _version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        out.print(f"fusion {version('fusion-cube')}")
        raise typer.Exit


@app.callback()
def main(
    verbose: Annotated[int, typer.Option("--verbose", "-v", count=True, help="-v: progress in detail; -vv: tracebacks too")] = 0,
    _: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="print the version")] = False,
) -> None:
    """Options before the command."""
    _VERBOSE[0] = verbose
    level = logging.DEBUG if verbose > 1 else logging.INFO if verbose or not sys.stderr.isatty() else logging.WARNING
    handler: logging.Handler = RichHandler(console=err, show_path=False, rich_tracebacks=False)
    if not sys.stderr.isatty():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log = logging.getLogger("fusion")
    log.handlers, log.propagate = [handler], False
    log.setLevel(level)


@contextmanager
def explained() -> Iterator[None]:
    """An error raised on purpose becomes its sentence and exit code 1; -vv shows where it came from."""
    try:
        yield
    except FusionError as error:
        if _VERBOSE[0] > 1:
            err.print_exception()
        err.print(f"{type(error).__name__}: {error}", style="red", markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from error
    except KeyboardInterrupt as error:
        err.print("stopped")
        raise typer.Exit(130) from error


@app.command()
def plan(
    job: JobFile, picture: Annotated[Path | None, typer.Option(help="write the calendar of looks to this PNG")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="print the numbers as JSON")] = False,
) -> None:
    """What a job will cost: tiles, looks, bytes, memory, time. Reads no pixels."""
    from fusion.service import run as running
    from fusion.service.job import Job

    with explained():
        made = running.plan(Job.load(job))
        if picture is not None:
            from fusion.service.report import calendar_picture

            picture.write_bytes(calendar_picture(made))
        if as_json:
            sys.stdout.write(json.dumps(made.numbers(), indent=2) + "\n")
        else:
            out.print(plan_table(made))
            for note in made.notes[:20]:
                out.print(f"note: {note}", markup=False, highlight=False)
        made.require()


def plan_table(made: "Plan") -> Table:  # type: ignore[name-defined]  # noqa: F821, UP037
    """The plan as a table for a terminal."""
    table = Table(title=f"plan of {made.job.name!r}", show_header=False)
    for name, value in made.rows():
        table.add_row(name, value)
    return table


@app.command()
def run(
    job: JobFile, scheduler: Scheduler = None,
    report: Annotated[bool, typer.Option(help="write an HTML report beside the cube at the end")] = True,
) -> None:
    """Make the cube of a job; continue if it was begun before."""
    from fusion.service import run as running
    from fusion.service.job import Job

    with explained():
        _ended(running.run(Job.load(job).on(scheduler)), report)


@app.command()
def resume(
    store: Store, scheduler: Scheduler = None,
    report: Annotated[bool, typer.Option(help="write an HTML report beside the cube at the end")] = True,
) -> None:
    """Continue an interrupted run from nothing but its cube."""
    from fusion.service import run as running

    with explained():
        _ended(running.resume(store, scheduler=scheduler), report)


@app.command()
def extend(
    store: Store, to: Annotated[str, typer.Argument(help="address of the larger cube", show_default=False)],
    end: Annotated[str | None, typer.Option(help="new end of the period, 2024-12-31")] = None,
    bbox: Annotated[
        tuple[float, float, float, float] | None, typer.Option(help="west south east north in degrees: the area to add")
    ] = None,
    overlap: Annotated[float, typer.Option(help="days before the first new date that are fitted again; default: all")] = math.inf,
    tolerance: Annotated[float, typer.Option(help="posterior sd: a tile whose old and new fit differ more is refitted whole")] = 0.1,
    scheduler: Scheduler = None,
    report: Annotated[bool, typer.Option(help="write an HTML report beside the cube at the end")] = True,
) -> None:
    """Make a larger cube of a cube: later dates, more area; what they do not change is taken over. The old cube stays as it is."""
    from fusion.service import extend as extending

    with explained():
        _ended(extending.extend(
            store, to, end=end, bbox=bbox, overlap=overlap, tolerance=tolerance, scheduler=scheduler
        ), report)


def _ended(summary: "Summary", report: bool) -> None:  # type: ignore[name-defined]  # noqa: F821, UP037
    from fusion.service.report import write_report

    out.print(summary.line(), markup=False, highlight=False)
    for name, count in sorted(summary.statuses.items()):
        out.print(f"  {name}: {count}", markup=False)
    for name, meaning in ORIGINS.items():
        if summary.origins[name]:
            out.print(f"  {summary.origins[name]} tiles {meaning}", markup=False)
    for index, reason in list(summary.failed.items())[:10]:
        err.print(f"  tile {index} failed: {reason}", markup=False, highlight=False)
    out.print(f"cube: {summary.url}", markup=False, highlight=False, soft_wrap=True)
    if report and not summary.cancelled:
        out.print(f"report: {write_report(summary.url)}", markup=False, highlight=False, soft_wrap=True)
    if summary.cancelled:
        raise typer.Exit(130)
    if summary.failed:
        raise typer.Exit(3)


@app.command()
def status(store: Store) -> None:
    """How far a cube is, and how its tiles ended."""
    from collections import Counter

    from fusion.service.store import CubeStore

    with explained():
        cube = CubeStore.open(store, read_only=True)
        records, failed = cube.records(), cube.failed()
        total = cube.layout.tiles[0] * cube.layout.tiles[1]
        table = Table(title=f"{len(records)} of {total} tiles committed", show_header=False)
        for name, count in Counter(str(r.get("status")) for r in records.values()).most_common():
            table.add_row(name, str(count))
        table.add_row("FAILED (resume tries again)", str(len(failed)))
        table.add_row("PENDING", str(total - len(records) - len(failed)))
        out.print(table)
        for index in sorted(failed)[:10]:
            out.print(f"tile {index}: {cube.record(index, 'failed').get('message', '')}", markup=False, highlight=False)


@app.command()
def verify(store: Store) -> None:
    """Read a cube back: checksums, holes, failed tiles. Exit code 3 if anything is wrong."""
    from fusion.service.store import CubeStore

    with explained():
        findings = CubeStore.open(store, read_only=True).verify()
        for finding in findings[:100]:
            out.print(f"{finding.kind} {finding.tile}: {finding.detail}", markup=False, highlight=False)
        out.print(f"{len(findings)} findings" if findings else "whole: every tile is there and matches its checksums")
        if findings:
            raise typer.Exit(3)


@app.command()
def validate(
    target: Annotated[str, typer.Argument(help="a job file (TOML), or the address of a cube", show_default=False)],
    tiles: Annotated[int, typer.Option(help="tiles to examine")] = 4,
    looks: Annotated[int, typer.Option(help="acquisitions to hide in each, one after the other")] = 8,
    to: Annotated[Path, typer.Option(help="file for the scores; a picture goes beside it")] = Path("validation.json"),
    scheduler: Scheduler = None,
) -> None:
    """Hide acquisitions in turn, predict them from the others, compare: how right, and how honest, a sample of tiles is."""
    from fusion.infer.checks import render
    from fusion.service.job import Job
    from fusion.service.store import CubeStore
    from fusion.service.validation import TABLES
    from fusion.service.validation import validate as examined

    with explained():
        asked: Job | CubeStore = Job.load(target) if target.endswith(".toml") else CubeStore.open(target, read_only=True)
        found = examined(asked, tiles=tiles, looks=looks, scheduler=scheduler)
        for by in (("sensor",), *TABLES):
            title = "hidden acquisitions" + (", simulated" if found.simulated else "")
            Console(width=max(out.width, 130)).print(render(found.values, by, title=title))
        out.print("linear: the straight line in time, where there is a look on both sides; rmse_there: ours on those values", highlight=False)
        out.print(f"{len(found.tiles)} tiles, {found.values['scene'].nunique()} scenes, {len(found.values)} values")
        out.print(f"scores: {to}  picture: {found.write(to)}", markup=False, highlight=False, soft_wrap=True)
        for index, reason in found.failed.items():
            err.print(f"tile {index} was not examined: {reason}", markup=False, highlight=False)
        if found.failed:
            raise typer.Exit(3)


@app.command("report")
def report_(store: Store, to: Annotated[Path | None, typer.Option(help="file to write; default beside the cube")] = None) -> None:
    """Write the HTML report of a cube."""
    from fusion.service.report import write_report

    with explained():
        out.print(str(write_report(store, to)), markup=False, highlight=False, soft_wrap=True)


@jobs.command("init")
def init(
    path: Annotated[Path, typer.Argument(help="file to write")] = Path("job.toml"),
    force: Annotated[bool, typer.Option(help="overwrite it")] = False,
) -> None:
    """Write a commented job file to start from."""
    from fusion.errors import JobError
    from fusion.service.job import job_template

    with explained():
        if path.exists() and not force:
            raise JobError(f"{path} exists: choose another name, or add --force")
        try:
            path.write_text(job_template())
        except OSError as error:
            raise JobError(f"{path} cannot be written: {error.strerror}") from error
        out.print(f"wrote {path}: edit it, then `fusion plan {path}`", markup=False, highlight=False)


@jobs.command("schema")
def schema() -> None:
    """Print the JSON schema of job files."""
    from fusion.service.job import job_schema

    sys.stdout.write(json.dumps(job_schema(), indent=2) + "\n")


register(app)
