"""Passages and questions in CSV with a head, and in Parquet."""

import pyarrow
import pytest
from etils import epath
from pyarrow import parquet

from radit_jax.data.readers.columns import columns_in_words
from radit_jax.data.readers.documents import read_documents
from radit_jax.data.readers.questions import read_asked, read_questions


@pytest.fixture
def tmp_path(tmp_path):
    """The folder as what readers take."""
    return epath.Path(tmp_path)


def test_passages_in_csv_have_named_columns_in_any_order(tmp_path):
    path = tmp_path / "passages.csv"
    path.write_text('title,text,year\nEmma,"A novel, in\nthree volumes.",1815\nPersuasion,Another.,1817\n')
    first, second = read_documents(path)
    assert (first.id, first.sections) == ("passages.csv:1", (("Emma", "A novel, in\nthree volumes."),))
    assert (second.id, second.where) == ("passages.csv:2", f"{path} line 4")


@pytest.mark.parametrize("delimiter", [",", ";", "|", "\t"])
def test_what_parts_the_columns_is_found_in_the_first_line(tmp_path, delimiter):
    passages = tmp_path / "passages.csv"
    passages.write_text(f'id{delimiter}text\n7{delimiter}"One; two, three | four."\n')
    (document,) = read_documents(passages)
    assert (document.id, document.sections) == ("7", (("", "One; two, three | four."),))
    questions = tmp_path / "questions.csv"
    questions.write_text(f'"question"{delimiter}answer\nWho?{delimiter}Austen\n')
    (asked,) = read_questions(questions)
    assert (asked.question.question, asked.question.answers) == ("Who?", ("Austen",))


@pytest.mark.parametrize("row", ['"A novel, of 1815."', "A novel, of 1815."])
def test_a_csv_of_one_column_is_read_with_and_without_quotes_around_its_commas(tmp_path, row):
    (tmp_path / "passages.csv").write_text(f"text\n{row}\n")
    (document,) = read_documents(tmp_path / "passages.csv")
    assert document.sections == (("", "A novel, of 1815."),)


def test_a_row_of_one_column_that_only_begins_with_quotes_is_refused(tmp_path):
    (tmp_path / "passages.csv").write_text('text\n"Emma", a novel, is long.\n')
    with pytest.raises(ValueError, match=r"line 2: expected quotes .*\(the end of the row expected"):
        list(read_documents(tmp_path / "passages.csv"))


@pytest.mark.parametrize(
    ("name", "head", "words"),
    [
        ("a.csv", "id;text", "a.csv has its columns parted by a semicolon"),
        ("a.csv", "text", "a.csv has one column"),
        ("a.tsv", "id\ttext", ""),
    ],
)
def test_a_person_is_told_how_the_columns_of_a_csv_file_are_read(tmp_path, name, head, words):
    (tmp_path / name).write_text(f"{head}\n")
    assert columns_in_words(tmp_path / name) == words


def test_a_table_without_its_columns_is_refused_by_its_head(tmp_path):
    passages, questions = tmp_path / "passages.csv", tmp_path / "questions.csv"
    passages.write_text("id;titel;inhalt\n1;Emma;A novel.\n")
    with pytest.raises(ValueError) as refused:
        list(read_documents(passages))
    assert str(refused.value) == (
        f"{passages} line 1: expected the columns text or contents, got 'id', 'titel', 'inhalt'. Rename them "
        "there."
    )
    questions.write_text("frage,antwort\nWer?,Austen\n")
    with pytest.raises(ValueError, match=r"line 1: expected the columns question with answers, .*'antwort'"):
        list(read_questions(questions))
    parquet.write_table(pyarrow.table({"body": ["A novel."]}), tmp_path / "passages.parquet")
    with pytest.raises(ValueError, match=r"passages\.parquet: expected the columns text or .*, got 'body'"):
        list(read_documents(tmp_path / "passages.parquet"))


@pytest.mark.parametrize(
    "text", ['question\n"Who, then?"\n', "question;kind\nWho, then?;a\n", "Who, then?\n"]
)
def test_questions_alone_need_no_head_to_be_asked(tmp_path, text):
    (tmp_path / "asked.csv").write_text(text)
    assert [question for _, question in read_asked(tmp_path / "asked.csv")] == ["Who, then?"]


def test_two_columns_of_one_name_are_refused(tmp_path):
    (tmp_path / "passages.csv").write_text("text,text\n1,A novel.\n")
    with pytest.raises(ValueError, match=r"passages\.csv line 1: expected a name of its own for each column"):
        list(read_documents(tmp_path / "passages.csv"))


def test_questions_in_csv_with_a_head_have_one_answer_or_a_list(tmp_path):
    path = tmp_path / "questions.csv"
    path.write_text(
        "question,answers,positive_passage_ids\n\"Who, then?\",Austen,p7\nWhat?,\"['a', 'b']\",\n"
    )
    first, second = read_questions(path)
    assert (first.question.question, first.question.answers) == ("Who, then?", ("Austen",))
    assert first.passages == ("p7",)
    assert second.question.answers == ("a", "b")


def test_a_table_with_tabs_is_still_dprs_whatever_its_ending(tmp_path):
    path = tmp_path / "nq.csv"
    path.write_text("question, or what?\t['yes']\n")
    (asked,) = read_questions(path)
    assert (asked.question.question, asked.question.answers) == ("question, or what?", ("yes",))


def test_passages_and_questions_in_parquet(tmp_path):
    passages = pyarrow.table({"id": [7, 8], "text": ["A novel.", "Another."], "title": ["Emma", None]})
    parquet.write_table(passages, tmp_path / "passages.parquet")
    assert [(d.id, d.sections) for d in read_documents(tmp_path / "passages.parquet")] == [
        ("7", (("Emma", "A novel."),)),
        ("8", (("", "Another."),)),
    ]
    asked = pyarrow.table({"question": ["Who?"], "answers": [["Austen", "Jane"]]})
    parquet.write_table(asked, tmp_path / "questions.parquet")
    (question,) = read_questions(tmp_path / "questions.parquet")
    assert question.question.answers == ("Austen", "Jane")


def test_damaged_parquet_is_one_error(tmp_path):
    (tmp_path / "passages.parquet").write_bytes(b"PAR1 no more PAR1")
    with pytest.raises(ValueError, match=r"passages\.parquet: expected a whole Parquet file"):
        list(read_documents(tmp_path / "passages.parquet"))
