import gzip
import json
from collections import Counter
from dataclasses import replace

import pytest

from radit_jax.config import Folder
from radit_jax.data.sources.folder import folder_files, folder_warnings, read_folder, source_files


def passage(number, text="Some text."):
    return {"id": f"p{number}", "title": f"Title {number}", "text": text}


def question(number, *passages, answers=("text",)):
    return {
        "id": f"q{number}",
        "question": f"What is {number}?",
        "answers": list(answers),
        "positive_passage_ids": [f"p{passage}" for passage in passages],
    }


def write(path, name, lines):
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (path / name).write_text(text, encoding="utf-8")


def folder(path, *, passages=None, single=None, train=None, test=None):
    write(path, "passages.jsonl", [passage(n) for n in range(40)] if passages is None else passages)
    if single is not None:
        write(path, "questions.jsonl", single)
    if train is not None:
        write(path, "questions_train.jsonl", train)
        write(path, "questions_dev.jsonl", test if test is not None else [question("t", 39)])
    return Folder(folder=str(path), train_questions=100, dev_questions=100, test_questions=100, max_words=200)


def ids(data, part):
    return [q.id for q in data.questions[part]]


def test_a_pair_of_files_is_train_and_test_and_dev_is_held_out_of_train(tmp_path):
    settings = folder(tmp_path, train=[question(n, n) for n in range(20)], test=[question("t", 30)])
    data = read_folder(settings, 0)
    assert len(data.chunks) == 40
    assert ids(data, "test") == ["qt"]
    assert len(ids(data, "dev")) == 2
    assert sorted(ids(data, "train") + ids(data, "dev")) == sorted(f"q{n}" for n in range(20))


def test_a_single_file_is_split_ninety_to_ten(tmp_path):
    data = read_folder(folder(tmp_path, single=[question(n, n % 40) for n in range(40)]), 0)
    assert len(ids(data, "test")) == 4
    assert len(ids(data, "dev")) == 4  # a tenth of 36, rounded
    assert len(ids(data, "train")) == 32


def test_questions_that_share_a_gold_passage_stay_on_one_side(tmp_path):
    # Passages 0 to 9 with three questions each; one more question links passages 0 and 1.
    asked = [question(f"{n}{letter}", n) for n in range(10) for letter in "abc"] + [question("link", 0, 1)]
    for seed in range(10):
        data = read_folder(folder(tmp_path, single=asked), seed)
        side = {q.id: part for part, questions in data.questions.items() for q in questions}
        for n in range(10):
            assert len({side[f"q{n}{letter}"] for letter in "abc"}) == 1
        assert side["q0a"] == side["q1a"] == side["qlink"]
        assert len(set(side.values())) == 3


def test_linked_questions_are_one_group_and_questions_without_passage_their_own(tmp_path):
    asked = [
        question("a", 1),
        question("b", 1, 2),
        question("c", 2),
        question("d", 3),
        question("e"),
        question("f"),
    ]
    settings = folder(tmp_path, train=[question(n, 20 + n) for n in range(10)], test=asked)
    group = {q.id: q.group for q in read_folder(settings, 0).questions["test"]}
    assert group["qa"] == group["qb"] == group["qc"]
    assert len({group["qa"], group["qd"], group["qe"], group["qf"]}) == 4


def test_a_seed_draws_at_most_the_questions_asked_for(tmp_path):
    settings = folder(tmp_path, train=[question(n, n % 40) for n in range(200)])
    few = Folder(folder=settings.folder, train_questions=9, dev_questions=3, test_questions=1)
    first, again, other = (read_folder(few, seed) for seed in (0, 0, 1))
    assert [len(ids(first, part)) for part in ("train", "dev", "test")] == [9, 3, 1]
    assert first == again
    assert ids(first, "train") != ids(other, "train")


def test_more_dev_questions_do_not_change_the_train_questions(tmp_path):
    settings = folder(tmp_path, train=[question(n, n % 40) for n in range(200)])
    few, more = (
        read_folder(Folder(settings.folder, train_questions=9, dev_questions=size, test_questions=1), 0)
        for size in (3, 8)
    )
    assert ids(few, "train") == ids(more, "train")
    assert set(ids(few, "dev")) < set(ids(more, "dev"))


