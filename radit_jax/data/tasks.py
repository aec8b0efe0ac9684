"""The 22 datasets of D_L and D_R: one table, and one function that reads any of them.

    for item in read_items(TASKS["gsm8k"], "data/raw/gsm8k", "train"):
        …

A dataset is read from its publisher's files, or from the hub. Numbers of training examples and membership in
D_L and D_R are those of the tables of arXiv 2310.01352.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, Literal

from etils import epath

from radit_jax.data import formats, raw
from radit_jax.data.formats import Items, Skip
from radit_jax.data.raw import Record
from radit_jax.data.records import Item

Category = Literal["dialogue", "open_qa", "reading", "summary", "chain_of_thought"]
Metric = Literal["exact_match", "f1", "rouge_l"]
Mixture = Literal["lm_ft", "r_ft"]
OnError = Literal["stop", "skip"]
Split = Literal["train", "dev", "test"]

UNREADABLE = "unreadable"  # the reason for skipping what does not have the official form


@dataclass(frozen=True)
class Raw:
    """A dataset as its publisher distributes it."""

    url: str
    files: Mapping[str, str]  # by split, a pattern under the dataset's folder; each may end in .gz
    records: Callable[[epath.Path], Iterator[Record]]
    items: Callable[[Any, str], Items]
    form: str  # of one record, for messages
    split_field: str = ""  # where one file holds all splits, the field that says which
    split_names: Mapping[str, str] = field(default_factory=dict)  # where that field says it differently


@dataclass(frozen=True)
class Hub:
    """The same dataset on the Hugging Face hub."""

    id: str
    items: Callable[[Any, str], Items]
    fields: tuple[str, ...]  # those that are read
    splits: Mapping[str, str]  # the hub's names of our splits
    configs: tuple[str | None, ...] = (None,)
    group: Callable[[Iterable[Any]], Iterable[Any]] = iter  # rows to records


@dataclass(frozen=True)
class Task:
    """A fine-tuning dataset."""

    name: str
    category: Category
    mixtures: tuple[Mixture, ...]  # D_L is lm_ft's, D_R is r_ft's
    train_size: int  # the paper's count
    metric: Metric  # what its development examples are judged by (our choice)
    raw: Raw
    hub: Hub

    def category_in(self, mixture: Mixture) -> Category:
        """In D_R the context of reading comprehension is left to retrieval (our reading of the paper)."""
        return "open_qa" if mixture == "r_ft" and self.category == "reading" else self.category


BOTH: tuple[Mixture, ...] = ("lm_ft", "r_ft")
LM_FT: tuple[Mixture, ...] = ("lm_ft",)
R_FT: tuple[Mixture, ...] = ("r_ft",)
TRAIN_DEV = {"train": "train", "dev": "validation"}
TRAIN_TEST = {"train": "train", "test": "test"}

_TABLE = (
    Task(
        "oasst1",
        "dialogue",
        BOTH,
        31_598,
        "rouge_l",
        Raw(
            "https://huggingface.co/datasets/OpenAssistant/oasst1",
            {"train": "*tree*.jsonl"},  # one file: the publisher divides it on the hub only
            raw.json_lines,
            formats.oasst1,
            '{"prompt": {"message_id", "role", "text", "deleted", "review_result", "replies"}}',
        ),
        Hub(
            "OpenAssistant/oasst1",
            formats.oasst1,
            ("message_id", "parent_id", "role", "text", "deleted", "review_result"),
            TRAIN_DEV,
            group=formats.oasst1_trees,
        ),
    ),
    Task(
        "commonsense_qa",
        "open_qa",
        BOTH,
        9_741,
        "exact_match",
        Raw(
            "https://www.tau-nlp.org/commonsenseqa",
            {"train": "train_rand_split.jsonl", "dev": "dev_rand_split.jsonl"},
            raw.json_lines,
            formats.commonsense_qa,
            '{"id", "question": {"stem", "choices": [{"label", "text"}]}, "answerKey"}',
        ),
        Hub(
            "tau/commonsense_qa",
            formats.commonsense_qa_hub,
            ("id", "question", "choices", "answerKey"),
            TRAIN_DEV,
        ),
    ),
    Task(
        "math_qa",
        "open_qa",
        BOTH,
        29_837,
        "exact_match",
        Raw(
            "https://math-qa.github.io",
            {"train": "train.json", "dev": "dev.json", "test": "test.json"},
            raw.json_elements,
            formats.math_qa,
            '{"Problem", "options", "correct"}',
        ),
        Hub(
            "allenai/math_qa",
            formats.math_qa,
            ("Problem", "options", "correct"),
            {**TRAIN_DEV, "test": "test"},
        ),
    ),
    Task(
        "web_questions",
        "open_qa",
        BOTH,
        3_778,
        "exact_match",
        Raw(
            "https://nlp.stanford.edu/software/sempre",
            {"train": "webquestions.examples.train.json", "test": "webquestions.examples.test.json"},
            raw.json_elements,
            formats.web_questions,
            '{"utterance", "targetValue": "(list (description …))"}',
        ),
        Hub(
            "stanfordnlp/web_questions", formats.web_questions_hub, ("question", "answers"), TRAIN_TEST
        ),
    ),
    Task(
        "wiki_qa",
        "open_qa",
        BOTH,
        20_360,  # candidate sentences; those with label 1 are kept
        "rouge_l",
        Raw(
            "https://www.microsoft.com/en-us/download/details.aspx?id=52419",
            {"train": "WikiQA-train.tsv", "dev": "WikiQA-dev.tsv", "test": "WikiQA-test.tsv"},
            raw.tsv_rows,
            formats.wiki_qa,
            "columns QuestionID, Question, SentenceID, Sentence, Label",
        ),
        Hub(
            "microsoft/wiki_qa",
            formats.wiki_qa_hub,
            ("question", "answer", "label"),
            {**TRAIN_DEV, "test": "test"},
        ),
    ),
    Task(
        "yahoo_answers_qa",
        "open_qa",
        BOTH,
        87_362,
        "rouge_l",
        Raw(
            "https://ciir.cs.umass.edu/downloads/nfL6",
            {"train": "nfL6.json"},
            raw.json_elements,
            formats.yahoo_answers_qa,
            '{"id", "question", "answer", "nbestanswers"}',
        ),
        Hub(
            "yahoo_answers_qa",
            formats.yahoo_answers_qa,
            ("id", "question", "answer", "nbestanswers"),
            {"train": "train"},
        ),
    ),
    Task(
        "freebase_qa",
        "open_qa",
        R_FT,
        20_358,
        "exact_match",
        Raw(
            "https://github.com/kelvin-jiang/FreebaseQA",
            {"train": "FreebaseQA-train.json", "dev": "FreebaseQA-dev.json", "test": "FreebaseQA-eval.json"},
            partial(raw.json_elements, key="Questions"),
            formats.freebase_qa,
            '{"Question-ID", "RawQuestion", "Parses": [{"Answers": [{"AnswersName"}]}]}',
        ),
        Hub(
            "microsoft/freebase_qa",
            formats.freebase_qa_hub,
            ("Question-ID", "RawQuestion", "Parses"),
            {**TRAIN_DEV, "test": "test"},
        ),
    ),
    Task(
        "ms_marco",
        "open_qa",
        R_FT,
        80_143,  # questions with an answer
        "rouge_l",
        Raw(
            "https://microsoft.github.io/msmarco",
            {"train": "train_v1.1.json", "dev": "dev_v1.1.json", "test": "test_hidden_v1.1.json"},
            raw.json_lines,
            formats.ms_marco,
            '{"query_id", "query", "answers"}',
        ),
        Hub(
            "microsoft/ms_marco",
            formats.ms_marco,
            ("query_id", "query", "answers"),
            TRAIN_DEV,
            configs=("v1.1",),
        ),
    ),
    Task(
        "coqa",
        "reading",
        LM_FT,
        108_647,
        "f1",
        Raw(
            "https://stanfordnlp.github.io/coqa",
            {"train": "coqa-train-v1.0.json", "dev": "coqa-dev-v1.0.json"},
            partial(raw.json_elements, key="data"),
            formats.coqa,
            '{"id", "story", "questions": [{"input_text"}], "answers": [{"input_text"}]}',
        ),
        Hub("stanfordnlp/coqa", formats.coqa_hub, ("story", "questions", "answers"), TRAIN_DEV),
    ),
    Task(
        "drop",
        "reading",
        LM_FT,
        77_400,
        "f1",
        Raw(
            "https://allenai.org/data/drop",
            {"train": "drop_dataset_train.json", "dev": "drop_dataset_dev.json"},
            raw.json_elements,
            formats.drop,
            '{"passage", "qa_pairs": [{"query_id", "question", "answer": {"number", "date", "spans"}}]}',
        ),
        Hub(
            "ucinlp/drop",
            formats.drop_hub,
            ("query_id", "passage", "question", "answers_spans"),
            TRAIN_DEV,
        ),
    ),
    Task(
        "narrativeqa",
        "reading",
        LM_FT,
        32_747,
        "rouge_l",
        Raw(
            "https://github.com/google-deepmind/narrativeqa",
            {"train": "qaps.csv", "dev": "qaps.csv", "test": "qaps.csv"},
            raw.joined_narrativeqa,
            formats.narrativeqa,
            "columns document_id, set, question, answer1, answer2, and a summary of the document",
            split_field="set",
            split_names={"dev": "valid"},
        ),
        Hub(
            "deepmind/narrativeqa",
            formats.narrativeqa_hub,
            ("document", "question", "answers"),
            {**TRAIN_DEV, "test": "test"},
        ),
    ),
    Task(
        "newsqa",
        "reading",
        LM_FT,
        74_160,  # as MRQA filtered it, which is the hub's form
        "f1",
        Raw(
            "https://github.com/Maluuba/newsqa",
            dict.fromkeys(("train", "dev", "test"), "combined-newsqa-data-v1.json"),
            partial(raw.json_elements, key="data"),
            formats.newsqa,
            '{"storyId", "type", "text", "questions": [{"q", "consensus": {"s", "e"}}]}',
            split_field="type",
        ),
        Hub("lucadiliello/newsqa", formats.newsqa_hub, ("key", "context", "question", "answers"), TRAIN_DEV),
    ),
    Task(
        "pubmed_qa",
        "reading",
        BOTH,
        1_000,
        "exact_match",
        Raw(
            "https://pubmedqa.github.io",
            {"train": "ori_pqal.json"},
            raw.json_elements,
            formats.pubmed_qa,
            '{"QUESTION", "CONTEXTS", "final_decision"}',
        ),
        Hub(
            "qiaojin/PubMedQA",
            formats.pubmed_qa_hub,
            ("pubid", "question", "context", "final_decision"),
            {"train": "train"},
            configs=("pqa_labeled",),
        ),
    ),
    Task(
        "quail",
        "reading",
        LM_FT,
        10_246,
        "exact_match",
        Raw(
            "https://github.com/text-machine-lab/quail",
            {"train": "quail_*train*.xml", "dev": "quail_*dev*.xml"},
            partial(raw.xml_elements, tag="text"),
            formats.quail,
            '<text id><text_body/><q id>…<a correct="True">…</a></q></text>',
        ),
        Hub(
            "textmachinelab/quail",
            formats.quail_hub,
            ("id", "context", "question", "answers", "correct_answer_id"),
            TRAIN_DEV,
        ),
    ),
    Task(
        "quarel",
        "reading",
        BOTH,
        1_941,
        "exact_match",
        Raw(
            "https://allenai.org/data/quarel",
            {"train": "quarel-v1-train.jsonl", "dev": "quarel-v1-dev.jsonl", "test": "quarel-v1-test.jsonl"},
            raw.json_lines,
            formats.quarel,
            '{"id", "question": "… (A) … (B) …", "answer_index"}',
        ),
        Hub(
            "community-datasets/quarel",
            formats.quarel,
            ("id", "question", "answer_index"),
            {**TRAIN_DEV, "test": "test"},
        ),
    ),
    Task(
        "squad_v2",
        "reading",
        LM_FT,
        130_319,
        "f1",
        Raw(
            "https://rajpurkar.github.io/SQuAD-explorer",
            {"train": "train-v2.0.json", "dev": "dev-v2.0.json"},
            partial(raw.json_elements, key="data"),
            formats.squad_v2,
            '{"paragraphs": [{"context", "qas": [{"id", "question", "answers", "is_impossible"}]}]}',
        ),
        Hub(
            "rajpurkar/squad_v2", formats.squad_v2_hub, ("id", "context", "question", "answers"), TRAIN_DEV
        ),
    ),
    Task(
        "cnn_dailymail",
        "summary",
        LM_FT,
        287_113,
        "rouge_l",
        Raw(
            "https://cs.nyu.edu/~kcho/DMQA",
            {
                "train": "url_lists/all_train.txt",
                "dev": "url_lists/all_val.txt",
                "test": "url_lists/all_test.txt",
            },
            raw.listed_stories,
            formats.cnn_dailymail,
            "an article and its @highlight sections",
        ),
        Hub(
            "abisee/cnn_dailymail",
            formats.cnn_dailymail_hub,
            ("id", "article", "highlights"),
            {**TRAIN_DEV, "test": "test"},
            configs=("3.0.0",),
        ),
    ),
    Task(
        "aqua_rat",
        "chain_of_thought",
        LM_FT,
        97_467,
        "exact_match",
        Raw(
            "https://github.com/google-deepmind/AQuA",
            {"train": "train.json", "dev": "dev.json", "test": "test.json"},
            raw.json_lines,
            formats.aqua_rat,
            '{"question", "options": ["A)…"], "rationale", "correct"}',
        ),
        Hub(
            "deepmind/aqua_rat",
            formats.aqua_rat,
            ("question", "options", "rationale", "correct"),
            {**TRAIN_DEV, "test": "test"},
            configs=("raw",),
        ),
    ),
    Task(
        "ecqa",
        "chain_of_thought",
        LM_FT,
        7_598,
        "exact_match",
        Raw(
            "https://github.com/dair-iitd/ECQA-Dataset",
            {
                "train": "author_split/train_ids.txt",
                "dev": "author_split/val_ids.txt",
                "test": "author_split/test_ids.txt",
            },
            raw.joined_ecqa,
            formats.ecqa,
            '{"id", "explanation"} beside the question of CommonsenseQA',
        ),
        Hub(
            "yangdong/ecqa",
            formats.ecqa_hub,
            ("q_no", "q_text", "q_op1", "q_op2", "q_op3", "q_op4", "q_op5", "q_ans", "taskB"),
            {**TRAIN_DEV, "test": "test"},
        ),
    ),
    Task(
        "gsm8k",
        "chain_of_thought",
        LM_FT,
        7_473,
        "exact_match",
        Raw(
            "https://github.com/openai/grade-school-math",
            {"train": "train.jsonl", "test": "test.jsonl"},
            raw.json_lines,
            formats.gsm8k,
            '{"question", "answer": "… #### …"}',
        ),
        Hub("openai/gsm8k", formats.gsm8k, ("question", "answer"), TRAIN_TEST, configs=("main",)),
    ),
    Task(
        "competition_math",
        "chain_of_thought",
        LM_FT,
        7_500,
        "exact_match",
        Raw(
            "https://github.com/hendrycks/math",
            {"train": "train/*/*.json", "test": "test/*/*.json"},
            raw.json_file,
            formats.competition_math,
            '{"problem", "solution"}',
        ),
        Hub(
            "EleutherAI/hendrycks_math",
            formats.competition_math,
            ("problem", "solution"),
            TRAIN_TEST,
            configs=(
                "algebra",
                "counting_and_probability",
                "geometry",
                "intermediate_algebra",
                "number_theory",
                "prealgebra",
                "precalculus",
            ),
        ),
    ),
    Task(
        "strategyqa",
        "chain_of_thought",
        LM_FT,
        2_290,
        "exact_match",
        Raw(
            "https://allenai.org/data/strategyqa",
            {"train": "strategyqa_train.json"},
            raw.json_elements,
            formats.strategyqa,
            '{"qid", "question", "answer": true or false, "facts": […]}',
        ),
        Hub(
            "havens2/strategyQA_train",
            formats.strategyqa,
            ("qid", "question", "answer", "facts"),
            {"train": "train"},
        ),
    ),
)
TASKS = {task.name: task for task in _TABLE}


def task_named(name: str) -> Task:
    """The task of that name; another name is an error that lists them."""
    if name not in TASKS:
        raise ValueError(f"task {name!r} came, needed is one of {', '.join(sorted(TASKS))}; correct the name")
    return TASKS[name]


def read_items(
    task: Task,
    folder: epath.PathLike,
    split: Split,
    *,
    on_error: OnError = "stop",
    counts: Counter[str] | None = None,
) -> Iterator[Item]:
    """The items of a split of the publisher's files in `folder`, in their order.

    `counts` gets how many were read, kept, and skipped for which reason: read = kept + the skipped. A record
    that does not have the official form stops the reading, or is skipped and counted as one question.
    """
    records = (record for file in split_files(task, folder, split) for record in task.raw.records(file))
    return _items(task, _of_split(task.raw, records, split), task.raw.items, task.raw.form, on_error, counts)


def read_rows(
    task: Task,
    rows: Iterable[Mapping[str, Any]],
    split: Split,
    *,
    on_error: OnError = "stop",
    counts: Counter[str] | None = None,
) -> Iterator[Item]:
    """The items of a split in the hub's form, of which `rows` are the dictionaries. As `read_items`."""
    grouped = enumerate(task.hub.group(rows), 1)
    records = (Record(f"{task.hub.id} {split} row {n}", f"{split}-{n}", row) for n, row in grouped)
    form = f"fields {', '.join(task.hub.fields)}"
    return _items(task, records, task.hub.items, form, on_error, counts)


