"""Where each dataset is read from: its publisher's files, and the Hugging Face hub.

Both tables say which function of `formats` or `hub_formats` reads a record; the paper's table of datasets is
in `datasets`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Literal

from etils import epath

from radit_jax.data.finetuning import formats, hub_formats, raw
from radit_jax.data.finetuning.items import Items
from radit_jax.data.finetuning.raw import Record

Split = Literal["train", "dev", "test"]
# The hub's names of splits, by ours.
TRAIN_DEV: dict[Split, str] = {"train": "train", "dev": "validation"}
TRAIN_TEST: dict[Split, str] = {"train": "train", "test": "test"}
ALL_SPLITS: dict[Split, str] = {**TRAIN_DEV, "test": "test"}


@dataclass(frozen=True)
class Raw:
    """A dataset as its publisher distributes it."""

    url: str
    files: Mapping[Split, str]  # by split, a pattern under the dataset's folder; each may end in .gz
    records: Callable[[epath.Path], Iterator[Record]]
    items: Callable[[Any, str], Items]
    form: str  # of one record, for messages
    split_field: str = ""  # where one file holds all splits, the field that says which
    split_names: Mapping[str, str] = field(default_factory=dict)  # where that field says it differently
    joined_with: tuple[str, ...] = ()  # patterns of further files, from the folder of all datasets


@dataclass(frozen=True)
class Hub:
    """The same dataset on the Hugging Face hub."""

    id: str
    items: Callable[[Any, str], Items]
    fields: tuple[str, ...]  # those that are read
    splits: Mapping[Split, str]  # the hub's names of our splits
    configs: tuple[str | None, ...] = (None,)
    group: Callable[[Iterable[Any]], Iterable[Any]] = iter  # rows to records


# ---- the publishers' files ----

RAW = {
    # Dialogue.
    "oasst1": Raw(
        "https://huggingface.co/datasets/OpenAssistant/oasst1",
        {"train": "*tree*.jsonl"},  # the publisher divides it on the hub only
        raw.json_lines,
        formats.oasst1,
        '{"prompt": {"message_id", "role", "text", "deleted", "review_result", "replies"}}',
    ),
    # Open-domain questions.
    "commonsense_qa": Raw(
        "https://www.tau-nlp.org/commonsenseqa",
        {"train": "train_rand_split.jsonl", "dev": "dev_rand_split.jsonl"},
        raw.json_lines,
        formats.commonsense_qa,
        '{"id", "question": {"stem", "choices": [{"label", "text"}]}, "answerKey"}',
    ),
    "math_qa": Raw(
        "https://math-qa.github.io",
        {"train": "train.json", "dev": "dev.json", "test": "test.json"},
        raw.json_elements,
        formats.math_qa,
        '{"Problem", "options", "correct"}',
    ),
    "web_questions": Raw(
        "https://nlp.stanford.edu/software/sempre",
        {"train": "webquestions.examples.train.json", "test": "webquestions.examples.test.json"},
        raw.json_elements,
        formats.web_questions,
        '{"utterance", "targetValue": "(list (description …))"}',
    ),
    "wiki_qa": Raw(
        "https://www.microsoft.com/en-us/download/details.aspx?id=52419",
        {"train": "WikiQA-train.tsv", "dev": "WikiQA-dev.tsv", "test": "WikiQA-test.tsv"},
        raw.tsv_rows,
        formats.wiki_qa,
        "columns QuestionID, Question, SentenceID, Sentence, Label",
    ),
    "yahoo_answers_qa": Raw(
        "https://ciir.cs.umass.edu/downloads/nfL6",
        {"train": "nfL6.json"},
        raw.json_elements,
        formats.yahoo_answers_qa,
        '{"id", "question", "answer"}',
    ),
    "freebase_qa": Raw(
        "https://github.com/kelvin-jiang/FreebaseQA",
        {"train": "FreebaseQA-train.json", "dev": "FreebaseQA-dev.json", "test": "FreebaseQA-eval.json"},
        partial(raw.json_elements, key="Questions"),
        formats.freebase_qa,
        '{"Question-ID", "RawQuestion", "Parses": [{"Answers": [{"AnswersName"}]}]}',
    ),
    "ms_marco": Raw(
        "https://microsoft.github.io/msmarco",
        {"train": "train_v1.1.json", "dev": "dev_v1.1.json", "test": "test_hidden_v1.1.json"},
        raw.json_lines,
        formats.ms_marco,
        '{"query_id", "query", "answers"}',
    ),
    # Reading comprehension.
    "coqa": Raw(
        "https://stanfordnlp.github.io/coqa",
        {"train": "coqa-train-v1.0.json", "dev": "coqa-dev-v1.0.json"},
        partial(raw.json_elements, key="data"),
        formats.coqa,
        '{"id", "story", "questions": [{"input_text"}], "answers": [{"input_text"}]}',
    ),
    "drop": Raw(
        "https://allenai.org/data/drop",
        {"train": "drop_dataset_train.json", "dev": "drop_dataset_dev.json"},
        raw.json_elements,
        formats.drop,
        '{"passage", "qa_pairs": [{"query_id", "question", "answer": {"number", "date", "spans"}}]}',
    ),
    "narrativeqa": Raw(
        "https://github.com/google-deepmind/narrativeqa",
        {"train": "qaps.csv", "dev": "qaps.csv", "test": "qaps.csv"},
        raw.joined_narrativeqa,
        formats.narrativeqa,
        "columns document_id, set, question, answer1, answer2, and a summary of the document",
        split_field="set",
        split_names={"dev": "valid"},
        joined_with=("narrativeqa/third_party/wikipedia/summaries.csv",),
    ),
    "newsqa": Raw(
        "https://github.com/Maluuba/newsqa",
        dict.fromkeys(("train", "dev", "test"), "combined-newsqa-data-v1.json"),
        partial(raw.json_elements, key="data"),
        formats.newsqa,
        '{"storyId", "type", "text", "questions": [{"q", "consensus": {"s", "e"}}]}',
        split_field="type",
    ),
    "pubmed_qa": Raw(
        "https://pubmedqa.github.io",
        {"train": "ori_pqal.json"},
        raw.json_elements,
        formats.pubmed_qa,
        '{"QUESTION", "CONTEXTS", "final_decision"}',
    ),
    "quail": Raw(
        "https://github.com/text-machine-lab/quail",
        {"train": "quail_*train*.xml", "dev": "quail_*dev*.xml"},
        partial(raw.xml_elements, tag="text"),
        formats.quail,
        '<text id><text_body/><q id>…<a correct="True">…</a></q></text>',
    ),
    "quarel": Raw(
        "https://allenai.org/data/quarel",
        {"train": "quarel-v1-train.jsonl", "dev": "quarel-v1-dev.jsonl", "test": "quarel-v1-test.jsonl"},
        raw.json_lines,
        formats.quarel,
        '{"id", "question": "… (A) … (B) …", "answer_index"}',
    ),
    "squad_v2": Raw(
        "https://rajpurkar.github.io/SQuAD-explorer",
        {"train": "train-v2.0.json", "dev": "dev-v2.0.json"},
        partial(raw.json_elements, key="data"),
        formats.squad_v2,
        '{"paragraphs": [{"context", "qas": [{"id", "question", "answers", "is_impossible"}]}]}',
    ),
    # Summarisation.
    "cnn_dailymail": Raw(
        "https://cs.nyu.edu/~kcho/DMQA",
        {
            "train": "url_lists/all_train.txt",
            "dev": "url_lists/all_val.txt",
            "test": "url_lists/all_test.txt",
        },
        raw.listed_stories,
        formats.cnn_dailymail,
        "an article and its @highlight sections",
        joined_with=("cnn_dailymail/cnn/stories/*.story", "cnn_dailymail/dailymail/stories/*.story"),
    ),
    # Chain of thought.
    "aqua_rat": Raw(
        "https://github.com/google-deepmind/AQuA",
        {"train": "train.json", "dev": "dev.json", "test": "test.json"},
        raw.json_lines,
        formats.aqua_rat,
        '{"question", "options": ["A)…"], "rationale", "correct"}',
    ),
    "ecqa": Raw(
        "https://github.com/dair-iitd/ECQA-Dataset",
        {
            "train": "author_split/train_ids.txt",
            "dev": "author_split/val_ids.txt",
            "test": "author_split/test_ids.txt",
        },
        raw.joined_ecqa,
        formats.ecqa,
        '{"id", "explanation"} and the question of CommonsenseQA',
        joined_with=(
            "ecqa/ecqa.jsonl",
            "commonsense_qa/train_rand_split.jsonl",
            "commonsense_qa/dev_rand_split.jsonl",
        ),
    ),
    "gsm8k": Raw(
        "https://github.com/openai/grade-school-math",
        {"train": "train.jsonl", "test": "test.jsonl"},
        raw.json_lines,
        formats.gsm8k,
        '{"question", "answer": "… #### …"}',
    ),
    "competition_math": Raw(
        "https://github.com/hendrycks/math",
        {"train": "train/*/*.json", "test": "test/*/*.json"},
        raw.json_file,
        formats.competition_math,
        '{"problem", "solution"}',
    ),
    "strategyqa": Raw(
        "https://allenai.org/data/strategyqa",
        {"train": "strategyqa_train.json"},
        raw.json_elements,
        formats.strategyqa,
        '{"qid", "question", "answer": true or false, "facts": […]}',
    ),
}

# ---- the Hugging Face hub ----

HUB = {
    # Dialogue.
    "oasst1": Hub(
        "OpenAssistant/oasst1",
        formats.oasst1,
        ("message_id", "parent_id", "role", "text", "deleted", "review_result"),
        TRAIN_DEV,
        group=hub_formats.oasst1_trees,
    ),
    # Open-domain questions.
    "commonsense_qa": Hub(
        "tau/commonsense_qa",
        hub_formats.commonsense_qa_hub,
        ("id", "question", "choices", "answerKey"),
        TRAIN_DEV,
    ),
    "math_qa": Hub("allenai/math_qa", formats.math_qa, ("Problem", "options", "correct"), ALL_SPLITS),
    "web_questions": Hub(
        "stanfordnlp/web_questions", hub_formats.web_questions_hub, ("question", "answers"), TRAIN_TEST
    ),
    "wiki_qa": Hub("microsoft/wiki_qa", hub_formats.wiki_qa_hub, ("question", "answer", "label"), ALL_SPLITS),
    "yahoo_answers_qa": Hub(
        "yahoo_answers_qa",
        formats.yahoo_answers_qa,
        ("id", "question", "answer"),
        {"train": "train"},
    ),
    "freebase_qa": Hub(
        "KelvinJiang/freebase_qa",
        hub_formats.freebase_qa_hub,
        ("Question-ID", "RawQuestion", "Parses"),
        ALL_SPLITS,
    ),
    "ms_marco": Hub(
        "microsoft/ms_marco", formats.ms_marco, ("query_id", "query", "answers"), TRAIN_DEV, configs=("v1.1",)
    ),
    # Reading comprehension.
    "coqa": Hub("stanfordnlp/coqa", hub_formats.coqa_hub, ("story", "questions", "answers"), TRAIN_DEV),
    "drop": Hub(
        "ucinlp/drop", hub_formats.drop_hub, ("query_id", "passage", "question", "answers_spans"), TRAIN_DEV
    ),
    "narrativeqa": Hub(
        "deepmind/narrativeqa", hub_formats.narrativeqa_hub, ("document", "question", "answers"), ALL_SPLITS
    ),
    "newsqa": Hub(
        "lucadiliello/newsqa", hub_formats.newsqa_hub, ("key", "context", "question", "answers"), TRAIN_DEV
    ),
    "pubmed_qa": Hub(
        "qiaojin/PubMedQA",
        hub_formats.pubmed_qa_hub,
        ("pubid", "question", "context", "final_decision"),
        {"train": "train"},
        configs=("pqa_labeled",),
    ),
    "quail": Hub(
        "textmachinelab/quail",
        hub_formats.quail_hub,
        ("id", "context", "question", "answers", "correct_answer_id"),
        TRAIN_DEV,
    ),
    "quarel": Hub(
        "community-datasets/quarel", formats.quarel, ("id", "question", "answer_index"), ALL_SPLITS
    ),
    "squad_v2": Hub(
        "rajpurkar/squad_v2", hub_formats.squad_v2_hub, ("id", "context", "question", "answers"), TRAIN_DEV
    ),
    # Summarisation.
    "cnn_dailymail": Hub(
        "abisee/cnn_dailymail",
        hub_formats.cnn_dailymail_hub,
        ("id", "article", "highlights"),
        ALL_SPLITS,
        configs=("3.0.0",),
    ),
    # Chain of thought.
    "aqua_rat": Hub(
        "deepmind/aqua_rat",
        formats.aqua_rat,
        ("question", "options", "rationale", "correct"),
        ALL_SPLITS,
        configs=("raw",),
    ),
    "ecqa": Hub(
        "yangdong/ecqa",
        hub_formats.ecqa_hub,
        ("q_no", "q_text", "q_op1", "q_op2", "q_op3", "q_op4", "q_op5", "q_ans", "taskB"),
        ALL_SPLITS,
    ),
    "gsm8k": Hub("openai/gsm8k", formats.gsm8k, ("question", "answer"), TRAIN_TEST, configs=("main",)),
    "competition_math": Hub(
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
    "strategyqa": Hub(
        "havens2/strategyQA_train",
        formats.strategyqa,
        ("qid", "question", "answer", "facts"),
        {"train": "train"},
    ),
}
