"""Which questions a trial asks behind which shots, what does not fit, and a checkpoint's measure."""

import json

import numpy as np
import pytest
from small import CHUNKS, TOWERS

from radit_jax.config import EvaluateConfig, MeshConfig
from radit_jax.data.benchmarks import KILT_DEVELOPMENT
from radit_jax.data.corpus import Chunks
from radit_jax.lm import benchmarking
from radit_jax.lm.answering import Answer, Retrieval
from radit_jax.lm.benchmarking import check_fits, kilt_validation, load_kilt_development, load_trials

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


def trial(folder, name, **changed):
    [made] = load_trials(EvaluateConfig(tasks=(name,), tasks_folder=str(folder), **changed), seed=0)
    return made


def test_the_development_split_is_asked_where_settings_are_tuned(folder):
    assert len(trial(folder, "mmlu").items) == 10
    assert len(trial(folder, "mmlu", split="dev").items) == 6


def test_a_sample_is_of_the_asked_size_and_in_order(folder):
    ids = [item.id for item in trial(folder, "mmlu").items]
    some = [item.id for item in trial(folder, "mmlu", questions_per_task=4).items]
    assert len(some) == 4 and some == [i for i in ids if i in some]


def test_a_subject_has_shots_of_its_own(folder):
    made = trial(folder, "mmlu", shots=3)
    for item, shots in zip(made.items, made.shots, strict=True):
        assert [shot.subject for shot in shots] == [item.subject] * 3
    assert len(made.shot_items) == 6


def test_a_question_is_no_shot_of_its_own(folder):
    made = trial(folder, "own.jsonl", shots=4)
    for item, shots in zip(made.items, made.shots, strict=True):
        assert len(shots) == 4 and item.id not in [shot.id for shot in shots]
    with pytest.raises(ValueError, match="5 examples came, needed are 6; ask for fewer shots"):
        trial(folder, "own.jsonl", shots=5)


def test_a_task_that_is_named_twice_is_refused(folder):
    settings = EvaluateConfig(tasks=("own.jsonl", "own.jsonl"), tasks_folder=str(folder))
    with pytest.raises(ValueError, match="evaluate.tasks: own came twice"):
        load_trials(settings, seed=0)


def test_what_fits_exactly_is_asked_and_a_token_less_is_refused(folder, lm):
    made, encode = trial(folder, "mmlu", questions_per_task=1), lm.tokenizer.encode
    [item] = made.items
    needed = 1 + len(encode(item.prompt)) + max(len(encode(f" {letter}")) for letter in "ABCD")
    check_fits(made, lm.tokenizer, EvaluateConfig(sequence_length=needed))
    with pytest.raises(ValueError, match=rf"question {item.id} of mmlu has {needed} tokens"):
        check_fits(made, lm.tokenizer, EvaluateConfig(sequence_length=needed - 1))


def test_a_checkpoint_is_measured_by_the_mean_over_kilts_development_tasks(folder, lm, inputs, monkeypatch):
    trials = load_kilt_development(str(folder), 2, seed=0)
    assert [made.task.name for made in trials] == list(KILT_DEVELOPMENT)
    assert [len(made.items) for made in trials] == [2, 1, 1, 1, 2, 1]
    assert [item.id for item in trials[0].items] == ["0", "2"]  # 1 is of the other half, the test split's
    assert trials[0].part == "one half of kilt/hotpotqa-dev-kilt.jsonl"
    chunks, seen = Chunks(inputs["corpus"]), []

    def generate(model, prompts, retrieval, settings, *, shots, bar):
        """Ada Finch to everything, which is right of Elm Tower alone."""
        seen.append((model.params, retrieval.rows.tolist()))
        return [[Answer("Ada Finch", 1.0)] for _ in prompts], benchmarking.Counter()

    monkeypatch.setattr(benchmarking, "generate", generate)
    retrievals = [
        Retrieval(chunks, np.ones((len(made.items), 1), int), np.zeros((len(made.items), 1), np.float32))
        for made in trials
    ]
    validate = kilt_validation(trials, retrievals, lm, MeshConfig(), batch_size=16, sequence_length=192)
    right = [np.mean([item.answers[0] == "Ada Finch" for item in made.items]) for made in trials]
    right[-1] = 2 * 0.5 / 1.5  # F1 with "Ada Finch built it"
    assert validate("tuned") == {"kilt_dev": pytest.approx(np.mean(right))}
    assert {params for params, _ in seen} == {"tuned"}
    assert CHUNKS[1].title == "Elm Tower"
    with pytest.raises(
        ValueError, match=r"lm_ft: question a of aida .* lm_ft.sequence_length is 64; raise it"
    ):
        kilt_validation(trials, retrievals, lm, MeshConfig(), batch_size=16, sequence_length=64)
