"""What a folder is taken for: passages by any name, documents, and questions in one file, two or none."""

import json

import pytest
from etils import epath

from radit_jax.data.readers.questions import read_questions
from radit_jax.data.sources.found_data import find_data, has_questions, look_at, unread_tables


def write(path, name, lines):
    (path / name).write_text("".join(json.dumps(line) + "\n" for line in lines))


def passages(count=20):
    found = []
    for number in range(count):
        text = f"Tower {number} was built by Mara Crane in {1800 + number}. It stands near the river of Dell."
        found.append({"id": f"p{number}", "text": text})
    return found


QUESTIONS = [{"question": f"Who built Tower {n}?", "answers": ["Mara Crane"]} for n in range(20)]


def test_files_of_any_name_are_told_apart_by_what_they_hold(tmp_path):
    write(tmp_path, "towers.jsonl", passages())
    write(tmp_path, "asked.jsonl", QUESTIONS)
    settings = find_data(str(tmp_path))
    assert (settings.passages_file, settings.train_file, settings.test_file) == (
        "towers.jsonl",
        "asked.jsonl",
        "",
    )
    data = look_at(settings, tmp_path / "made.jsonl")
    assert (data.format, data.num_train, data.made_questions) == ("jsonl", 16, 0)
    assert not (tmp_path / "made.jsonl").exists()


def test_a_name_says_which_questions_are_the_test_part(tmp_path):
    write(tmp_path, "passages.jsonl", passages())
    write(tmp_path, "faq_train.jsonl", QUESTIONS[:15])
    write(tmp_path, "faq_test.jsonl", QUESTIONS[15:])
    settings = find_data(str(tmp_path))
    assert (settings.train_file, settings.test_file) == ("faq_train.jsonl", "faq_test.jsonl")
    assert settings.passages_file == ""  # by its usual name


def test_usual_names_are_left_to_the_reader(tmp_path):
    write(tmp_path, "passages.jsonl", passages())
    write(tmp_path, "questions.jsonl", QUESTIONS)
    settings = find_data(str(tmp_path))
    assert (settings.passages_file, settings.train_file) == ("", "")
    assert has_questions(settings)


def test_several_files_of_one_kind_have_to_be_named(tmp_path):
    write(tmp_path, "a.jsonl", passages())
    write(tmp_path, "b.jsonl", passages())
    with pytest.raises(ValueError, match=r"expected one file of passages, got a\.jsonl, b\.jsonl\. Name it"):
        find_data(str(tmp_path))
    write(tmp_path, "c.jsonl", QUESTIONS)
    write(tmp_path, "d.jsonl", QUESTIONS)
    with pytest.raises(ValueError, match=r"expected one file of questions, .* got c\.jsonl, d\.jsonl\. Name"):
        find_data(str(tmp_path), passages="a.jsonl")
    named = find_data(str(tmp_path), passages="a.jsonl", questions="d.jsonl")
    assert (named.passages_file, named.train_file) == ("a.jsonl", "d.jsonl")


def test_a_table_that_nothing_reads_is_said_with_the_reason(tmp_path):
    write(tmp_path, "passages.jsonl", passages())
    write(tmp_path, "questions.jsonl", QUESTIONS)
    settings = find_data(str(tmp_path))
    assert unread_tables(settings) == []
    (tmp_path / "faq.csv").write_text("frage;antwort\nWer?;Mara\n")
    write(tmp_path, "more.jsonl", QUESTIONS)
    first, second = unread_tables(settings)
    assert first.startswith(
        f"faq.csv is not read as questions ({tmp_path}/faq.csv line 1: expected the columns"
    )
    assert second == "more.jsonl is not read"


def test_questions_are_known_by_any_of_their_first_lines(tmp_path):
    write(tmp_path, "passages.jsonl", passages())
    write(tmp_path, "faq.jsonl", [{"question": "Who?", "answers": []}, *QUESTIONS])
    assert find_data(str(tmp_path)).train_file == "faq.jsonl"


def test_a_folder_without_text_is_refused(tmp_path):
    (tmp_path / "picture.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"expected documents \(\.md, .*\) or a file of passages"):
        find_data(str(tmp_path))
    with pytest.raises(ValueError, match="expected a folder with passages or documents, got none"):
        find_data(str(tmp_path / "absent"))


def test_too_few_passages_are_refused(tmp_path):
    write(tmp_path, "passages.jsonl", passages(8))
    write(tmp_path, "questions.jsonl", QUESTIONS)
    with pytest.raises(ValueError, match="expected at least 11 chunks to retrieve from, got 8. Add passages"):
        look_at(find_data(str(tmp_path)), tmp_path / "made.jsonl")


def test_documents_without_questions_are_asked_what_their_sentences_say(tmp_path):
    docs = tmp_path / "docs"
    docs.mkdir()
    for number, passage in enumerate(passages(40)):
        (docs / f"{number}.md").write_text(f"# Tower {number}\n\n{passage['text']}\n")
    settings = find_data(str(docs))
    assert not has_questions(settings)
    made = tmp_path / "made.jsonl"
    data = look_at(settings, made)
    assert data.format == "documents" and data.settings.train_file == str(made)
    asked = list(read_questions(epath.Path(made)))
    assert len(asked) == data.made_questions > 40
    # Each is asked of a document that says the answer.
    for question in asked:
        (name,) = question.passages
        assert question.question.answers[0] in (docs / name).read_text()
    assert data.corpus is not None and all(data.corpus.questions.values())
    # The same text makes the same questions.
    before = made.read_text()
    look_at(settings, made)
    assert made.read_text() == before
