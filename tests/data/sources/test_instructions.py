"""The paper's data: chunks, examples of D_L and D_R with their dev parts, and what was expected."""

import json
import pathlib
from collections import Counter
from dataclasses import replace

import pytest

from radit_jax.config import Instructions
from radit_jax.data.batches.examples import question_example
from radit_jax.data.finetuning.asked_elsewhere import letters_key
from radit_jax.data.finetuning.mixture import ASKED_ELSEWHERE
from radit_jax.data.sources.instructions import check_files, instruction_warnings, read_chunks, read_examples

FIXTURES = pathlib.Path(__file__).parents[1] / "fixtures" / "raw"
SETTINGS = Instructions(
    datasets=str(FIXTURES), r_ft_datasets=("commonsense_qa", "freebase_qa"), held_out_fraction=0.3
)


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_chunks_come_from_the_folder_or_the_file_and_are_counted(tmp_path):
    text = {"id": "a", "title": "Elm", "text": "one two three four five"}
    write(tmp_path / "passages.jsonl", text, {"id": "b", "title": "Oak", "text": " "})
    counts = Counter()
    chunks = list(read_chunks(str(tmp_path), "auto", 4, counts))
    assert [(chunk.id, chunk.text) for chunk in chunks] == [("a#1", "one two three"), ("a#2", "four five")]
    assert counts == {"documents": 2, "documents_split": 1, "documents_skipped_without_text": 1}
    assert list(read_chunks(str(tmp_path / "passages.jsonl"), "jsonl", 4, Counter())) == chunks


def test_a_corpus_that_is_not_there_empty_or_ambiguous_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="data.corpus: expected a corpus to retrieve from, got no .*nowhere"):
        list(read_chunks(str(tmp_path / "nowhere"), "auto", 200, Counter()))
    with pytest.raises(
        ValueError, match="expected passages.jsonl or .*, got neither.*--set data.passages_file=NAME"
    ):
        list(read_chunks(str(tmp_path), "auto", 200, Counter()))
    write(tmp_path / "passages.jsonl", {"id": "a", "title": "", "text": ""})
    with pytest.raises(ValueError, match="expected a document with text"):
        list(read_chunks(str(tmp_path), "auto", 200, Counter()))
    write(tmp_path / "passages.jsonl", *[{"id": "a", "title": "", "text": "x"}] * 2)
    with pytest.raises(ValueError, match="expected an id .*, got 'a'"):
        list(read_chunks(str(tmp_path), "auto", 200, Counter()))


def test_every_mixture_has_examples_to_train_and_to_choose_checkpoints_with():
    data = read_examples(SETTINGS, 0.1, 3, seed=0)
    found = {part: [example.id for _, example in pairs] for part, pairs in data.examples.items()}
    assert set(found) == {(mixture, split) for mixture in ("lm_ft", "r_ft") for split in ("train", "dev")}
    for mixture in ("lm_ft", "r_ft"):
        train, dev = found[mixture, "train"], found[mixture, "dev"]
        assert train and dev and not set(train) & set(dev)
    assert {name.partition("/")[0] for name in found["r_ft", "train"]} == {"commonsense_qa", "freebase_qa"}
    for split in ("train", "dev"):
        assert [q.id for q in data.questions[split]] == found["r_ft", split]
        assert all(question.id == example.id for question, example in data.examples["r_ft", split])
    assert data.questions["test"] and not set(data.questions["test"]) & set(data.questions["dev"])


def test_the_questions_to_be_evaluated_on_are_stored_with_their_choices():
    data = read_examples(SETTINGS, 0.1, 3, seed=0)
    chosen = [q for part in data.questions.values() for q in part if q.id.startswith("commonsense_qa/")]
    assert chosen and all("\nA. " in q.prompt and "\nE. " in q.prompt for q in chosen)
    assert not any("\nA. " in q.question for q in chosen)  # the retriever reads the bare question
    for question, example in data.examples["r_ft", "train"]:
        assert question.prompt == example.prompt == question_example(question, "x").prompt


