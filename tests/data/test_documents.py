"""Every form of corpus gives the same documents, split into chunks, in memory that does not grow."""

import json
import subprocess
import sys

import pytest
from etils import epath

from radit_jax.data.documents import (
    FORMATS,
    Document,
    UniqueIds,
    corpus_format,
    document_id,
    find_corpus,
    read_documents,
    split_document,
    split_passage,
)

FILES = {
    "passages.jsonl": ['{"id": "a", "title": "Tern", "text": "A sea bird.", "section": "not ours"}', ""],
    "text-list-100-sec.jsonl": [
        '{"id": "1", "title": "Tern", "section": "Diet", "text": "Terns eat fish."}',
        '{"id": 2, "title": "Tern", "section": "", "text": "A sea bird."}',
    ],
    "psgs_w100.tsv": [
        "id\ttext\ttitle",
        '1\t"A ""tern"" dives.\tIt eats\tfish."\tTern',
        '2\tPlain text.\t"Tern (bird)"',
    ],
    "kilt_knowledgesource.json": [
        json.dumps(
            {
                "_id": "5",
                "wikipedia_id": "5",
                "wikipedia_title": "Tern",
                "text": [
                    "Tern\n",
                    "A sea bird.",
                    "Section::::Life.\n",
                    "Section::::Life.:Diet.\n",
                    "It eats:\n",
                    "BULLET::::- fish,\n",
                    "BULLET::::- shrimps.\n",
                ],
            }
        )
    ],
    "corpus.jsonl": ['{"_id": "b1", "title": "", "text": "A sea bird.", "metadata": {}}'],
}
DOCUMENTS = {
    "passages.jsonl": [("a", [("Tern", "A sea bird.")])],
    "text-list-100-sec.jsonl": [("1", [("Tern: Diet", "Terns eat fish.")]), ("2", [("Tern", "A sea bird.")])],
    "psgs_w100.tsv": [
        ("1", [("Tern", 'A "tern" dives.\tIt eats\tfish.')]),
        ("2", [("Tern (bird)", "Plain text.")]),
    ],
    "kilt_knowledgesource.json": [
        ("5", [("Tern", "A sea bird."), ("Tern: Life: Diet", "It eats: - fish, - shrimps.")])
    ],
    "corpus.jsonl": [("b1", [("", "A sea bird.")])],
}


def write(path, name, lines):
    file = epath.Path(path) / name
    file.write_text("".join(line + "\n" for line in lines))
    return file


@pytest.mark.parametrize("name", FILES)
def test_a_form_is_known_by_its_files_name_and_read(tmp_path, name):
    write(tmp_path, name, FILES[name])
    file = find_corpus(epath.Path(tmp_path))
    assert file is not None and file.name == name
    found = [(document.id, list(document.sections)) for document in read_documents(file)]
    assert found == DOCUMENTS[name]


def test_a_form_can_be_named_where_the_files_name_says_another(tmp_path):
    file = write(tmp_path, "wiki.jsonl", FILES["text-list-100-sec.jsonl"])
    assert [d.sections[0][0] for d in read_documents(file, "atlas")] == ["Tern: Diet", "Tern"]
    with pytest.raises(ValueError, match="line 2: field 'id' is 2, needed is a string"):
        list(read_documents(file))


def test_a_folder_of_texts_has_a_document_for_every_paragraph(tmp_path):
    write(tmp_path, "tern.txt", ["", "A sea bird", "that dives.", "", " ", "It eats fish."])
    write(tmp_path, "auk.txt", ["Another bird."])
    write(tmp_path, "readme.md", ["Not read."])
    found = [(d.id, d.sections, d.where.rpartition("/")[2]) for d in read_documents(epath.Path(tmp_path))]
    assert found == [
        ("auk#1", (("auk", "Another bird."),), "auk.txt line 1"),
        ("tern#1", (("tern", "A sea bird that dives."),), "tern.txt line 2"),
        ("tern#2", (("tern", "It eats fish."),), "tern.txt line 6"),
    ]


def test_the_chunks_of_an_article_are_numbered_through_its_sections():
    article = Document("5", (("Tern", "one two three"), ("Tern:\nLife", "four")), "")
    chunks = split_document(article, max_words=3)
    assert [(c.id, c.title, c.text) for c in chunks] == [
        ("5#1", "Tern", "one two"),
        ("5#2", "Tern", "three"),
        ("5#3", "Tern: Life", "four"),
    ]
    assert {document_id(chunk.id) for chunk in chunks} == {"5"}
    assert split_document(Document("5", (("Tern", " "),), ""), max_words=3) == ()


def test_a_long_passage_becomes_equal_chunks_of_fewer_words():
    assert split_passage("one two three four", max_words=5) == ["one two three four"]
    assert split_passage("one two three four", max_words=4) == ["one two", "three four"]
    assert split_passage("1 2 3 4 5 6 7", max_words=4) == ["1 2 3", "4 5", "6 7"]
    assert split_passage(" one\n\ntwo ", max_words=200) == ["one two"]
    assert split_passage(" ", max_words=200) == []
    lengths = [len(chunk.split()) for chunk in split_passage("word " * 1000, max_words=200)]
    assert sorted(lengths) == [166, 166, 167, 167, 167, 167]


