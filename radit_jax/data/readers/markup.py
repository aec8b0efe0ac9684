"""Documents in Markdown, HTML and PDF, a section under each heading or page.

A document's id is its file's name, which the caller gives; its first heading, or its own title, is the title
of all of its sections.
"""

import importlib.util
from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

from etils import epath

from radit_jax.data.readers.chunking import Document
from radit_jax.data.readers.lines import open_bytes, plain_name, text_lines

Section = tuple[str, str]  # (title, text)
_HEADINGS = ("h1", "h2", "h3", "h4", "h5", "h6")
# What a reader of the page does not read as its text.
_NOT_TEXT = ("script", "style", "template", "noscript", "svg", "nav")
# Elements that stand in a line of text, so that what is before and after them is one word or sentence.
_INLINE = ("a", "abbr", "b", "cite", "code", "em", "i", "kbd", "mark", "q", "s", "small", "span", "strong")
_INLINE += ("sub", "sup", "u", "var", "time", "wbr", "font", "tt", "del", "ins", "bdi", "bdo", "dfn")


def titled(title: str, section: str) -> str:
    """The title with the section's name in it.

    >>> titled("Emma", "Plot"), titled("Emma", "")
    ('Emma: Plot', 'Emma')
    """
    return f"{title}: {section}" if section.strip() else title


class _Outline:
    """Headings and texts in their order, put together to sections."""

    def __init__(self, title: str):
        self.title = title  # of the document; its first heading where there is none
        self._heading = ""
        self._texts: list[str] = []
        self._found: list[Section] = []  # (heading, text)

    def add_heading(self, heading: str, level: int) -> None:
        """Begin a section; the first heading of the highest level is the document's title."""
        heading = " ".join(heading.split())
        self._end_section()
        if level == 1 and not self.title:
            self.title = heading
            self._heading = ""
        else:
            self._heading = "" if heading == self.title else heading

    def add_text(self, text: str) -> None:
        """Go on with the section."""
        if text.strip():
            self._texts.append(" ".join(text.split()))

    def _end_section(self) -> None:
        if self._texts:
            self._found.append((self._heading, " ".join(self._texts)))
        self._texts = []

    def sections(self, name: str) -> tuple[Section, ...]:
        """Every section that has text, under the document's title; `name` where it has none."""
        self._end_section()
        title = self.title or name
        sections = []
        for heading, text in self._found:
            sections.append((titled(title, heading), text))
        return tuple(sections)


def read_markdown(path: epath.Path, document_id: str) -> Iterator[Document]:
    """The document in a Markdown file (CommonMark with tables), without its marks."""
    from markdown_it import MarkdownIt  # half a second to import

    lines = [text for _, text in text_lines(path)]
    outline = _Outline(_take_front_matter(lines))
    # Each heading, paragraph and cell has its text in a token of its own; a block of code is one.
    parser = MarkdownIt("commonmark").enable("table")
    level = 0
    for token in parser.parse("".join(lines)):
        if token.type == "heading_open":
            level = int(token.tag[1])
        elif token.type == "heading_close":
            level = 0
        elif token.type == "inline" and level:
            outline.add_heading(_inline_text(token), level)
        elif token.type == "inline":
            outline.add_text(_inline_text(token))
        elif token.type in ("fence", "code_block"):
            outline.add_text(token.content)
    yield _document(path, document_id, outline)


def _take_front_matter(lines: list[str]) -> str:
    """Remove the settings between two lines of dashes at the beginning; the title that they give, or ""."""
    if not lines or lines[0].strip() != "---":
        return ""
    stripped = [line.strip() for line in lines]
    if "---" not in stripped[1:]:
        return ""
    end = stripped.index("---", 1)
    title = ""
    for line in stripped[1:end]:
        name, _, value = line.partition(":")
        if name == "title":
            title = value.strip().strip("\"'")
    del lines[: end + 1]
    return title


def _inline_text(token: Any) -> str:
    """The text of a line without marks: links by their words, pictures by their description."""
    parts = []
    for child in token.children or ():
        if child.type in ("softbreak", "hardbreak"):
            parts.append(" ")
        elif child.type == "image":
            parts.append(_inline_text(child))
        elif child.type in ("text", "code_inline", "text_special"):
            parts.append(child.content)
    return "".join(parts)


def read_html(path: epath.Path, document_id: str) -> Iterator[Document]:
    """The document in an HTML file; scripts, styles and navigation are left out."""
    page = _Page()
    for _, line in text_lines(path):
        page.feed(line)
    page.close()
    page.end_block()
    yield _document(path, document_id, page.outline)


class _Page(HTMLParser):
    """Takes the headings and texts out of a page."""

    def __init__(self):
        super().__init__()
        self.outline = _Outline("")
        self._text: list[str] = []
        self._hidden: list[str] = []  # the elements without text that are open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Begin an element."""
        if tag in _NOT_TEXT:
            self._hidden.append(tag)
        elif tag not in _INLINE:
            self.end_block()

    def handle_endtag(self, tag: str) -> None:
        """End an element: a heading begins a section."""
        if self._hidden:
            # What is not closed in order is closed with what holds it.
            if tag in self._hidden:
                del self._hidden[self._hidden.index(tag) :]
            return
        if tag in _HEADINGS:
            self.outline.add_heading(self._take(), int(tag[1]))
        elif tag == "title":
            self.outline.title = self.outline.title or self._take()
        elif tag not in _INLINE:
            self.end_block()

    def handle_data(self, data: str) -> None:
        """Go on with a text."""
        if not self._hidden:
            self._text.append(data)

    def end_block(self) -> None:
        """What was read so far is a text of its own."""
        self.outline.add_text(self._take())

    def _take(self) -> str:
        text = "".join(self._text)
        self._text = []
        return " ".join(text.split())


def read_pdf(path: epath.Path, document_id: str) -> Iterator[Document]:
    """The document in a PDF file, a section for each page; a page that is a picture has no text."""
    if importlib.util.find_spec("pypdf") is None:
        raise ValueError(
            f"{path}: expected the package pypdf to read it, got none. pip install 'radit_jax[pdf]'"
        )
    import pypdf

    outline = _Outline("")
    number = 0
    with open_bytes(path) as file:
        try:
            reader = pypdf.PdfReader(file)
            outline.title = (reader.metadata or {}).get("/Title") or plain_name(path).removesuffix(".pdf")
            for page in reader.pages:
                number += 1
                outline.add_heading("", 2)
                outline.add_text(page.extract_text())
        except Exception as error:  # pypdf raises many kinds for damaged files
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"{path} page {number}: expected a page that pypdf reads, got {reason}. Print it to PDF "
                "again, or leave it out."
            ) from None
    yield _document(path, document_id, outline)


def _document(path: epath.Path, document_id: str, outline: _Outline) -> Document:
    name = epath.Path(document_id).stem
    return Document(document_id, outline.sections(name), f"{path} line 1")
