"""What `verify` checks, and how: every object of a generation against its manifest, and all of them against the input.

    documents     run.json, plan and manifests decode; the plan is the run's; each manifest is of its shard and consistent
    checkpoints   present and not empty; size and sha256 as named; loadable; shapes agree; metadata as in the manifest
    exactly once  every record of the input is in one checkpoint or in quarantine, with the same offset and id, in order
    the end       index.json and _SUCCESS say what the manifests say

Streaming: in memory are the manifests, the input's read-ahead, the bytes of the next checkpoints (`cli.read_ahead`) and the
rows of one (two while one replaces the other). A run in progress is verified for what it has.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch

from cli.checkpoints import Piece, Rows, in_input_order, metadata_problems, rows_of
from cli.output import Manifests, Output, is_finished
from cli.read_ahead import ReadAhead
from contract import index as index_format
from contract.errors import Corrupt, InvalidInput
from contract.flight import MAX_ID_LENGTH
from contract.index import build_index
from contract.layout import build_data_prefix, build_index_key, build_plan_key, build_shard_key, parse_data_key
from contract.manifest import Checkpoint, Quarantined, ShardManifest, ShardStatus, invariants
from contract.plan import Shard, cut
from contract.ranges import Ranges, contains, normalised
from contract.run_record import input_identity
from contract.store.errors import NotFound
from worker.records.record import Record

REQUEUE = "run 'inferencerun verify OUTPUT_URI --requeue': only this checkpoint's records run again"
REPAIR = "run 'inferencerun repair OUTPUT_URI --shard N': the records of this shard run again"
RESTART = "start a new generation with --restart; this one cannot be trusted"
RETRY = "run 'inferencerun retry OUTPUT_URI --quarantined': the quarantined records run again"
REFINISH = (
    "run 'inferencerun verify OUTPUT_URI --requeue', then start the run again: it writes index.json and _SUCCESS anew"
)
RESTORE = "restore the input as it was planned and verify again, or leave it out with --no-input"

EXAMPLES_PER_CHECKPOINT = 3
"""A checkpoint whose rows all differ is reported by its first three, not by a million lines."""

OpenRecords = Callable[[Shard], Iterator[Record]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """One thing that is off."""

    object: str
    """Key of the output's object, or URI of the input's."""
    place: str | None
    """Where in it; None = as a whole."""
    problem: str
    remedy: str


@dataclass(slots=True, kw_only=True)
class Report:
    """What a verification found."""

    is_finished: bool = False
    """Whether _SUCCESS is there; if not, what there is so far has been verified."""
    shards: int = 0
    checkpoints: int = 0
    records: int = 0
    """Records whose rows are sound."""
    bytes: int = 0
    input_records: int = 0
    quarantined: int = 0
    unnamed_objects: int = 0
    """Objects that no manifest names; `cleanup` removes them. No problem: they do not exist for a reader."""
    problems: list[Problem] = field(default_factory=list)
    corrupt: dict[int, set[str]] = field(default_factory=dict)
    """Keys of checkpoints that must run again, by shard."""
    is_index_wrong: bool = False
    """index.json or _SUCCESS says something else than the manifests."""

    def add(self, key: str, problem: str, *, remedy: str, place: str | None = None) -> None:
        """Note a problem."""
        self.problems.append(Problem(object=key, place=place, problem=problem, remedy=remedy))

    def to_fields(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "ok": not self.problems,
            "finished": self.is_finished,
            "shards": self.shards,
            "checkpoints": self.checkpoints,
            "records": self.records,
            "quarantined": self.quarantined,
            "inputRecords": self.input_records,
            "bytes": self.bytes,
            "unnamedObjects": self.unnamed_objects,
            "problems": [asdict(item) for item in self.problems],
        }


def verify(
    output: Output, manifests: Manifests, *, open_records: OpenRecords | None, on_shard: Callable[[Shard], None]
) -> Report:
    """Check the whole generation.

    Args:
        output: the opened output.
        manifests: all its manifests.
        open_records: reads a shard's range of the input from its start; None = leave the input out.
        on_shard: called after each shard, for progress.
    """
    report = Report()
    _check_plan(output, report)
    for unreadable in manifests.unreadable:
        report.add(unreadable.key, unreadable.message.removeprefix(f"{unreadable.key}: "), remedy=REPAIR)
    known = [(shard, manifests.stored.get(shard.shard)) for shard in output.plan.shards]
    wanted = (
        item
        for _, stored in known
        if stored is not None
        for item in sorted(stored.manifest.checkpoints, key=lambda item: item.first)
    )
    with ReadAhead(output.committer, wanted) as contents:
        for shard, stored in known:
            if stored is not None:
                _ShardCheck(output, shard, stored.manifest, report, contents).run(open_records)
            on_shard(shard)
    report.unnamed_objects = _num_unnamed(output, manifests)
    for number in sorted(manifests.stored.keys() - {shard.shard for shard in output.plan.shards}):
        report.add(build_shard_key(output.generation, number), "the plan has no such shard", remedy=RESTART)
    _check_index(output, manifests, report)
    return report


def _num_unnamed(output: Output, manifests: Manifests) -> int:
    """Objects that the manifest of their shard does not name. One listing for all: one for each shard would take minutes."""
    named = {item.key for stored in manifests.stored.values() for item in stored.manifest.checkpoints}
    num_unnamed = 0
    for listed in output.committer.list(build_data_prefix(output.generation)):
        parsed = parse_data_key(listed.key)
        is_known = parsed is None or parsed[1] in manifests.stored
        num_unnamed += is_known and listed.key not in named
    return num_unnamed


def _check_plan(output: Output, report: Report) -> None:
    plan, record, key = output.plan, output.record, build_plan_key(output.generation)
    if plan.generation != output.generation:
        report.add(key, f"the plan is of generation {plan.generation}", remedy=RESTART)
    if cut(plan.objects, generation=plan.generation, fmt=plan.format, shard_bytes=plan.shard_bytes) != plan:
        report.add(key, "the shards are not those that the plan's objects and shardBytes give", remedy=RESTART)
    if output.generation == record.generation:
        identity = input_identity(
            plan.objects, fmt=plan.format, id_field=record.input.id_field, value_field=record.input.value_field
        )
        if identity != record.input:
            report.add(key, "the plan lists other input than run.json names", remedy=RESTART)


class _ShardCheck:
    """The checks of one shard."""

    def __init__(
        self, output: Output, shard: Shard, manifest: ShardManifest, report: Report, contents: ReadAhead
    ) -> None:
        self._output = output
        self._shard = shard
        self._manifest = manifest
        self._report = report
        self._contents = contents
        self._key = build_shard_key(output.generation, shard.shard)
        self._unread: Ranges = ()
        """Ranges of checkpoints that are corrupt: their records are in trouble already, not missing besides."""
        self._num_differing: Counter[str] = Counter()
        """Rows already reported as differing from the input, by key."""

    def run(self, open_records: OpenRecords | None) -> None:
        """All checks; the input's only when it can be read."""
        report, manifest = self._report, self._manifest
        report.shards += 1
        report.quarantined += len(manifest.quarantined)
        self._check_manifest()
        places = _places(in_input_order(manifest.checkpoints, self._load), manifest.quarantined)
        if open_records is not None:
            self._check_exactly_once(places, open_records(self._shard))
        for _ in places:  # what the input did not call for is still read and checked
            pass

    def _check_manifest(self) -> None:
        shard, manifest = self._shard, self._manifest
        planned = (shard.shard, self._output.generation, shard.object, shard.start, shard.end)
        found = (manifest.shard, manifest.generation, manifest.object, manifest.start, manifest.end)
        if found != planned:
            self._report.add(self._key, f"it describes {found}, but the plan has {planned}", remedy=RESTART)
        # The version is checked against the one before it, which is gone; everything else stands on its own.
        broken = invariants(replace(manifest, version=1), None)
        if broken is not None:
            self._report.add(self._key, broken, remedy=RESTART)

    def _load(self, item: Checkpoint) -> Rows | None:
        report = self._report
        report.checkpoints += 1
        try:
            rows = rows_of(self._contents.take(item), where=item.key)
            problems = metadata_problems(rows, item, self._manifest, self._output.record)
        except Corrupt as error:
            problems = [str(error).removeprefix(f"{item.key}: ")]
        for problem in problems:
            self._condemn(item, problem)
        if problems:
            self._unread = normalised((*self._unread, (item.first, item.next)))
            return None
        report.records += len(rows.ids)
        report.bytes += item.bytes
        return replace(rows, embeddings=torch.empty(0))  # who they are is all that is asked from here on

    def _condemn(self, item: Checkpoint, problem: str, *, place: str | None = None) -> None:
        self._report.add(item.key, problem, place=place, remedy=REQUEUE)
        self._report.corrupt.setdefault(self._shard.shard, set()).add(item.key)

    def _check_exactly_once(self, places: Iterator[_Place], records: Iterator[Record]) -> None:
        """Walk the input and the places of its records side by side; both go by ordinals."""
        manifest, report = self._manifest, self._report
        is_complete = manifest.status is ShardStatus.COMPLETE
        settled_end = manifest.settled[-1][1] if manifest.settled else 0
        place = next(places, None)
        missing = _MissingRuns()
        num_read = 0
        try:
            for record in records if is_complete or settled_end else ():
                num_read += 1
                num_places = 0
                while place is not None and place.ordinal <= record.ordinal:
                    num_places += 1
                    self._compare(record, place)
                    place = next(places, None)
                is_due = is_complete or contains(manifest.done, record.ordinal)
                if num_places == 0 and is_due and not contains(self._unread, record.ordinal):
                    missing.add(record)
                elif num_places > 1:
                    self._add_record(record, f"it has {num_places} places among checkpoints and quarantine")
                if not is_complete and record.ordinal + 1 >= settled_end:
                    break
        except InvalidInput as error:
            report.add(self._shard.object, str(error), remedy=RESTORE)
        else:
            self._check_end(place, places, num_read)
        report.input_records += num_read
        for first, last, length in missing.runs:
            self._add_record(
                first, f"{length} record(s), up to offset {last.offset}, have no row and are not in quarantine"
            )

    def _compare(self, record: Record, place: _Place) -> None:
        if (record.ordinal, record.offset, record.id) == (place.ordinal, place.offset, place.id):
            return
        cut = (record.ordinal, record.offset, record.id[:MAX_ID_LENGTH])
        if place.checkpoint is None and cut == (place.ordinal, place.offset, place.id):
            return
        text = (
            f"record {place.ordinal} is {place.id!r} at offset {place.offset}, "
            f"but the input has {record.id!r} at offset {record.offset}"
        )
        if place.checkpoint is None:
            self._report.add(self._key, f"quarantined {text}", remedy=RETRY)
        elif self._num_differing[place.checkpoint.key] < EXAMPLES_PER_CHECKPOINT:
            self._num_differing[place.checkpoint.key] += 1
            self._condemn(place.checkpoint, text, place=f"row {place.row}")

    def _check_end(self, place: _Place | None, places: Iterator[_Place], num_read: int) -> None:
        manifest = self._manifest
        beyond: Counter[str] = Counter()
        while place is not None:
            beyond[self._key if place.checkpoint is None else place.checkpoint.key] += 1
            place = next(places, None)
        by_key = {item.key: item for item in manifest.checkpoints}
        for key, number in beyond.items():
            text = f"{number} record(s) beyond the {num_read} of the input's range"
            if key in by_key:
                self._condemn(by_key[key], text)
            else:
                self._report.add(key, f"it quarantines {text}", remedy=RETRY)
        if manifest.status is ShardStatus.COMPLETE and manifest.records != num_read:
            self._report.add(
                self._key, f"it counts {manifest.records} records, but the input's range has {num_read}", remedy=RESTART
            )

    def _add_record(self, record: Record, problem: str) -> None:
        place = f"shard {self._shard.shard}, record {record.ordinal}, offset {record.offset}, id {record.id!r}"
        self._report.add(self._shard.object, problem, place=place, remedy=RESTART)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """Where a record's fate is written: a row of a checkpoint, or the quarantine list."""

    ordinal: int
    offset: int
    id: str
    checkpoint: Checkpoint | None
    """None = quarantine."""
    row: int | None


