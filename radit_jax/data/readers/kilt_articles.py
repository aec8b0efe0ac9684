"""The articles of KILT's Wikipedia (`kilt_knowledgesource.json`)."""

from collections.abc import Iterator

from etils import epath

from radit_jax.data.readers.chunking import Document
from radit_jax.data.readers.lines import demand, json_objects
from radit_jax.data.readers.markup import titled
from radit_jax.data.readers.tables import Quoting


def read_kilt(path: epath.Path, quoting: Quoting) -> Iterator[Document]:
    """The articles of KILT's Wikipedia, each in sections."""
    fields = {"wikipedia_id": "an id", "wikipedia_title": "a string", "text": "a list of strings"}
    for where, line in json_objects(path):
        demand(line, fields, where)
        sections = tuple(_kilt_sections(line["wikipedia_title"], line["text"]))
        yield Document(str(line["wikipedia_id"]), sections, where)


def _kilt_sections(title: str, paragraphs: list[str]) -> Iterator[tuple[str, str]]:
    """(title, text) of the article's head and of each section that has text.

    `Section::::Plot.:Volume one.` begins a section, `BULLET::::- ` a list's item.
    """
    section = ""
    texts: list[str] = []
    for number, paragraph in enumerate(paragraphs):
        if paragraph.startswith("Section::::"):
            # A section begins: the one before is complete.
            if texts:
                yield titled(title, section), " ".join(texts)
            texts = []
            names = paragraph.removeprefix("Section::::").strip().removesuffix(".")
            section = names.replace(".:", ": ")
        elif number == 0 and paragraph.strip() == title.strip():
            continue  # which repeats the title
        elif paragraph.strip():
            texts.append(paragraph.removeprefix("BULLET::::").strip())
    if texts:
        yield titled(title, section), " ".join(texts)