def test_chunks_keep_their_passages_id(tmp_path):
    passages = [passage(0, "one two three four five"), passage(1, "short")]
    settings = folder(tmp_path, passages=passages, train=[question(n, n) for n in range(9)])
    data = read_folder(Folder(settings.folder, max_words=4), 0)
    assert [(c.id, c.title, c.text) for c in data.chunks] == [
        ("p0#1", "Title 0", "one two three"),
        ("p0#2", "Title 0", "four five"),
        ("p1", "Title 1", "short"),
    ]
    assert data.counts["passages_split"] == 1


def gold_chunks(tmp_path, passages, asked):
    """The gold chunks of one test question, in a folder of chunks of at most three words."""
    passages = [*passages, passage("other"), passage("other2")]
    train = [question("r1", "other"), question("r2", "other2")]
    settings = folder(tmp_path, passages=passages, train=train, test=[asked])
    data = read_folder(Folder(settings.folder, max_words=4), 0)
    return data.questions["test"][0].gold_chunks, data.counts


def test_a_gold_chunk_is_one_of_a_gold_passage_that_contains_an_answer(tmp_path):
    passages = [passage(0, "one two three four five"), passage(1, "nine four"), passage(2, "four")]
    gold, _ = gold_chunks(tmp_path, passages, question("t", 0, 1, answers=["four", "six"]))
    assert gold == ("p0#2", "p1")


def test_an_answer_in_the_title_counts_because_the_language_model_reads_it(tmp_path):
    gold, _ = gold_chunks(tmp_path, [passage(7, "one")], question("t", 7, answers=["Title 7"]))
    assert gold == ("p7",)


def test_a_yes_no_question_has_no_gold_chunk(tmp_path):
    gold, counts = gold_chunks(tmp_path, [passage(0, "no other")], question("t", 0, answers=["no"]))
    assert gold == ()
    assert counts["drawn_questions_yes_no"] == 1
    assert counts["drawn_questions_without_gold_chunk"] == 0


def test_what_is_missing_is_counted(tmp_path):
    asked = question("t", 0, "unknown", answers=["", "not there"])
    gold, counts = gold_chunks(tmp_path, [passage(0, "one"), passage(5, " ")], asked)
    assert gold == ()
    assert counts["drawn_questions_without_gold_chunk"] == 1
    assert counts["gold_passages_not_in_corpus"] == 1
    assert counts["passages_skipped_without_text"] == 1
    assert counts["passages"] == 4


def test_a_question_without_an_answer_is_skipped_and_counted(tmp_path):
    without = [question("x", 1, answers=["", " "]), question("y", 1, answers=[])]
    data = read_folder(folder(tmp_path, train=[question(n, n) for n in range(20)] + without), 0)
    assert data.counts["questions_skipped_without_answer"] == 2
    assert not {"qx", "qy"} & {*ids(data, "train"), *ids(data, "dev")}


def test_one_gold_passage_may_be_a_single_id_or_unknown(tmp_path):
    train = [question(n, n) for n in range(20)]
    single = {"id": "s", "question": "Who?", "answers": ["text"], "positive_passage_id": "p30"}
    unknown = {"id": "u", "question": "What?", "answers": ["text"], "positive_passage_ids": None}
    data = read_folder(folder(tmp_path, train=train, test=[single, unknown]), 0)
    assert {q.id: q.gold_chunks for q in data.questions["test"]} == {"s": ("p30",), "u": ()}