def hub_rows(task: Task, split: Split) -> Iterator[Mapping[str, Any]]:
    """A split's rows from the Hugging Face hub, configuration after configuration."""
    try:
        import datasets  # optional, and slow to import
    except ImportError:
        raise ValueError(
            f"{task.name}: the hub needs the package datasets; pip install 'radit_jax[hub]', or read the "
            f"publisher's files, from {task.raw.url}"
        ) from None
    if split not in task.hub.splits:
        raise ValueError(f"{task.hub.id}: it has no {split}, needed is one of {', '.join(task.hub.splits)}")
    for config in task.hub.configs:
        try:
            rows: Any = datasets.load_dataset(task.hub.id, config, split=task.hub.splits[split])
        except Exception as error:  # of the network, of a gate, of a moved dataset: all end alike
            raise ValueError(
                f"{task.hub.id}: the hub gave {error}, needed is its {task.hub.splits[split]}; check the "
                f"network and the token, or read the publisher's files, from {task.raw.url}"
            ) from error
        yield from rows


def split_files(task: Task, folder: epath.PathLike, split: Split) -> list[epath.Path]:
    """The publisher's files of a split, in order."""
    root = epath.Path(folder)
    if split not in task.raw.files:
        raise ValueError(f"{task.name}: it has no {split}, needed is one of {', '.join(task.raw.files)}")
    pattern = task.raw.files[split]
    found = sorted(root.glob(pattern)) or sorted(root.glob(f"{pattern}.gz")) if root.exists() else []
    if not found:
        raise ValueError(
            f"{root}: no file {pattern} came, needed is the {split} part of {task.name}; "
            f"put the official one there, from {task.raw.url}"
        )
    return found


