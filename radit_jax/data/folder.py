"""A folder of real text: passages cut into chunks, and questions divided into train, dev and test.

    passages.jsonl          {"id": "p7", "title": "Emma", "text": "Emma is a novel by Jane Austen …"}
    questions_train.jsonl   {"id": "q1", "question": "Who wrote Emma?", "answers": ["Jane Austen"],
    questions_dev.jsonl      "positive_passage_ids": ["p7"]}      (optional, or "positive_passage_id": "p7")

Other fields are ignored. Other forms of corpus and questions are in `documents.py` and `questions.py`; a file
of another name is found where its form has a name of its own, or named by `data.passages_file`,
`data.train_file` and `data.test_file`. `questions_dev.jsonl` is the test part: the dev part, with which
checkpoints are chosen, is held out of the train questions. Instead of the two files there may be one
`questions.jsonl`, of which a tenth becomes the test part. Both parts are held out by gold passage: questions
on one passage, or on passages linked by a question, stay on one side.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from etils import epath

from radit_jax.config import Folder
from radit_jax.data.corpus import SPLITS, CorpusData
from radit_jax.data.documents import (
    Passages,
    UniqueIds,
    corpus_format,
    find_corpus,
    read_documents,
    split_document,
)
from radit_jax.data.questions import Asked, read_questions
from radit_jax.data.records import Chunk, Question
from radit_jax.text.metrics import contains_answer, is_yes_no

PASSAGES = "passages.jsonl"
TRAIN = "questions_train.jsonl"
TEST = "questions_dev.jsonl"
SINGLE = "questions.jsonl"
BEIR = ("qrels/train.tsv", "qrels/test.tsv")
HELD_OUT = 0.1  # the share of the questions that a held-out part is drawn from


def folder_files(settings: Folder) -> tuple[epath.Path, ...]:
    """The files that `read` reads: the passages, then one or two files of questions."""
    root = epath.Path(settings.folder)
    passages = root / settings.passages_file if settings.passages_file else find_corpus(root)
    files = (passages or root / PASSAGES, *(root / name for name in _question_files(settings, root)))
    missing = [os.path.relpath(file, root) for file in files if not file.exists()]
    if missing:
        raise ValueError(
            f"data folder {root}: no {' and no '.join(missing)}; needed are {PASSAGES} with {TRAIN} "
            f"and {TEST}, or with {SINGLE}; name a folder that has them by --set data.folder=PATH, or files "
            "of other names by data.passages_file, data.train_file and data.test_file"
        )
    return files


def _question_files(settings: Folder, root: epath.Path) -> tuple[str, ...]:
    if settings.test_file and not settings.train_file:
        raise ValueError(
            f"data.test_file: {settings.test_file!r} came without data.train_file, needed are both; "
            "name the train questions too, or them alone and a tenth becomes the test part"
        )
    if settings.train_file:
        return tuple(filter(None, (settings.train_file, settings.test_file)))
    if (root / TRAIN).exists() or (root / TEST).exists():
        return (TRAIN, TEST)
    return BEIR if (root / "queries.jsonl").exists() else (SINGLE,)


def read(settings: Folder, seed: int) -> CorpusData:
    """Read, check, split and draw: the same files, settings and seed give the same data.

    The passages are read once here, for what the questions need of them, and again by who iterates over the
    result's chunks: the corpus is never in memory.
    """
    passages_file, *question_files = folder_files(settings)
    counts: Counter[str] = Counter()
    parts = _split(_read_questions(question_files, settings.questions_format, counts), seed)
    drawn: dict[str, list[Asked]] = {}
    for part in SPLITS:
        size = getattr(settings, f"{part}_questions")
        if size < 1:
            raise ValueError(f"data.{part}_questions: {size} came, needed is one at least; raise it")
        if not parts[part]:
            raise ValueError(
                f"data folder {settings.folder}: no {part} questions after the split by gold passage; "
                "needed is at least one of each part; add questions on other passages"
            )
        drawn[part] = _draw(parts[part], size, _generator(seed, f"draw {part}"))
    if all(is_yes_no(asked.question.answers) for asked in drawn["dev"]):
        raise ValueError(
            f"data folder {settings.folder}: {len(drawn['dev'])} dev questions came, all answered by yes or "
            "no, needed is one that a chunk can answer, to choose R-ft's checkpoint by; raise "
            "data.dev_questions, or add other train questions, of which they are held out"
        )
    wanted = {passage for asked in drawn.values() for a in asked for passage in a.passages}
    passages, chunks_of = _scan(passages_file, settings, wanted, counts)
    questions = {part: [_with_gold(a, chunks_of, counts) for a in asked] for part, asked in drawn.items()}
    return CorpusData(passages, questions, counts=dict(counts))


def _scan(
    path: epath.Path, settings: Folder, wanted: set[str], counts: Counter[str]
) -> tuple[Passages, dict[str, tuple[Chunk, ...]]]:
    """Check and count the passages; the chunks of those in `wanted`, by the passage's id."""
    form = corpus_format(path) if settings.passages_format == "auto" else settings.passages_format
    chunks_of: dict[str, tuple[Chunk, ...]] = {}
    num_chunks = 0
    with UniqueIds() as ids:
        for document in read_documents(path, form):
            chunks = split_document(document, settings.max_words)
            ids.add(document.id)
            num_chunks += len(chunks)
            if document.id in wanted:
                chunks_of[document.id] = chunks
            counts["passages"] += 1
            counts["passages_split"] += len(chunks) > 1
            counts["passages_skipped_without_text"] += not chunks
        ids.check(lambda: read_documents(path, form))
    if not num_chunks:
        raise ValueError(
            f"{path}: no passage with text came, needed is a corpus to retrieve from; write one per line"
        )
    return Passages(path, form, settings.max_words, num_chunks), chunks_of


