"""Questions with their chunks, answers and categories, and the figures made of them, by hand."""

import pytest
from small_run import CHUNKS, detail, finish, prediction, small_run, stage_folder, write_questions

from radit_jax.command_line import run_stage
from radit_jax.report import run_data
from radit_jax.report.asked_questions import AskedQuestion, asked_questions, drawn_questions
from radit_jax.report.run_data import read_run
from radit_jax.runtime.storage.workdir import Workdir


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "small"
    small_run(path, questions=True)
    return read_run(path)


def test_every_question_is_there_with_its_category(run):
    assert [question.id for question in run.questions] == ["q0", "q1", "q2"]
    assert [question.category for question in run.questions] == ["gained", "lost", "right"]
    assert run.num_questions == 3 and not run.is_sample and run.lacks == []
    first = run.questions[0]
    assert (first.question, first.gold, first.group) == (
        "Who built Dray Tower?",
        ["Hob Crane"],
        "towers",
    )
    assert first.answer_tokens == {"base_lm": 3, "lm_ft_lm": 3}


def test_a_chunk_has_both_retrievers_probabilities_and_the_language_models(run):
    before, after = run.questions[0].chunks["base"], run.questions[0].chunks["r_ft"]
    assert [chunk.id for chunk in before] == ["elm", "fen"] and [chunk.id for chunk in after] == [
        "dray",
        "elm",
    ]
    assert [chunk.retrieval_prob for chunk in after] == pytest.approx([0.75, 0.25], rel=1e-4)
    # Eq. 4 with the sum of log-probabilities and tau 1: 0.3 and 0.1 in parts of 0.4, 0.1 and 0.4 of 0.5.
    assert [chunk.lsr_prob for chunk in after] == pytest.approx([0.75, 0.25], rel=1e-4)
    assert [chunk.lsr_prob for chunk in before] == pytest.approx([0.2, 0.8], rel=1e-4)
    assert after[0].answer_log_probs == {"base_lm": -1.204, "lm_ft_lm": -1.204}


def test_answers_are_marked_where_they_are_in_a_chunk(run):
    dray = run.questions[0].chunks["r_ft"][0]
    assert dray.holds_answer and dray.is_gold
    [(start, end)] = dray.text_spans
    assert CHUNKS[0].text[start:end] == "Hob Crane" and dray.title_spans == []
    elm = run.questions[0].chunks["r_ft"][1]
    assert not elm.holds_answer and not elm.is_gold and elm.text_spans == []
    # "Yes." in a passage is no answer to a question of yes or no.
    assert not any(chunk.holds_answer for chunk in run.questions[2].chunks["r_ft"])


def test_a_question_says_whether_r_ft_found_what_answers_it(run):
    # q0 has its gold chunk; q1 knows of none, and no chunk holds its answer; q2 is a matter of yes or no.
    assert [question.gold_retrieved for question in run.questions] == [True, False, None]


def test_each_system_has_its_answer_with_its_candidates(run):
    lost = run.questions[1].systems
    assert (lost["base"].text, lost["base"].score) == ("Bo Marsh", 1.0)
    assert (lost["radit"].text, lost["radit"].score, lost["radit"].is_cut) == (
        "nobody that we know",
        0.0,
        True,
    )
    [candidate] = lost["radit"].candidates
    assert (candidate.text, candidate.probability, candidate.log_probs) == (
        "nobody that we know",
        0.2,
        [-0.5, -1.5],
    )


def test_every_passage_is_there_once(run):
    assert set(run.passages) == {"dray", "elm", "fen", "yes"}
    assert run.passages["fen"].title == "Fen Tower" and run.passages["fen"].text == CHUNKS[2].text


def test_calibration_compares_probabilities_with_right_answers(run):
    [radit] = [one for one in run.calibration if one.system == "radit"]
    # 0.9 and 0.95 were right, 0.2 was wrong.
    low, high = radit.bins
    assert (low.low, low.high, low.count, low.probability, low.score) == (0.2, 0.3, 1, 0.2, 0.0)
    assert (high.low, high.high, high.count, high.score) == (0.9, 1.0, 2, 1.0)
    assert high.probability == pytest.approx(0.925)
    assert radit.error == pytest.approx((0.2 + 2 * 0.075) / 3)


def test_lengths_are_counted_in_words_and_cut_answers_are(run):
    lengths = {one.system: one for one in run.lengths}
    assert lengths["gold"].counts == {2: 2, 1: 1} and lengths["gold"].cut is None
    assert lengths["radit"].counts == {2: 1, 4: 1, 1: 1} and lengths["radit"].cut == 1
    assert lengths["base"].cut == 0


def test_recall_is_of_the_questions_that_have_what_is_looked_for(run):
    curves = {(curve.retriever, curve.of): curve for curve in run.recall}
    # One question has a gold chunk: R-ft ranks it first, the base retriever not at all.
    assert curves["r_ft", "gold"].recall == [1.0, 1.0] and curves["r_ft", "gold"].num_questions == 1
    assert curves["base", "gold"].recall == [0.0, 0.0]
    assert curves["r_ft", "answer"].recall == [0.5, 0.5] and curves["r_ft", "answer"].num_questions == 2