def _places(pieces: Iterator[Piece], quarantined: Iterable[Quarantined]) -> Iterator[_Place]:
    """Rows and quarantined records, in the order of their ordinals."""
    rows = (
        _Place(
            ordinal=piece.rows.ordinals[row],
            offset=piece.rows.offsets[row],
            id=piece.rows.ids[row],
            checkpoint=piece.checkpoint,
            row=row,
        )
        for piece in pieces
        for row in range(piece.start, piece.end)
    )
    refused = (
        _Place(ordinal=item.ordinal, offset=item.offset, id=item.id, checkpoint=None, row=None) for item in quarantined
    )
    return heapq.merge(rows, refused, key=lambda place: place.ordinal)


class _MissingRuns:
    """Records without a place, as runs of adjacent ones: a lost million is one line."""

    def __init__(self) -> None:
        self.runs: list[tuple[Record, Record, int]] = []
        """(first, last, how many)"""

    def add(self, record: Record) -> None:
        """Take a missing record; they come in order."""
        if self.runs and self.runs[-1][1].ordinal + 1 == record.ordinal:
            first, _, length = self.runs.pop()
            self.runs.append((first, record, length + 1))
        else:
            self.runs.append((record, record, 1))


def _check_index(output: Output, manifests: Manifests, report: Report) -> None:
    """index.json and _SUCCESS against the manifests. Both may be absent while the run is not finished."""
    key = build_index_key(output.generation)
    report.is_finished = is_finished(output)
    for place, problem in _index_problems(output, manifests, key, has_success=report.is_finished):
        report.is_index_wrong = True
        report.add(key, problem, place=place, remedy=REFINISH)


