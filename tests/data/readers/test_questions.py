"""Questions are read as people have them, and a line that is of no known form is one clear error."""

import json
from collections import Counter

import pytest
from etils import epath

from radit_jax.data.readers.questions import kilt_answers, kilt_provenance, read_questions
from radit_jax.data.readers.string_lists import list_of_strings

WHO = "Who tends the lighthouse?"
KILT = {
    "id": "k1",
    "input": WHO,
    "output": [
        {"answer": "Mara", "provenance": [{"wikipedia_id": "9", "title": "Mara"}, {"wikipedia_id": "9"}]},
        {"answer": "Mara"},
        {"answer": " "},
        {"provenance": [{"wikipedia_id": 12}]},
    ],
}
DPR = {
    "dataset": "lamps",
    "question": WHO,
    "answers": ["Mara"],
    "positive_ctxs": [{"title": "Mara", "text": "…", "passage_id": "31"}, {"psg_id": 7}, {"title": "no id"}],
    "negative_ctxs": [],
}


def read(tmp_path, name, text, **options):
    file = epath.Path(tmp_path) / name
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    return [
        (a.question.id, a.question.question, a.question.answers, a.passages)
        for a in read_questions(file, **options)
    ]


@pytest.mark.parametrize(
    ("line", "wanted"),
    [
        ({"question": WHO, "answers": ["Mara", ""]}, ("q.jsonl:1", WHO, ("Mara",), ())),
        (
            {"id": "a", "question": WHO, "answers": ["Mara"], "positive_passage_ids": ["p1", "p2"]},
            ("a", WHO, ("Mara",), ("p1", "p2")),
        ),
        ({"question": WHO, "answer": "Mara"}, ("q.jsonl:1", WHO, ("Mara",), ())),
        ({"question": WHO, "answer": ["Mara", "she"]}, ("q.jsonl:1", WHO, ("Mara", "she"), ())),
        ({"query": WHO, "response": "Mara does."}, ("q.jsonl:1", WHO, ("Mara does.",), ())),
        (
            {"id": "f_0", "question": WHO, "golden_answers": ["Mara"], "metadata": {}},
            ("f_0", WHO, ("Mara",), ()),
        ),
        (DPR, ("q.jsonl:1", WHO, ("Mara",), ("31", "7"))),
        (KILT, ("k1", WHO, ("Mara",), ("9", "12"))),
        ({"id": 3, "question": WHO, "answers": []}, ("3", WHO, (), ())),
    ],
)
def test_the_fields_of_an_object_say_its_form(tmp_path, line, wanted):
    assert read(tmp_path, "q.jsonl", json.dumps(line) + "\n") == [wanted]


def test_a_json_list_is_read_like_lines(tmp_path):
    lines = read(tmp_path, "dpr.json", json.dumps([DPR, KILT], indent=1))
    assert lines == [("dpr.json:1", WHO, ("Mara",), ("31", "7")), ("k1", WHO, ("Mara",), ("9", "12"))]
    assert read(tmp_path, "lines.json", json.dumps(KILT) + "\n")[0][0] == "k1"


def test_beirs_judgements_choose_the_queries_and_their_passages(tmp_path):
    queries = [
        {"_id": "q1", "text": WHO, "metadata": {"answer": "Mara"}},
        {"_id": "q2", "text": "What lamp?", "metadata": {}},
        {"_id": "q3", "text": "Not judged here."},
    ]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    judged = "query-id\tcorpus-id\tscore\nq2\td5\t1\nq1\td1\t2\nq1\td2\t0\nq1\td3\t1\n"
    assert read(tmp_path, "qrels/test.tsv", judged) == [
        ("q1", WHO, ("Mara",), ("d1", "d3")),
        ("q2", "What lamp?", (), ("d5",)),
    ]