def _read_questions(paths: Sequence[epath.Path], format: str, counts: Counter[str]) -> list[list[Asked]]:
    """The questions of each file, each with the group that its gold passages put it into."""
    seen: dict[str, str] = {}
    files: list[list[Asked]] = []
    for path in paths:
        files.append([])
        for asked in read_questions(path, format):
            question = asked.question
            if question.id in seen:
                raise ValueError(
                    f"{asked.where}: id {question.id!r} came before, at {seen[question.id]}; make ids unique"
                )
            seen[question.id] = asked.where
            files[-1] += [asked] if question.answers else []
            counts["questions"] += 1
            counts["questions_skipped_without_answer"] += not question.answers
    return _grouped(files)


def _grouped(files: Sequence[Sequence[Asked]]) -> list[list[Asked]]:
    """The questions with their groups: those linked by gold passages share one, the others have their own."""
    leader: dict[str, str] = {}

    def find(passage: str) -> str:
        while leader.setdefault(passage, passage) != passage:
            passage = leader[passage]
        return passage

    for asked in (asked for file in files for asked in file):
        for passage in asked.passages[1:]:
            leader[find(passage)] = find(asked.passages[0])

    def group(asked: Asked) -> str:
        return f"passage {find(asked.passages[0])}" if asked.passages else f"question {asked.question.id}"

    return [[a._replace(question=replace(a.question, group=group(a))) for a in file] for file in files]


def _split(files: Sequence[Sequence[Asked]], seed: int) -> dict[str, Sequence[Asked]]:
    if len(files) == 1:
        files = _hold_out(files[0], _generator(seed, "hold out test"))
    train, test = files
    train, dev = _hold_out(train, _generator(seed, "hold out dev"))
    return {"train": train, "dev": dev, "test": test}


def _hold_out(asked: Sequence[Asked], generator: np.random.Generator) -> tuple[list[Asked], list[Asked]]:
    """The questions that stay and a tenth that does not, whole groups in random order as far as they fit."""
    sizes = Counter(a.question.group for a in asked)
    room = max([round(HELD_OUT * len(asked)), *sorted(sizes.values())[:1]])
    held: set[str] = set()
    for group in generator.permutation(list(sizes)).tolist():
        if sizes[group] <= room:
            held.add(group)
            room -= sizes[group]
    return [a for a in asked if a.question.group not in held], [a for a in asked if a.question.group in held]


def _draw(asked: Sequence[Asked], size: int, generator: np.random.Generator) -> list[Asked]:
    """At most `size` of the questions, in their order; a larger draw contains a smaller one."""
    return [asked[n] for n in sorted(generator.permutation(len(asked))[:size].tolist())]


def _with_gold(asked: Asked, chunks_of: Mapping[str, tuple[Chunk, ...]], counts: Counter[str]) -> Question:
    """The question with its gold chunks: those of its gold passages that contain an answer.

    A yes/no question has none, because containing "no" answers nothing.
    """
    question = asked.question
    yes_no = is_yes_no(question.answers)
    chunks = [chunk for passage in asked.passages for chunk in chunks_of.get(passage, ())]
    gold = [c.id for c in chunks if not yes_no and contains_answer(c.passage, question.answers)]
    counts["drawn_questions_yes_no"] += yes_no
    counts["drawn_questions_without_gold_chunk"] += not gold and not yes_no
    counts["gold_passages_not_in_corpus"] += sum(passage not in chunks_of for passage in asked.passages)
    return replace(question, gold_chunks=tuple(gold))


def _generator(seed: int, purpose: str) -> np.random.Generator:
    """Random numbers of their own for every purpose, so that no draw depends on another."""
    return np.random.default_rng([seed, *purpose.encode()])
