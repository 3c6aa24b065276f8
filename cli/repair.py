"""`inferencerun repair`: the way out when a shard's manifest is unreadable or gone.

Nothing is guessed from damaged bytes: the shard starts over, at an epoch above every one it ever had, so that no data key
is written twice and whoever still works on it is fenced. The damaged bytes are kept beside it for whoever wants to look.
"""

from __future__ import annotations

import hashlib
import re

import click

from cli.output import Output, check_is_open, new_commit_id, open_output, withdraw_success
from cli.present import json_option, output_argument, print_json
from contract import manifest as manifest_format
from contract.errors import Corrupt, SpecError
from contract.layout import build_shard_data_prefix, build_shard_key, parse_data_key
from contract.store.errors import NotFound
from contract.store.protocol import Stored
from contract.transitions import reset

_EPOCH = re.compile(rb'"epoch":(\d{1,9})')


@click.command(name="repair")
@output_argument
@click.option("--shard", type=click.IntRange(min=0), required=True, help="Number of the shard.")
@json_option
def command(output_uri: str, shard: int, *, as_json: bool) -> None:
    """Set a shard whose manifest cannot be read back to unclaimed; its records run again.

    Refused for a manifest that can be read. The damaged bytes are kept beside it, as <key>.corrupt-<sha256, 8 digits>.
    """
    output = open_output(output_uri)
    check_is_open(output)
    if shard >= len(output.plan.shards):
        raise SpecError(f"{output.uri}: the plan has shards 0 to {len(output.plan.shards) - 1}, so no shard {shard}")
    epoch, kept_key = repair(output, shard)
    if as_json:
        print_json({"shard": shard, "epoch": epoch, "keptAs": kept_key})
    else:
        kept = f"; the damaged bytes are kept as {kept_key}" if kept_key else ""
        click.echo(f"shard {shard} is pending again at epoch {epoch}{kept}; start the run again")


def repair(output: Output, shard: int) -> tuple[int, str | None]:
    """Put a fresh manifest in place of one that is unreadable or gone.

    Returns:
        Its epoch, and the key under which the damaged bytes are kept; None when there were none.

    Raises:
        SpecError: there is nothing to repair.
        Superseded: the manifest changed meanwhile; look again.
    """
    key = build_shard_key(output.generation, shard)
    epochs = _data_epochs(output, shard)
    damaged = _read_damaged(output, key, has_data=bool(epochs))
    if damaged is not None:
        # An epoch that the damaged text still shows may be one whose owner lives: better too high than met again.
        epochs += [int(digits) for digits in _EPOCH.findall(damaged.body)]
    commit_id = new_commit_id()
    new = reset(
        output.plan.shards[shard], generation=output.generation, epoch=1 + max(epochs, default=0), commit_id=commit_id
    )
    body = manifest_format.to_json(new)
    withdraw_success(output)
    if damaged is None:
        kept_key = None
        output.committer.create_document(key, body, commit_id=commit_id)
    else:
        kept_key = f"{key}.corrupt-{hashlib.sha256(damaged.body).hexdigest()[:8]}"
        output.committer.create_immutable(kept_key, damaged.body)
        output.committer.update_document(key, body, damaged.etag, commit_id=commit_id)
    withdraw_success(output)
    return new.epoch, kept_key


def _data_epochs(output: Output, shard: int) -> list[int]:
    listed = output.committer.list(build_shard_data_prefix(output.generation, shard))
    return [parsed[2] for parsed in (parse_data_key(item.key) for item in listed) if parsed is not None]


def _read_damaged(output: Output, key: str, *, has_data: bool) -> Stored | None:
    """The unreadable manifest; None when it is gone but its data is there.

    Raises:
        SpecError: there is nothing to repair.
        NewerFormat: a newer version must judge it.
    """
    try:
        found = output.committer.read(key)
    except NotFound as error:
        if has_data:
            return None
        raise SpecError(f"{key}: the shard was never claimed, so there is nothing to repair") from error
    try:
        manifest = manifest_format.from_json(found.body, where=key)
    except Corrupt:
        return found
    raise SpecError(
        f"{key}: the manifest can be read ({manifest.status.value}, epoch {manifest.epoch}); nothing to repair"
    )
