"""Which system reads what; and a run over tasks, whose figures are made by hand from what it kept."""

import json
import shutil
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import STORED, SUMS, torch_in_float64, torch_model_in_float64
from small import CHUNKS, QUESTIONS, TOWERS

from radit_jax.config import DecoderConfig, EvaluateConfig, MeshConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.eval_tasks.registry import EVAL_TASKS, find_task
from radit_jax.data.records import Question
from radit_jax.evaluation import corpus_questions, task_ablation
from radit_jax.evaluation.corpus_questions import CorpusQuestionEval, RetrievedChunks, SystemInputs
from radit_jax.evaluation.questions import LoadedTask, questions_that_fit
from radit_jax.evaluation.systems import GAINS, LMS, SYSTEMS
from radit_jax.evaluation.task_suite import evaluate_task
from radit_jax.lm import scoring
from radit_jax.lm.answering import Answer
from radit_jax.lm.scoring import NO_CHUNK
from radit_jax.models.decoder import DecoderLm
from radit_jax.report.asked_questions import asked_questions
from radit_jax.runtime.pretrained.hf_export import export_hf
from radit_jax.runtime.pretrained.model_io import Model, load_model, save_model
from radit_jax.runtime.pretrained.tokenizer_files import load_tokenizer
from radit_jax.runtime.storage.workdir import Workdir
from radit_jax.selfcheck.tiny_models import random_params
from radit_jax.stages import evaluate as stage
from radit_jax.stages.evaluate import run
from radit_jax.text.card import model_card
from radit_jax.text.prompts import background, question_prompt
from radit_jax.text.results_table import results_table


@pytest.fixture
def evaluation(inputs, tmp_path):
    settings = EvaluateConfig(chunks_per_answer=2, bootstrap_samples=200)
    output, corpus = Workdir(tmp_path).folder("evaluate", "e"), Corpus(inputs["corpus"])
    return CorpusQuestionEval(output, corpus, QUESTIONS["test"], settings, seed=0, models={})


def test_each_system_reads_its_own_retrievers_chunks_and_closed_book_none(evaluation):
    base, r_ft = np.tile(np.arange(10), (2, 1)), np.tile(np.arange(9, -1, -1), (2, 1))
    weights = {
        "base": np.log(np.full((2, 2), 0.5, np.float32)),
        "r_ft": np.log(np.tile(np.float32([0.9, 0.1]), (2, 1))),
    }
    retrieved = {
        "base": RetrievedChunks(base, weights["base"]),
        "r_ft": RetrievedChunks(r_ft, weights["r_ft"]),
    }
    made = evaluation.system_inputs(retrieved)
    lms = {name: made[name].lm for name in SYSTEMS}
    assert lms == {
        "closed_book": "base_lm",
        "base": "base_lm",
        "lm_ft": "lm_ft_lm",
        "r_ft": "base_lm",
        "radit": "lm_ft_lm",
    }
    assert made["closed_book"].rows.tolist() == [[NO_CHUNK]] * 2
    assert made["closed_book"].log_probs.tolist() == [[0.0]] * 2
    for retriever, systems, rows in (
        ("base", ("base", "lm_ft"), [[0, 1]] * 2),
        ("r_ft", ("r_ft", "radit"), [[9, 8]] * 2),
    ):
        for system in systems:
            assert made[system].rows.tolist() == rows
            np.testing.assert_array_equal(made[system].log_probs, weights[retriever])
    for lm in LMS:
        assert made[f"{lm}-gold"].rows.tolist() == [[6], [7]]
        assert made[f"{lm}-retrieved"].rows.tolist() == [[0]] * 2
        assert made[f"{lm}-none"].rows.tolist() == [[NO_CHUNK]] * 2
        assert made[f"{lm}-gold"].lm == lm
    np.testing.assert_array_equal(made["base_lm-random"].rows, made["lm_ft_lm-random"].rows)


def test_gains_of_one_stage_hold_the_other_models_fixed():
    pairs = {gain: [SYSTEMS[name][1:] for name in pair] for gain, pair in GAINS.items()}
    assert all(gain == "-".join(pair) for gain, pair in GAINS.items())
    fixed = {gain: [new == old for new, old in zip(*pair, strict=True)] for gain, pair in pairs.items()}
    assert fixed == {  # the language model, the retriever
        "lm_ft-base": [False, True],
        "r_ft-base": [True, False],
        "radit-lm_ft": [True, False],
        "radit-base": [False, False],
    }


