"""No link of a document leads nowhere."""

from __future__ import annotations

import pytest

from tests.docs.documents import DOCUMENTS, ROOT, Document

BY_PATH = {document.path: document for document in DOCUMENTS}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda item: str(item.path.relative_to(ROOT)))
def test_every_link_has_a_target(document: Document) -> None:
    """Files are there, and anchors are headings of the document they are looked for in."""
    dead = []
    for link in document.links:
        name, _, anchor = link.partition("#")
        path = (document.path.parent / name).resolve() if name else document.path
        if not path.exists():
            dead.append(f"{link}: no such file")
        elif anchor and path in BY_PATH and anchor not in BY_PATH[path].anchors:
            dead.append(f"{link}: no such heading")

    assert dead == []


def test_every_document_can_be_found() -> None:
    """The index of docs/ links each document in it but the decisions, which it links as a folder."""
    index = Document(ROOT / "docs" / "README.md")
    there = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}

    assert there - {link.partition("#")[0] for link in index.links} == set()


def test_links_are_found_and_anchors_are_made_as_forges_make_them() -> None:
    """The tests above look at something."""
    assert sum(len(document.links) for document in DOCUMENTS) > 20
    assert "2-a-bucket-and-who-may-use-it" in Document(ROOT / "docs" / "quickstart-eks.md").anchors
