"""The 22 datasets: every official form from fixtures of our own, the first examples of the real files."""

import gzip
import hashlib
import json
import pathlib
import shutil
from collections import Counter
from itertools import islice

import pytest

from radit_jax.data.batches.prefix_trees import lm_sequence
from radit_jax.data.finetuning import raw
from radit_jax.data.finetuning.datasets import DATASETS, dataset_named, hub_rows, read_items, read_rows
from radit_jax.data.finetuning.templates import item_example
from radit_jax.data.readers import lines
from radit_jax.data.records import Item
from radit_jax.text.prompts import background

FIXTURES = pathlib.Path(__file__).parent.parent / "fixtures" / "raw"


class Bytes:
    """A tokeniser whose tokens are UTF-8 bytes, so that a span's length is its text's."""

    start_ids, end_ids, opening = (256,), (257,), ""

    def encode(self, text):
        return list(text.encode())

    def encode_pair(self, prompt, answer):
        return self.encode(prompt + answer), len(self.encode(prompt))

    def decode(self, ids):
        return bytes(ids).decode(errors="replace")


def read(name, split="train", folder=FIXTURES, **settings):
    counts = Counter()
    return list(read_items(DATASETS[name], folder / name, split, counts=counts, **settings)), counts


# The first two items of every fixture, and what is skipped in it.
EXPECTED = {
    "oasst1": (
        Item("m2", "How do I boil an egg?", ("For seven minutes.\n\nThen cool it.",)),
        Item(
            "m4",
            "And a soft one?",
            ("Four minutes.",),
            turns=("How do I boil an egg?", "For seven minutes.\n\nThen cool it."),
        ),
        {"a turn deleted or rejected": 3},
    ),
    "commonsense_qa": (
        Item("c1", "Where does a kettle stand?", ("kitchen",), ("bed", "kitchen", "moon", "river", "purse")),
        Item(
            "c2",
            "Where does snow stay longest?",
            ("mountain",),
            ("desert", "oven", "cellar", "sea", "mountain"),
        ),
        {"no answer": 1},
    ),
    "math_qa": (
        Item(
            "train-1",
            "a box holds 4 rows of 6 eggs . how many eggs is that ?",
            ("24",),
            ("10", "1 , 200", "24", "26", "none"),
        ),
        Item("train-2", "half of 9 ?", ("4.5",), ("4.5", "5", "3", "9", "18")),
        {"no answer": 1},
    ),
    "web_questions": (
        Item("webquestions.examples.train-1", "who wrote emma?", ("Jane Austen",)),
        Item("webquestions.examples.train-2", "which towns lie on the rhine?", ("Basel", 'the town "Köln"')),
        {"no answer": 1},
    ),
    "wiki_qa": (
        Item("Q1-D1-0", "what is a fjord", ('A fjord is a "drowned" valley .',)),
        Item("Q2-D2-4", "who built the dam", ("Beavers built it .",)),
        {"label 0": 1},
    ),
    "yahoo_answers_qa": (
        Item("11", "Why do cats purr?", ("They are content.",)),
        Item("12", "How to pack light?", ("Take half.",)),
        {"no answer": 1},
    ),
    "freebase_qa": (
        Item("FreebaseQA-train-7", "Which river flows through Dray?", ("the lune", "lune")),
        Item("FreebaseQA-train-8", "Who sang it?", ("ann o'dell",)),
        {"no answer": 1},
    ),
    "ms_marco": (
        Item("21", "why salt roads", ("It lowers the freezing point.",)),
        Item("24", "length of the dray tunnel", ("12 km", "about 12 km")),
        {"no answer": 2},
    ),
    "coqa": (
        Item(
            "s1-1",
            "What did Hob find?",
            ("a kite", "a red kite"),
            context="Hob found a red kite. He gave it to Ann.",
        ),
        Item(
            "s1-2",
            "Who has it now?",
            ("Ann",),
            context="Hob found a red kite. He gave it to Ann.",
            turns=("What did Hob find?", "a kite"),
        ),
        {},
    ),
    "drop": (
        Item(
            "d1", "How often did Dray score?", ("2",), context="Dray scored twice, then Lune on 3 May 1999."
        ),
        Item(
            "d2",
            "Who scored?",
            ("Dray, Lune", "Lune, Dray"),
            context="Dray scored twice, then Lune on 3 May 1999.",
        ),
        {"no answer": 1},
    ),
    "narrativeqa": (
        Item(
            "qaps-1",
            "Who is Hob?",
            ("A miller, and poor.", "a miller"),
            context="Hob is a poor miller. He stays.",
        ),
        Item("qaps-3", "Who leaves?", ("Ann", "Ann."), context="Ann leaves."),
        {},
    ),
    "newsqa": (
        Item(
            "./cnn/stories/aa.story#1",
            "When did the mayor leave?",
            ("Monday",),
            context="DRAY (CNN) -- The mayor left on Monday. His dog stayed.",
        ),
        Item(
            "./cnn/stories/aa.story#2",
            "What did the dog do?",
            ("stayed",),
            context="DRAY (CNN) -- The mayor left on Monday. His dog stayed.",
        ),
        {"no answer": 1, "bad question": 1},
    ),
    "pubmed_qa": (
        Item("101", "Does tea wake mice?", ("yes",), context="We gave mice tea. They ran."),
        Item("102", "Does milk?", ("maybe",), context="We gave mice milk."),
        {},
    ),
    "quail": (
        Item(
            "f9-0",
            "Why did Hob run?",
            ("he was late",),
            ("not enough information", "he was late", "for fun", "a dog"),
            "Hob woke late. He ran to the mill.",
        ),
        Item(
            "f9-1",
            "What did he eat?",
            ("not enough information",),
            ("bread", "soup", "fish", "not enough information"),
            "Hob woke late. He ran to the mill.",
        ),
        {},
    ),
    "quarel": (
        Item(
            "QuaRel_1",
            "Ann slid on ice, then on sand. Where did she slide further?",
            ("the ice",),
            ("the ice", "the sand"),
        ),
        Item("QuaRel_2", "A stone sinks faster in", ("water",), ("honey", "water")),
        {},
    ),
    "squad_v2": (
        Item(
            "s1",
            "Where does Dray lie?",
            ("on the Lune", "the Lune"),
            context="Dray lies on the Lune. It has a tower.",
        ),
        Item(
            "s2",
            "Who built the tower?",
            ("I don't know",),
            context="Dray lies on the Lune. It has a tower.",
        ),
        {"no answer": 1},
    ),
    "cnn_dailymail": (
        Item(
            "11e11ccbac14dba9a9041ffcfa369440e7400178",
            "",
            ("The mill of Dray burns. Nobody hurt, says mayor.",),
            context="DRAY (CNN) -- The mill burnt. Nobody was hurt.",
        ),
        Item(
            hashlib.sha1(b"http://web.archive.org/web/lune/2").hexdigest(),
            "",
            ("Flood in Lune!",),
            context="By Ann The Lune rose.",
        ),
        {"no article": 1},
    ),
    "aqua_rat": (
        Item(
            "train-1",
            "Ann walks 6 km in 2 hours. Her speed?",
            ("3 km/h",),
            ("2 km/h", "3 km/h", "4 km/h", "6 km/h", "12 km/h"),
            reasoning="6/2 = 3\nAnswer - B",
        ),
        Item(
            "train-2",
            "What is 5% of 200?",
            ("10",),
            ("1", "5", "10", "20", "100"),
            reasoning="200 * 0.05 = 10",
        ),
        {"no reasoning": 1},
    ),
    "ecqa": (
        Item(
            "c2",
            "Where does snow stay longest?",
            ("mountain",),
            ("desert", "oven", "cellar", "sea", "mountain"),
            reasoning="Mountains are cold, so snow stays.",
        ),
        Item(
            "c1",
            "Where does a kettle stand?",
            ("kitchen",),
            ("bed", "kitchen", "moon", "river", "purse"),
            reasoning="A kettle boils water. Kitchens are where water is boiled.",
        ),
        {},
    ),
    "gsm8k": (
        Item(
            "train-1",
            "Ann has 3 boxes of 4 pears. How many pears?",
            ("12",),
            reasoning="She has 3*4=12 pears.",
        ),
        Item("train-2", "Hob eats 2 of 12 pears. How many are left?", ("10",), reasoning="12-2=10"),
        {},
    ),
    "competition_math": (
        Item(
            "train-algebra-7",
            "Solve $2x=1$.",
            ("\\frac{1}{2}",),
            reasoning="Halving gives $x=\\boxed{\\frac{1}{2}}$.",
        ),
        Item(
            "train-geometry-3",
            "How many sides has a square?",
            ("4",),
            reasoning="A square has $\\boxed 4$ sides.",
        ),
        {"no answer": 1},
    ),
    "strategyqa": (
        Item(
            "q1",
            "Could an egg float?",
            ("Yes",),
            reasoning="Old eggs hold air. Air is lighter than water.",
        ),
        Item("q2", "Do kites fly on the Moon?", ("No",), reasoning="The Moon has no air."),
        {},
    ),
}