GOOD = [question(n, n) for n in range(20)]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"passages": ['{"id": "p1",']}, r"passages\.jsonl line 1: expected JSON"),
        ({"passages": [passage(1), "[1]"]}, r"passages\.jsonl line 2: expected a JSON object"),
        (
            {"passages": [passage(1), "", {"id": "p2", "title": "x"}]},
            r"line 3: expected a field text or contents, got no",
        ),
        (
            {"passages": [passage(1), passage(2), passage(1)]},
            r"line 3: expected an id .*, got 'p1', which is also that of .*jsonl line 1",
        ),
        ({"passages": [passage(1) | {"id": True}]}, r"line 1: expected field 'id' to be an id, got true"),
        ({"passages": []}, r"passages\.jsonl: expected a passage with text"),
        ({"passages": [passage(1, "  ")]}, r"passages\.jsonl: expected a passage with text"),
        ({"train": [{"id": "q", "question": "What?"}]}, r"train\.jsonl line 1: .* got no field 'answers'"),
        (
            {"train": [question(1, 1) | {"answers": "text"}]},
            r"expected field 'answers' to be a list of strings, got 'text'",
        ),
        (
            {"train": [question(1, 1) | {"answers": [3]}]},
            r"field 'answers' to be a list of str.* got \[3\]",
        ),
        (
            {"train": [question(1, 1) | {"positive_passage_ids": 5}]},
            r"'positive_passage_ids' to be .* got 5",
        ),
        ({"train": GOOD, "test": [question(3, 30)]}, r"dev\.jsonl line 1: .* got 'q3', .* of .*line 4"),
        ({"train": []}, r"after the split .*, got no train questions"),
        ({"train": GOOD, "test": [""]}, r"after the split .*, got no test questions"),
        ({"single": [question(n, 1) for n in range(9)]}, r"after the split .*, got no train questions"),
        ({"single": [question(n, n, answers=[]) for n in range(9)]}, r"with answers, got 9 without\. Add a"),
        (
            {"train": [question(n, n, answers=("yes",)) for n in range(9)], "test": [question(99, 9)]},
            r"expected a dev question that a chunk can answer, .*, got \d+ that are all answered by yes",
        ),
    ],
)
def test_a_bad_folder_is_one_clear_error(tmp_path, files, message):
    if "single" not in files:
        files = {"train": GOOD} | files
    settings = folder(tmp_path, **files)
    with pytest.raises(ValueError, match=message):
        read_folder(settings, 0)


@pytest.mark.parametrize("part", ("train", "dev", "test"))
def test_a_part_of_no_questions_is_refused_before_anything_is_read(tmp_path, part):
    settings = replace(folder(tmp_path, single=GOOD), **{f"{part}_questions": 0})
    with pytest.raises(ValueError, match=rf"^data\.{part}_questions: expected at least 1, got 0"):
        read_folder(settings, seed=0)


def test_text_that_is_not_utf8_is_an_error_with_its_line(tmp_path):
    settings = folder(tmp_path, train=GOOD)
    (tmp_path / "passages.jsonl").write_bytes(b'{"id": "p1", "title": "", "text": "caf\xe9"}\n')
    with pytest.raises(ValueError, match=r"passages\.jsonl line 1: expected UTF-8"):
        read_folder(settings, 0)


@pytest.mark.parametrize(
    ("present", "missing"),
    [
        ((), "no passages.jsonl and no questions.jsonl"),
        (("passages.jsonl",), "no questions.jsonl"),
        (("passages.jsonl", "questions_train.jsonl"), "no questions_dev.jsonl"),
        (("questions.jsonl",), "no passages.jsonl"),
    ],
)
def test_a_missing_file_is_named_with_what_is_needed(tmp_path, present, missing):
    for name in present:
        (tmp_path / name).touch()
    with pytest.raises(ValueError, match=missing + r"\. Name a .* --set data\.folder=PATH"):
        folder_files(Folder(str(tmp_path)))


def test_a_missing_folder_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"folder .*nowhere: .* got no passages\.jsonl .* data\.folder=PATH"):
        read_folder(Folder(str(tmp_path / "nowhere")), 0)


def test_files_of_other_names_and_forms_are_named_by_settings(tmp_path):
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "emma.txt").write_text("Emma is a novel.\n\nJane Austen wrote it.\n")
    write(
        tmp_path, "mine.jsonl", [{"query": f"Who wrote {n}?", "response": "Jane Austen"} for n in range(20)]
    )
    settings = Folder(str(tmp_path), passages_file="texts", train_file="mine.jsonl")
    data = read_folder(settings, 0)
    assert [(c.id, c.title, c.text) for c in data.chunks] == [
        ("emma#1", "emma", "Emma is a novel."),
        ("emma#2", "emma", "Jane Austen wrote it."),
    ]
    assert sum(map(len, data.questions.values())) == 20
    assert data.questions["test"][0].answers == ("Jane Austen",)


