"""The page of a report: content in, one self-contained HTML text out. Pure.

Nothing on it needs the network or a script, and its own policy forbids both: ids and messages on it come from the user's
input and from failing programs, so `text` is the only way in for them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC

from cli.report_charts import (
    MARKS,
    axis_text,
    bad_ends_drawing,
    bars_drawing,
    ceiling,
    figure,
    lanes_block,
    number_text,
    progress_drawing,
    shard_map,
    shares,
    shown_lanes,
    sizes_values,
    text,
    time_labels,
)
from cli.report_content import (
    FAILURES_SHOWN,
    QUARANTINED_SHOWN,
    Ending,
    Lane,
    ReportContent,
    ShardState,
    Use,
)
from cli.texts import duration_text, size_text
from contract.manifest import ShardStatus

MAX_LANE_ROWS = 200
MAX_TABLE_POINTS = 25
MIN_USE_S = 0.5
"""What a use must amount to, to be shown."""
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"

USES = {
    Use.COMMITTED: ("Committed", "ended in committed checkpoints: reading and computing"),
    Use.STALLED: ("Checkpoint stalls", "of the same: waiting until a checkpoint could be handed over"),
    Use.IN_FLIGHT: ("In flight", "since the last commit of the shards that are held now"),
    Use.EVICTED: ("Lost to evictions", "since the last commit before a spot eviction"),
    Use.FAILED: ("Lost to other ends", "since the last commit before a failure, a lost node or an intended stop"),
    Use.FINISHING: ("Finishing", "of completed shards: the claim, and the commits that hold no row"),
    Use.BETWEEN: ("Between shards", "estimated: from one shard of a worker to its next claim"),
    Use.REPLACING: (
        "Replacing",
        "estimated: from a worker's end to its successor's first claim: scheduling, start, model load",
    ),
}


def build_page(content: ReportContent, *, style: str, words: Callable[[str], str] = str) -> str:
    """The whole document; `style` is its CSS, `words` how a text that names commands is said."""
    title = f"{text(content.record.name)} · {text(content.summary['phase'])} · inferencerun"
    sections = (
        _head(content),
        _warning(content),
        _progress(content),
        _workers(content),
        _time(content),
        _shards(content, words),
        _failures(content),
        _quarantine(content),
        _sizes(content),
        _identity(content),
    )
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{title}</title><style>{style}</style></head>\n<body><main>\n"
        + "\n".join(section for section in sections if section)
        + f"\n</main>{_foot(content)}</body></html>\n"
    )


def _head(content: ReportContent) -> str:
    facts = content.summary
    percent = float(facts["percent"])
    rate = content.points[-1].records / content.elapsed_s if content.elapsed_s else 0.0
    tiles: list[tuple[str, str, str]] = [
        ("records", f"{facts['records']:,}", f"{size_text(facts['bytes'])} of {size_text(facts['totalBytes'])} read"),
        ("elapsed", duration_text(content.elapsed_s), _elapsed_note(content)),
        ("records/s", number_text(rate), _rate_note(content)),
        (
            "goodput",
            "-" if content.goodput is None else f"{100 * content.goodput:.0f} %",
            "of worker time was committed",
        ),
        (
            "workers",
            f"{len(facts['workers']):,}" if content.is_live else f"{len(content.lanes):,}",
            _workers_note(content),
        ),
        ("restarts", f"{facts['restarts']['total']:,}", f"{facts['restarts']['counted']:,} count as failures"),
        ("quarantined", f"{facts['quarantined']:,}", "records without a row"),
        ("checkpoints", f"{content.num_checkpoints:,}", size_text(content.checkpoint_bytes)),
    ]
    return (
        f'<header><h1>{text(content.record.name)} <span class="phase {text(facts["phase"]).lower()}">'
        f"{text(facts['phase'])}</span></h1>"
        f'<p class="muted">{text(content.record.model.name)} · generation {content.generation} · {text(content.output)}</p>'
        f'<div class="bar" role="progressbar" aria-label="Input behind us" aria-valuemin="0" aria-valuemax="100" '
        f'aria-valuenow="{percent:.1f}"><span style="width:{percent:.1f}%"></span></div>'
        f'<p class="percent">{percent:.1f} % of the input</p></header>\n<dl class="tiles">'
        + "".join(
            f"<div><dt>{text(name)}</dt><dd><b>{text(value)}</b><small>{text(note)}</small></dd></div>"
            for name, value, note in tiles
        )
        + "</dl>"
    )


def _elapsed_note(content: ReportContent) -> str:
    return f"ETA {duration_text(content.summary['etaSeconds'])}" if content.is_live else "first claim to last commit"


def _rate_note(content: ReportContent) -> str:
    now = f", {number_text(float(content.summary['recordsPerSecond']))} now" if content.is_live else ""
    return f"on average{now}"


def _workers_note(content: ReportContent) -> str:
    return "hold a shard now" if content.is_live else "places that held shards"


def _warning(content: ReportContent) -> str:
    unreadable = content.summary["unreadable"]
    if not unreadable:
        return ""
    return (
        f'<p class="warning" role="alert">Manifests that cannot be read, and are missing below: {len(unreadable):,}. '
        f"Run <code>inferencerun repair {text(content.output)} --shard {unreadable[0]}</code>.</p>"
    )


def _progress(content: ReportContent) -> str:
    if not content.bins:
        return _section("Progress", "<p>No shard has been claimed yet.</p>")
    total = content.points[-1].records
    top, fastest = ceiling(total), max(item.records_per_s for item in content.bins)
    rate_top = ceiling(fastest)
    busiest = max(item.workers for item in content.bins)
    num_bad = sum(item.num_bad_ends for item in content.bins)
    labels = time_labels(content)
    charts = figure(
        name="progress",
        title="Records in committed checkpoints over time",
        description=f"{total:,} records after {duration_text(content.elapsed_s)}",
        drawing=progress_drawing(content.points, started_at=content.started_at, elapsed_s=content.elapsed_s, top=top),
        top=axis_text(top),
        bottom=labels,
    )
    rates = figure(
        name="rate",
        title="Throughput over time",
        description=f"At most {number_text(fastest)} records/s; {num_bad} workers ended badly, marked from above",
        drawing=bars_drawing([item.records_per_s for item in content.bins], top=rate_top, style="bars")
        + bad_ends_drawing(content.bins),
        top=axis_text(rate_top),
        bottom=labels,
    )
    busy = figure(
        name="busy",
        title="Workers that hold a shard, over time",
        description=f"At most {number_text(busiest)}",
        drawing=bars_drawing([item.workers for item in content.bins], top=ceiling(busiest), style="busy"),
        top=axis_text(ceiling(busiest)),
        bottom=labels,
    )
    note = ""
    if num_bad:
        note = '<p class="muted"><span class="swatch ticks"></span>a tick from above: workers that ended badly then</p>'
    if content.is_live:
        note += '<p class="muted">What is not committed yet is missing from the last slices.</p>'
    body = (
        f"<h3>Records committed</h3>{charts}<h3>Records per second</h3>{rates}{note}"
        f"<h3>Workers at work</h3>{busy}{_details('Numbers', _progress_table(content))}"
    )
    return _section("Progress", body)


def _progress_table(content: ReportContent) -> str:
    points = content.points
    stride = max(1, -(-len(points) // MAX_TABLE_POINTS))
    chosen = [*points[:-1:stride], points[-1]]
    return _table(
        ("After", "Time (UTC)", "Records"),
        (
            (
                duration_text((item.at - content.started_at).total_seconds()),
                f"{item.at.astimezone(UTC):%Y-%m-%d %H:%M:%S}",
                f"{item.records:,}",
            )
            for item in chosen
        ),
    )


def _workers(content: ReportContent) -> str:
    if not content.lanes:
        return ""
    seen = {item.ending for lane in content.lanes for item in lane.holdings}
    legend = (
        '<span><i class="swatch kept"></i>committed</span><span><i class="swatch lost"></i>lost with its worker</span>'
    )
    if content.is_live:
        legend += '<span><i class="swatch open"></i>not committed yet</span>'
    legend += "".join(
        f'<span><i class="mark {ending.value}"></i>{text(name)}</span>'
        for ending, name in MARKS.items()
        if ending in seen
    )
    shown = shown_lanes(content.lanes)
    note = ""
    if len(shown) < len(content.lanes):
        note = (
            f'<p class="muted">{len(shown)} of {len(content.lanes):,} places for workers: those whose workers ended badly '
            "most often. All are counted in the other figures.</p>"
        )
    table = _details("Table of workers", _lane_table(content.lanes))
    return _section("Workers", f'<p class="legend">{legend}</p>{note}{lanes_block(content)}{table}')


def _lane_table(lanes: Sequence[Lane]) -> str:
    def row(lane: Lane) -> tuple[str, ...]:
        endings = [item.ending for item in lane.holdings]
        held_s = sum(item.held_s for item in lane.holdings)
        useful_s = sum(item.useful_s for item in lane.holdings)
        last = lane.holdings[-1]
        return (
            lane.name,
            f"{len({item.uid for item in lane.holdings}):,}",
            f"{len(lane.holdings):,}",
            duration_text(held_s),
            f"{100 * useful_s / held_s:.0f} %" if held_s else "-",
            f"{endings.count(Ending.EVICTED):,}",
            f"{endings.count(Ending.NODE) + endings.count(Ending.FAILED):,}",
            f"{last.pod} on {last.node or '-'}, shard {last.shard}",
        )

    more = f"<p>{len(lanes) - MAX_LANE_ROWS:,} more are not listed.</p>" if len(lanes) > MAX_LANE_ROWS else ""
    columns = ("Worker", "Pods", "Shards held", "Time", "Committed", "Evictions", "Failures", "Last seen as")
    return _table(columns, (row(lane) for lane in lanes[:MAX_LANE_ROWS])) + more


def _time(content: ReportContent) -> str:
    total_s = sum(content.uses.values())
    if not total_s:
        return ""
    bar = shares((use.value, USES[use][0], content.uses[use]) for use in USES if content.uses[use] >= MIN_USE_S)
    rows = "".join(
        f'<tr><th scope="row"><i class="swatch use-{use.value}"></i>{text(name)}</th>'
        f'<td class="fixed">{duration_text(content.uses[use])}</td>'
        f'<td class="fixed">{100 * content.uses[use] / total_s:.1f} %</td>'
        f"<td>{text(meaning)}</td></tr>"
        for use, (name, meaning) in USES.items()
        if content.uses[use] >= MIN_USE_S
    )
    note = (
        '<p class="muted">From claims, checkpoints and ended attempts. The first start of each worker (image, model) lies '
        "before its first claim, and no manifest tells it.</p>"
    )
    table = _scrolled(_columns(("What", "Time", "Share", "Meaning")), rows, label="Worker time")
    return _section("Where worker time went", bar + table + note)


def _shards(content: ReportContent, words: Callable[[str], str]) -> str:
    counts = content.summary["shards"]
    line = " · ".join(f"{number:,} {text(name)}" for name, number in counts.items() if number and name != "total")
    failed = ""
    if content.failed_shards:
        failed = "<h3>Failed for good</h3>" + _table(
            ("Shard", "Class", "What to do"),
            ((str(item.shard), item.failure_class, words(item.detail)) for item in content.failed_shards),
        )
        failed += f"<p>Then <code>{text(words(f'inferencerun retry {content.output}'))}</code>.</p>"
    stale = content.summary["stale"]
    silent = f"<p>{len(stale):,} are held without a commit for over ten minutes.</p>" if stale else ""
    table = _details("Table of open shards", _open_shards(content.shards))
    return _section(
        f"Shards ({counts['total']:,})",
        f'<p class="muted">{line}</p>{shard_map(content.shards)}{silent}{failed}{table}',
    )


def _open_shards(shards: Sequence[ShardState]) -> str:
    opened = [item for item in shards if item.status != ShardStatus.COMPLETE]
    if not opened:
        return "<p>All are complete.</p>"
    more = f"<p>{len(opened) - 100:,} more are not listed.</p>" if len(opened) > 100 else ""
    rows = ((str(item.shard), item.status, f"{100 * item.share:.0f} %") for item in opened[:100])
    return _table(("Shard", "Status", "Of its bytes"), rows) + more


def _failures(content: ReportContent) -> str:
    by_class = content.summary["restarts"]["byClass"]
    if not by_class:
        return _section("Interruptions", "<p>No worker was interrupted.</p>")
    lines = (
        (
            f"{line.attempt.ended_at.astimezone(UTC):%m-%d %H:%M:%S}",
            line.attempt.failure_class.value,
            str(line.shard),
            line.attempt.pod,
            line.attempt.node,
            line.attempt.evidence,
            line.advice or "none needed",
        )
        for line in content.failures
    )
    latest = ""
    if content.failures:
        latest = f"<h3>The last {min(len(content.failures), FAILURES_SHOWN)}</h3>" + _table(
            ("Ended (UTC)", "Class", "Shard", "Worker", "Node", "Evidence", "Advice"), lines
        )
    return _section("Interruptions", _bars(by_class) + latest)


def _quarantine(content: ReportContent) -> str:
    if not content.quarantined_by_class:
        return _section("Quarantine", "<p>Every record has a row.</p>")
    rows = (
        (item.id, item.quarantine_class, str(item.shard), f"{item.offset:,}", item.detail)
        for item in content.quarantined
    )
    total = sum(content.quarantined_by_class.values())
    first = "" if total <= QUARANTINED_SHOWN else f" (the first {QUARANTINED_SHOWN} of {total:,})"
    table = _details(f"Records{first}", _table(("Id", "Class", "Shard", "Offset", "Why"), rows))
    return _section("Quarantine", _bars(content.quarantined_by_class) + table)


def _sizes(content: ReportContent) -> str:
    if len(content.sizes) < 2:
        return ""
    values = sizes_values(content.sizes)
    top = ceiling(max(values))
    chart = figure(
        name="sizes",
        title="Records by the mean size of a record in their checkpoint",
        description=f"From {content.sizes[0].from_bytes:.0f} to {content.sizes[-1].to_bytes:.0f} bytes",
        drawing=bars_drawing(values, top=top, style="bars"),
        top=axis_text(top),
        bottom=tuple(
            f"{edge:.0f} B"
            for edge in (
                content.sizes[0].from_bytes,
                (content.sizes[0].from_bytes + content.sizes[-1].to_bytes) / 2,
                content.sizes[-1].to_bytes,
            )
        ),
    )
    note = (
        '<p class="muted">Estimated from the offsets between checkpoints: each counts with the mean of its records, headers '
        "and line ends included.</p>"
    )
    rows = (
        (f"{item.from_bytes:.0f} to {item.to_bytes:.0f}", f"{item.records:,}") for item in content.sizes if item.records
    )
    table = _details("Numbers", _table(("Bytes", "Records"), rows))
    return _section("Record sizes", f"<h3>Records by mean size</h3>{chart}{note}{table}")


def _identity(content: ReportContent) -> str:
    record = content.record
    pairs: list[tuple[str, object]] = [
        ("run", f"{record.name} ({record.uid})"),
        ("generation", f"{content.generation} of {record.generation}"),
        ("output", content.output),
        ("model", record.model.name),
        ("model source", record.model.source or "-"),
        ("parameters", record.model.parameters_json),
        ("precision, rows", f"{record.model.precision}, {record.model.kind} {record.model.dtype}"),
        ("longest record", f"{record.model.max_length or 'any'}; longer ones: {record.model.on_too_long}"),
        (
            "input",
            f"{record.input.num_objects:,} objects, {size_text(record.input.total_bytes)}, {record.input.format}",
        ),
        ("input digest", record.input.sha256),
        ("shard size", size_text(record.shard_bytes)),
    ]
    items = "".join(f"<dt>{text(name)}</dt><dd>{text(value)}</dd>" for name, value in pairs)
    return _section("Identity", f'<dl class="pairs">{items}</dl>')


def _foot(content: ReportContent) -> str:
    made = f"{content.made_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    started = f"{content.started_at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    state = "A running run: make it again for later news." if content.is_live else "Nothing was running."
    return f"<footer>Started {started}. Made {made} from the manifests. {state}</footer>"


def _section(title: str, body: str) -> str:
    return f"<section><h2>{title}</h2>{body}</section>"


def _details(summary: str, body: str) -> str:
    return f"<details><summary>{text(summary)}</summary>{body}</details>"


def _bars(amounts: dict[str, int]) -> str:
    most = max(amounts.values())
    rows = "".join(
        f'<tr><th scope="row">{text(name)}</th><td>{number:,}</td>'
        f'<td class="meter"><span style="width:{max(100 * number / most, 1):.0f}%"></span></td></tr>'
        for name, number in sorted(amounts.items(), key=lambda pair: -pair[1])
    )
    return f'<table class="bars-table"><tbody>{rows}</tbody></table>'


def _columns(columns: Sequence[str]) -> str:
    cells = "".join(f'<th scope="col">{text(name)}</th>' for name in columns)
    return f"<thead><tr>{cells}</tr></thead>"


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    body = "".join(f"<tr>{''.join(f'<td>{text(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return _scrolled(_columns(columns), body, label=", ".join(columns[:2]))


def _scrolled(head: str, body: str, *, label: str) -> str:
    # Wide tables scroll by themselves, not the page; tabindex lets a keyboard do it.
    return (
        f'<div class="scroll" role="region" aria-label="{text(label)}" tabindex="0"><table>{head}'
        f"<tbody>{body}</tbody></table></div>"
    )