def _index_problems(
    output: Output, manifests: Manifests, key: str, *, has_success: bool
) -> Iterator[tuple[str | None, str]]:
    try:
        body = output.committer.read(key).body
    except NotFound:
        if has_success:
            yield None, "it is missing beside _SUCCESS"
        return
    final = {item.shard for item in manifests.readable if item.is_final}
    still_open = [shard.shard for shard in output.plan.shards if shard.shard not in final]
    if still_open:
        yield None, f"it exists although {len(still_open)} shard(s), e.g. {still_open[0]}, are not final"
        return
    wanted = build_index(manifests.readable, generation=output.generation)
    try:
        found = index_format.from_json(body, where=key)
    except Corrupt as error:
        yield None, str(error).removeprefix(f"{key}: ")
        return
    for name in ("generation", "records", "files", "quarantined", "failed_shards"):
        if getattr(found, name) != getattr(wanted, name):
            yield name, _difference(getattr(found, name), getattr(wanted, name))


def _difference(found: Any, wanted: Any) -> str:
    if not isinstance(found, tuple) or not isinstance(wanted, tuple):
        return f"it says {found}, the manifests {wanted}"
    known_found, known_wanted = set(found), set(wanted)
    extra = [item for item in found if item not in known_wanted]
    lacking = [item for item in wanted if item not in known_found]
    if not extra and not lacking:
        return "its order is not that of the input"
    example = (*extra, *lacking)[0]
    return f"it names {len(extra)} that the manifests do not have and lacks {len(lacking)}, e.g. {example}"
