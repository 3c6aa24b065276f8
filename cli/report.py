"""`inferencerun report`: a run on one page that needs no network, for a browser."""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import click

from cli.output import current_time, is_finished, open_output, read_manifests
from cli.present import generation_option, json_option, output_argument, print_json, wording
from cli.report_content import build_content
from cli.report_page import build_page
from cli.texts import size_text


@click.command(name="report")
@output_argument
@click.option(
    "--html",
    "path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="The file to write; one that is there is replaced. The run's name with .html, here, if not given.",
)
@generation_option
@json_option
def command(output_uri: str, path: Path | None, generation: int | None, *, as_json: bool) -> None:
    """Write a page about a run, finished or not: progress, workers, throughput, interruptions, where the time went.

    One self-contained HTML file without scripts. Exits 1 when a manifest cannot be read; the page says which.
    """
    output = open_output(output_uri, generation)
    path = path or Path(f"{Path(output.record.name).name}.html")
    plan = output.plan
    # Looked for before the manifests are read: a run that completes in between is shown as one that is about to.
    has_success = is_finished(output)
    manifests = read_manifests(output)
    content = build_content(
        output=output.uri,
        record=output.record,
        plan=plan,
        manifests=manifests,
        generation=output.generation,
        has_success=has_success,
        now=current_time(),
    )
    style = resources.files("cli").joinpath("report.css").read_text(encoding="utf-8")
    page = build_page(content, style=style, words=wording.get())
    _replace(path, page.encode())
    if as_json:
        print_json({"html": str(path), "bytes": len(page.encode()), "phase": content.summary["phase"]})
    else:
        click.echo(
            f"{path}: {size_text(len(page.encode()))}, {content.summary['phase']}, {content.summary['percent']} %"
        )
    if manifests.unreadable:
        raise click.exceptions.Exit(1)


def _replace(path: Path, body: bytes) -> None:
    """Write the whole file or nothing: a page that is being looked at is never half there."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        scratch.write_bytes(body)
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise click.FileError(str(path), hint=error.strerror or str(error)) from error
