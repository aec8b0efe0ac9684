"""A folder of real text: passages cut into chunks, and questions divided into train, dev and test.

    passages.jsonl          {"id": "p7", "title": "Emma", "text": "Emma is a novel by Jane Austen …"}
    questions_train.jsonl   {"id": "q1", "question": "Who wrote Emma?", "answers": ["Jane Austen"],
    questions_dev.jsonl      "positive_passage_ids": ["p7"]}      (optional, or "positive_passage_id": "p7")

Other fields are ignored. Other forms of corpus and questions are in `documents.py` and `questions.py`; a file
of another name is found where its form has a name of its own, or named by `data.passages_file`,
`data.train_file` and `data.test_file`. `questions_dev.jsonl` is the test part: the dev part, with which
checkpoints are chosen, is held out of the train questions. Instead of the two files there may be one
`questions.jsonl`, of which a tenth becomes the test part. Both parts are held out by gold passage and text:
questions on one passage, on passages linked by a question, or of equal text (`question_key`) are on one side.
A train question whose text is in the test file is left out.
"""

import itertools
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NoReturn

import numpy as np
from etils import epath

from radit_jax.config import Folder
from radit_jax.data.artifacts.corpus import SPLITS, CorpusData
from radit_jax.data.readers.documents import (
    Passages,
    corpus_files,
    corpus_format,
    find_corpus,
    packed_or_plain,
    read_chunked,
)
from radit_jax.data.readers.lines import quoted
from radit_jax.data.readers.questions import Asked, question_files, read_questions
from radit_jax.data.records import Chunk, Question
from radit_jax.text.metrics import contains_answer, is_yes_no, question_key

PASSAGES = "passages.jsonl"
TRAIN = "questions_train.jsonl"
TEST = "questions_dev.jsonl"
SINGLE = "questions.jsonl"
BEIR = ("qrels/train.tsv", "qrels/test.tsv")
HELD_OUT = 0.1  # the share of the questions that a held-out part is drawn from


def folder_files(settings: Folder) -> tuple[epath.Path, ...]:
    """The files that `read` is about: the passages, or their folder, then one or two files of questions."""
    root = epath.Path(settings.folder)
    passages = root / settings.passages_file if settings.passages_file else find_corpus(root)
    names = _question_files(settings, root)
    files = (passages or root / PASSAGES, *(packed_or_plain(root, name) for name in names))
    missing = [os.path.relpath(file, root) for file in files if not file.exists()]
    if missing:
        raise ValueError(
            f"data folder {root}: expected {PASSAGES} with {TRAIN} and {TEST}, or with {SINGLE}, got no "
            f"{' and no '.join(missing)}. Name a folder that has them by --set data.folder=PATH, or files of "
            "other names by data.passages_file, data.train_file and data.test_file."
        )
    return files


def source_files(settings: Folder) -> list[epath.Path]:
    """All files whose bytes `read` reads: what else lies in the folder makes nothing stale."""
    passages, *questions = folder_files(settings)
    read = corpus_files(passages, settings.passages_format)
    for file in questions:
        read += question_files(file, settings.questions_format)
    return list(dict.fromkeys(read))


def _question_files(settings: Folder, root: epath.Path) -> tuple[str, ...]:
    if settings.test_file and not settings.train_file:
        raise ValueError(
            f"data.test_file: expected it with data.train_file, got {settings.test_file!r} alone. Name the "
            "train questions too, or only them, and a tenth becomes the test part."
        )
    if settings.train_file:
        return tuple(filter(None, (settings.train_file, settings.test_file)))
    if any(packed_or_plain(root, name).exists() for name in (TRAIN, TEST)):
        return (TRAIN, TEST)
    return BEIR if packed_or_plain(root, "queries.jsonl").exists() else (SINGLE,)


def read_folder(settings: Folder, seed: int) -> CorpusData:
    """Read, check, split and draw: the same files, settings and seed give the same data.

    The passages are read once here, for what the questions need of them, and again by who iterates over the
    result's chunks: the corpus is never in memory.
    """
    passages_file, *files = folder_files(settings)
    counts: Counter[str] = Counter()
    parts = _split(_without_overlap(_read_questions(files, settings, counts), counts), seed)
    drawn: dict[str, list[Asked]] = {}
    for part in SPLITS:
        size = getattr(settings, f"{part}_questions")
        if size < 1:
            raise ValueError(f"data.{part}_questions: expected at least 1, got {size}. Raise it.")
        if not parts[part]:
            raise ValueError(
                f"data folder {settings.folder}: expected questions in each part after the split by gold "
                f"passage and text, got no {part} questions. Add questions on other passages."
            )
        drawn[part] = _draw(parts[part], size, _generator(seed, f"draw {part}"))
    if all(is_yes_no(asked.question.answers) for asked in drawn["dev"]):
        raise ValueError(
            f"data folder {settings.folder}: expected a dev question that a chunk can answer, to choose "
            f"R-ft's checkpoint by, got {len(drawn['dev'])} that are all answered by yes or no. Raise "
            "data.dev_questions, or add other train questions, of which they are held out."
        )
    wanted = {passage for asked in drawn.values() for a in asked for passage in a.passages}
    passages, chunks_of = _scan(passages_file, settings, wanted, counts)
    questions = {part: [_with_gold(a, chunks_of, counts) for a in asked] for part, asked in drawn.items()}
    return CorpusData(passages, questions, counts={**counts, "format": passages.format})


