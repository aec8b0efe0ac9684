"""A run that was made by hand, with everything that a report shows, and with texts that try to break it."""

import dataclasses
import math

from radit_jax.report.run_records import (
    AnswerLengths,
    Calibration,
    CalibrationBin,
    CandidateRecord,
    Passage,
    QuestionRecord,
    RankedChunk,
    RecallCurve,
    RunData,
    Series,
    SettingDifference,
    StageRecord,
    SystemAnswer,
    TimeUse,
)
from radit_jax.text.card import Origin

HOSTILE = "</script><script>document.title='broken'</script>\"'&<b>"
RTL_TEXT = "مَن بنى البرج؟ 🗼 من بناه؟"
PASSAGES = {
    "c0": Passage("Dray Tower", "🗼 Dray Tower was built by Hob Crane."),
    "c1": Passage("Elm Tower", "Elm Tower was built by Ada Finch."),
    "c2": Passage(HOSTILE, f"{HOSTILE} A passage."),
}


def figure(value, low=None, high=None):
    return {"value": value, "low": low, "high": high}


def chunk(chunk_id, retrieval_prob, lsr_prob, spans=()):
    """A chunk in a ranking; `spans` says where it holds the answer."""
    return RankedChunk(
        chunk_id,
        retrieval_prob,
        lsr_prob,
        {"base_lm": -2.5, "lm_ft_lm": -0.5},
        holds_answer=bool(spans),
        is_gold=bool(spans),
        text_spans=spans,
    )


def answer(text, score, candidates=()):
    return SystemAnswer(text, score, is_cut=False, candidates=candidates or [CandidateRecord(text, 0.5)])


def question(number, category, words="Who built Dray Tower?", **changes):
    """A question whose gold chunk R-ft moved from the second place to the first."""
    right_before, right_after = float(category in ("lost", "right")), float(category in ("gained", "right"))
    mixed = [
        CandidateRecord("Hob Crane", 0.75, [math.log(0.9), math.log(0.25)]),
        CandidateRecord("Ada Finch", 0.25, [math.log(0.1), math.log(0.75)]),
    ]
    crane = [(26, 35)]  # of the passage, in characters: its first one is outside the basic plane
    record = QuestionRecord(
        id=f"q{number}",
        task="",
        question=words,
        gold=["Hob Crane"],
        group=f"g{number}",
        category=category,
        has_gold_chunk=True,
        gold_retrieved=category != "wrong",
        chunks={
            "base": [chunk("c1", 0.6, 0.2), chunk("c0", 0.4, 0.8, crane)],
            "r_ft": [chunk("c0", 0.7, 0.9, crane), chunk("c2", 0.3, 0.1)],
        },
        systems={
            "closed_book": answer("", 0.0),
            "base": answer("Hob Crane" if right_before else "Ada Finch", right_before),
            "radit": answer("Hob Crane" if right_after else "Ada Finch", right_after, mixed),
        },
        answer_tokens={"base_lm": 3},
    )
    return dataclasses.replace(record, **changes)


QUESTIONS = [
    question(0, "gained"),
    question(1, "gained", "Who built the 2nd tower?"),
    question(2, "lost", RTL_TEXT),
    question(3, "wrong", HOSTILE),
    question(4, "right", "Who built Fen Tower?"),
]

SYSTEM_FIGURES = {
    "exact_match": figure(0.6, 0.2, 0.9),
    "f1": figure(0.7, 0.3, 0.9),
    "answer_nll": figure(1.5),
}
RANKING = {
    "gold_recall@1": figure(0.5, 0.4, 0.6),
    "answer_recall@1": figure(0.6, 0.5, 0.7),
    "mrr": figure(0.7),
}
RESULTS = {
    "fingerprint": "a" * 12,
    "systems": dict.fromkeys(("closed_book", "base", "lm_ft", "r_ft", "radit"), SYSTEM_FIGURES),
    "gains": {
        name: figure(0.2, -0.1, 0.4) for name in ("lm_ft-base", "r_ft-base", "radit-lm_ft", "radit-base")
    },
    "context": {
        lm: dict.fromkeys(("gold", "retrieved", "random", "none"), SYSTEM_FIGURES)
        for lm in ("base_lm", "lm_ft_lm")
    },
    "retrieval": {"base": RANKING, "r_ft": RANKING},
    "retrieval_gains": RANKING,
    "num_questions": 5,
    "num_ranked": 5,
    "skipped_too_long": 0,
}
SIGNAL = {
    "examples": 40,
    "effective_chunks": 2.5,
    "flat_targets": 0.25,
    "one_hot_targets": 0.5,
    "spearman": 0.3,
    "mixed_examples": 20,
    "mixed_lm_first": 0.9,
    "mixed_retriever_first": 0.4,
}
OPTIMIZER = {
    "class": "OptimizerConfig",
    "steps": 4,
    "peak_lr": 0.5,
    "end_lr": 0,
    "warmup_steps": 2,
    "decay": "linear",
}
RUN = RunData(
    workdir="runs/small",
    experiment="small",
    results=RESULTS,
    stages=[
        StageRecord(
            "lm_ft",
            "b" * 12,
            {"lm_ft": {"optimizer": OPTIMIZER}},
            {"best_step": 4},
            "c" * 40,
            {"jax": "1.2"},
            2_000_000,
            90.0,
            "1 × cpu",
        ),
        StageRecord("evaluate", "a" * 12, {}, {}, "c" * 40, {"jax": "1.2"}, 1_000_000, 30.0, "1 × cpu"),
    ],  # fmt: skip
    series=[
        Series("lm_ft", "lm_ft", [1, 2, 3, 4], [0.0, 1.0, 2.0, 3.0], {"loss": [4.0, 3.0, None, 2.0]}),
        Series("lm_ft", "lm_ft/speed", [2, 4], [1.0, 3.0], {"fill": [0.75, 1.0], "mfu": [0.4, 0.5]}),
    ],
    time_use=[TimeUse("lm_ft", 2, [2, 4], {"all": 10.0, "steps": 6.0, "data_wait": 1.0, "compile": 3.0})],
    signal=[SIGNAL],
    counts={"lm_ft truncated_chunks": 3},
    licences=[Origin("language model", "lab/small", "mit", "its card")],
    questions=QUESTIONS,
    passages=PASSAGES,
    num_questions=5,
    calibration=[Calibration("", "radit", [CalibrationBin(0.5, 0.75, 5, 0.6, 0.4)], 0.2)],
    lengths=[AnswerLengths("", "gold", {2: 5}, None), AnswerLengths("", "radit", {1: 2, 2: 3}, 1)],
    recall=[
        RecallCurve("", "base", "answer", [0.4, 0.6], 5),
        RecallCurve("", "r_ft", "answer", [0.6, 0.8], 5),
    ],
    differences=[SettingDifference("r_ft.tau", 0.02, 0.01)],
)
BARE_RUN = RunData(
    workdir="runs/begun",
    experiment="begun",
    results={},
    stages=RUN.stages[:1],
    series=[],
    time_use=[],
    signal=[],
    counts={},
    licences=[],
    lacks=["Nothing was evaluated yet: run `radit run EXPERIMENT --stage=evaluate`."],
)