def test_the_table_is_the_papers():
    assert len(DATASETS) == 22
    assert sum("lm_ft" in dataset.mixtures for dataset in DATASETS.values()) == 20
    r_ft = [dataset for dataset in DATASETS.values() if "r_ft" in dataset.mixtures]
    assert len(r_ft) == 10
    assert sum(dataset.train_size for dataset in r_ft) == 286_118
    assert set(EXPECTED) == set(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_an_official_file_gives_these_items(name):
    items, counts = read(name)
    *first, skipped = EXPECTED[name]
    assert [(item.id, item) for item in items[:2]] == [
        (f"{name}/{item.id}", Item(**{**vars(item), "id": f"{name}/{item.id}"})) for item in first
    ]
    assert {reason: counts[f"skipped: {reason}"] for reason in skipped} == skipped
    assert counts["kept"] == len(items)
    assert counts["read"] == counts["kept"] + sum(skipped.values())


@pytest.mark.parametrize(("name", "count"), [("commonsense_qa", 2), ("narrativeqa", 1), ("newsqa", 1)])
def test_the_development_split_holds_other_questions(name, count):
    train, dev = (read(name, split)[0] for split in ("train", "dev"))
    assert len(dev) == count
    assert not {item.question for item in dev} & {item.question for item in train}


def test_a_date_is_an_answer_of_drop():
    assert read("drop")[0][2].answers == ("3 May 1999",)


def test_a_gzipped_file_is_read_as_it_is(tmp_path):
    folder = tmp_path / "gsm8k"
    folder.mkdir()
    (folder / "train.jsonl.gz").write_bytes(gzip.compress((FIXTURES / "gsm8k/train.jsonl").read_bytes()))
    assert read("gsm8k", folder=tmp_path) == read("gsm8k")


# ---- the hub's form ----

HUB_ROWS = {
    "oasst1": [
        {"message_id": "a", "parent_id": None, "role": "prompter", "text": "Hi", "deleted": False}
        | {"review_result": True},
        {"message_id": "b", "parent_id": "a", "role": "assistant", "text": "Hello", "deleted": False}
        | {"review_result": None},
    ],
    "commonsense_qa": [
        {
            "id": "c",
            "question": "Where?",
            "choices": {"label": ["A", "B"], "text": ["here", "there"]},
            "answerKey": "B",
        }
    ],
    "math_qa": [{"Problem": "1 + 1 ?", "options": "a ) 1 , b ) 2", "correct": "b"}],
    "web_questions": [{"question": "who?", "answers": ["Hob", "Ann"]}],
    "wiki_qa": [{"question": "what", "answer": "This .", "label": 1}],
    "yahoo_answers_qa": [{"id": "1", "question": "Why?", "answer": "So.", "nbestanswers": ["So."]}],
    "freebase_qa": [
        {
            "Question-ID": "f",
            "RawQuestion": "Who?",
            "Parses": {"Answers": [{"AnswersMid": ["m"], "AnswersName": [["hob"]]}]},
        }
    ],
    "ms_marco": [{"query_id": 5, "query": "why", "answers": ["so"]}],
    "coqa": [{"story": "S.", "questions": ["Q1?", "Q2?"], "answers": {"input_text": ["one", "two"]}}],
    "drop": [
        {"query_id": "d", "passage": "P.", "question": "Q?", "answers_spans": {"spans": ["x", "y"]}},
    ],
    "narrativeqa": [
        {
            "document": {"summary": {"text": "S."}},
            "question": {"text": "Q?"},
            "answers": [{"text": "a"}, {"text": "b"}],
        }
    ],
    "newsqa": [{"key": "k", "context": "C.", "question": "Q?", "answers": ["a"]}],
    "pubmed_qa": [
        {"pubid": 7, "question": "Q?", "context": {"contexts": ["A.", "B."]}, "final_decision": "no"}
    ],
    "quail": [{"id": "k", "context": "C.", "question": "Q?", "answers": ["a", "b"], "correct_answer_id": 1}],
    "quarel": [{"id": "k", "question": "Q? (A) a (B) b", "answer_index": 1}],
    "squad_v2": [{"id": "k", "context": "C.", "question": "Q?", "answers": {"text": [], "answer_start": []}}],
    "cnn_dailymail": [{"id": "k", "article": "A.", "highlights": "One .\nTwo ."}],
    "aqua_rat": [{"question": "Q?", "options": ["A)1", "B)2"], "rationale": "R", "correct": "A"}],
    "ecqa": [
        {"q_no": "k", "q_text": "Q?", "q_ans": "b", "taskB": "R"}
        | {f"q_op{n}": "abcde"[n - 1] for n in range(1, 6)}
    ],
    "gsm8k": [{"question": "Q?", "answer": "R\n#### 3"}],
    "competition_math": [{"problem": "P", "solution": "$\\boxed{2}$"}],
    "strategyqa": [{"qid": "k", "question": "Q?", "answer": False, "facts": ["F."]}],
}
HUB_ITEMS = {
    "oasst1": Item("b", "Hi", ("Hello",)),
    "commonsense_qa": Item("c", "Where?", ("there",), ("here", "there")),
    "math_qa": Item("train-1", "1 + 1 ?", ("2",), ("1", "2")),
    "web_questions": Item("train-1", "who?", ("Hob", "Ann")),
    "wiki_qa": Item("train-1", "what", ("This .",)),
    "yahoo_answers_qa": Item("1", "Why?", ("So.",)),
    "freebase_qa": Item("f", "Who?", ("hob",)),
    "ms_marco": Item("5", "why", ("so",)),
    "coqa": Item("train-1-2", "Q2?", ("two",), context="S.", turns=("Q1?", "one")),
    "drop": Item("d", "Q?", ("x, y",), context="P."),
    "narrativeqa": Item("train-1", "Q?", ("a", "b"), context="S."),
    "newsqa": Item("k", "Q?", ("a",), context="C."),
    "pubmed_qa": Item("7", "Q?", ("no",), context="A. B."),
    "quail": Item("k", "Q?", ("b",), ("a", "b"), "C."),
    "quarel": Item("k", "Q?", ("b",), ("a", "b")),
    "squad_v2": Item("k", "Q?", ("I don't know",), context="C."),
    "cnn_dailymail": Item("k", "", ("One. Two.",), context="A."),
    "aqua_rat": Item("train-1", "Q?", ("1",), ("1", "2"), reasoning="R"),
    "ecqa": Item("k", "Q?", ("b",), ("a", "b", "c", "d", "e"), reasoning="R"),
    "gsm8k": Item("train-1", "Q?", ("3",), reasoning="R"),
    "competition_math": Item("train-1", "P", ("2",), reasoning="$\\boxed{2}$"),
    "strategyqa": Item("k", "Q?", ("No",), reasoning="F."),
}


@pytest.mark.parametrize("name", DATASETS)
def test_the_hubs_rows_give_the_same_form(name):
    counts = Counter()
    items = list(read_rows(DATASETS[name], HUB_ROWS[name], "train", counts=counts))
    expected = HUB_ITEMS[name]
    assert items[-1] == Item(**{**vars(expected), "id": f"{name}/{expected.id}"})
    assert counts["read"] == counts["kept"] == len(items)
    assert all(set(DATASETS[name].hub.fields) <= set(row) for row in HUB_ROWS[name])


def test_a_hub_without_its_package_or_split_says_what_to_do():
    with pytest.raises(
        ValueError, match=r"gsm8k.*(radit_jax\[hub\]|expected a split that it has \(train, test\), got 'dev')"
    ):
        next(iter(hub_rows(DATASETS["gsm8k"], "dev")))


# ---- bad input ----


def altered(tmp_path, name, file, change):
    """A copy of a fixture with a file's bytes changed."""
    shutil.copytree(FIXTURES / name, tmp_path / name)
    path = tmp_path / name / file
    path.write_bytes(change(path.read_bytes()))
    return tmp_path


def test_a_line_that_does_not_parse_stops_or_is_skipped_and_counted(tmp_path):
    folder = altered(tmp_path, "gsm8k", "train.jsonl", lambda data: b'{"question": "Wh\n' + data)
    with pytest.raises(ValueError, match=r"train.jsonl line 1: expected JSON, got .*on_error='skip'"):
        read("gsm8k", folder=folder)
    items, counts = read("gsm8k", folder=folder, on_error="skip")
    assert len(items) == 2
    assert counts == {"read": 3, "kept": 2, "skipped: unreadable": 1}


def test_undecodable_bytes_are_named_with_their_line(tmp_path):
    folder = altered(tmp_path, "gsm8k", "train.jsonl", lambda data: data.replace(b"Hob", b"H\xf6b"))
    with pytest.raises(
        ValueError, match=r"train.jsonl line 2: expected UTF-8, got invalid start byte at byte 15"
    ):
        read("gsm8k", folder=folder)
    assert read("gsm8k", folder=folder, on_error="skip")[1]["skipped: unreadable"] == 1


def test_undecodable_bytes_in_a_table_lose_their_row_only(tmp_path):
    folder = altered(
        tmp_path, "wiki_qa", "WikiQA-train.tsv", lambda data: data.replace(b"Norway", b"N\xf8rway")
    )
    with pytest.raises(ValueError, match=r"WikiQA-train.tsv line 3: expected UTF-8, got byte 0xf8"):
        read("wiki_qa", folder=folder)
    assert read("wiki_qa", folder=folder, on_error="skip")[1] == {
        "read": 3,
        "kept": 2,
        "skipped: unreadable": 1,
    }


def test_undecodable_bytes_in_a_json_file_are_named_with_their_line(tmp_path):
    folder = altered(
        tmp_path, "strategyqa", "strategyqa_train.json", lambda data: data.replace(b"egg", b"\xe9gg")
    )
    with pytest.raises(
        ValueError, match=r"strategyqa_train.json line 6: expected UTF-8, got byte 0xe9 at byte"
    ):
        read("strategyqa", folder=folder)


def test_a_row_with_too_few_columns_is_named(tmp_path):
    folder = altered(tmp_path, "wiki_qa", "WikiQA-train.tsv", lambda data: data + b"Q3\tonly two\n")
    with pytest.raises(ValueError, match=r"line 5: expected the header's 7 columns, got 2"):
        read("wiki_qa", folder=folder)


@pytest.mark.parametrize(
    "line", [b'{"question": ' + b"[" * 100_000, b'{"question": ' + b"9" * 5000, b'{"question": "\\ud83d"}']
)
def test_a_line_that_python_cannot_parse_or_write_loses_its_record_only(tmp_path, line):
    folder = altered(tmp_path, "gsm8k", "train.jsonl", lambda data: line + b"\n" + data)
    with pytest.raises(ValueError, match=r"train.jsonl line 1: expected .*on_error='skip'"):
        read("gsm8k", folder=folder)
    assert read("gsm8k", folder=folder, on_error="skip")[1]["kept"] == 2


@pytest.mark.parametrize("cut", [5, -5])
def test_a_compressed_file_that_was_cut_short_is_named(tmp_path, cut):
    folder = altered(tmp_path, "gsm8k", "train.jsonl", lambda data: gzip.compress(data)[:cut])
    with pytest.raises(ValueError, match=r"train.jsonl: expected a whole compressed file"):
        read("gsm8k", folder=folder)


def test_options_that_are_no_list_are_refused_and_never_run(tmp_path):
    folder = altered(tmp_path, "math_qa", "train.json", lambda data: data.replace(b"'e ) 18']", b"e()]"))
    with pytest.raises(ValueError, match=r"item 2: .*expected a list of strings"):
        read("math_qa", folder=folder)


@pytest.mark.parametrize("on_error", ["stop", "skip"])
def test_a_raw_file_of_another_format_is_an_error_even_when_lines_are_skipped(tmp_path, on_error):
    folder = altered(tmp_path, "gsm8k", "train.jsonl", lambda _: b'{"id": "q1", "query": "Who?"}\n')
    with pytest.raises(
        ValueError, match=r"line 1: expected .*####.*, got no 'answer'. Get gsm8k from https://"
    ):
        read("gsm8k", folder=folder, on_error=on_error)


@pytest.mark.parametrize(
    ("name", "file", "message"),
    [
        ("coqa", "coqa-train-v1.0.json", r"expected an object with 'data', got JSON without"),
        ("math_qa", "train.json", r"item 1: expected .*Problem.*, got .*rows"),
        ("quail", "quail_1.3_train_randomized.xml", r"line 1: expected XML, got"),
        ("narrativeqa", "qaps.csv", r"expected a summary of document None in .*summaries.csv, got none"),
    ],
)
def test_another_format_is_named(tmp_path, name, file, message):
    folder = altered(
        tmp_path, name, file, lambda _: b'{"rows": [1]}\n' + (b"1\n" if file.endswith("csv") else b"")
    )
    with pytest.raises(ValueError, match=message):
        read(name, folder=folder)


def test_an_empty_answer_is_skipped_and_counted(tmp_path):
    line = json.dumps({"question": "Q?", "answer": "R #### "}) + "\n"
    folder = altered(tmp_path, "gsm8k", "train.jsonl", lambda data: line.encode() + data)
    assert read("gsm8k", folder=folder)[1] == {"read": 3, "kept": 2, "skipped: no answer": 1}


def test_a_field_that_is_no_string_is_named(tmp_path):
    folder = altered(tmp_path, "gsm8k", "train.jsonl", lambda _: b'{"question": 7, "answer": "#### 2"}\n')
    with pytest.raises(ValueError, match=r"line 1: .*field 'question' is '7', not a string"):
        read("gsm8k", folder=folder)


def test_a_question_of_ecqa_that_commonsense_qa_lacks_is_named(tmp_path):
    folder = altered(tmp_path, "ecqa", "author_split/train_ids.txt", lambda data: data + b"c9\n")
    shutil.copytree(FIXTURES / "commonsense_qa", tmp_path / "commonsense_qa")
    with pytest.raises(
        ValueError, match=r"train_ids.txt line 3: expected id 'c9' in ecqa.jsonl and train_rand"
    ):
        read("ecqa", folder=folder)


def test_a_story_that_is_not_there_is_named(tmp_path):
    folder = altered(tmp_path, "cnn_dailymail", "url_lists/all_train.txt", lambda data: data + b"http://x\n")
    with pytest.raises(ValueError, match=r"all_train.txt line 4: expected [0-9a-f]{40}.story in"):
        read("cnn_dailymail", folder=folder)


def test_a_missing_file_says_where_it_is_from():
    with pytest.raises(
        ValueError, match=r"expected train.jsonl, the train part of gsm8k, got no such file\. Put .*https://"
    ):
        list(read_items(DATASETS["gsm8k"], FIXTURES / "coqa", "train"))
    with pytest.raises(ValueError, match=r"gsm8k: expected a split that it has \(train, test\), got 'dev'"):
        list(read_items(DATASETS["gsm8k"], FIXTURES / "gsm8k", "dev"))


def test_an_unknown_dataset_lists_the_known():
    with pytest.raises(ValueError, match="dataset: expected one of aqua_rat, .*, got 'gsm'"):
        dataset_named("gsm")


DEEP = "[" * 100_000
PACKED = gzip.compress((FIXTURES / "gsm8k/train.jsonl").read_bytes())


@pytest.mark.parametrize(
    ("name", "file", "data", "message"),
    [
        ("gsm8k", "train.jsonl.gz", PACKED[:-9], "expected a whole compressed file, got a damaged one"),
        ("gsm8k", "train.jsonl.gz", PACKED[:-6] + bytes(6), "expected a whole compressed file, got a dam"),
        ("gsm8k", "train.jsonl.gz", PACKED[:10] + b"\xff" + PACKED[11:], "expected a whole compressed file"),
        ("gsm8k", "train.jsonl.gz", PACKED[1:], "line 1: expected "),  # no gzip at all
        ("coqa", "coqa-train-v1.0.json.gz", PACKED[:-9], "expected a whole compressed file"),
        ("quail", "quail_1.3_train_randomized.xml.gz", PACKED[:-9], "expected a whole compressed file"),
        ("wiki_qa", "WikiQA-train.tsv.gz", PACKED[:-9], "expected a whole compressed file"),
        ("ecqa", "author_split/train_ids.txt.gz", PACKED[:-9], "expected a whole compressed file"),
        ("gsm8k", "train.jsonl", DEEP.encode(), "line 1: expected JSON of at most 100 levels"),
        ("coqa", "coqa-train-v1.0.json", DEEP.encode(), "expected JSON of at most 100 levels"),
        (
            "gsm8k",
            "train.jsonl",
            b'{"question": "\\ud800", "answer": "#### 1"}',
            "line 1: expected text that UTF-8",
        ),
        (
            "gsm8k",
            "train.jsonl",
            b'{"question": "a", "answer": ["#### 1"]}',
            "line 1: expected .* not a string",
        ),
        ("coqa", "coqa-train-v1.0.json", b'{"data": [5, null]}', "item 1: expected .*got '5'"),
        (
            "freebase_qa",
            "FreebaseQA-train.json",
            b'{"Questions": [{"Question-ID": [1], "RawQuestion": "a", '
            b'"Parses": [{"Answers": [{"AnswersName": ["b"]}]}]}]}',
            "item 1: expected",
        ),
        (
            "math_qa",
            "train.json",
            b'[{"Problem": "a", "correct": "a", "options": "[' + b"(" * 9999 + b'"}]',
            "item 1: expected",
        ),
        (
            "quail",
            "quail_1.3_train_randomized.xml",
            b'<?xml version="1.0" encoding="x-no"?><a/>',
            "expected XML",
        ),
    ],
)
def test_a_damaged_file_is_one_clear_error_that_names_it(tmp_path, name, file, data, message):
    for source in {name, "commonsense_qa"}:
        shutil.copytree(FIXTURES / source, tmp_path / source)
    (tmp_path / name / file.removesuffix(".gz")).unlink()
    (tmp_path / name / file).write_bytes(data)
    with pytest.raises(ValueError, match=message) as error:
        read(name, folder=tmp_path)
    assert file in str(error.value)


def test_a_line_that_never_ends_is_refused_before_it_fills_the_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(lines, "MAX_LINE_BYTES", 1000)
    monkeypatch.setattr(raw, "MAX_FILE_BYTES", 1000)
    bomb = gzip.compress(bytes(100_000))
    for name, file in (
        ("gsm8k", "train.jsonl"),
        ("wiki_qa", "WikiQA-train.tsv"),
        ("coqa", "coqa-train-v1.0.json"),
        ("quail", "quail_1.3_train_randomized.xml"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{file}.gz").write_bytes(bomb)
        with pytest.raises(ValueError, match=rf"{file}.*expected (a line of )?at most 1,000 bytes"):
            read(name, folder=tmp_path)


def test_a_printed_list_of_options_is_read_without_being_run():
    options = """['a ) 10', "b ) 1 , 200", 'c ) o\\'clock']"""
    row = {"Problem": "how many ?", "options": options, "correct": "c"}
    (item,) = read_rows(DATASETS["math_qa"], [row], "train")
    assert (item.choices, item.answers) == (("10", "1 , 200", "o'clock"), ("o'clock",))


# ---- the publishers' files ----

# Dataset, split, number; characters of Background, prompt and answer; start of the SHA-256 of the three.
# Read and checked by eye against the files. narrativeqa's file has one question of each split, ms_marco's one
# question that has an answer.
REAL = [
    ("oasst1", "train", 0, 0, 53, 434, "2ca825ae197a279c"),
    ("oasst1", "train", 1, 0, 53, 406, "602ff233c78b53c4"),
    ("commonsense_qa", "train", 0, 0, 186, 7, "10f02289950deb1e"),
    ("commonsense_qa", "train", 1, 0, 148, 16, "499f8cb448fab838"),
    ("commonsense_qa", "dev", 0, 0, 173, 5, "3707edb4ecfe9826"),
    ("commonsense_qa", "dev", 1, 0, 136, 13, "232272a478fd132c"),
    ("math_qa", "dev", 0, 0, 221, 4, "e178cee3dee2e070"),
    ("math_qa", "dev", 1, 0, 169, 8, "5eeb8a846e78dedf"),
    ("wiki_qa", "dev", 0, 0, 49, 141, "6a1f761d09da1340"),
    ("wiki_qa", "dev", 1, 0, 49, 144, "cd3a27d3cab956fc"),
    ("wiki_qa", "test", 0, 0, 60, 253, "ed82b293cea9826d"),
    ("wiki_qa", "test", 1, 0, 40, 137, "e0e41508b92ad8d5"),
    ("freebase_qa", "train", 0, 0, 64, 10, "b77e1642d77360d8"),
    ("freebase_qa", "train", 1, 0, 53, 10, "1594f59b382b34f7"),
    ("freebase_qa", "dev", 0, 0, 89, 20, "2abfa50a51196f47"),
    ("freebase_qa", "dev", 1, 0, 172, 12, "643523a128732fa8"),
    ("ms_marco", "test", 0, 0, 41, 4, "729dd14a00b96350"),
    ("coqa", "train", 0, 1389, 51, 36, "95e0214521b4cc89"),
    ("coqa", "train", 1, 1389, 116, 9, "6ec8f15f9e27a110"),
    ("coqa", "dev", 0, 1417, 33, 6, "fedbade81a42bd4d"),
    ("coqa", "dev", 1, 1417, 74, 10, "88ac1bbc5397c672"),
    ("drop", "train", 0, 966, 78, 2, "ba85b2dc33e1ca97"),
    ("drop", "train", 1, 966, 54, 2, "453495967f072ecc"),
    ("drop", "dev", 0, 940, 56, 14, "7d9619957965f96b"),
    ("drop", "dev", 1, 940, 59, 2, "2dc2f2586e24323b"),
    ("narrativeqa", "train", 0, 204, 37, 69, "558562bdab74f33d"),
    ("narrativeqa", "dev", 0, 248, 60, 53, "a404fc1b93eaf00c"),
    ("narrativeqa", "test", 0, 188, 37, 40, "e69b1d58a35c3135"),
    ("newsqa", "train", 0, 1222, 44, 3, "bbcdf0d6d92c2721"),
    ("newsqa", "train", 1, 1222, 47, 9, "2e309b8cacc69f63"),
    ("pubmed_qa", "train", 0, 1707, 98, 4, "2edb56ac0c5c29df"),
    ("pubmed_qa", "train", 1, 1460, 71, 3, "15ef07eba8668304"),
    ("quail", "train", 0, 1627, 152, 13, "563e222a72cdbbf8"),
    ("quail", "train", 1, 1627, 116, 23, "ad8503498e59d0db"),
    ("quail", "dev", 0, 1685, 161, 25, "7fa982d401826643"),
    ("quail", "dev", 1, 1685, 276, 83, "a59e7afbb6816c70"),
    ("quarel", "train", 0, 0, 148, 4, "f12bf81253c905f9"),
    ("quarel", "train", 1, 0, 163, 5, "950e4934fc84f557"),
    ("quarel", "dev", 0, 0, 152, 10, "eee6a060e304844e"),
    ("quarel", "dev", 1, 0, 212, 8, "1afa0b1e042131ad"),
    ("squad_v2", "dev", 0, 611, 41, 13, "7e2474ad645371d1"),
    ("squad_v2", "dev", 1, 611, 61, 11, "a593cf69b40b9a7c"),
    ("aqua_rat", "dev", 0, 0, 167, 215, "5c8871ac119fb212"),
    ("aqua_rat", "dev", 1, 0, 234, 152, "adac8a674cc4f264"),
    ("gsm8k", "train", 0, 0, 156, 101, "8c05328b13db5e9d"),
    ("gsm8k", "train", 1, 0, 124, 93, "a05ce5bdaea59151"),
    ("gsm8k", "test", 0, 0, 291, 110, "6df0ac3b2b87b716"),
    ("gsm8k", "test", 1, 0, 116, 99, "d361b7d9a35dab05"),
    ("competition_math", "train", 0, 0, 284, 357, "2bc2bf37f566603d"),
    ("competition_math", "train", 1, 0, 68, 105, "1e22cd08da537c25"),
    ("competition_math", "test", 0, 0, 75, 285, "0acba0dbe44e674a"),
    ("competition_math", "test", 1, 0, 244, 306, "f5df1a00f408716e"),
]

# All that the files hold, read to their end: read, kept.
WHOLE = [
    ("oasst1", "train", 687, 687),
    ("commonsense_qa", "dev", 1221, 1221),
    ("math_qa", "dev", 4475, 4475),
    ("wiki_qa", "dev", 2733, 140),
    ("newsqa", "train", 27, 21),
    ("pubmed_qa", "train", 1000, 1000),
    ("quail", "dev", 2164, 2164),
    ("squad_v2", "dev", 11873, 11873),
    ("aqua_rat", "dev", 254, 254),
    ("gsm8k", "train", 7473, 7473),
]


@pytest.mark.parametrize(
    ("name", "split", "number", "background_size", "prompt_size", "answer_size", "digest"), REAL
)
def test_a_real_line_is_rendered_as_checked(
    shared_data, name, split, number, background_size, prompt_size, answer_size, digest
):
    dataset = DATASETS[name]
    items = read_items(dataset, shared_data / "raw" / name, split)
    example = item_example(next(islice(items, number, None)), dataset, dataset.mixtures[0], seed=0)
    passage = background(example.background) if example.background else ""
    assert (len(passage), len(example.prompt), len(example.answer)) == (
        background_size,
        prompt_size,
        answer_size,
    )
    assert hashlib.sha256((passage + example.prompt + example.answer).encode()).hexdigest()[:16] == digest
    tree, _ = lm_sequence(Bytes(), example.background or None, example, max_length=4096, terminator=True)
    weights = [weight for span in tree.spans for weight in span.weights.tolist()]
    context = 1 + len((passage + example.prompt).encode())
    assert weights == [0.0] * context + [1.0] * (len(example.answer.encode()) + 1)


@pytest.mark.parametrize(("name", "split", "num_read", "num_kept"), WHOLE)
def test_of_a_real_file_all_is_kept_or_skipped_for_a_reason(shared_data, name, split, num_read, num_kept):
    items, counts = read(name, split, folder=shared_data / "raw")
    skipped = sum(count for reason, count in counts.items() if reason.startswith("skipped: "))
    assert (counts["read"], counts["kept"], len(items)) == (num_read, num_kept, num_kept)
    assert num_read == num_kept + skipped
    assert len({item.id for item in items}) == len(items)
