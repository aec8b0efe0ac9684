"""Whose pages a corpus' chunks are of: KILT's provenance means something in KILT's own page ids alone.

Other corpora have ids too, often the numbers of their lines, which are some page's by chance. So pages are
known of a corpus that was read in KILT's form, and of one whose titles a table maps to KILT's ids.
"""

from collections.abc import Callable, Mapping
from typing import Any

from etils import epath

from radit_jax.data.readers.chunking import document_id
from radit_jax.data.readers.tables import table_rows
from radit_jax.data.records import Chunk

PageOf = Callable[[Chunk], str]  # "": no page of KILT's


def find_pages(corpus: Mapping[str, Any], titles: epath.PathLike = "") -> PageOf | None:
    """The page of a chunk, by the manifest of its corpus and `evaluate.kilt_titles`; None: nothing tells."""
    # A table that the user names counts before what the corpus is.
    if titles:
        return by_title(read_titles(titles))
    if corpus.get("format") == "kilt":
        return lambda chunk: document_id(chunk.id)
    return None


def read_titles(path: epath.PathLike) -> dict[str, str]:
    """KILT's page ids by title: a line of both for each, with a tab between them."""
    file = epath.Path(path)
    if not file.exists():
        raise ValueError(
            f"evaluate.kilt_titles: expected a table of titles and KILT's page ids, got no file {file}. Name "
            "one, or leave it out."
        )
    pages = {}
    for _, (title, page) in table_rows(file, delimiter="\t", num_columns=2):
        pages[title.strip()] = page.strip()
    return pages


def by_title(pages: Mapping[str, str]) -> PageOf:
    """Pages by a chunk's title, or, as sections are folded into titles, by what stands before a colon.

    >>> find = by_title({"Emma": "7", "Emma: A Life": "9"})
    >>> [find(Chunk("c", title, "")) for title in ("Emma: Plot", "Emma: A Life: Youth", "Persuasion")]
    ['7', '9', '']
    """

    def find(chunk: Chunk) -> str:
        title = chunk.title.strip()
        # Drop a section's name after another, until a page has the title or nothing remains.
        while title and title not in pages:
            title = title.rpartition(": ")[0]
        return pages.get(title, "")

    return find
