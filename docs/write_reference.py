"""Writes docs/reference/cli.md and job.md from the program itself:  python docs/write_reference.py

A test compares both pages with what this writes, so run it after a change of the command line or of the job file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from typer.cli import get_docs_for_click
from typer.main import get_command

from fusion.service.cli import app
from fusion.service.job import job_schema, job_template

FOLDER = Path(__file__).resolve().parent / "reference"
CLI_HEAD = """# Command line

`fusion` takes a job file to a cube. Exit codes: 0 done, 1 an error that is explained, 2 wrong usage, 3 the cube is there but some
tiles failed or `verify` found damage, 130 stopped by Ctrl-C (resumable).

"""
JOB_HEAD = """# Job file

One TOML file says what to fuse, where it comes from and where it goes. `fusion job init job.toml` writes this one, which is
valid as it stands:

```toml
TEMPLATE```

A key that is not known is an error that names the nearest known one. Relative paths start at the file's own folder. What decides
the values of the cube enters the job's fingerprint; `[cluster]` does not, so a cube may be finished on another machine.

From Python the same is `fusion.Job.load("job.toml")`, or `fusion.Job.of({...})` with these keys as a dictionary.
`fusion job schema` prints the JSON schema, for editors that complete and check TOML.

## Every key

"""


def cli_page() -> str:
    """The help of every command, as Typer renders it."""
    import click

    command = get_command(app)
    text = get_docs_for_click(obj=command, ctx=click.Context(command, info_name="fusion"), name="fusion", title="")
    body = text.split("\n", 2)[2] if text.startswith("#") else text
    return CLI_HEAD + body.strip() + "\n"


def job_page() -> str:
    """The commented template, then a table per section of the schema."""
    schema = job_schema()
    return JOB_HEAD.replace("TEMPLATE", job_template()) + "\n".join(_sections(schema)) + "\n"


def _sections(schema: dict[str, Any]) -> Iterator[str]:
    required = set(schema["required"])
    plain = {k: v for k, v in schema["properties"].items() if not _record(v)}
    yield from _table("The job itself", {"description": ""}, plain, required)
    for name, entry in schema["properties"].items():
        if record := _record(entry):
            section = schema["$defs"][record]
            title = f"`[[{name}]]`" if entry.get("type") == "array" else f"`[{name}]`"
            yield from _table(title, section, section["properties"], set(section.get("required", ())))


def _record(entry: dict[str, Any]) -> str | None:
    """Name of the section that a property holds, if it holds one."""
    found = entry.get("$ref") or entry.get("items", {}).get("$ref")
    return found.rsplit("/", 1)[-1] if found else None


def _table(title: str, section: dict[str, Any], keys: dict[str, Any], required: set[str]) -> Iterator[str]:
    yield f"### {title}\n"
    if section["description"]:
        yield f"{section['description']}\n"
    yield "| key | type | default | |\n|---|---|---|---|"
    for key, entry in keys.items():
        given = entry.get("default")
        default = "**required**" if key in required else "" if given in (None, "") else f"`{json.dumps(given)}`"
        yield f"| `{key}` | {_kind(entry)} | {default} | {entry.get('description', '')}{_bounds(entry)} |"
    yield ""


def _kind(entry: dict[str, Any]) -> str:
    if "enum" in entry:
        return " or ".join(f"`{v}`" for v in entry["enum"])
    if "anyOf" in entry:
        return " or ".join(_kind(v) for v in entry["anyOf"] if v.get("type") != "null")
    if "$ref" in entry:
        return {"FileEntry": "{href, datetime}"}.get(_record(entry) or "", "table")
    if entry.get("type") == "array":
        inner = entry.get("prefixItems") or [entry.get("items", {})]
        return f"list of {_kind(inner[0])}" if "prefixItems" not in entry else f"{len(inner)} {_kind(inner[0])}s"
    return {"object": "table"}.get(entry.get("type", ""), entry.get("type", "any"))


def _bounds(entry: dict[str, Any]) -> str:
    """The allowed range, if the schema has one."""
    parts = [entry, *entry.get("anyOf", ())]
    signs = {"exclusiveMinimum": ">", "minimum": ">=", "maximum": "<="}
    found = [f"{sign} {part[name]:g}" for part in parts for name, sign in signs.items() if name in part]
    return f" ({', '.join(found)})" if found else ""


if __name__ == "__main__":
    (FOLDER / "cli.md").write_text(cli_page())
    (FOLDER / "job.md").write_text(job_page())