def test_a_search_is_deep_enough_for_every_cutoff_and_weighs_the_chunks_of_eq_2_only(evaluation, searcher):
    rows, log_probs = evaluation.retrieve(searcher, 0.05)
    assert rows.shape == (2, 10)
    assert log_probs.shape == (2, 2)
    _, scores = searcher.search([question.question for question in evaluation.questions], 2)
    rounding = STORED * (1 + np.abs(scores / 0.05).max())  # of what the softmax is of, so a share of each p
    np.testing.assert_allclose(np.exp(log_probs.astype(float)).sum(axis=1), 1, rtol=rounding)


def test_what_was_retrieved_before_a_kill_is_read_and_not_searched_again(evaluation, searcher, monkeypatch):
    found = stage._retrieve(evaluation, "base", searcher, 0.05)
    monkeypatch.delattr(type(searcher), "search")
    stored = stage._retrieve(evaluation, "base", searcher, 0.05)
    for before, after in zip(found, stored, strict=True):
        np.testing.assert_array_equal(after, before)
        assert after.dtype == before.dtype


def test_a_question_that_no_row_holds_is_left_out_of_the_corpus_own(evaluation, lm, capsys):
    kept = questions_that_fit(
        [question("Who built it?"), question("Was it " + "very " * 200)], lm.tokenizer, FITTING
    )
    assert [q.question for q in kept] == ["Who built it?"]
    assert "evaluate.sequence_length 128: 1; left out" in capsys.readouterr().out
    long_answer = question("Who built it?", "Hob " * 130)
    for none in ([question("very " * 200)], [long_answer]):
        with pytest.raises(ValueError, match="evaluate: expected questions that fit, got none"):
            questions_that_fit(none, lm.tokenizer, FITTING)


FLOAT32_SUMS = SUMS * float(np.finfo(np.float32).eps)  # how far off, relative to a log-probability
FITTING = EvaluateConfig(sequence_length=128).answering()


def question(text, answer="Hob Crane"):
    return Question(text[:20], text, (answer,))


def test_what_is_known_of_gold_chunks_alone_counts_where_one_is_given(evaluation):
    none = replace(evaluation, ranked=[replace(q, gold_chunks=()) for q in QUESTIONS["test"]])
    marks = [{"exact_match": 1.0}, {"exact_match": 0.0}]
    assert none.figures.means(marks, ("exact_match",), none.figures.with_gold)["exact_match"]["value"] is None
    one = replace(evaluation, ranked=[none.questions[0], QUESTIONS["test"][1]])
    assert one.figures.means(marks, ("exact_match",), one.figures.with_gold)["exact_match"]["value"] == 0.0


def test_a_question_is_asked_as_its_example_is_written(evaluation, lm, monkeypatch):
    """With the choices of a multiple-choice question."""
    prompt = "Who built Jay Tower?\nA. Flo Wren\nB. Hob Crane\nA:"
    own = replace(evaluation, ranked=[replace(QUESTIONS["test"][0], prompt=prompt), QUESTIONS["test"][1]])
    asked = []

    def generate(model, prompts, retrieval, settings, *, shots, bar):
        asked.extend(prompts)
        return [[Answer("Flo Wren", 1.0)] for _ in prompts], Counter()

    monkeypatch.setattr(corpus_questions, "generate_answers", generate)
    monkeypatch.setattr(CorpusQuestionEval, "_answer_nll", lambda *_: np.zeros(2))
    own.models["base_lm"] = SimpleNamespace(model=lm, own=False)
    none = SystemInputs("base_lm", np.full((2, 1), NO_CHUNK), np.zeros((2, 1), np.float32))
    own.evaluate("asked", none, [none])
    assert asked == [prompt, question_prompt(QUESTIONS["test"][1].question)]