def test_a_table_has_a_list_of_answers_behind_each_question(tmp_path):
    text = 'Who keeps it?\t"[\'Mara\', ""Mara\'s son""]"\nWhich lamp?\t"[\'a ""red"" one\']"\n'
    assert read(tmp_path, "qas.csv", text) == [
        ("qas.csv:1", "Who keeps it?", ("Mara", "Mara's son"), ()),
        ("qas.csv:2", "Which lamp?", ('a "red" one',), ()),
    ]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "q.jsonl",
            '{"question": "Who?"}',
            r"q\.jsonl line 1: expected question with answers, .*, got no field 'answers' but ",
        ),
        ("q.jsonl", '{"query": "Who?"}', r"no field 'response'"),
        ("q.jsonl", '{"text": "Who?"}', r"no field 'question'"),
        (
            "q.jsonl",
            '{"query": "Who?", "response": 4}',
            r"expected field 'response' to be a list of strings, got 4",
        ),
        (
            "q.jsonl",
            '{"id": [], "question": "?", "answers": []}',
            r"field 'id' to be an id, got \[\]",
        ),
        ("q.jsonl", '{"question": 1, "answers": []}', r"expected field 'question' to be a string, got 1"),
        (
            "q.jsonl",
            '{"id": "k", "input": "?", "output": "x"}',
            r"expected field 'output' to be a list of objects, got 'x'",
        ),
        (
            "q.jsonl",
            '{"id": "k", "input": "?", "output": [{"answer": 1}]}',
            r"expected field 'answer' to be a string, got 1",
        ),
        (
            "q.jsonl",
            '{"id": "k", "input": "?", "output": [{"provenance": [{"title": "T"}]}]}',
            r"expected the fields wikipedia_id, got no field 'wikipedia_id'",
        ),
        (
            "q.jsonl",
            '{"question": "?", "answers": [], "positive_ctxs": ["a"]}',
            r"field 'positive_ctxs' to be",
        ),
        ("q.json", '[{"question": "?"', r"q\.json item 1: expected JSON, got '{\"question\": "),
        ("q.json", "[1]", r"q\.json item 1: expected a JSON object, got 1"),
        ("q.csv", "Who?\tMara\n", r"q\.csv line 1: expected a list of strings, got 'Mara'"),
        ("q.csv", "Who?\t['a']\nWho?\n", r"q\.csv line 2: expected 2 columns separated by '\\t', got 1"),
        ("q.csv", "q\t" + "-" * 99_999, r"q\.csv line 1: expected a list of strings, got '---"),
        ("q.csv", "q\t{[]}", r"q\.csv line 1: expected a list of strings, got '{\[\]}'"),
        ("q.csv", "q\t[['a']]", r"q\.csv line 1: expected a list of strings, got"),
        ("q.csv", "q\t['a' 'b']", r"q\.csv line 1: expected a list of strings, got"),
        ("q.csv", "q\t['\\ud800']", r"q\.csv line 1: expected a list of strings, got"),
        ("q.csv", '"Who said\t[]\nb\t["x"]\n', r"q\.csv line 1: expected the quote that opens a field"),
        ("qrels/test.tsv", "h\ti\tj\nq1\td1\tmuch\n", r"test\.tsv line 2: expected a grade .* got 'much'"),
        ("qrels/test.tsv", "h\ti\tj\nq1\t\t1\n", r"test\.tsv line 2: expected the ids of a query and"),
        ("q.xml", "", r"q\.xml: expected a name that ends in \.jsonl"),
        ("q.jsonl", '{"id": true, "question": "?", "answers": []}', r"field 'id' to be an id, got true"),
        ("q.jsonl", '{"id": "", "question": "?", "answers": []}', r"field 'id' to be an id, got ''"),
        ("q.jsonl", '{"question": "\\ud800", "answers": ["a"]}', r"line 1: .* half of a surrogate pair"),
        ("q.jsonl", '{"question": ' + "[" * 9999, r"line 1: expected JSON of at most 100 levels"),
        ("q.json", "[" * 9999, r"item 1: expected JSON of at most 100 levels"),
        (
            "q.jsonl",
            '{"input": "q", "output": [{"provenance": [5]}]}',
            r"line 1: expected field 'provenance' to be a list of objects, got \[5\]",
        ),
        (
            "q.json",
            '[{"input": "q", "output": [{"provenance": 1e308}]}]',
            r"item 1: expected field 'provenance' to be a list of objects, got 1e\+308",
        ),
    ],
)
def test_a_line_of_no_known_form_is_an_error_with_its_place(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, name, text)


