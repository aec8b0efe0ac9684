"""What a report shows of a run, as plain values: `run_data.read_run` fills them.

Letters of axes: K chunks that an answer is mixed over. Log-probabilities are nats.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from radit_jax.text.card import Origin


@dataclass(frozen=True)
class StageRecord:
    """What made a stage's output, by its manifest."""

    name: str  # as the table of stages has it: `base/lm`
    fingerprint: str
    settings: Mapping[str, Any]
    facts: Mapping[str, Any]  # what else the stage recorded
    commit: str | None
    versions: Mapping[str, str]  # by package
    num_bytes: int  # of its committed files
    seconds: float | None = None  # None: not recorded
    device: str | None = None  # in words; likewise


@dataclass(frozen=True)
class Series:
    """Numbers by step, of one name in a stage's metrics; means of neighbours where there are too many."""

    stage: str
    name: str  # `lm_ft` for each step, `lm_ft/speed`, `lm_ft/validation`
    steps: Sequence[int]
    times: Sequence[float]  # when, in seconds since 1970
    values: Mapping[str, Sequence[float | None]]  # by metric; None where a line does not have it


@dataclass(frozen=True)
class TimeUse:
    """Where the seconds of a training stage went, over all calls that ended by themselves."""

    stage: str
    calls: int
    ends: Sequence[int]  # the step at which each call ended
    seconds: Mapping[str, float]  # by purpose; `all` is their sum, `steps` what no other purpose took


@dataclass(frozen=True)
class Passage:
    """A passage of the corpus. The page stores each once."""

    title: str
    text: str


@dataclass(frozen=True)
class RankedChunk:
    """A chunk in a question's ranking."""

    id: str
    retrieval_prob: float | None  # p_R; None: not recorded
    lsr_prob: float | None  # p_LSR of the first gold answer, Eq. 4; None: not recorded
    answer_log_probs: Mapping[str, float]  # of the first gold answer, by language model
    holds_answer: bool
    is_gold: bool
    title_spans: Sequence[tuple[int, int]] = ()  # where the answers are in the title
    text_spans: Sequence[tuple[int, int]] = ()  # and in the text


@dataclass(frozen=True)
class CandidateRecord:
    """An answer that some chunk led to, with its probability in the mixture, Eq. 2."""

    text: str
    probability: float | None
    log_probs: Sequence[float] = ()  # under each of the K chunks; empty: not recorded


def answer_candidates(records: Sequence[Mapping[str, Any]]) -> list[CandidateRecord]:
    """Candidates as `details.jsonl` has them, or answers as `predictions.jsonl` does."""
    candidates = []
    for record in records:
        text = record["text"] if "text" in record else record["answer"]
        candidates.append(CandidateRecord(text, record["probability"], record.get("log_probs", ())))
    return candidates


@dataclass(frozen=True)
class SystemAnswer:
    """What a system answered to a question."""

    text: str
    score: float | None  # in the task's metric, exact match for the corpus' own; None: no gold answer
    is_cut: bool | None = None  # whether it has as many tokens as it may; None: not recorded
    candidates: Sequence[CandidateRecord] = ()  # the best first

    @property
    def probability(self) -> float | None:
        """Of the answer in the mixture; None: not recorded."""
        if not self.candidates:
            return None
        return self.candidates[0].probability


@dataclass(frozen=True)
class QuestionRecord:
    """A question with what was retrieved for it, and every system's answer."""

    id: str
    task: str  # empty: one of the corpus' own
    question: str
    gold: Sequence[str]
    group: str
    category: str  # of CATEGORIES
    gold_retrieved: bool | None  # whether R-ft found a gold chunk, or one with an answer; None: no matter
    chunks: Mapping[str, Sequence[RankedChunk]]  # by retriever, the best first
    systems: Mapping[str, SystemAnswer]
    answer_tokens: Mapping[str, int]  # of the first gold answer, by language model
    has_gold_chunk: bool  # whether a gold chunk is known


CATEGORIES = {
    "gained": "wrong before, right after",
    "lost": "right before, wrong after",
    "wrong": "wrong before and after",
    "right": "right before and after",
    "unknown": "not answered, or without gold answers",
}


@dataclass(frozen=True)
class CalibrationBin:
    """Answers whose probability lies in one range."""

    low: float
    high: float
    count: int
    probability: float  # their mean
    score: float  # the share of them that are right


@dataclass(frozen=True)
class Calibration:
    """A system's probability of its answers against their being right."""

    task: str
    system: str
    bins: Sequence[CalibrationBin]  # without the empty ones
    error: float  # the mean over answers of their bins' |probability − score|


@dataclass(frozen=True)
class AnswerLengths:
    """How long a system's answers are, in words."""

    task: str
    system: str  # or `gold`: the first gold answers
    counts: Mapping[int, int]  # answers by their number of words
    cut: int | None  # answers cut at `max_new_tokens`; None: not recorded


@dataclass(frozen=True)
class RecallCurve:
    """The share of questions that have a hit among their first k chunks, for k from 1."""

    task: str
    retriever: str
    of: str  # `gold`: a gold chunk; `answer`: a chunk that holds an answer
    recall: Sequence[float]
    num_questions: int


@dataclass(frozen=True)
class SettingDifference:
    """A setting that is not the paper's."""

    name: str
    value: Any
    paper: Any


@dataclass(frozen=True)
class RunData:
    """A run, as its workdir says it."""

    workdir: str
    experiment: str  # its name
    results: Mapping[str, Any]  # `results.json`; empty before evaluation
    stages: Sequence[StageRecord]
    series: Sequence[Series]
    time_use: Sequence[TimeUse]
    signal: Sequence[Mapping[str, Any]]  # what LSR's labels can teach, a record a round
    counts: Mapping[str, int]  # what was cut or left out, by name, over all stages
    licences: Sequence[Origin]
    questions: Sequence[QuestionRecord] = ()
    passages: Mapping[str, Passage] = field(default_factory=dict)  # by the chunk's id
    num_questions: int = 0  # that were asked; more than `questions`, where these are a sample
    calibration: Sequence[Calibration] = ()
    lengths: Sequence[AnswerLengths] = ()
    recall: Sequence[RecallCurve] = ()
    # Of the last run, by path; of an older version those that its manifests have.
    settings: Mapping[str, Any] = field(default_factory=dict)
    differences: Sequence[SettingDifference] = ()
    runs: Sequence[Mapping[str, Any]] = ()  # lines of `runs.jsonl`: command, machine, how each run ended
    lacks: Sequence[str] = ()  # what an older or unfinished run does not have, a sentence each

    @property
    def is_sample(self) -> bool:
        """Whether some of the questions are left out."""
        return len(self.questions) < self.num_questions