def test_no_question_of_a_dev_or_test_part_is_trained_on_in_any_dataset(tmp_path):
    """ECQA's train ids hold what CommonsenseQA's dev part asks, and its train part asks one of them again."""

    def line(n, stem=None):
        question = {"stem": stem or f"Where is {n}?", "choices": [{"label": "A", "text": f"place {n}"}]}
        return {"id": f"c{n}", "answerKey": "A", "question": question}

    commonsense, ecqa = tmp_path / "commonsense_qa", tmp_path / "ecqa"
    again = line(99, stem="where is 41")
    write(commonsense / "train_rand_split.jsonl", *map(line, range(40)), again)
    write(commonsense / "dev_rand_split.jsonl", *map(line, range(40, 52)))
    write(ecqa / "ecqa.jsonl", *({"id": f"c{n}", "explanation": "So."} for n in range(52)))
    (ecqa / "author_split").mkdir()
    for name, numbers in (("train", range(5, 48)), ("val", range(5)), ("test", range(48, 52))):
        (ecqa / "author_split" / f"{name}_ids.txt").write_text("".join(f"c{n}\n" for n in numbers))
    settings = replace(
        SETTINGS,
        datasets=str(tmp_path),
        lm_ft_datasets=("commonsense_qa", "ecqa"),
        r_ft_datasets=("commonsense_qa",),
    )
    data = read_examples(settings, 0.1, 3, seed=0)

    def asked(pairs):
        return {letters_key(question.question) for question, _ in pairs}

    train = asked(data.examples["lm_ft", "train"]) | asked(data.examples["r_ft", "train"])
    assert train == {letters_key(f"Where is {n}?") for n in range(5, 40)}
    for part in ("dev", "test"):
        assert not train & {letters_key(question.question) for question in data.questions[part]}
    # Of CommonsenseQA's 41 the one that is asked again, and five of ECQA's dev part.
    assert data.counts["lm_ft_train"]["commonsense_qa"][ASKED_ELSEWHERE] == 6
    assert data.counts["lm_ft_train"]["ecqa"][ASKED_ELSEWHERE] == 8
    # Nothing is chosen by a question that is evaluated on.
    tested = {letters_key(question.question) for question in data.questions["test"]}
    assert len(tested) == 6
    assert not tested & (asked(data.examples["lm_ft", "dev"]) | asked(data.examples["r_ft", "dev"]))


def test_a_dataset_with_a_dev_part_gives_all_of_its_train_part(tmp_path):
    def lines(part, count):
        for n in range(count):
            question = {"stem": f"Which {part} {n}?", "choices": [{"label": "A", "text": "oak"}]}
            yield {"id": f"{part}{n}", "answerKey": "A", "question": question}

    write(tmp_path / "commonsense_qa" / "train_rand_split.jsonl", *lines("train", 40))
    settings = replace(
        SETTINGS,
        datasets=str(tmp_path),
        lm_ft_datasets=("commonsense_qa",),
        r_ft_datasets=("commonsense_qa",),
    )
    alone = read_examples(settings, 0.1, 3, seed=0)
    train, dev = (sum(len(alone.questions[s]) for s in parts) for parts in (["train"], ["dev", "test"]))
    assert (train + dev, alone.counts["r_ft_dev"]["commonsense_qa"]["held out"]) == (40, dev)
    assert 4 <= dev <= 20  # 12 are expected
    write(tmp_path / "commonsense_qa" / "dev_rand_split.jsonl", *lines("dev", 3))
    both = read_examples(settings, 0.1, 3, seed=0)
    assert [len(both.questions[split]) for split in ("train", "dev", "test")] == [40, 1, 2]


def test_benchmarks_give_so_many_examples_of_each_in_the_prompts_of_the_evaluation(tmp_path):
    for split in ("train", "dev"):
        lines = [
            {"question": f"who built {split} tower {n}", "answer": [f"builder {n}", "he"]} for n in range(90)
        ]
        write(tmp_path / "nq_open" / f"NQ-open.{split}.jsonl", *lines)
        claims = [{"id": n, "claim": f"{split} {n} stands.", "label": "SUPPORTS"} for n in range(20)]
        name = "train" if split == "train" else "paper_dev"
        write(tmp_path / "fever" / f"{name}.jsonl", *claims)
    for name in ("commonsense_qa", "freebase_qa"):
        (tmp_path / name).symlink_to(FIXTURES / name)
    settings = replace(
        SETTINGS, datasets=str(tmp_path), lm_ft_benchmarks=("nq", "fever"), benchmark_examples=4
    )
    pairs = read_examples(settings, 0.0, 3, seed=0).examples["lm_ft", "train"]
    assert Counter(example.id.partition("/")[0] for _, example in pairs) == {"nq": 4, "fever": 4}
    question, example = pairs[0]
    assert example.prompt == f"Q: {question.question}\nA:" and example.query == question.question
    assert example.answer == f" {question.answers[0]}" and example.background is None
    assert pairs[-1][1].answer == " true"
    with pytest.raises(ValueError, match="draw_shots: expected 21 examples, got 20"):
        read_examples(replace(settings, benchmark_examples=21), 0.0, 3, seed=0)