def test_retrievers_are_measured_without_a_language_model(stage_inputs, tmp_path):
    without_lms = {name: value for name, value in stage_inputs.items() if name not in ("base_lm", "lm_ft")}
    output = Workdir(tmp_path).folder("evaluate", "retrievers")
    settings = EvaluateConfig(answers=False, bootstrap_samples=200)
    facts = run(without_lms, output, evaluate=settings, temperature=0.05, seed=0, mesh=MeshConfig())
    results = output.read_json("results.json")
    assert facts["num_ranked"] == results["num_ranked"] == len(QUESTIONS["test"])
    assert results["retrieval"]["base"] == results["retrieval"]["r_ft"]  # here both are one retriever
    assert results["retrieval_gains"]["mrr"]["value"] == 0.0
    for question, line in zip(QUESTIONS["test"], output.read_jsonl("details.jsonl"), strict=True):
        assert line["id"] == question.id and line["rows"]["base"] == line["rows"]["r_ft"]
        assert sorted(line["rows"]["base"]) == list(range(10))  # of ten chunks, all
        assert np.exp(line["log_p_R"]["base"]).sum() == pytest.approx(1, rel=1e-3)
        assert line["candidates"] == line["answer_log_probs"] == {}
    shown = results_table(results)
    assert shown.startswith(f"retrieval, {len(QUESTIONS['test'])} questions") and "exact match" not in shown


# ---- tasks ----


def write_lines(path, lines):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