def test_an_unknown_format_says_what_there_is(tmp_path):
    with pytest.raises(
        ValueError, match=r"data\.questions_format: expected json, beir, table or parquet, got 'xml'"
    ):
        read(tmp_path, "q.jsonl", "", format="xml")


def test_judgements_are_counted_once_and_of_queries_that_are_there(tmp_path):
    queries = [{"_id": n, "text": f"{n}?", "metadata": {"answer": "Mara"}} for n in (1, 2)]
    (tmp_path / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    counts = Counter()
    judged = "1\td1\t1.0\n1\td1\t1\n2\td2\t1\n2\td3\t-1\n9\td1\t1\n"
    found = read(tmp_path, "qrels/test.tsv", judged, counts=counts)
    assert [(name, passages) for name, _, _, passages in found] == [("1", ("d1",)), ("2", ("d2",))]
    assert counts == {"judged_queries_not_in_queries": 1}


def test_metadata_that_are_no_object_are_an_error_with_their_place(tmp_path):
    (tmp_path / "queries.jsonl").write_text('{"_id": "a", "text": "x", "metadata": "answers"}')
    with pytest.raises(ValueError, match=r"queries\.jsonl line 1: expected field 'metadata' to be an object"):
        read(tmp_path, "qrels/test.tsv", "a\td\t1\n")


def test_a_list_with_a_byte_order_mark_is_read_whatever_its_name(tmp_path):
    for name in ("dev.json", "dev.jsonl"):
        (tmp_path / name).write_bytes(b"\xef\xbb\xbf" + json.dumps([DPR, KILT]).encode())
        assert [a.question.answers for a in read_questions(epath.Path(tmp_path / name))] == [("Mara",)] * 2


def test_a_table_of_questions_alone_has_no_answers(tmp_path):
    assert read(tmp_path, "q.tsv", "Who?\nWhat?\n") == [
        ("q.tsv:1", "Who?", (), ()),
        ("q.tsv:2", "What?", (), ()),
    ]


@pytest.mark.parametrize(
    ("text", "strings"),
    [
        ("[]", []),
        (" [ 'a' , \"b's\" , ] ", ["a", "b's"]),
        (r"""['it\'s', "\x41\u00e9\U0001f600\n\\", '\d']""", ["it's", "Aé😀\n\\", r"\d"]),
        (json.dumps(["é", 'say "hi"', "😀"]), ["é", 'say "hi"', "😀"]),
        (repr(["a\\b", "tab\t", "'\"", "日本"]), ["a\\b", "tab\t", "'\"", "日本"]),
    ],
)
def test_a_list_of_strings_is_pythons_or_jsons(text, strings):
    assert list_of_strings(text, "here") == strings


def test_provenance_is_a_set_of_pages_for_each_output_that_has_any():
    assert kilt_provenance(KILT, "here") == (("9",), ("12",))


def test_answers_of_kilt_are_stripped():
    assert kilt_answers({"output": [{"answer": " Mara\n"}, {"answer": "Mara"}]}, "here") == ("Mara",)


@pytest.mark.parametrize(
    ("name", "count", "first"),
    [
        ("nq_open/NQ-open.dev.jsonl", 3610, "14 December 1972 UTC"),
        ("hotpotqa/hotpot_dev_v1_simplified.json", 7405, "yes"),
        ("trivia_qa/topics.dpr.trivia.dev.txt", 8837, "🚁"),
        ("kilt/nq-dev-kilt.jsonl", 5, "the therefore sign"),
        ("kilt/eli5-train-kilt.jsonl", 5, None),
    ],
)
def test_real_files_are_read_as_they_are(shared_data, name, count, first):
    asked = list(read_questions(epath.Path(shared_data / "raw" / name)))
    assert len(asked) == count
    assert first is None or asked[0].question.answers[0] == first
    assert all(a.question.question.strip() and a.question.answers for a in asked)