def test_a_question_that_a_benchmark_asks_in_test_is_not_learnt_from_its_train_part(tmp_path):
    questions = {"train": range(40), "dev": range(30)}
    for split, numbers in questions.items():
        lines = [{"question": f"who built tower {n}?", "answer": [f"builder {n}"]} for n in numbers]
        write(tmp_path / "nq_open" / f"NQ-open.{split}.jsonl", *lines)
    for name in ("commonsense_qa", "freebase_qa"):
        (tmp_path / name).symlink_to(FIXTURES / name)
    settings = replace(SETTINGS, datasets=str(tmp_path), lm_ft_benchmarks=("nq",), benchmark_examples=1)
    data = read_examples(settings, 0.0, 3, seed=0)
    ((question, _),) = data.examples["lm_ft", "train"]
    assert question.question in [f"who built tower {n}?" for n in range(30, 40)]
    counts = data.counts["lm_ft_train"]["nq"]
    assert counts["asked elsewhere"] > 20 and counts["read"] == 40


def test_a_file_of_ones_own_is_learnt_from_whole(tmp_path):
    lines = [{"question": f"who built tower {n}?", "answers": [f"builder {n}"]} for n in range(5)]
    write(tmp_path / "towers.jsonl", *lines)
    for name in ("commonsense_qa", "freebase_qa"):
        (tmp_path / name).symlink_to(FIXTURES / name)
    own = ("towers.jsonl",)
    settings = replace(SETTINGS, datasets=str(tmp_path), lm_ft_benchmarks=own, benchmark_examples=5)
    assert len(read_examples(settings, 0.0, 3, seed=0).examples["lm_ft", "train"]) == 5


def test_no_example_or_none_that_can_be_evaluated_on_is_an_error(tmp_path):
    with pytest.raises(
        ValueError, match=r"data.lm_ft_datasets: expected one dev example .*, got none.*held_out_fraction"
    ):
        names = {"lm_ft_datasets": ("gsm8k",), "r_ft_datasets": ("commonsense_qa",)}
        read_examples(replace(SETTINGS, **names, held_out_fraction=0.0), 0.1, 3, seed=0)
    asked = {
        "id": "0",
        "question": "Why?",
        "answer": "Because it is as it is, and so it was.",
        "nbestanswers": [],
    }
    (tmp_path / "yahoo_answers_qa").mkdir()
    (tmp_path / "yahoo_answers_qa" / "nfL6.json").write_text(
        json.dumps([{**asked, "id": str(n)} for n in range(20)])
    )
    with pytest.raises(
        ValueError,
        match="data.r_ft_datasets: .* at most 5 words .* dev questions, 0 of them with.*freebase_qa",
    ):
        names = {"lm_ft_datasets": ("yahoo_answers_qa",), "r_ft_datasets": ("yahoo_answers_qa",)}
        read_examples(replace(SETTINGS, datasets=str(tmp_path), **names), 0.1, 3, seed=0)
    with pytest.raises(
        ValueError, match="expected train_rand_split.jsonl, the train part of .*, got no such file"
    ):
        read_examples(replace(SETTINGS, datasets=str(tmp_path), lm_ft_datasets=("gsm8k",)), 0.1, 3, seed=0)