def folder_warnings(data: CorpusData) -> list[str]:
    """What a person should know of the questions that were read, in words."""
    counts = data.counts
    asked = sum(map(len, data.questions.values())) - counts["drawn_questions_yes_no"]
    without = counts["drawn_questions_without_gold_chunk"]
    unknown = counts.get("judged_queries_not_in_queries", 0)
    overlap = counts.get("questions_skipped_as_in_test", 0)
    found = []
    if 2 * without > asked:
        found.append(
            f"{without:,} of {asked:,} questions have no gold chunk: their lines name no passage, or none "
            "that holds an answer; what is said of gold chunks is about the others"
        )
    if unknown:
        found.append(f"the judgements are of {unknown:,} queries that queries.jsonl lacks; they are left out")
    if overlap:
        found.append(f"{overlap:,} train questions are also in the test file; they are left out")
    return found


def _scan(
    path: epath.Path, settings: Folder, wanted: set[str], counts: Counter[str]
) -> tuple[Passages, dict[str, tuple[Chunk, ...]]]:
    """Check and count the passages; the chunks of those in `wanted`, by the passage's id."""
    form = corpus_format(path) if settings.passages_format == "auto" else settings.passages_format
    chunks_of: dict[str, tuple[Chunk, ...]] = {}
    num_chunks = 0
    for document, chunks in read_chunked(path, form, settings.max_words, settings.quoting):
        num_chunks += len(chunks)
        if document.id in wanted:
            chunks_of[document.id] = chunks
        counts["passages"] += 1
        counts["passages_split"] += len(chunks) > 1
        counts["passages_skipped_without_text"] += not chunks
    if not num_chunks:
        raise ValueError(f"{path}: expected a passage with text to retrieve, got none. Write one per line.")
    return Passages(path, form, settings.max_words, num_chunks, settings.quoting), chunks_of


def _read_questions(paths: Sequence[epath.Path], settings: Folder, counts: Counter[str]) -> list[list[Asked]]:
    """The questions with answers of each file, each with the group that it is in."""
    seen: dict[str, str] = {}
    files: list[list[Asked]] = []
    for path in paths:
        files.append([])
        for asked in read_questions(path, settings.questions_format, settings.quoting, counts):
            question = asked.question
            if question.id in seen:
                raise ValueError(
                    f"{asked.where}: expected an id that no other question has, got {quoted(question.id)}, "
                    f"which is also that of {seen[question.id]}. Make ids unique."
                )
            seen[question.id] = asked.where
            files[-1] += [asked] if question.answers else []
            counts["questions"] += 1
            counts["questions_skipped_without_answer"] += not question.answers
    if counts["questions"] and not any(files):
        _refuse_without_answers(paths, settings, counts["questions"])
    return _grouped(files)


def _refuse_without_answers(paths: Sequence[epath.Path], settings: Folder, count: int) -> NoReturn:
    remedy = 'Add a field "answers" to their lines.'
    if len(question_files(paths[0], settings.questions_format)) > 1:
        remedy = (
            "BEIR's files have none, and RA-DIT learns from answers. Add them to queries.jsonl as "
            '"metadata": {"answers": […]}.'
        )
    names = " and ".join(map(str, paths))
    raise ValueError(f"{names}: expected questions with answers, got {count:,} without. {remedy}")


def _grouped(files: Sequence[Sequence[Asked]]) -> list[list[Asked]]:
    """The questions with their groups: those linked by gold passages or equal text share one."""
    leader: dict[tuple[str, str], tuple[str, str]] = {}

    def find(node: tuple[str, str]) -> tuple[str, str]:
        while leader.setdefault(node, node) != node:
            leader[node] = leader[leader[node]]  # which halves the way of the next search
            node = leader[node]
        return node

    def text(asked: Asked) -> tuple[str, str]:
        return "text", question_key(asked.question.question)

    for asked in itertools.chain.from_iterable(files):
        for node in [*(("passage", passage) for passage in asked.passages), text(asked)]:
            leader[find(node)] = find(text(asked))
    names: dict[tuple[str, str], str] = {}

    def group(asked: Asked) -> str:
        own = f"passage {asked.passages[0]}" if asked.passages else f"question {asked.question.id}"
        return names.setdefault(find(text(asked)), own)

    return [[a._replace(question=replace(a.question, group=group(a))) for a in file] for file in files]


def _without_overlap(files: Sequence[Sequence[Asked]], counts: Counter[str]) -> list[Sequence[Asked]]:
    """The files, the first without questions whose text is in the second."""
    if len(files) == 1:
        return list(files)
    train, test = files
    asked = {question_key(a.question.question) for a in test}
    kept = [a for a in train if question_key(a.question.question) not in asked]
    counts["questions_skipped_as_in_test"] += len(train) - len(kept)
    return [kept, test]


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
