"""The page: complete, self-contained, bounded, and deaf to whatever stands in ids and messages."""

from __future__ import annotations

import re
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path

import pytest

from cli.output import Manifests, UnreadableManifest
from cli.report_charts import MAX_LANES, axis_text, ceiling, text
from cli.report_content import build_content
from cli.report_page import build_page
from tests.report.runs import START, Story, hostile

STYLE = (Path(__file__).parents[2] / "cli" / "report.css").read_text()
VOID = {"meta", "link", "br", "path"}


class Outline(HTMLParser):
    """Tags, attributes and text of a page; fails on tags that do not match."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag opens."""
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """A tag that holds nothing."""
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        """A tag closes."""
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Text."""
        self.words.append(data)


def page_of(story: Story) -> str:
    """The page about a story."""
    return build_page(story.content, style=STYLE)


FINISHED = Story(num_shards=60, num_workers=6)
RUNNING = Story(num_shards=60, num_workers=6, stop_at=START + timedelta(minutes=18))


@pytest.mark.parametrize("story", [FINISHED, RUNNING, hostile()], ids=["finished", "running", "hostile"])
def test_the_page_is_well_formed_and_refers_to_nothing(story: Story) -> None:
    """Every tag is closed, every id unique, and neither a script, a handler nor an address to load is on it."""
    outline = Outline(page_of(story))
    attributes = [(name, value or "") for _, found in outline.tags for name, value in found.items()]
    ids = [value for name, value in attributes if name == "id"]

    assert outline.open == []
    assert len(ids) == len(set(ids)) > 4
    assert not {tag for tag, _ in outline.tags} & {"script", "iframe", "object", "embed", "img", "form", "base"}
    assert not [name for name, _ in attributes if name.startswith("on")]
    assert {value for name, value in attributes if name in {"href", "src", "action"}} == {"data:,"}
    assert "@import" not in STYLE
    assert "url(" not in STYLE


def test_every_drawing_is_named_or_hidden() -> None:
    """A screen reader hears a title and a description, or nothing where a table says the same."""
    outline = Outline(page_of(FINISHED))
    drawings = [found for tag, found in outline.tags if tag == "svg"]
    ids = {found.get("id") for _, found in outline.tags}

    assert len(drawings) > 10
    for found in drawings:
        if found.get("role") == "img":
            assert set((found["aria-labelledby"] or "").split()) <= ids
        else:
            assert found.get("aria-hidden") == "true"


def test_a_finished_run_shows_its_numbers() -> None:
    """Phase, records, restarts, quarantine, identity; nothing that only a running one has."""
    content, words = FINISHED.content, " ".join(Outline(page_of(FINISHED)).words)

    assert "Succeeded" in words
    assert f"{content.points[-1].records:,}" in words
    assert f"{content.summary['restarts']['total']} " in words
    assert content.record.input.sha256 in words
    assert "Nothing was running." in words
    assert "ETA" not in words


def test_a_running_run_shows_what_is_on_its_way() -> None:
    """ETA, workers that hold shards, time in flight."""
    words = " ".join(Outline(page_of(RUNNING)).words)

    assert "Running" in words
    assert "ETA" in words
    assert "hold a shard now" in words
    assert "In flight" in words
    assert "53.3 % of the input" in words


def test_a_run_before_its_first_claim_has_a_page() -> None:
    """With nothing to draw it says so, and divides by nothing."""
    story = Story(num_shards=5, num_workers=2, stop_at=START - timedelta(seconds=1))

    words = " ".join(Outline(page_of(story)).words)

    assert story.manifests == {}
    assert "No shard has been claimed yet." in words
    assert "No worker was interrupted." in words


def test_unreadable_manifests_are_said_with_the_way_out() -> None:
    """What is missing is not passed over."""
    manifests = Manifests(
        stored={}, unreadable=(UnreadableManifest(shard=3, key="g0001/shards/00003.json", message="checksum"),)
    )
    content = build_content(
        output="s3://b/out",
        record=FINISHED.record,
        plan=FINISHED.plan,
        manifests=manifests,
        generation=1,
        has_success=False,
        now=START,
    )

    assert "inferencerun repair s3://b/out --shard 3" in build_page(content, style="")


def test_hostile_text_stays_text() -> None:
    """Names, ids, evidence and details with markup, quotes and control characters appear as they are, harmless."""
    page = page_of(hostile())
    outline = Outline(page)

    assert "<script" not in page
    assert "\x1b" not in page
    assert "\u202e" not in page
    assert any("<script>document.title='owned'</script>" in words for words in outline.words)
    assert all(set(found) <= {"class", "title", "style", "aria-hidden"} for tag, found in outline.tags if tag == "i")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "-"),
        (7, "7"),
        ("a<b>&\"c'", "a&lt;b&gt;&amp;&quot;c&#x27;"),
        ("\x1b[31m", "\\x1b[31m"),
        ("x" * 400, "x" * 299 + "…"),
    ],
)
def test_text_is_escaped_and_cut(value: object, shown: str) -> None:
    """In elements and in attributes alike."""
    assert text(value) == shown


def test_ten_thousand_shards_give_a_small_page() -> None:
    """Below 5 MB by far, with the lanes and cells that a person can look at."""
    story = Story(num_shards=10_000, num_workers=128)

    page = page_of(story)

    assert len(page.encode()) < 1_000_000
    assert page.count('class="lane-name"') == MAX_LANES
    assert page.count('<g class="cell') <= 600
    assert "48 of 128 places for workers" in page


def test_many_short_holdings_are_merged_on_the_grid() -> None:
    """A worker with thousands of shards in a day has no more boxes than the lane has steps."""
    page = page_of(Story(num_shards=4_000, num_workers=1, checkpoints_per_shard=1, seed=3))

    assert len(page.encode()) < 200_000
    assert max(len(found) for found in re.findall(r'class="kept" d="([^"]*)"', page)) < 20_000


@pytest.mark.parametrize(
    ("value", "top"), [(0, 1), (0.03, 0.03), (1, 1), (6, 6), (10.6, 12), (101, 120), (999, 1000), (8001, 10_000)]
)
def test_an_axis_ends_at_a_round_number_not_below(value: float, top: float) -> None:
    """So that nothing is cut off and little is left empty."""
    assert ceiling(value) == pytest.approx(top)


@pytest.mark.parametrize(
    ("value", "shown"), [(0.5, "0.5"), (6, "6"), (8000, "8,000"), (12_000, "12 k"), (1.2e7, "12 M"), (2e9, "2 G")]
)
def test_axis_labels_are_short(value: float, shown: str) -> None:
    """They stand beside a chart on a phone."""
    assert axis_text(value) == shown