def test_datasets_without_files_and_unknown_names_are_errors_before_the_corpus_is_read(tmp_path):
    check_files(SETTINGS)
    with pytest.raises(
        ValueError, match="expected the train parts .*, got none of ecqa, gsm8k.*lm_ft_datasets="
    ):
        check_files(replace(SETTINGS, datasets=str(tmp_path), lm_ft_datasets=("gsm8k", "ecqa")))
    with pytest.raises(
        ValueError,
        match="expected the train parts .*, got none of commonsense_qa, freebase_qa.*r_ft_datasets=",
    ):
        check_files(replace(SETTINGS, datasets=str(tmp_path), lm_ft_benchmarks=("nq",)))
    with pytest.raises(ValueError, match="dataset: expected one of .*, got 'gsm'"):
        check_files(replace(SETTINGS, lm_ft_datasets=("gsm",)))
    with pytest.raises(ValueError, match="data.lm_ft_weights: expected NAME=WEIGHT .* got 'gsm8k=-1'. Write"):
        check_files(replace(SETTINGS, lm_ft_weights=("gsm8k=-1",)))
    for weights in ({"lm_ft_weights": ("oasst1=2",)}, {"r_ft_weights": ("gsm8k=2",)}):
        with pytest.raises(ValueError, match="_weights: expected a dataset whose share is its own, got"):
            check_files(replace(SETTINGS, **weights))
    with pytest.raises(ValueError, match="got 'nqq'. Did you mean 'nq'"):
        check_files(replace(SETTINGS, lm_ft_benchmarks=("nqq",)))


def test_other_counts_than_expected_are_said():
    data = read_examples(SETTINGS, 0.1, 3, seed=0)
    assert instruction_warnings(SETTINGS, 12, data) == []
    read = sum(count["kept"] for count in data.counts["r_ft_train"].values())
    expecting = replace(SETTINGS, expected_chunks=100, expected_r_ft_tasks=read)
    assert instruction_warnings(expecting, 104, data) == []
    assert instruction_warnings(expecting, 94, data) == []
    assert instruction_warnings(expecting, 89, data) == ["expected 100 chunks (data.expected_chunks), got 89"]
    [other] = instruction_warnings(replace(SETTINGS, expected_r_ft_tasks=286_118), 1, data)
    wanted = "expected 286,118 train examples of D_R's datasets (data.expected_r_ft_tasks)"
    assert other == f"{wanted}, got {read}"


def test_official_files_give_examples_of_both_mixtures(shared_data):
    settings = Instructions(
        datasets=str(shared_data / "raw"),
        lm_ft_datasets=("commonsense_qa", "gsm8k", "quail"),
        r_ft_datasets=("commonsense_qa", "freebase_qa", "quarel"),
        lm_ft_cap=12,
        lm_ft_dev_examples=5,
        r_ft_dev_examples=30,
    )
    data = read_examples(settings, 0.1, 3, seed=0)
    drawn = data.counts["lm_ft_train"]
    assert {name: count["drawn"] for name, count in drawn.items()} == dict.fromkeys(drawn, 12)
    assert data.counts["r_ft_train"]["commonsense_qa"]["read"] == 9741  # the paper's count
    assert len(data.questions["dev"]) == 30 and len(data.examples["lm_ft", "dev"]) == 15
    own = [example for _, example in data.examples["lm_ft", "train"] if example.background]
    assert {example.id.partition("/")[0] for example in own} == {"quail"}


def test_ecqa_and_commonsense_qa_share_no_question_of_their_official_parts(shared_data, tmp_path):
    """ECQA's own file is not there: explanations of our own stand beside CommonsenseQA's questions."""
    raw = shared_data / "raw"
    (tmp_path / "commonsense_qa").symlink_to(raw / "commonsense_qa")
    names = [raw / "commonsense_qa" / f"{part}_rand_split.jsonl" for part in ("train", "dev")]
    lines = [json.loads(line) for path in names for line in path.read_text().splitlines()]
    write(tmp_path / "ecqa" / "ecqa.jsonl", *({"id": line["id"], "explanation": "So."} for line in lines))
    (tmp_path / "ecqa" / "author_split").symlink_to(raw / "ecqa" / "author_split")
    settings = Instructions(
        datasets=str(tmp_path),
        lm_ft_datasets=("commonsense_qa", "ecqa"),
        r_ft_datasets=("commonsense_qa",),
    )
    data = read_examples(settings, 0.1, 3, seed=0)
    train = {letters_key(question.question) for question, _ in data.examples["lm_ft", "train"]}
    assert [len(data.questions[part]) for part in ("test", "dev")] == [611, 610]
    for part in ("test", "dev"):  # 412 and 424 of them were
        assert not train & {letters_key(question.question) for question in data.questions[part]}