def test_a_chunk_of_one_word_at_most_is_refused():
    with pytest.raises(ValueError, match=r"max_words: 1 came, needed are at least 2; raise data\.max_words"):
        split_passage("text", max_words=1)


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("psgs_w100.tsv", "1\ttext\ttitle", r"line 1: \['1', 'text', 'title'\] came, needed is the head id"),
        ("psgs_w100.tsv", "id\ttext", r"line 1: 2 columns came, needed are 3"),
        ("psgs_w100.tsv", 'id\ttext\t"title', r"line 1: it is not a row of a table .*; correct its quotes"),
        ("kilt_knowledgesource.json", '{"wikipedia_id": "5"}', r"line 1: no field 'wikipedia_title'; needed"),
        (
            "kilt_knowledgesource.json",
            '{"wikipedia_id": "5", "wikipedia_title": "T", "text": "T"}',
            r"line 1: field 'text' is 'T', needed is a list of strings",
        ),
        ("corpus.jsonl", '{"id": "5", "title": "T", "text": "T"}', r"line 1: no field '_id'; needed are _id"),
        ("text-list-100-sec.jsonl", "{", r"line 1: it is not JSON"),
    ],
)
def test_a_line_of_another_form_is_an_error_with_its_place(tmp_path, name, line, message):
    with pytest.raises(ValueError, match=message):
        list(read_documents(write(tmp_path, name, [line])))


@pytest.mark.parametrize("name", ["psgs_w100.tsv", "tern.txt"])
def test_bytes_that_are_not_utf8_are_an_error_with_their_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"id\ttext\ttitle\n1\tcaf\xe9\tT\n")
    with pytest.raises(ValueError, match=r"line 2: it is not UTF-8 .*; convert the file"):
        list(read_documents(epath.Path(tmp_path / name)))


def test_an_unknown_name_or_format_says_what_there_is(tmp_path):
    with pytest.raises(ValueError, match=r"wiki\.xml: its name says no format, needed is text-list-.* or "):
        corpus_format(epath.Path(tmp_path) / "wiki.xml")
    with pytest.raises(ValueError, match=r"no format 'xml'; needed is atlas, dpr, .*data\.passages_format"):
        read_documents(epath.Path(tmp_path) / "wiki.xml", "xml")
    assert set(FORMATS) == {"jsonl", "atlas", "dpr", "kilt", "beir", "text"}


def test_two_corpora_in_a_folder_are_ambiguous(tmp_path):
    for name in ("corpus.jsonl", "psgs_w100.tsv"):
        write(tmp_path, name, FILES[name])
    with pytest.raises(
        ValueError, match=r"psgs_w100.tsv or corpus.jsonl may be the corpus.*passages_file=NAME"
    ):
        find_corpus(epath.Path(tmp_path))
    write(tmp_path, "passages.jsonl", FILES["passages.jsonl"])
    assert find_corpus(epath.Path(tmp_path)) == epath.Path(tmp_path) / "passages.jsonl"


def test_ids_that_come_twice_are_found_whatever_their_number(monkeypatch):
    monkeypatch.setattr("radit_jax.data.documents._HASHES_AT_ONCE", 16)
    documents = [Document(str(n), (), f"line {n}") for n in range(100)]
    twice = [*documents, Document("41", (), "line 100")]
    with UniqueIds() as ids:
        for document in documents:
            ids.add(document.id)
        ids.check(lambda: documents)
        ids.add("41")
        with pytest.raises(ValueError, match="line 100: id '41' came before, at line 41; make ids unique"):
            ids.check(lambda: twice)


MEASURE = """
import json, pathlib, resource, sys
from radit_jax.config import Folder
from radit_jax.data import corpus as stage
from radit_jax.data.folder import read
from radit_jax.runtime.store import Workdir

stage.CHUNKS_PER_FILE = 4096

def corpus(size):
    folder = pathlib.Path(sys.argv[1]) / str(size)
    folder.mkdir()
    with open(folder / "passages.jsonl", "w") as file:
        for n in range(size):
            line = {"id": f"p{n}", "title": f"T{n}", "text": f"fact {n} " + "word " * 100}
            file.write(json.dumps(line) + "\\n")
    with open(folder / "questions.jsonl", "w") as file:
        for n in range(100):
            line = {"id": f"q{n}", "question": "?", "answers": [str(n)], "positive_passage_ids": [f"p{n}"]}
            file.write(json.dumps(line) + "\\n")
    data = read(Folder(str(folder), max_words=100), 0)
    assert stage.write_corpus(Workdir(folder / "run").folder("corpus", "x"), data) == 2 * size
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

print(*map(corpus, (1000, 5000, 50000)))
"""


def test_memory_does_not_grow_with_the_corpus(tmp_path):
    """Peak resident memory of reading and writing 5,000 passages (3 MB) and then 50,000 (28 MB).

    Of the chunks' files, whose writers' memory is proportional to their length, one is open at a time.
    """
    command = [sys.executable, "-c", MEASURE, str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    _, few, many = (int(kilobytes) for kilobytes in printed.split())
    assert many - few < 5_000
