"""Questions are read as people have them, and a line that is of no known form is one clear error."""

import json

import pytest
from etils import epath

from radit_jax.data.questions import kilt_provenance, read_questions

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
    text = 'Who keeps it?\t[\'Mara\', "Mara\'s son"]\nWhich lamp?\t"[\'a ""red"" one\']"\n'
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
            r"q\.jsonl line 1: no field 'answers'; needed are question with answers",
        ),
        ("q.jsonl", '{"query": "Who?"}', r"no field 'response'"),
        ("q.jsonl", '{"text": "Who?"}', r"no field 'question'"),
        (
            "q.jsonl",
            '{"query": "Who?", "response": 4}',
            r"field 'response' is 4, needed is a list of strings",
        ),
        ("q.jsonl", '{"id": [], "question": "?", "answers": []}', r"field 'id' is \[\], needed is a string"),
        ("q.jsonl", '{"question": 1, "answers": []}', r"field 'question' is 1, needed is a string"),
        (
            "q.jsonl",
            '{"id": "k", "input": "?", "output": "x"}',
            r"field 'output' is 'x', needed is a list of objects",
        ),
        (
            "q.jsonl",
            '{"id": "k", "input": "?", "output": [{"answer": 1}]}',
            r"an 'answer' in 'output' is no string",
        ),
        (
            "q.jsonl",
            '{"id": "k", "input": "?", "output": [{"provenance": [{"title": "T"}]}]}',
            r"a 'provenance' without 'wikipedia_id'",
        ),
        ("q.jsonl", '{"question": "?", "answers": [], "positive_ctxs": ["a"]}', r"field 'positive_ctxs' is"),
        ("q.json", '[{"question": "?"', r"q\.json: it is not JSON .*needed is a list of objects"),
        ("q.json", "[1]", r"q\.json item 1: 1 came, needed is a JSON object"),
        ("q.csv", "Who?\tMara\n", r"q\.csv line 1: field 'answers' is 'Mara', needed is a list of strings"),
        ("q.csv", "Who?\n", r"q\.csv line 1: 1 columns came, needed are 2"),
        ("qrels/test.tsv", "h\ti\tj\nq1\td1\tmuch\n", r"test\.tsv line 2: the grade 'much' came"),
        ("q.xml", "", r"q\.xml: its name says no format, needed is one that ends in \.jsonl"),
    ],
)
def test_a_line_of_no_known_form_is_an_error_with_its_place(tmp_path, name, text, message):
    with pytest.raises(ValueError, match=message):
        read(tmp_path, name, text)


def test_an_unknown_format_says_what_there_is(tmp_path):
    with pytest.raises(ValueError, match=r"no format 'xml'; needed is json, beir or table"):
        read(tmp_path, "q.jsonl", "", format="xml")


def test_provenance_is_a_set_of_pages_for_each_output_that_has_any():
    assert kilt_provenance(KILT, "here") == (("9",), ("12",))


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
