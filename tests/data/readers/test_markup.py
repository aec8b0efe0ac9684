"""Documents in Markdown, HTML and PDF, alone and in a folder."""

import importlib.util

import pytest
from etils import epath

from radit_jax.config import Folder
from radit_jax.data.readers.documents import corpus_files, corpus_format, find_corpus, read_documents
from radit_jax.data.sources.folder import folder_files

MARKDOWN = """---
title: "The pump"
---
Before any *heading*, see [the manual](manual.md).

# Use

First line
and its second.

- one `item`
- another

## Care

| part | oil |
|---|---|
| axle | yes |

```sh
pump --dry
```
"""

HTML = """<html><head><title>The pump</title><style>p {color: red}</style></head>
<body><nav>Home</nav><h1>The pump</h1><p>It <b>pumps</b>
water.</p><script>x = "<p>no</p>"</script>
<h2>Care &amp; use</h2><ul><li>Oil it</li><li>daily</li></ul><p>Un<em>done</em></p></body></html>
"""


@pytest.fixture
def tmp_path(tmp_path):
    """The folder as what readers take."""
    return epath.Path(tmp_path)


def sections(path, name, text):
    path = path / name
    path.write_text(text, encoding="utf-8")
    (document,) = read_documents(path)
    return document


def pdf(text):
    """A PDF file of two pages, the second without text."""
    stream = f"BT /F1 12 Tf 72 720 Td ({text}) Tj ET"
    page = "<< /Type /Page /Parent 2 0 R /MediaBox [0 0 600 800]"
    objects = [
        "<< /Type /Catalog /Pages 2 0 R >>",
        "<< /Type /Pages /Kids [3 0 R 6 0 R] /Count 2 >>",
        f"{page} /Contents 4 0 R /Resources << /Font << /F1 5 0 R >> >> >>",
        f"<< /Length {len(stream)} >>\nstream\n{stream}\nendstream",
        "<< /Type /Font /Subtype /Type1 /BaseFont /Helvetica >>",
        f"{page} >>",
    ]
    body, offsets = "%PDF-1.4\n", []
    for number, value in enumerate(objects, start=1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{value}\nendobj\n"
    table = "".join(f"{offset:010d} 00000 n \n" for offset in offsets)
    trailer = f"trailer\n<< /Size 7 /Root 1 0 R >>\nstartxref\n{len(body)}\n%%EOF\n"
    return f"{body}xref\n0 7\n0000000000 65535 f \n{table}{trailer}".encode()


def test_markdown_is_its_words_in_sections_by_heading(tmp_path):
    document = sections(tmp_path, "pump.md", MARKDOWN)
    assert document.id == "pump.md"
    assert document.sections == (
        ("The pump", "Before any heading, see the manual."),
        ("The pump: Use", "First line and its second. one item another"),
        ("The pump: Care", "part oil axle yes pump --dry"),
    )


def test_markdown_without_a_title_is_titled_by_its_first_heading_or_its_name(tmp_path):
    assert sections(tmp_path, "a.md", "# Emma\nA novel.\n## Plot\nShe errs.\n").sections == (
        ("Emma", "A novel."),
        ("Emma: Plot", "She errs."),
    )
    assert sections(tmp_path, "b.md", "A novel.\n").sections == (("b", "A novel."),)


def test_html_is_its_words_without_scripts_styles_and_navigation(tmp_path):
    assert sections(tmp_path, "pump.html", HTML).sections == (
        ("The pump", "It pumps water."),
        ("The pump: Care & use", "Oil it daily Undone"),
    )


def test_a_pdf_has_a_section_for_each_page_with_text(tmp_path):
    (tmp_path / "emma.pdf").write_bytes(pdf("Emma is a novel."))
    (document,) = read_documents(tmp_path / "emma.pdf")
    assert document.sections == (("emma", "Emma is a novel."),)


def test_a_damaged_pdf_and_a_missing_package_are_said(tmp_path, monkeypatch):
    path = tmp_path / "emma.pdf"
    path.write_bytes(b"%PDF-1.4\nno more")
    with pytest.raises(ValueError, match=r"emma\.pdf page 0: expected a page that pypdf reads"):
        list(read_documents(path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"emma\.pdf: expected the package pypdf .* 'radit_jax\[pdf\]'"):
        list(read_documents(path))


def test_text_that_is_not_utf8_is_named_by_file_and_line(tmp_path):
    (tmp_path / "a.md").write_bytes(b"# Emma\n\xff\n")
    with pytest.raises(ValueError, match=r"a\.md line 2: expected UTF-8"):
        list(read_documents(tmp_path / "a.md"))


def test_a_folder_of_documents_is_read_whole_without_hidden_files_and_questions(tmp_path):
    (tmp_path / "guide").mkdir()
    (tmp_path / ".git").mkdir()
    files = {"README.md": "About.", "guide/pump.html": HTML, "notes.txt": "One.\n\nTwo.\n"}
    more = {".git/a.md": "no", "questions.txt": "What?\n", "questions.md": "no", "picture.png": "no"}
    for name, text in (files | more).items():
        (tmp_path / name).write_text(text)
    assert corpus_format(tmp_path) == "documents" and find_corpus(tmp_path) == tmp_path
    assert [file.name for file in corpus_files(tmp_path)] == ["README.md", "pump.html", "notes.txt"]
    found = [(document.id, document.sections[0][0]) for document in read_documents(tmp_path)]
    assert found == [
        ("README.md", "README"),
        ("guide/pump.html", "The pump"),
        ("notes#1", "notes"),
        ("notes#2", "notes"),
    ]


def test_a_readme_alone_makes_no_corpus(tmp_path):
    (tmp_path / "README.md").write_text("What is in this folder.")
    assert find_corpus(tmp_path) is None
    with pytest.raises(ValueError, match="got no passages.jsonl"):
        folder_files(Folder(folder=str(tmp_path)))


def test_a_form_that_no_reader_knows_is_refused_by_its_name(tmp_path):
    (tmp_path / "passages.docx").write_text("no")
    with pytest.raises(ValueError, match=r"passages\.docx: expected a name that says its format"):
        corpus_files(tmp_path / "passages.docx")
