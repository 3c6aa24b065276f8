"""`inferencerun archive`: make a complete run read-only."""

from __future__ import annotations

from dataclasses import replace

import click

from cli.output import is_finished, new_commit_id, open_output
from cli.present import json_option, output_argument, print_json
from contract.errors import SpecError
from contract.layout import RUN_KEY
from contract.manifest import HISTORY_LENGTH
from contract.run_record import RunRecord, to_json


@click.command(name="archive")
@output_argument
@json_option
def command(output_uri: str, *, as_json: bool) -> None:
    """Mark a complete run archived: no coordinator opens it again and no command changes its results.

    Refused while the run is not complete. Archiving twice is no error.
    """
    output = open_output(output_uri)
    if not is_finished(output):
        raise SpecError(
            f"{output.uri}: the run is not complete, so it cannot be archived; finish it first ('inferencerun status')"
        )
    if not output.record.is_archived:
        new = archived(output.record, commit_id=new_commit_id())
        output.committer.update_document(RUN_KEY, to_json(new), output.record_etag, commit_id=new.commit_id)
    if as_json:
        print_json({"output": output.uri, "run": output.record.name, "generation": output.generation, "archived": True})
    else:
        click.echo(f"{output.record.name}, generation {output.generation}, is archived")


def archived(current: RunRecord, *, commit_id: str) -> RunRecord:
    """`current`, read-only. Pure."""
    return replace(
        current,
        is_archived=True,
        version=current.version + 1,
        commit_id=commit_id,
        history=(*current.history, commit_id)[-HISTORY_LENGTH:],
    )