def _of_split(source: Raw, records: Iterable[Record], split: str) -> Iterator[Record]:
    wanted = source.split_names.get(split, split)
    for record in records:
        whole = not source.split_field or not isinstance(record.value, dict)
        if whole or record.value.get(source.split_field, wanted) == wanted:
            yield record


def _items(
    task: Task,
    records: Iterable[Record],
    convert: Callable[[Any, str], Items],
    form: str,
    on_error: OnError,
    counts: Counter[str] | None,
) -> Iterator[Item]:
    counts = Counter() if counts is None else counts
    problem = ""
    for record in records:
        found, what = _convert(record, convert)
        if what:
            problem = f"{record.where}: {what}, needed is {form}; get {task.name} from {task.raw.url}"
            if on_error == "stop":
                raise ValueError(f"{problem}, correct the line, or skip it with on_error='skip'")
        for item in found:
            counts["read"] += 1
            counts["kept" if isinstance(item, Item) else f"skipped: {item.reason}"] += 1
            if isinstance(item, Item):
                yield replace(item, id=f"{task.name}/{item.id}")
    if problem and counts["read"] == counts[f"skipped: {UNREADABLE}"]:
        raise ValueError(f"{problem}; no record of all {counts['read']} has this form")


def _convert(record: Record, convert: Callable[[Any, str], Items]) -> tuple[list[Item | Skip], str]:
    """What a record holds, or one `Skip` and what is wrong with it."""
    unreadable: list[Item | Skip] = [Skip(UNREADABLE)]
    if record.problem:
        return unreadable, record.problem
    try:
        return list(convert(record.value, record.name)), ""
    except KeyError as error:
        return unreadable, f"no {error} came"
    except (TypeError, ValueError, IndexError, AttributeError) as error:
        return unreadable, f"{str(record.value)[:40]!r} came ({error})"
