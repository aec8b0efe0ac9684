"""Which questions a task asks after which shots, what does not fit, and how a checkpoint is measured."""

import json
import pathlib
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from small import CHUNKS, TOWERS

from radit_jax.config import OWN_ANSWERS, EvaluateConfig, MeshConfig, ScoreConfig, load_experiment
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.eval_tasks.registry import KILT_DEVELOPMENT
from radit_jax.evaluation import task_suite
from radit_jax.evaluation.questions import TOO_LONG, load_tasks, longest_answer, without_too_long
from radit_jax.evaluation.task_suite import TaskChunks, evaluate_task, kilt_validation, retrieve_for_task
from radit_jax.lm.answering import Answer, Retrieval
from radit_jax.lm.scoring import PairScorer
from radit_jax.pipeline.graph import stages
from radit_jax.runtime.distributed.mesh import make_mesh

ROOT = pathlib.Path(__file__).parent.parent.parent

ROWS = (
    "What is {n} and {n}?,{a},{b},{c},{d},{letter}\n".format(n=n, a=n, b=2 * n, c=3 * n, d=4 * n, letter="B")
    for n in range(1, 9)
)
MMLU = list(ROWS)


def lines(path, objects):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in objects))


def kilt(identifier, question, answer, page, **more):
    return {
        "id": identifier,
        "input": question,
        "output": [{"answer": answer, "provenance": [{"wikipedia_id": page}]}],
        **more,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tasks")
    for subject in ("sums", "more_sums"):
        for split, rows in (("dev", MMLU[:3]), ("val", MMLU[3:6]), ("test", MMLU[3:])):
            (path / "mmlu" / split).mkdir(parents=True, exist_ok=True)
            (path / "mmlu" / split / f"{subject}_{split}.csv").write_text("".join(rows))
    lines(path / "own.jsonl", [{"question": f"Who is {n}?", "answers": [str(n)]} for n in range(5)])
    asked = [kilt(str(row), f"Who built {TOWERS[row][0]}?", TOWERS[row][1], f"c{row}") for row in range(3)]
    for name in ("hotpotqa", "trex"):
        lines(path / "kilt" / f"{name}-dev-kilt.jsonl", asked)
    lines(
        path / "kilt" / "fever-dev-kilt.jsonl",
        [kilt("f", "Elm Tower stands in Ostley.", "SUPPORTS", "c1")],
    )
    marked = "It is [START_ENT] Elm Tower [END_ENT] again."
    lines(path / "kilt" / "aidayago2-dev-kilt.jsonl", [kilt("a", marked, "Elm Tower", "c1")])
    template = {"meta": {"template_questions": ["Who built Elm Tower?"]}}
    lines(
        path / "kilt" / "structured_zeroshot-dev-kilt.jsonl",
        [kilt("b", "Elm Tower [SEP] builder", "Ada Finch", "c1", **template)],
    )
    lines(path / "kilt" / "wow-dev-kilt.jsonl", [kilt("w", "I like Elm Tower.", "Ada Finch built it.", "c1")])
    return path


def loaded_task(folder, name, **changed):
    [made] = load_tasks(EvaluateConfig(tasks=(name,), tasks_folder=str(folder), **changed), seed=0)
    return made


def test_the_development_split_is_asked_where_settings_are_tuned(folder):
    assert len(loaded_task(folder, "mmlu").items) == 10
    assert len(loaded_task(folder, "mmlu", split="dev").items) == 6


def test_a_sample_is_of_the_asked_size_and_in_order(folder):
    ids = [item.id for item in loaded_task(folder, "mmlu").items]
    some = [item.id for item in loaded_task(folder, "mmlu", questions_per_task=4).items]
    assert len(some) == 4 and some == [i for i in ids if i in some]


def test_a_subject_has_shots_of_its_own(folder):
    made = loaded_task(folder, "mmlu", shots=3)
    for item, shots in zip(made.items, made.shots, strict=True):
        assert [shot.subject for shot in shots] == [item.subject] * 3
    assert len(made.shot_items) == 6


def test_a_question_is_no_shot_of_its_own(folder):
    made = loaded_task(folder, "own.jsonl", shots=4)
    for item, shots in zip(made.items, made.shots, strict=True):
        assert len(shots) == 4 and item.id not in [shot.id for shot in shots]
    with pytest.raises(ValueError, match="expected 6 examples, got 5. Ask for fewer shots"):
        loaded_task(folder, "own.jsonl", shots=5)


def test_a_task_that_is_named_twice_is_refused(folder):
    settings = EvaluateConfig(tasks=("own.jsonl", "own.jsonl"), tasks_folder=str(folder))
    with pytest.raises(ValueError, match="evaluate.tasks: expected each task once, got own twice"):
        load_tasks(settings, seed=0)


def test_what_fits_exactly_is_asked_and_what_does_not_is_left_out_counted_and_said(folder, lm, capsys):
    made, encode = loaded_task(folder, "mmlu"), lm.tokenizer.encode
    letter = max(len(encode(f" {letter}")) for letter in "ABCD")
    sizes = [1 + len(encode(item.prompt)) + letter for item in made.items]
    assert without_too_long(made, lm.tokenizer, EvaluateConfig(sequence_length=max(sizes))) is made
    assert capsys.readouterr().out == ""
    made = replace(made, shots=[[item] for item in made.items])
    short = without_too_long(made, lm.tokenizer, EvaluateConfig(sequence_length=max(sizes) - 1))
    kept = [item for item, size in zip(made.items, sizes, strict=True) if size < max(sizes)]
    assert 0 < len(kept) < len(sizes)
    assert (short.items, short.shots) == (kept, [[item] for item in kept])
    assert short.counts[TOO_LONG] == len(sizes) - len(kept)
    assert f"{max(sizes) - 1}: {len(sizes) - len(kept)}; " in capsys.readouterr().out
    with pytest.raises(ValueError, match=r"mmlu: expected questions that fit, got none"):
        without_too_long(made, lm.tokenizer, EvaluateConfig(sequence_length=min(sizes) - 1))


def test_a_generated_answer_is_as_long_as_its_task_says_unless_the_settings_do(folder, lm):
    made, encode = loaded_task(folder, "wow", split="official"), lm.tokenizer.encode
    asked = 1 + len(encode(made.items[0].prompt))
    assert made.task.max_new_tokens == 64
    without_too_long(made, lm.tokenizer, EvaluateConfig(sequence_length=asked + 64))
    with pytest.raises(ValueError, match="got none"):
        without_too_long(made, lm.tokenizer, EvaluateConfig(sequence_length=asked + 63))
    without_too_long(made, lm.tokenizer, EvaluateConfig(sequence_length=asked + 9, max_new_tokens=9))
    assert longest_answer(EvaluateConfig(tasks=("fever", "wow", "mmlu"))) == 64
    assert longest_answer(EvaluateConfig(tasks=("mmlu",))) == 1
    assert longest_answer(EvaluateConfig()) == OWN_ANSWERS
    assert longest_answer(EvaluateConfig(tasks=("wow",), max_new_tokens=7)) == 7


def test_of_long_answers_the_one_that_is_likeliest_per_token_is_given(folder, lm, inputs, monkeypatch):
    """By the task's rule: Wizard of Wikipedia's, and not HotpotQA's."""
    seen = {}

    def generate(model, prompts, retrieval, settings, *, shots, per_token, bar):
        seen[len(prompts)] = (per_token, settings.max_new_tokens)
        return [[Answer("Ada Finch", 1.0)] for _ in prompts], Counter()

    monkeypatch.setattr(task_suite, "generate_answers", generate)
    scorer = PairScorer(lm, make_mesh(MeshConfig()), ScoreConfig())
    for name, settings in (("wow", EvaluateConfig()), ("hotpotqa", EvaluateConfig(max_new_tokens=5))):
        evaluate_task(loaded_task(folder, name, split="official"), scorer, settings, name)
    assert seen == {1: (True, 64), 3: (False, 5)}


@pytest.mark.parametrize(
    ("first_pages", "answers", "precisions", "counted"),
    [
        ([0, 1, 2], "right", [1, 1, 1], [1, 1, 1]),
        ([0, 2, 1], "right", [1, 0, 0], [1, 0, 0]),  # a right answer from another page does not count
        ([0, 1, 2], "wrong", [1, 1, 1], [0, 0, 0]),
    ],
)
def test_a_kilt_metric_counts_where_the_gold_page_is_ranked_first(
    folder, lm, inputs, monkeypatch, first_pages, answers, precisions, counted
):
    made = loaded_task(folder, "hotpotqa", split="official")
    right = [[Answer(TOWERS[row][1], 1.0)] for row in range(3)]
    given = right if answers == "right" else [[Answer("Nobody", 1.0)] for _ in range(3)]
    monkeypatch.setattr(task_suite, "generate_answers", lambda *_, **__: (given, Counter()))
    rows = np.array([[page, 3] for page in first_pages])
    retrieved = TaskChunks(Retrieval(Chunks(inputs["corpus"]), rows, np.zeros((3, 2), np.float32)), {})
    scorer = PairScorer(lm, make_mesh(MeshConfig()), ScoreConfig())
    results = evaluate_task(
        made, scorer, EvaluateConfig(), "hotpotqa", retrieved=retrieved, page_of=lambda chunk: chunk.id
    ).results
    assert [result["pages"] for result in results] == [[f"c{page}", "c3"] for page in first_pages]
    assert [result["r_precision"] for result in results] == precisions
    assert [result[f"kilt_{made.task.metric}"] for result in results] == counted


def kilt_settings(folder, **changed):
    """What the pipeline gives LM-ft, of an experiment whose evaluation has `changed` settings."""
    e = load_experiment(str(ROOT / "experiments" / "tiny.py"))
    lm_ft = replace(e.lm_ft, select="kilt_dev", select_folder=str(folder), select_questions=2)
    e = replace(e, lm_ft=lm_ft, evaluate=replace(e.evaluate, **changed))
    return stages(e)["lm_ft"].settings["evaluate"]


def test_a_checkpoint_is_judged_by_the_settings_of_evaluation(folder):
    asked = {
        "chunks_per_answer": 7,
        "ensemble": "token",
        "max_new_tokens": 9,
        "shots": 2,
        "dtype": "bfloat16",
    }
    found = kilt_settings(folder, **asked, tasks=("nq",), split="official", kilt_titles="titles.tsv")
    assert {name: getattr(found, name) for name in asked} == asked
    assert (found.split, found.tasks, found.questions_per_task) == ("dev", KILT_DEVELOPMENT, 2)
    assert found == kilt_settings(folder, **asked, tasks=("fever",), bootstrap_samples=7)


def test_a_checkpoint_is_measured_by_the_mean_over_kilts_development_tasks(folder, lm, inputs, monkeypatch):
    settings = kilt_settings(folder, dtype="bfloat16", sequence_length=192)
    tasks = load_tasks(settings, seed=0)
    assert [made.task.name for made in tasks] == list(KILT_DEVELOPMENT)
    chunks, seen = Chunks(inputs["corpus"]), []

    def generate(model, prompts, retrieval, settings, *, shots, per_token, bar):
        """Ada Finch to everything, which is right of Elm Tower alone."""
        seen.append((model.params, str(model.module.dtype), per_token, settings.max_new_tokens))
        return [[Answer("Ada Finch", 1.0)] for _ in prompts], Counter()

    monkeypatch.setattr(task_suite, "generate_answers", generate)
    found = [
        TaskChunks(
            Retrieval(chunks, np.ones((len(made.items), 1), int), np.zeros((len(made.items), 1), np.float32)),
            {},
        )
        for made in tasks
    ]
    validate = kilt_validation(tasks, found, lm, MeshConfig(), settings, batch_size=16)
    right = [float(np.mean([item.answers[0] == "Ada Finch" for item in made.items])) for made in tasks]
    right[-1] = 2 * 0.5 / 1.5  # F1 with "Ada Finch built it"
    tuned = {"up_proj": {"kernel": np.ones((1, 8, 8), np.float32)}}
    assert validate(tuned) == {"kilt_dev": pytest.approx(np.mean(right))}
    # What answers is whole on each of eight devices, which tell no limit.
    shardings = [params["up_proj"]["kernel"].sharding for params, *_ in seen]
    assert {sharding.shard_shape((1, 8, 8)) for sharding in shardings} == {(1, 8, 8)}
    assert {sharding.mesh.shape["replica"] for sharding in shardings} == {8}
    assert [(rule, length) for _, _, rule, length in seen] == [
        (made.task.name == "wow", made.task.max_new_tokens) for made in tasks
    ]
    assert all("bfloat16" in dtype for _, dtype, *_ in seen)
    assert CHUNKS[1].title == "Elm Tower"


def test_shots_have_their_own_top_chunk_and_questions_their_k(folder, inputs, searcher):
    made, chunks = loaded_task(folder, "own.jsonl", shots=2), Chunks(inputs["corpus"])
    settings = EvaluateConfig(chunks_per_answer=3, shots=2)
    retrieval, passages = retrieve_for_task(made, searcher, chunks, settings, 0.5)
    assert retrieval.rows.shape == (5, 3)
    shots = made.shot_items
    top, _ = searcher.search([shot.query for shot in shots], 1)
    assert passages == {shot.id: chunks[int(row)].passage for shot, row in zip(shots, top[:, 0], strict=True)}
    assert retrieve_for_task(made, searcher, chunks, replace(settings, shot_backgrounds=False), 0.5)[1] == {}