def test_a_test_file_needs_a_train_file(tmp_path):
    settings = Folder(str(tmp_path), test_file="test.jsonl")
    with pytest.raises(ValueError, match=r"test_file: expected it with data\.train_file, got 'test\.jsonl'"):
        folder_files(settings)


def test_the_answers_chunk_of_a_page_is_gold_for_a_kilt_question(tmp_path):
    pages = [
        {
            "wikipedia_id": "7",
            "wikipedia_title": "Emma",
            "text": ["Emma\n", "A novel.", "Section::::Author.\n", "Austen."],
        },
        {"wikipedia_id": "8", "wikipedia_title": "Persuasion", "text": ["Persuasion\n", "By Austen."]},
    ]
    asked = [
        {
            "id": f"k{n}",
            "input": f"Who is {n}?",
            "output": [{"answer": "Austen", "provenance": [{"wikipedia_id": page}]}],
        }
        for n, page in enumerate("7888")
    ]
    write(tmp_path, "kilt_knowledgesource.json", pages)
    write(tmp_path, "dev.jsonl", asked[:1])
    write(tmp_path, "train.jsonl", asked[1:] + [{"id": "k9", "input": "What?", "output": [{"answer": "a"}]}])
    data = read_folder(Folder(str(tmp_path), train_file="train.jsonl", test_file="dev.jsonl"), 0)
    assert data.questions["test"][0].gold_chunks == ("7#2",)
    assert [chunk.passage for chunk in data.chunks] == [
        "Emma A novel.",
        "Emma: Author Austen.",
        "Persuasion By Austen.",
    ]


def test_questions_of_equal_text_stay_on_one_side(tmp_path):
    asked = [question(n, n) for n in range(20)] + [
        question(f"again-{n}", 20 + n) | {"question": f"what is the {n} ?!"} for n in range(20)
    ]
    for seed in range(5):
        data = read_folder(folder(tmp_path, single=asked), seed)
        side = {q.id: part for part, questions in data.questions.items() for q in questions}
        assert len(set(side.values())) == 3
        assert all(side[f"q{n}"] == side[f"qagain-{n}"] for n in range(20))


def test_a_train_question_that_is_in_the_test_file_is_left_out_and_said(tmp_path):
    again = question("again", 31) | {"question": "what is 3"}
    data = read_folder(folder(tmp_path, train=[question(n, n) for n in range(20)], test=[again]), 0)
    assert "q3" not in ids(data, "train") + ids(data, "dev")
    assert data.counts["questions_skipped_as_in_test"] == 1
    assert "1 train questions are also in the test file; they are left out" in folder_warnings(data)


def test_questions_mostly_without_a_gold_chunk_are_said(tmp_path):
    settings = folder(tmp_path, train=[question(n, n) for n in range(20)])
    assert folder_warnings(read_folder(settings, 0)) == []
    settings = folder(tmp_path, train=[question(n, n, answers=["missing"]) for n in range(20)])
    (said,) = folder_warnings(read_folder(settings, 0))
    assert said.startswith("20 of 21 questions have no gold chunk") and said.endswith("about the others")


def test_questions_without_answer_and_unknown_gold_passages_are_said_with_the_first(tmp_path):
    asked = [question(n, n) for n in range(20)]
    asked[3] |= {"answers": [" "]}
    asked[4] |= {"answers": []}
    asked[7] |= {"positive_passage_ids": ["zzz"]}
    settings = folder(tmp_path, single=asked)
    assert folder_warnings(read_folder(settings, 0)) == [
        f"questions without an answer, left out: 2 of 20; the first is {tmp_path}/questions.jsonl line 4",
        "gold passages that questions name and the corpus lacks: 1; the first is 'zzz' of "
        f"{tmp_path}/questions.jsonl line 8",
    ]


