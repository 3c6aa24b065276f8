"""Markdown documents as the checks see them: fenced blocks, links, headings.

A block that no test exercises carries the reason on the line above its fence:

    <!-- not run: needs a Google Cloud project -->
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^( *)(```+)([\w-]*)\s*$")
_HERE_DOCUMENT = re.compile(r"^(.*<<'(\w+)'.*\n)((?:.*\n)*?)\2\n", re.MULTILINE)
_NOT_RUN = re.compile(r"<!-- not run: (.+?) -->")
_LINK = re.compile(r"(?<!!)\[(?:[^\]\[]|\[[^\]]*\])*\]\(([^)\s]+)\)")
_PROGRAMS = (
    "inferencerun",
    "kubectl",
    "kubectl-inferencerun",
    "helm",
    "make",
    "pip",
    "docker",
    "aws",
    "gcloud",
    "eksctl",
    "python",
)
SHELL = {"sh", "bash", "shell", "console"}


@dataclass(frozen=True, kw_only=True)
class Block:
    """A fenced block."""

    document: Path
    line: int
    language: str
    text: str
    reason: str | None
    """Why no test runs it; None = one does."""

    @property
    def name(self) -> str:
        """Where it is, as people look for it."""
        return f"{self.document.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> tuple[str, ...]:
        """Command lines of a shell block, continuations joined, without comments and here-documents; else empty."""
        if not self._is_shell:
            return ()
        joined = re.sub(r"\\\n\s*", " ", _HERE_DOCUMENT.sub(r"\1", self.text))
        lines = (re.sub(r"(^|\s)#.*$", "", line).strip().removeprefix("$ ") for line in joined.splitlines())
        return tuple(line for line in lines if line)

    @property
    def here_documents(self) -> tuple[str, ...]:
        """What commands of a shell block are given as their input."""
        return tuple(found[3] for found in _HERE_DOCUMENT.finditer(self.text)) if self._is_shell else ()

    @property
    def _is_shell(self) -> bool:
        return self.language in SHELL or (self.language == "" and _looks_like_shell(self.text))


@dataclass(frozen=True)
class Document:
    """One file."""

    path: Path

    @cached_property
    def text(self) -> str:
        """All of it."""
        return self.path.read_text()

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """Its fenced blocks."""
        return tuple(self._find_blocks())

    @cached_property
    def prose(self) -> str:
        """The text without its fenced blocks."""
        kept, is_open = [], False
        for line in self.text.splitlines():
            if _FENCE.match(line):
                is_open = not is_open
            elif not is_open:
                kept.append(line)
        return "\n".join(kept)

    @cached_property
    def links(self) -> tuple[str, ...]:
        """Targets of all links that stay within the repository, code spans left out."""
        spoken = re.sub(r"`[^`\n]*`", "", self.prose)
        return tuple(target for target in _LINK.findall(spoken) if not re.match(r"[a-z]+:", target))

    @cached_property
    def anchors(self) -> frozenset[str]:
        """Anchors of its headings, as forges make them, and those that are set by hand."""
        found: dict[str, int] = {}
        for heading in re.findall(r"^#{1,6} +(.+?) *$", self.prose, re.MULTILINE):
            plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
            anchor = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
            count = found.get(anchor, 0)
            found[anchor] = count + 1
            if count:
                found[f"{anchor}-{count}"] = 1
        return frozenset(found) | frozenset(re.findall(r'<a (?:id|name)="([^"]+)"', self.prose))

    def _find_blocks(self) -> Iterator[Block]:
        lines, at = self.text.splitlines(), 0
        while at < len(lines):
            opened = _FENCE.match(lines[at])
            if opened is None:
                at += 1
                continue
            indent, fence, language = opened.groups()
            end = next(number for number in range(at + 1, len(lines)) if lines[number].strip() == fence)
            before = lines[at - 1] if at else ""
            marked = _NOT_RUN.search(before)
            yield Block(
                document=self.path,
                line=at + 1,
                language=language,
                text="\n".join(line.removeprefix(indent) for line in lines[at + 1 : end]) + "\n",
                reason=marked[1] if marked else None,
            )
            at = end + 1


def _looks_like_shell(text: str) -> bool:
    first = text.strip().split("\n", 1)[0].removeprefix("$ ")
    program = first.split(" ", 1)[0].rpartition("/")[2]
    return program in _PROGRAMS


def documents() -> tuple[Document, ...]:
    """README, the documents of users and contributors, and those of the chart."""
    paths = [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        *sorted((ROOT / "docs").rglob("*.md")),
        *sorted((ROOT / "charts").rglob("*.md")),
        *sorted((ROOT / "examples").rglob("*.md")),
    ]
    return tuple(Document(path) for path in paths)


DOCUMENTS = documents()
BLOCKS = tuple(block for document in DOCUMENTS for block in document.blocks)