def test_a_run_without_details_has_r_fts_chunks_and_says_what_it_lacks(tmp_path):
    small_run(tmp_path, inputs=False, questions=True, details=False)
    run = read_run(tmp_path)
    [question] = [question for question in run.questions if question.id == "q0"]
    assert set(question.chunks) == {"r_ft"}
    assert [(chunk.id, chunk.retrieval_prob, chunk.lsr_prob) for chunk in question.chunks["r_ft"]] == [
        ("dray", 0.75, None),
        ("elm", 0.25, None),
    ]
    assert question.systems["radit"].candidates[0].probability == 0.9
    assert question.systems["base"].candidates == [] and question.systems["radit"].is_cut is None
    assert run.lacks == [run_data._NO_DETAILS.format(run_stage("evaluate"))]


def test_a_sample_is_said_to_be_one_and_keeps_the_order(tmp_path):
    small_run(tmp_path, questions=True)
    asked = [AskedQuestion("", prediction(n), detail(n), {}) for n in range(3)]
    sizes = [question.num_bytes for question in asked]
    run = read_run(tmp_path, max_bytes=sum(sizes) + 400)  # room for four passages
    assert len(run.questions) == 3 and not run.is_sample
    two = drawn_questions(asked, sum(sizes) - 1, 0)
    assert len(two) == 2 and two == [question for question in asked if question in two]
    assert drawn_questions(asked, sum(sizes), 0) == asked
    # All four passages once each, and not the eleven places in which they are.
    assert drawn_questions(asked, sum(sizes) + 400, 100) == asked
    assert len(drawn_questions(asked, sum(sizes) + 399, 100)) == 2
    few = read_run(tmp_path, max_bytes=1)
    assert few.is_sample and few.questions == [] and few.num_questions == 3
    # Figures without passages are over all questions.
    assert few.calibration == run.calibration


def test_labels_of_another_model_are_said_not_to_be_shown(tmp_path, monkeypatch):
    from small_run import SETTINGS

    score = {"score": {"class": "ScoreConfig", "language_model": "labeller"}}
    monkeypatch.setitem(SETTINGS, "score", score)
    small_run(tmp_path, questions=True)
    assert read_run(tmp_path).lacks == [run_data._OTHER_LABELLER]


def test_a_tasks_questions_have_the_scores_that_its_files_keep(tmp_path):
    folder = Workdir(tmp_path).folder("evaluate", "e" * 12)
    for lm, value in (("base_lm", 0.25), ("lm_ft_lm", 0.75)):
        marks = [{"id": "1", "f1": value}, {"id": "2", "f1": None}]
        folder.write_json(f"wow/{lm}-none.json", {"marks": marks, "counts": {}})
    texts = dict.fromkeys(("closed_book", "base", "lm_ft", "r_ft", "radit"), "tea")
    lines = [
        {"id": "1", "prompt": "Q: Tea?", "gold": ["tea"], "chunks": [], "systems": texts},
        {"id": "2", "prompt": "Q: Why?", "gold": [], "chunks": [], "systems": texts},
    ]
    folder.write_jsonl("predictions-wow.jsonl", lines)
    first, second = asked_questions(folder, {"tasks": {"wow": {"metric": "f1"}}}, ())
    assert (first.task, first.text) == ("wow", "Q: Tea?")
    assert first.scores == {"closed_book": 0.25, "base": 0.25, "lm_ft": 0.75, "r_ft": 0.25, "radit": 0.75}
    assert second.scores == {} and second.answers()["radit"].score is None


def test_where_the_retrievers_alone_were_measured_questions_have_their_chunks(tmp_path):
    workdir = Workdir(tmp_path)
    write_questions(workdir)
    evaluated = stage_folder(workdir, "evaluate")
    (evaluated.path / "predictions.jsonl.sha256").unlink()
    unanswered = {"answer_log_probs": {}, "answer_tokens": {}, "candidates": {}, "cut": {}}
    evaluated.write_jsonl("details.jsonl", [{**detail(number), **unanswered} for number in range(3)])
    evaluated.write_json("results.json", {"systems": {}, "num_questions": 0})
    for name in ("corpus", "evaluate"):
        finish(workdir, name)
    run = read_run(tmp_path)
    assert [question.category for question in run.questions] == ["unknown"] * 3
    assert [question.gold_retrieved for question in run.questions] == [True, False, None]
    first = run.questions[0]
    assert first.systems == {} and first.gold == ["Hob Crane"]
    assert [chunk.id for chunk in first.chunks["base"]] == ["elm", "fen"]
    assert first.chunks["r_ft"][0].retrieval_prob == pytest.approx(0.75, rel=1e-4)
    assert run.calibration == [] and [one.system for one in run.lengths] == ["gold"]


def test_an_earlier_version_kept_no_question_of_retrievers_alone(tmp_path):
    workdir = small_run(tmp_path)
    assert asked_questions(stage_folder(workdir, "evaluate"), {"systems": {}}, [{}]) == []
    assert read_run(tmp_path).num_questions == 0
