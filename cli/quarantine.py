"""`inferencerun quarantine`: records that have no row, and why."""

from __future__ import annotations

import click

from cli.output import open_output, read_manifests
from cli.present import generation_option, json_option, output_argument, print_json, print_table


@click.command(name="quarantine")
@output_argument
@generation_option
@json_option
def command(output_uri: str, generation: int | None, *, as_json: bool) -> None:
    """Records without a row, in input order: object, offset, id, class, detail."""
    output = open_output(output_uri, generation)
    records = [
        {
            "object": manifest.object,
            "offset": item.offset,
            "id": item.id,
            "class": item.quarantine_class.value,
            "detail": item.detail,
            "shard": manifest.shard,
            "ordinal": item.ordinal,
        }
        for manifest in read_manifests(output).readable
        for item in manifest.quarantined
    ]
    if as_json:
        print_json({"quarantined": records})
    else:
        print_table(
            ("OBJECT", "OFFSET", "ID", "CLASS", "DETAIL"),
            ([item[name] for name in ("object", "offset", "id", "class", "detail")] for item in records),
            empty="No record is quarantined.",
        )