def test_gold_chunks_of_other_languages_are_found(tmp_path):
    texts = {0: "北京是中国的首都", 1: "กรุงเทพเป็นเมืองหลวง", 2: "Zoe\u0301 sang"}
    answers = {0: "首都", 1: "กรุงเทพ", 2: "Zoé"}
    asked = [question(n, n, answers=[answers[n]]) for n in texts]
    settings = folder(
        tmp_path,
        passages=[*(passage(n, text) for n, text in texts.items()), passage(8), passage(9)],
        train=[question(8, 8), question(9, 9)],
        test=asked,
    )
    assert [q.gold_chunks for q in read_folder(settings, 0).questions["test"]] == [("p0",), ("p1",), ("p2",)]


def test_ids_may_be_numbers_throughout(tmp_path):
    settings = folder(
        tmp_path,
        passages=[{"id": n, "contents": f"Title {n}\nSome text."} for n in range(9)],
        single=[
            {"id": n, "question": f"{n}?", "answers": ["text"], "positive_passage_ids": [n]} for n in range(9)
        ],
    )
    data = read_folder(settings, 0)
    assert {q.id: q.gold_chunks for part in data.questions.values() for q in part} == {
        str(n): (str(n),) for n in range(9)
    }


def test_only_what_is_read_is_a_source(tmp_path):
    settings = folder(tmp_path, single=[question(n, n) for n in range(20)])
    for name in (".DS_Store", "notes.txt", "questions_old.jsonl"):
        (tmp_path / name).write_text("x")
    (tmp_path / "run").mkdir()
    names = [str(file.relative_to(settings.folder)) for file in source_files(settings)]
    assert names == ["passages.jsonl", "questions.jsonl"]


def test_the_sources_of_beirs_form_and_of_texts_are_all_files_that_are_read(tmp_path):
    (tmp_path / "qrels").mkdir()
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/train.tsv", "qrels/test.tsv", "qrels/dev.tsv"):
        (tmp_path / name).touch()
    names = [str(file.relative_to(tmp_path)) for file in source_files(Folder(str(tmp_path)))]
    assert names == ["corpus.jsonl", "qrels/train.tsv", "queries.jsonl", "qrels/test.tsv"]
    (tmp_path / "texts").mkdir()
    for name in ("a.txt", "b.txt", "c.csv", "readme.md"):
        (tmp_path / "texts" / name).touch()
    settings = Folder(str(tmp_path), passages_file="texts", train_file="queries.jsonl")
    names = [str(file.relative_to(tmp_path)) for file in source_files(settings)]
    assert names == ["texts/a.txt", "texts/b.txt", "queries.jsonl"]


