"""Every form of corpus gives the same documents, split into chunks, in memory that does not grow."""

import gzip
import json
import subprocess
import sys
from typing import get_args

import pytest
from etils import epath

from radit_jax.config.data_settings import PassagesFormat
from radit_jax.data.readers.documents import (
    FORMATS,
    corpus_files,
    corpus_format,
    find_corpus,
    read_chunked,
    read_documents,
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
    assert [(d.id, d.sections[0][0]) for d in read_documents(file)] == [("1", "Tern"), ("2", "Tern")]


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


@pytest.mark.parametrize(
    ("name", "line", "message"),
    [
        ("psgs_w100.tsv", "1\ttext\ttitle", r"line 1: expected the head id, text, title, got '1 text title'"),
        ("psgs_w100.tsv", "1\t2\t3\t4", r"line 1: expected 1, 2 or 3 columns separated by '\\t', got 4"),
        ("psgs_w100.tsv", 'id\ttext\t"title', r"line 1: expected the quote that opens .* data\.quoting=none"),
        ("psgs_w100.tsv", "\ttext", r"line 1: expected field 'id' to be an id, got ''"),
        ("passages.jsonl", '{"id": " ", "text": "T"}', r"line 1: expected field 'id' to be an id, got ' '"),
        ("passages.jsonl", '{"id": true, "text": "T"}', r"line 1: expected field 'id' to be an id, got true"),
        ("passages.jsonl", '{"id": 1.5, "text": "T"}', r"line 1: expected field 'id' to be an id, got 1\.5"),
        ("passages.jsonl", '{"id": "1", "text": "\\ud83d"}', r"line 1: .* got half of a surrogate pair"),
        ("passages.jsonl", '{"id": "\\ud83d", "text": ""}', r"line 1: .* got half of a surrogate pair"),
        (
            "passages.jsonl",
            '{"id": "1", "text": ' + "[" * 9999,
            r"line 1: expected JSON of at most 100 levels",
        ),
        (
            "passages.jsonl",
            '{"id": "1"}',
            r"line 1: expected a field text or contents, got no field 'text' but 'id'\. ",
        ),
        ("passages.jsonl", '[{"id": "1", "text": "T"}, 5]', r"jsonl item 2: expected a JSON object, got 5"),
        ("passages.jsonl", '[{"id": "1", "text": "T"}', r"expected ',' in a JSON list, got the end"),
        ("passages.jsonl", '[{"id": "1", "text": "T"}] 5', r"expected nothing after the JSON list, got '5"),
        (
            "kilt_knowledgesource.json",
            '{"wikipedia_id": true, "wikipedia_title": "T", "text": ["x"]}',
            r"line 1: expected field 'wikipedia_id' to be an id, got true",
        ),
        (
            "kilt_knowledgesource.json",
            '{"wikipedia_id": "5"}',
            r"line 1: expected the fields .*, got no field 'wikipedia_title'",
        ),
        (
            "kilt_knowledgesource.json",
            '{"wikipedia_id": "5", "wikipedia_title": "T", "text": "T"}',
            r"line 1: expected field 'text' to be a list of strings, got 'T'",
        ),
        ("corpus.jsonl", '{"title": "T", "text": "T"}', r"line 1: expected a field id, _id or docid, got no"),
        ("text-list-100-sec.jsonl", "{", r"line 1: expected JSON"),
    ],
)
def test_a_line_of_another_form_is_an_error_with_its_place(tmp_path, name, line, message):
    with pytest.raises(ValueError, match=message):
        list(read_documents(write(tmp_path, name, [line])))


@pytest.mark.parametrize("name", ["psgs_w100.tsv", "tern.txt"])
def test_bytes_that_are_not_utf8_are_an_error_with_their_line(tmp_path, name):
    (tmp_path / name).write_bytes(b"id\ttext\ttitle\n1\tcaf\xe9\tT\n")
    with pytest.raises(ValueError, match=r"line 2: expected UTF-8, got .* Convert the file to UTF-8"):
        list(read_documents(epath.Path(tmp_path / name)))


def test_an_unknown_name_or_format_says_what_there_is(tmp_path):
    with pytest.raises(ValueError, match=r"wiki\.xml: expected a name that says its format \(text-list"):
        corpus_format(epath.Path(tmp_path) / "wiki.xml")
    with pytest.raises(ValueError, match=r"data\.passages_format: expected atlas, dpr, .*, got 'xml'"):
        read_documents(epath.Path(tmp_path) / "wiki.xml", "xml")
    assert {"auto", *FORMATS} == set(get_args(PassagesFormat))


def test_two_corpora_in_a_folder_are_ambiguous(tmp_path):
    for name in ("corpus.jsonl", "psgs_w100.tsv"):
        write(tmp_path, name, FILES[name])
    with pytest.raises(
        ValueError, match=r"expected one corpus, got psgs_w100.tsv and corpus.jsonl.*passages_file=NAME"
    ):
        find_corpus(epath.Path(tmp_path))
    write(tmp_path, "passages.jsonl", FILES["passages.jsonl"])
    assert find_corpus(epath.Path(tmp_path)) == epath.Path(tmp_path) / "passages.jsonl"


@pytest.mark.parametrize("second", ["A", "A#2"])
def test_an_id_of_another_passage_or_of_its_chunk_is_refused(tmp_path, second):
    lines = [
        {"id": "A", "text": "one two three four"},
        {"id": "A#3", "text": "x"},
        {"id": second, "text": "y"},
    ]
    file = write(tmp_path, "passages.jsonl", map(json.dumps, lines))
    with pytest.raises(ValueError, match=rf"line 3: .* got '{second}', which is also that of .* line 1"):
        list(read_chunked(file, "jsonl", max_words=3))


# ---- forms that others publish ----


@pytest.mark.parametrize(
    ("name", "lines", "found"),
    [
        ("c.jsonl", ['{"id": 7, "contents": "\\"Tern\\"\\nA bird."}'], [("7", "Tern", "A bird.")]),
        ("c.jsonl", ['{"id": "7", "contents": "A bird."}'], [("7", "", "A bird.")]),
        ("c.jsonl", ['{"docid": "7", "title": null, "text": "A bird."}'], [("7", "", "A bird.")]),
        (
            "c.json",
            ['[{"id": "7", "text": "A bird."},', ' {"id": 8, "text": ""}]'],
            [("7", "", "A bird."), ("8", "", "")],
        ),
        ("c.tsv", ["7\tA bird.", "8\t"], [("7", "", "A bird."), ("8", "", "")]),
        ("c.tsv", ["id\ttext", "7\tA bird."], [("7", "", "A bird.")]),
        ("c.tsv", ["id\ttitle\ttext", "7\tTern\tA bird."], [("7", "Tern", "A bird.")]),
        ("c.tsv", ["A bird.", "A fish."], [("c.tsv:1", "", "A bird."), ("c.tsv:2", "", "A fish.")]),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_corpora_of_other_publishers_are_read(tmp_path, name, lines, found, packed):
    data = b"\xef\xbb\xbf" + "".join(line + "\n" for line in lines).encode()
    file = epath.Path(tmp_path / (name + ".gz" if packed else name))
    file.write_bytes(gzip.compress(data) if packed else data)
    assert [(d.id, *d.sections[0]) for d in read_documents(file)] == found


def test_a_compressed_corpus_is_found_by_its_name(tmp_path):
    (tmp_path / "psgs_w100.tsv.gz").write_bytes(gzip.compress(b"id\ttext\ttitle\n1\tA bird.\tTern\n"))
    file = find_corpus(epath.Path(tmp_path))
    assert file is not None
    assert [d.sections for d in read_documents(file)] == [(("Tern", "A bird."),)]


def test_a_folder_of_texts_leaves_out_what_systems_put_there(tmp_path):
    write(tmp_path, "tern.txt", ["A bird."])
    (tmp_path / "._tern.txt").write_bytes(b"\x00\xff")
    (tmp_path / ".DS_Store").write_bytes(b"\x00")
    assert [d.id for d in read_documents(epath.Path(tmp_path))] == ["tern#1"]
    assert [file.name for file in corpus_files(epath.Path(tmp_path))] == ["tern.txt"]


# ---- other languages ----


MEASURE = """
import json, pathlib, resource, sys
from radit_jax.config import Folder
from radit_jax.data.artifacts.corpus import write_corpus
from radit_jax.data.sources.folder import read_folder as read
from radit_jax.runtime.storage.workdir import Workdir

def corpus(size):
    folder = pathlib.Path(sys.argv[1]) / str(size)
    folder.mkdir()
    with open(folder / "passages.jsonl", "w") as file:
        for n in range(size):
            line = {"id": f"p{n}", "title": f"T{n}", "text": f"fact {n} " + "word " * 100}
            file.write(json.dumps(line) + "\\n")
    with open(folder / "questions.jsonl", "w") as file:
        for n in range(100):
            line = {"id": f"q{n}", "question": f"{n}?", "answers": [str(n)], "positive_passage_id": f"p{n}"}
            file.write(json.dumps(line) + "\\n")
    data = read(Folder(str(folder), max_words=100), 0)
    stage = Workdir(folder / "run").folder("corpus", "x")
    assert write_corpus(stage, data, chunks_per_file=4096) == 2 * size
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
