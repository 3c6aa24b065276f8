"""`inferencerun cleanup`: remove what no manifest names, and old generations when asked.

An object may go only if nobody can name it any more: no manifest and no snapshot names it, it is older than the grace
time, and its epoch lies below its shard's (only the owner of the present epoch can still commit) or the shard is final.
The listing is taken before the manifests, so an object committed in between is named by what is read. A shard whose
manifest is unreadable or gone keeps everything: its data is what a repair starts from.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import click

from cli.output import (
    NUM_STORE_THREADS,
    Output,
    current_time,
    is_finished,
    open_output,
    read_manifests,
    read_snapshots,
)
from cli.present import json_option, output_argument, print_json
from cli.texts import size_text
from contract.errors import SpecError
from contract.layout import (
    PROBE_PREFIX,
    build_data_prefix,
    build_generation_prefix,
    build_logs_prefix,
    build_success_key,
    parse_data_key,
)
from contract.manifest import ShardManifest
from contract.store.protocol import Listed

_SUCCESS_ENDING = build_success_key(1).removeprefix(build_generation_prefix(1))
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Age(click.ParamType[timedelta]):
    """A duration such as 90s, 30m, 24h or 7d."""

    name = "age"

    def convert(self, value: str | timedelta, param: click.Parameter | None, ctx: click.Context | None) -> timedelta:
        """The duration; a usage error otherwise."""
        if isinstance(value, timedelta):
            return value
        match = re.fullmatch(r"(\d{1,6})([smhd])", value)
        if match is None:
            self.fail(f"{value!r} is no age; write for example 90s, 30m, 24h or 7d", param, ctx)
        return timedelta(seconds=int(match[1]) * _SECONDS[match[2]])


@click.command(name="cleanup")
@output_argument
@click.option(
    "--older-than", type=Age(), default="24h", show_default=True, help="Grace time: leave younger objects alone."
)
@click.option(
    "--generations", "with_generations", is_flag=True, help="Also remove all generations before the current one."
)
@click.option("--logs", "with_logs", is_flag=True, help="Also remove the kept ends of failed workers' logs.")
@click.option("--dry-run", is_flag=True, help="Say what would be removed; remove nothing.")
@json_option
def command(
    output_uri: str, older_than: timedelta, *, with_generations: bool, with_logs: bool, dry_run: bool, as_json: bool
) -> None:
    """Remove objects that no manifest names: what killed workers left behind, and the leftovers of the store probe.

    Nothing that the current generation's manifests or snapshots name is ever removed. Old generations go only once the
    current one is complete: until then they are the only complete result there is.
    """
    output = open_output(output_uri)
    if with_generations and not is_finished(output):
        raise SpecError(
            f"{output.uri}: generation {output.generation} is not complete, so older generations stay; finish the run first"
        )
    now = current_time()
    removed = {
        "unnamed": unnamed_objects(output, now=now, grace=older_than),
        "probes": [item for item in output.committer.list(PROBE_PREFIX) if is_older(item, now=now, grace=older_than)],
        "generations": old_generations(output) if with_generations else [],
        "logs": old_logs(output, now=now, grace=older_than) if with_logs else [],
    }
    if not dry_run:
        for items in removed.values():
            _delete_all(output, items)
    sizes = {
        name: {"objects": len(items), "bytes": sum(item.size for item in items)} for name, items in removed.items()
    }
    if as_json:
        print_json({"dryRun": dry_run, **sizes})
        return
    for name, what in (
        ("unnamed", "unnamed objects"),
        ("probes", "probe leftovers"),
        ("generations", "of old generations"),
        ("logs", "ends of logs"),
    ):
        verb = "would remove" if dry_run else "removed"
        click.echo(f"{verb} {sizes[name]['objects']} {what}, {size_text(sizes[name]['bytes'])}")


def unnamed_objects(output: Output, *, now: datetime, grace: timedelta) -> list[Listed]:
    """The garbage of the current generation."""
    listed = output.committer.list(build_data_prefix(output.generation))
    kept = frozenset[str]().union(*(item.keys for item in read_snapshots(output)))
    manifests = {item.shard: item for item in read_manifests(output).readable}
    return [item for item in listed if is_garbage(item, manifests, kept, now=now, grace=grace)]


def is_garbage(
    item: Listed, manifests: dict[int, ShardManifest], kept: frozenset[str], *, now: datetime, grace: timedelta
) -> bool:
    """Whether nobody names the object, nor ever will. Pure.

    Args:
        item: an object listed before the manifests were read.
        manifests: by shard; a shard that is not there keeps everything.
        kept: keys that snapshots name.
        now: the time of the decision.
        grace: younger objects stay.
    """
    parsed = parse_data_key(item.key)
    manifest = manifests.get(parsed[1]) if parsed is not None else None
    if parsed is None or manifest is None or item.key in kept or not is_older(item, now=now, grace=grace):
        return False
    if any(item.key == checkpoint.key for checkpoint in manifest.checkpoints):
        return False
    return parsed[2] < manifest.epoch or manifest.is_final


def is_older(item: Listed, *, now: datetime, grace: timedelta) -> bool:
    """Whether the object is older than the grace time. Pure."""
    return now - item.modified_at >= grace


def old_generations(output: Output) -> list[Listed]:
    """Everything of the generations before the current one."""
    return [
        item
        for generation in range(1, output.record.generation)
        for item in output.committer.list(build_generation_prefix(generation))
    ]


def old_logs(output: Output, *, now: datetime, grace: timedelta) -> list[Listed]:
    """Kept logs of the current generation."""
    listed = output.committer.list(build_logs_prefix(output.generation))
    return [item for item in listed if is_older(item, now=now, grace=grace)]


def _delete_all(output: Output, items: Sequence[Listed]) -> None:
    """Markers of success first: a clean-up that is killed leaves no generation that looks complete and is not."""
    markers = [item for item in items if item.key.endswith(_SUCCESS_ENDING)]
    others = [item for item in items if not item.key.endswith(_SUCCESS_ENDING)]
    with ThreadPoolExecutor(NUM_STORE_THREADS) as threads:
        for batch in (markers, others):
            for _ in threads.map(lambda item: output.committer.delete(item.key), batch):
                pass