def test_a_folder_of_compressed_files_is_found_and_read(tmp_path):
    settings = folder(tmp_path, train=[question(n, n) for n in range(20)])
    plain = read_folder(settings, 0)
    chunks = list(plain.chunks)
    for file in list(tmp_path.iterdir()):
        (tmp_path / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
        file.unlink()
    packed = read_folder(settings, 0)
    assert packed.questions == plain.questions
    assert list(packed.chunks) == chunks


ROWS = ["id\ttext\ttitle", '1\t"Stop, she said\tA', "2\ttext\tB", '3\tthen "\tC', "4\ttext\tD"]


@pytest.mark.parametrize(
    ("quoting", "texts"),
    [
        ("none", ['"Stop, she said', "text", 'then "', "text"]),
        ("csv", ["Stop, she said A 2 text B 3 then", "text"]),
    ],
)
def test_a_setting_says_what_quotes_in_a_corpus_mean(tmp_path, quoting, texts):
    write(tmp_path, "passages.tsv", ROWS)
    settings = folder(tmp_path, single=[question(n) for n in range(20)])
    settings = replace(settings, passages_file="passages.tsv", quoting=quoting)
    assert [chunk.text for chunk in read_folder(settings, 0).chunks] == texts


@pytest.mark.parametrize(
    ("rows", "quoting", "message"),
    [
        (ROWS, "auto", r"tsv line 2: expected the quote that opens .*, got '\"Stop, she.*data\.quoting=none"),
        (ROWS[:3], "csv", r"tsv line 2: expected quotes around whole fields"),
        (
            ["id\ttext", '1\t"Go"', '2\tShe said "go"'],
            "auto",
            r"line 3: .*one meaning of .*line 2.*line 3",
        ),
        (
            ["id\ttext", '1\tShe said "go"', '2\t"Go"'],
            "auto",
            r"line 3: .*one meaning of .*line 3.*line 2",
        ),
    ],
)
def test_quotes_that_are_not_clear_are_refused_where_they_open(tmp_path, rows, quoting, message):
    write(tmp_path, "passages.tsv", rows)
    settings = folder(tmp_path, single=[question(n) for n in range(20)])
    with pytest.raises(ValueError, match=message):
        read_folder(replace(settings, passages_file="passages.tsv", quoting=quoting), 0)


def test_a_beir_folder_without_answers_says_that_beir_has_none(tmp_path):
    write(tmp_path, "corpus.jsonl", [{"_id": "d", "title": "T", "text": "Text."}])
    write(tmp_path, "queries.jsonl", [{"_id": f"q{n}", "text": f"{n}?"} for n in range(9)])
    (tmp_path / "qrels").mkdir()
    for name in ("train", "test"):
        write(
            tmp_path,
            f"qrels/{name}.tsv",
            ["query-id\tcorpus-id\tscore", "q1\td\t1" if name == "test" else "q2\td\t1"],
        )
    with pytest.raises(
        ValueError, match=r"test\.tsv: expected questions with answers, got 2 without\. BEIR's"
    ):
        read_folder(Folder(str(tmp_path)), 0)


def test_a_beir_folder_is_read_as_it_is(tmp_path):
    write(tmp_path, "corpus.jsonl", [{"_id": f"d{n}", "title": "T", "text": f"Text {n}."} for n in range(9)])
    queries = [{"_id": f"q{n}", "text": f"What is {n}?", "metadata": {"answer": "text"}} for n in range(9)]
    write(tmp_path, "queries.jsonl", queries)
    (tmp_path / "qrels").mkdir()
    head = "query-id\tcorpus-id\tscore"
    write(tmp_path, "qrels/train.tsv", [head, *(f"q{n}\td{n}\t1" for n in range(8))])
    write(tmp_path, "qrels/test.tsv", [head, "q8\td8\t1", "q8\td1\t0"])
    data = read_folder(Folder(str(tmp_path)), 0)
    assert [(q.id, q.gold_chunks) for q in data.questions["test"]] == [("q8", ("d8",))]
    assert len(data.questions["train"]) == 7


def test_the_wiki_folder_gives_what_its_experiment_needs(shared_data):
    data = read_folder(Folder(str(shared_data / "wiki")), 0)
    assert {part: len(questions) for part, questions in data.questions.items()} == {
        "train": 5000,
        "dev": 500,
        "test": 1000,
    }
    assert data.counts["passages"] == 27807
    assert len(data.chunks) > 27807
    assert max(len(chunk.text.split()) for chunk in data.chunks) == 199
    assert data.counts["questions_skipped_without_answer"] == 20
    assert data.counts["drawn_questions_without_gold_chunk"] < 0.01 * 6500
    train, dev, test = ({q.group for q in questions} for questions in data.questions.values())
    assert train.isdisjoint(dev) and train.isdisjoint(test) and dev.isdisjoint(test)


def test_train_questions_drawn_by_passage_share_their_passages(tmp_path):
    lines = [question(f"{n}_{i}", n) for n in range(30) for i in range(4)]
    settings = folder(tmp_path, train=lines, test=[question("t", 39)])
    drawn = read_folder(replace(settings, train_questions=20, draw_by="passage"), 0).questions["train"]
    passages = Counter(q.id.partition("_")[0] for q in drawn)
    assert len(drawn) == 20 and set(passages.values()) == {4}
    apart = read_folder(replace(settings, train_questions=20), 0).questions["train"]
    assert len({q.id.partition("_")[0] for q in apart}) > 10