KILT = [
    {
        "id": f"k{row}",
        "input": f"Who built {TOWERS[row][0]}?",
        "output": [{"answer": TOWERS[row][1], "provenance": [{"wikipedia_id": f"c{row}"}]}],
    }
    for row in (2, 5, 6)
]
PIQA = [
    {"goal": f"find {name}", "sol1": f"walk to {town}", "sol2": f"ask {builder}"}
    for name, builder, town in TOWERS[:4]
]
OWN = [{"question": q.question, "answers": list(q.answers)} for q in QUESTIONS["test"]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of three tasks: KILT's HotpotQA, PIQA and a user's own questions."""
    path = tmp_path_factory.mktemp("tasks")
    write_lines(path / "kilt" / "hotpotqa-dev-kilt.jsonl", KILT)
    write_lines(path / "piqa" / "valid.jsonl", PIQA)
    (path / "piqa" / "valid-labels.lst").write_text("0\n1\n1\n0\n")
    write_lines(path / "towers.jsonl", OWN)
    return path


@pytest.fixture(scope="module")
def stage_inputs(inputs, lm, tmp_path_factory):
    """As `inputs`, with a second language model in the place of the tuned one."""
    tuned = Workdir(tmp_path_factory.mktemp("tuned")).folder("lm_ft", "tuned")
    save_model(tuned.path / "lm", lm._replace(params=jax.tree.map(lambda leaf: 1.5 * leaf, lm.params)))
    tuned.commit("lm")
    tuned.finish()
    return {**inputs, "base_lm": inputs["lm"], "lm_ft": tuned, "r_ft": inputs["retriever"]}


def task_settings(folder, *tasks, **changed):
    return EvaluateConfig(
        **{
            "chunks_per_answer": 2,
            "bootstrap_samples": 200,
            "max_new_tokens": 3,
            "sequence_length": 96,
            "batch_size": 8,
            "tasks": tasks or ("hotpotqa", "piqa", "towers.jsonl"),
            "tasks_folder": str(folder),
            "split": "official",
            **changed,
        }
    )


def run_tasks(stage_inputs, output, settings):
    return run(stage_inputs, output, evaluate=settings, temperature=0.05, seed=0, mesh=MeshConfig())


@pytest.fixture(scope="module")
def finished(stage_inputs, folder, tmp_path_factory):
    output = Workdir(tmp_path_factory.mktemp("evaluated")).folder("evaluate", "e")
    facts = run_tasks(stage_inputs, output, task_settings(folder))
    return output, facts


def test_every_task_has_its_systems_and_gains_with_intervals_and_an_average(finished):
    output, facts = finished
    results = output.read_json("results.json")
    assert {name: task["metric"] for name, task in results["tasks"].items()} == {
        "hotpotqa": "exact_match",
        "piqa": "accuracy",
        "towers": "exact_match",
    }
    assert [task["num_questions"] for task in results["tasks"].values()] == [3, 4, 2]
    assert facts["num_questions"] == results["num_questions"] == 9
    for name, task in results["tasks"].items():
        assert set(task["systems"]) == set(SYSTEMS) and set(task["gains"]) == set(GAINS)
        lines = output.read_jsonl(f"predictions-{name}.jsonl")
        mean = np.mean([line[task["metric"]] for line in lines])
        figure = task["systems"]["radit"][task["metric"]]
        assert figure["value"] == pytest.approx(mean)
        assert figure["low"] <= figure["value"] <= figure["high"]
    means = [task["systems"]["radit"][task["metric"]]["value"] for task in results["tasks"].values()]
    assert results["average"]["systems"]["radit"]["mean"]["value"] == pytest.approx(np.mean(means))
    gain = results["average"]["gains"]["radit-base"]
    base = results["average"]["systems"]["base"]["mean"]["value"]
    assert gain["value"] == pytest.approx(np.mean(means) - base)


def test_results_the_table_and_the_card_say_which_questions_were_asked(finished):
    output, _ = finished
    results = output.read_json("results.json")
    assert {
        name: (t["split"], t["questions"], t["chose_checkpoint"]) for name, t in results["tasks"].items()
    } == {
        "hotpotqa": ("official", "all of kilt/hotpotqa-dev-kilt.jsonl", False),
        "piqa": ("official", "all of piqa/valid.jsonl", False),
        "towers": ("official", "all of towers.jsonl", False),
    }
    line = "hotpotqa: split official, all of kilt/hotpotqa-dev-kilt.jsonl"
    assert line in results_table(results).splitlines()
    assert f"Questions of {line}." in model_card([], results)


def test_questions_that_chose_the_checkpoint_are_marked_unless_they_are_the_other_half(tmp_path):
    def trials(split):
        return [LoadedTask(EVAL_TASKS[name], [], [], split=split) for name in ("hotpotqa", "eli5", "piqa")]

    def inputs(name, select, **data):
        folders = {stage: Workdir(tmp_path).folder(stage, name) for stage in ("lm_ft", "corpus")}
        folders["lm_ft"].finish(settings={"lm_ft": {"select": select}})
        folders["corpus"].finish(settings={"data": data})
        return folders

    by_kilt = inputs("kilt", "kilt_dev")
    for split, marked in (("official", {"hotpotqa"}), ("dev", {"hotpotqa"}), ("test", set())):
        assert stage._tasks_that_chose_checkpoint(by_kilt, trials(split)) == marked
    by_loss = inputs("loss", "dev_log_prob", lm_ft_benchmarks=[])
    assert stage._tasks_that_chose_checkpoint(by_loss, trials("official")) == set()
    # Of the tasks that LM-ft learns from, the dev part chooses: of PIQA's official file that is none.
    learnt = inputs("learnt", "dev_log_prob", lm_ft_benchmarks=["eli5", "piqa"])
    for split, marked in (("official", {"eli5"}), ("dev", {"eli5", "piqa"}), ("test", set())):
        assert stage._tasks_that_chose_checkpoint(learnt, trials(split)) == marked


def test_hidden_questions_get_predictions_in_kilts_form_and_no_figure(stage_inputs, folder, tmp_path):
    lines = [{key: line[key] for key in ("id", "input")} for line in KILT]
    write_lines(tmp_path / "kilt" / "hotpotqa-test_without_answers-kilt.jsonl", lines)
    output = Workdir(tmp_path).folder("evaluate", "e")
    facts = run_tasks(stage_inputs, output, task_settings(tmp_path, "hotpotqa", split="hidden"))
    results = output.read_json("results.json")
    assert (results["average"], results["tasks"]["hotpotqa"]["systems"]) == (None, {})
    assert facts["num_questions"] == 3 and "average" not in facts
    assert [line["id"] for line in output.read_jsonl("kilt-hotpotqa.jsonl")] == ["k2", "k5", "k6"]
    assert "predictions only" in results_table(results) and "gain" not in results_table(results)
    model_card([], results)
    with pytest.raises(ValueError, match="piqa: expected a split train, dev, test or official, got 'hidden'"):
        run_tasks(stage_inputs, output, task_settings(folder, "piqa", split="hidden"))


def test_every_task_has_details_that_give_its_probabilities_back(finished):
    output, _ = finished
    for task, retrieves in (("hotpotqa", True), ("piqa", False), ("towers", True)):
        predictions = output.read_jsonl(f"predictions-{task}.jsonl")
        for line, prediction in zip(output.read_jsonl(f"details-{task}.jsonl"), predictions, strict=True):
            assert line["id"] == prediction["id"] and set(line["candidates"]) == set(SYSTEMS)
            assert set(line["rows"]) == ({"base", "r_ft"} if retrieves else set())
            assert line["candidates"]["radit"][0]["text"].strip() == prediction["answer"]
            for name, system in SYSTEMS.items():
                weights = line["log_p_R"].get(system.retriever, [0.0])
                for candidate in line["candidates"][name]:
                    mixed = np.exp(np.add(weights, candidate["log_probs"])).sum()
                    assert candidate["probability"] == pytest.approx(mixed, rel=2e-4)


def test_a_report_reads_every_tasks_questions_with_their_scores(finished):
    output, _ = finished
    results = output.read_json("results.json")
    asked = asked_questions(output, results, ())
    assert Counter(question.task for question in asked) == {"hotpotqa": 3, "piqa": 4, "towers": 2}
    for task, of_task in results["tasks"].items():
        for system in SYSTEMS:
            scores = [question.scores[system] for question in asked if question.task == task]
            mean = of_task["systems"][system][of_task["metric"]]["value"]
            assert np.mean(scores) == pytest.approx(mean)
    for question in asked:
        answer = question.answers()["radit"]
        assert answer.candidates[0].text.strip() == answer.text and answer.is_cut is not None


def test_a_task_without_queries_is_evaluated_once_by_each_language_model(finished):
    output, _ = finished
    assert sorted(file.name for file in (output.path / "piqa").glob("*.json")) == [
        "base_lm-none-questions-00000-of-00001.json",
        "base_lm-none.json",
        "lm_ft_lm-none-questions-00000-of-00001.json",
        "lm_ft_lm-none.json",
    ]
    systems = output.read_json("results.json")["tasks"]["piqa"]["systems"]
    assert systems["closed_book"] == systems["base"] == systems["r_ft"]
    assert systems["lm_ft"] == systems["radit"]


def test_kilts_tasks_have_predictions_with_the_chunks_pages_and_scores_that_need_them(finished):
    output, _ = finished
    lines = output.read_jsonl("kilt-hotpotqa.jsonl")
    answers = {line["id"]: line["answer"] for line in output.read_jsonl("predictions-hotpotqa.jsonl")}
    assert [line["id"] for line in lines] == ["k2", "k5", "k6"]
    for line in lines:
        [given] = line["output"]
        assert given["answer"] == answers[line["id"]]
        assert len(given["provenance"]) == 2  # of two chunks, from two documents
    systems = output.read_json("results.json")["tasks"]["hotpotqa"]["systems"]
    first = [line["output"][0]["provenance"][0]["wikipedia_id"] for line in lines]
    wanted = np.mean([page == f"c{line['id'][1:]}" for page, line in zip(first, lines, strict=True)])
    assert systems["radit"]["r_precision"]["value"] == pytest.approx(wanted)
    assert systems["closed_book"]["r_precision"]["value"] == 0.0
    assert not output.has("kilt-piqa.jsonl")


def test_a_corpus_with_other_ids_has_no_provenance_and_no_figure_that_needs_it(
    stage_inputs, folder, finished, tmp_path, monkeypatch
):
    """Its ids may be some page's by chance."""
    monkeypatch.setattr(stage, "find_pages", lambda manifest, titles: None)
    output = Workdir(tmp_path).folder("evaluate", "e")
    run_tasks(stage_inputs, output, task_settings(folder, "hotpotqa"))
    for line, same in zip(
        output.read_jsonl("kilt-hotpotqa.jsonl"), finished[0].read_jsonl("kilt-hotpotqa.jsonl"), strict=True
    ):
        assert line["output"] == [{"answer": same["output"][0]["answer"], "provenance": []}]
    results = output.read_json("results.json")
    figures = results["tasks"]["hotpotqa"]["systems"]["radit"]
    assert figures["r_precision"]["value"] is figures["kilt_exact_match"]["value"] is None
    kilt = [
        line for line in results_table(results).splitlines() if "r precision" in line or "kilt exact" in line
    ]
    assert len(kilt) == 2 and all(line.count("–") == len(SYSTEMS) for line in kilt)
    assert (
        figures["exact_match"]
        == finished[0].read_json("results.json")["tasks"]["hotpotqa"]["systems"]["radit"]["exact_match"]
    )


def test_what_was_evaluated_before_a_kill_is_not_evaluated_again(finished, stage_inputs, folder, monkeypatch):
    output, _ = finished
    before = output.read("results.json")
    (output.path / "results.json").unlink()
    (output.path / "towers" / "base_lm-base.json").unlink()
    (output.path / "towers" / "base_lm-base-questions-00000-of-00001.json").unlink()
    asked = []

    def noted(loaded, scorer, settings, name, **more):
        asked.append(name)
        return evaluate_task(loaded, scorer, settings, name, **more)

    monkeypatch.setattr(task_ablation, "evaluate_task", noted)
    monkeypatch.delattr(task_ablation, "retrieve_for_task")  # what was retrieved is stored
    run_tasks(stage_inputs, output, task_settings(folder))
    assert asked == ["evaluate towers/base_lm-base"]
    assert output.read("results.json") == before


def test_shards_of_a_tasks_questions_give_its_results_and_a_kill_costs_one_of_them(
    finished, stage_inputs, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(task_ablation, "QUESTIONS_PER_SHARD", 2)
    output = Workdir(tmp_path).folder("evaluate", "e")
    asked = []

    def killed(loaded, scorer, settings, name, **more):
        asked.append([item.id for item in loaded.items])
        if len(asked) == 2:
            raise KeyboardInterrupt
        return evaluate_task(loaded, scorer, settings, name, **more)

    monkeypatch.setattr(task_ablation, "evaluate_task", killed)
    with pytest.raises(KeyboardInterrupt):
        run_tasks(stage_inputs, output, task_settings(folder, "hotpotqa"))
    run_tasks(stage_inputs, output, task_settings(folder, "hotpotqa"))
    # Three questions by five systems: the first two, then the third, which was asked twice.
    assert [len(ids) for ids in asked] == [2, 1, 1] + [2, 1] * 4
    for system in ("base_lm-none", "lm_ft_lm-r_ft"):
        file = f"hotpotqa/{system}.json"
        made, whole = (one.read_json(file) for one in (output, finished[0]))
        assert [mark["id"] for mark in made["marks"]] == [mark["id"] for mark in whole["marks"]]
        assert [mark["answer"] for mark in made["marks"]] == [mark["answer"] for mark in whole["marks"]]
        assert made["counts"] == whole["counts"] and len(made["details"]) == 3


def test_both_models_compute_in_the_dtype_of_the_settings(stage_inputs, folder, tmp_path, monkeypatch):
    loaded = []

    def load(path, dtype, mesh, frozen):
        loaded.append((dtype, frozen))
        return load_model(path, dtype=dtype, mesh=mesh, frozen=frozen)

    monkeypatch.setattr(scoring, "load_model", load)
    output = Workdir(tmp_path).folder("evaluate", "halves")
    run_tasks(stage_inputs, output, task_settings(folder, "towers.jsonl", dtype="bfloat16"))
    assert loaded == [("bfloat16", True)] * 2
    assert output.has("results.json")


def test_a_question_that_no_row_holds_is_left_out_counted_and_said(stage_inputs, folder, tmp_path, capsys):
    lines = [{"question": "Was it " + "very " * 90 + "old?", "answers": ["yes"]}, *OWN]
    write_lines(tmp_path / "towers.jsonl", lines)
    output = Workdir(tmp_path).folder("evaluate", "e")
    run_tasks(stage_inputs, output, task_settings(tmp_path, "towers.jsonl"))
    results = output.read_json("results.json")
    assert results["num_questions"] == 2 and results["tasks"]["towers"]["lines"]["skipped_too_long"] == 1
    assert "; 1 too long for the row left out" in results_table(results)
    assert "warning: towers: questions too long for the row" in capsys.readouterr().out
    assert len(output.read_jsonl("predictions-towers.jsonl")) == 2


def test_no_question_that_fits_is_an_error_before_anything_is_decoded(
    stage_inputs, folder, tmp_path, monkeypatch
):
    monkeypatch.setattr(task_ablation, "evaluate_task", None)
    output = Workdir(tmp_path).folder("evaluate", "e")
    settings = task_settings(folder, sequence_length=12, max_new_tokens=2)
    with pytest.raises(ValueError, match=r"hotpotqa: expected questions that fit, got none. .*_length 12"):
        run_tasks(stage_inputs, output, settings)


def test_backgrounds_that_are_cut_and_shots_that_are_dropped_are_counted(stage_inputs, folder, tmp_path, lm):
    output = Workdir(tmp_path).folder("evaluate", "e")
    settings = task_settings(folder, "towers.jsonl", sequence_length=32, shots=1)
    facts = run_tasks(stage_inputs, output, settings)
    prompts = output.read_json("results.json")["tasks"]["towers"]["prompts"]
    passages = {chunk.id: chunk.passage for chunk in CHUNKS}
    long = [
        1 + sum(len(lm.tokenizer.encode(text)) for text in (background(passages[chunk]), line["prompt"])) > 29
        for line in output.read_jsonl("predictions-towers.jsonl")
        for chunk in line["chunks"]
    ]
    assert 0 < sum(long) < 4  # of two questions under two chunks, of which none leaves room for a shot
    assert prompts["radit"] == {"shots_dropped": 4, "truncated": sum(long)}
    assert prompts["closed_book"]["truncated"] == 0
    assert facts["shots_dropped"] == sum(own["shots_dropped"] for own in prompts.values())
    assert facts["truncated"] == 4 * sum(long)


def test_the_table_has_a_row_for_every_metric_and_the_average(finished):
    output, _ = finished
    shown = results_table(output.read_json("results.json")).splitlines()
    assert [line.split("  ")[0] for line in shown[2:8]] == [
        "hotpotqa (3)",
        "hotpotqa (3)",
        "hotpotqa (3)",
        "piqa (4)",
        "towers (2)",
        "average",
    ]


# ---- official files ----


@pytest.fixture(scope="module")
def real(shared_data, inputs, tmp_path_factory):
    """The stage's inputs with two random LLaMAs that have LLaMA's own tokeniser, and the official files.

    KILT's files of Natural Questions, HotpotQA and FEVER are left out: the publishers' own are longer.
    """
    vocabulary, files, lms = (tmp_path_factory.mktemp(name) for name in ("vocabulary", "files", "lms"))
    shutil.copy(shared_data / "tokenizers" / "llama_tokenizer.model", vocabulary / "tokenizer.model")
    (files / "mmlu").mkdir()
    for name, part in (("dev", "dev"), ("test", "val")):  # the test files are not there
        (files / "mmlu" / name).symlink_to(shared_data / "raw" / "mmlu" / part)
    for name in ("nq_open", "fever", "boolq", "piqa"):
        (files / name).symlink_to(shared_data / "raw" / name)
    (files / "hotpotqa.json").symlink_to(shared_data / "raw" / "hotpotqa" / "hotpot_dev_v1_simplified.json")
    tokenizer = load_tokenizer(vocabulary)
    module = DecoderLm(DecoderConfig(tokenizer.vocab_size, 16, 1, 2, 2, 8, 32))
    params = random_params(module, jnp.zeros((1, 4), jnp.int32))
    folders = {name: Workdir(lms).folder(name, name) for name in ("base_lm", "lm_ft")}
    for factor, folder in zip((1.0, 3.0), folders.values(), strict=True):
        tree = jax.tree.map(lambda leaf, factor=factor: factor * leaf, params)
        save_model(folder.path / "lm", Model(module, tree, tokenizer))
        folder.commit("lm")
        folder.finish()
    return {**inputs, **folders, "r_ft": inputs["retriever"]}, files


def official(real, tmp_path, *tasks, **changed):
    stage_inputs, files = real
    output = Workdir(tmp_path).folder("evaluate", "e")
    settings = task_settings(files, *tasks, **{"sequence_length": 1536, **changed})
    run_tasks(stage_inputs, output, settings)
    return output


def at_chance_in_mmlu(output):
    figures = output.read_json("results.json")["tasks"]["mmlu"]["systems"]
    return all(
        figures[name]["accuracy"]["low"] <= 0.25 <= figures[name]["accuracy"]["high"] for name in SYSTEMS
    )


@pytest.fixture(scope="module")
def eight_of_each(real, tmp_path_factory):
    """Eight questions of each official task, answered in a token or by its choices."""
    names = ("mmlu", "nq", "hotpotqa.json", "fever", "boolq", "piqa")
    few = {"questions_per_task": 8, "max_new_tokens": 1, "prompts_per_batch": 16}
    return official(real, tmp_path_factory.mktemp("official"), *names, **few)


def test_a_random_model_finishes_official_tasks_and_is_at_chance_in_mmlu(eight_of_each):
    tasks = eight_of_each.read_json("results.json")["tasks"]
    assert {name: task["num_questions"] for name, task in tasks.items()} == dict.fromkeys(
        ("mmlu", "nq", "hotpotqa", "fever", "boolq", "piqa"), 8
    )
    assert tasks["mmlu"]["lines"] == {"read": 1542}  # of the 57 validation files
    assert at_chance_in_mmlu(eight_of_each)


@pytest.mark.slow
def test_a_random_model_is_at_chance_in_all_of_mmlus_development_questions(real, tmp_path):
    output = official(real, tmp_path, "mmlu", sequence_length=2560)
    assert output.read_json("results.json")["tasks"]["mmlu"]["num_questions"] == 1542
    assert at_chance_in_mmlu(output)


@pytest.mark.parametrize("most", [8, pytest.param(0, marks=pytest.mark.slow)])
def test_boolq_and_piqa_are_answered_as_transformers_answers_them_with_the_exported_model(
    real, tmp_path, request, most
):
    torch = pytest.importorskip("torch")
    from transformers import AutoTokenizer, LlamaForCausalLM

    stage_inputs, files = real
    if most:
        output = request.getfixturevalue("eight_of_each")
    else:
        output = official(real, tmp_path, "boolq", "piqa", questions_per_task=0)
    export_hf(tmp_path / "hf", load_model(stage_inputs["lm_ft"].path / "lm"))
    hf = torch_model_in_float64(LlamaForCausalLM.from_pretrained(tmp_path / "hf").eval())
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")

    def log_prob(prompt, answer):
        """Of the answer behind the prompt, tokenised as one text by transformers, in float64."""
        whole = tokenizer(f"{prompt} {answer}", add_special_tokens=False).input_ids
        start = len(tokenizer(prompt, add_special_tokens=False).input_ids)
        ids = torch.tensor([[tokenizer.bos_token_id, *whole]])
        with torch_in_float64():
            log_probs = torch.log_softmax(hf(ids).logits[0, start:-1], dim=-1)
        return sum(own[token].item() for own, token in zip(log_probs, whole[start:], strict=True))

    def by_rule(task, prompt, answer):
        """The score, and how far off float32 may be: its rounding of the log-probabilities, not of the score.

        BoolQ's score is a small difference of them.
        """
        given = log_prob(prompt, answer)
        if task == "boolq":  # relative to the answer's own prior
            prior = log_prob("Answer:", answer)
            return given - prior, FLOAT32_SUMS * (abs(given) + abs(prior))
        return given / len(answer), FLOAT32_SUMS * abs(given) / len(answer)

    for task in ("boolq", "piqa"):
        lines = output.read_jsonl(f"predictions-{task}.jsonl")
        items = {item.id: item for item in find_task(task).load(files)}
        assert len(lines) == (most or len(items))
        assert len({line["answer"] for line in lines}) > 1
        for line in lines:
            item = items[line["id"]]
            answers = [choice.answer for choice in item.choices]
            scores, off = np.array([by_rule(task, item.prompt, answer) for answer in answers]).T
            assert (np.abs(line["scores"] - scores) <= off).all()
            chosen = answers.index(line["answer"])
            assert scores[chosen] >= (scores - off - off[chosen]).max()  # the best, or a tie in float32
            assert line["accuracy"] == float(line["answer"] in item.answers)
