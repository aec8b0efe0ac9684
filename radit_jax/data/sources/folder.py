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
from collections.abc import Sequence
from dataclasses import replace
from typing import NoReturn

import numpy as np
from etils import epath
from numpy.random import Generator

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

# Names that files have by themselves, without a setting.
PASSAGES = "passages.jsonl"
TRAIN = "questions_train.jsonl"
TEST = "questions_dev.jsonl"
SINGLE = "questions.jsonl"  # in the place of both
BEIR = ("qrels/train.tsv", "qrels/test.tsv")
HELD_OUT = 0.1  # the share of the questions that a held-out part is drawn from

ChunksOf = dict[str, tuple[Chunk, ...]]  # the chunks of a passage, by its id
_Node = tuple[str, str]  # ("passage", its id) or ("text", its key)


# ---- files ----


def folder_files(settings: Folder) -> tuple[epath.Path, ...]:
    """The files that `read_folder` is about: the passages, or their folder, then one or two of questions."""
    root = epath.Path(settings.folder)
    if settings.passages_file:
        passages = root / settings.passages_file
    else:
        passages = find_corpus(root) or root / PASSAGES
    questions = [packed_or_plain(root, name) for name in question_names(settings, root)]
    files = (passages, *questions)
    missing = [os.path.relpath(file, root) for file in files if not file.exists()]
    if missing:
        raise ValueError(
            f"data folder {root}: expected {PASSAGES} with {TRAIN} and {TEST}, or with {SINGLE}, got no "
            f"{' and no '.join(missing)}. Name a folder that has them by --set data.folder=PATH, or files of "
            "other names by data.passages_file, data.train_file and data.test_file."
        )
    return files


def source_files(settings: Folder) -> list[epath.Path]:
    """All files whose bytes `read_folder` reads: what else lies in the folder makes nothing stale."""
    passages, *questions = folder_files(settings)
    files = corpus_files(passages, settings.passages_format)
    for file in questions:
        files += question_files(file, settings.questions_format)
    return list(dict.fromkeys(files))


def question_names(settings: Folder, root: epath.Path) -> tuple[str, ...]:
    """The names of the files of questions: those of train and test, or one that is divided."""
    if settings.test_file and not settings.train_file:
        raise ValueError(
            f"data.test_file: expected it with data.train_file, got {settings.test_file!r} alone. Name the "
            "train questions too, or only them, and a tenth becomes the test part."
        )
    # Files that are named, else our own pair, else BEIR's, else one file.
    if settings.train_file:
        return tuple(filter(None, (settings.train_file, settings.test_file)))
    if any(packed_or_plain(root, name).exists() for name in (TRAIN, TEST)):
        return (TRAIN, TEST)
    return BEIR if packed_or_plain(root, "queries.jsonl").exists() else (SINGLE,)


# ---- reading ----


def read_folder(settings: Folder, seed: int) -> CorpusData:
    """Read, check, split and draw: the same files, settings and seed give the same data.

    The passages are read once here, for what the questions need of them, and again by who iterates over the
    result's chunks: the corpus is never in memory.
    """
    passages_file, *files = folder_files(settings)
    counts: Counter[str] = Counter()  # for the manifest
    first_of: dict[str, str] = {}
    # 1) Divide the questions, and draw those of each part.
    questions_by_file = _read_questions(files, settings, counts, first_of)
    parts = _split(_without_overlap(questions_by_file, counts), seed)
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
        draw = _draw_groups if part == "train" and settings.draw_by == "passage" else _draw
        drawn[part] = draw(parts[part], size, _generator(seed, f"draw {part}"))
    # Yes and no are in any chunk, so they tell nothing of retrieval.
    if all(is_yes_no(asked.question.answers) for asked in drawn["dev"]):
        raise ValueError(
            f"data folder {settings.folder}: expected a dev question that a chunk can answer, to choose "
            f"R-ft's checkpoint by, got {len(drawn['dev'])} that are all answered by yes or no. Raise "
            "data.dev_questions, or add other train questions, from which they are held out."
        )
    # 2) Read the passages, and keep the chunks of those that the drawn questions name.
    gold_passages: set[str] = set()
    for asked in itertools.chain.from_iterable(drawn.values()):
        gold_passages.update(asked.passages)
    passages, chunks_of = _scan(passages_file, settings, gold_passages, counts)
    # 3) Give each question its gold chunks.
    questions: dict[str, list[Question]] = {}
    for part, drawn_part in drawn.items():
        questions[part] = [_with_gold(asked, chunks_of, counts, first_of) for asked in drawn_part]
    facts = {**counts, "format": passages.format}
    return CorpusData(passages, questions, counts=facts, first_of=first_of)


def folder_warnings(data: CorpusData) -> list[str]:
    """What a person should know of the questions that were read, in words."""
    counts = data.counts
    # A chunk answers no yes/no question, so these are not among those that may have gold chunks.
    num_questions = sum(map(len, data.questions.values())) - counts["drawn_questions_yes_no"]
    num_without = counts["drawn_questions_without_gold_chunk"]
    # What only some forms of questions can have.
    num_unknown = counts.get("judged_queries_not_in_queries", 0)
    num_in_test = counts.get("questions_skipped_as_in_test", 0)
    num_unanswered = counts["questions_skipped_without_answer"]
    num_absent = counts["gold_passages_not_in_corpus"]
    warnings = []
    # What a person would not see otherwise, with the place of the first.
    if num_unanswered:
        warnings.append(
            f"questions without an answer, left out: {num_unanswered:,} of {counts['questions']:,}; the "
            f"first is {data.first_of['questions_skipped_without_answer']}"
        )
    if num_absent:
        warnings.append(
            f"gold passages that questions name and the corpus lacks: {num_absent:,}; the first is "
            f"{data.first_of['gold_passages_not_in_corpus']}"
        )
    if 2 * num_without > num_questions:
        rest = "what is said of gold chunks is about the others"
        # Of made questions on few documents none has one.
        if num_without == num_questions:
            rest = "nothing is said of gold chunks"
        warnings.append(
            f"{num_without:,} of {num_questions:,} questions have no gold chunk: their lines name no "
            f"passage, or none that holds an answer; {rest}"
        )
    if num_unknown:
        warnings.append(
            f"the judgements are of {num_unknown:,} queries that queries.jsonl lacks; they are left out"
        )
    if num_in_test:
        warnings.append(f"{num_in_test:,} train questions are also in the test file; they are left out")
    return warnings


def _scan(
    path: epath.Path, settings: Folder, gold_passages: set[str], counts: Counter[str]
) -> tuple[Passages, ChunksOf]:
    """Check and count the passages; the chunks of those in `gold_passages`, by the passage's id."""
    form = corpus_format(path) if settings.passages_format == "auto" else settings.passages_format
    chunks_of: ChunksOf = {}
    num_chunks = 0
    for document, chunks in read_chunked(path, form, settings.max_words, settings.quoting):
        num_chunks += len(chunks)
        if document.id in gold_passages:
            chunks_of[document.id] = chunks
        counts["passages"] += 1
        counts["passages_split"] += len(chunks) > 1
        counts["passages_skipped_without_text"] += not chunks
    if not num_chunks:
        raise ValueError(f"{path}: expected a passage with text to retrieve, got none. Write one per line.")
    return Passages(path, form, settings.max_words, num_chunks, settings.quoting), chunks_of


def _read_questions(
    paths: Sequence[epath.Path], settings: Folder, counts: Counter[str], first_of: dict[str, str]
) -> list[list[Asked]]:
    """The questions with answers of each file, each with the group that it is in."""
    place_of_id: dict[str, str] = {}
    files: list[list[Asked]] = []
    for path in paths:
        files.append([])
        for asked in read_questions(path, settings.questions_format, settings.quoting, counts):
            question = asked.question
            # Ids are unique in both files together.
            if question.id in place_of_id:
                raise ValueError(
                    f"{asked.where}: expected an id that no other question has, got {quoted(question.id)}, "
                    f"which is also that of {place_of_id[question.id]}. Make ids unique."
                )
            place_of_id[question.id] = asked.where
            # Nothing is learnt from a question without an answer, nor evaluated.
            if question.answers:
                files[-1].append(asked)
            else:
                first_of.setdefault("questions_skipped_without_answer", asked.where)
            counts["questions"] += 1
            counts["questions_skipped_without_answer"] += not question.answers
    if counts["questions"] and not any(files):
        _refuse_without_answers(paths, settings, counts["questions"])
    return _grouped(files)


def _refuse_without_answers(paths: Sequence[epath.Path], settings: Folder, count: int) -> NoReturn:
    """The error of files in which not one of `count` questions has an answer."""
    remedy = 'Add a field "answers" to their lines.'
    # Judgements have their queries in another file.
    if len(question_files(paths[0], settings.questions_format)) > 1:
        remedy = (
            "BEIR's files have none, and RA-DIT learns from answers. Add them to queries.jsonl as "
            '"metadata": {"answers": […]}.'
        )
    names = " and ".join(map(str, paths))
    raise ValueError(f"{names}: expected questions with answers, got {count:,} without. {remedy}")


# ---- dividing ----


def _grouped(files: Sequence[Sequence[Asked]]) -> list[list[Asked]]:
    """The questions with their groups: those linked by gold passages or equal text share one."""
    # A union of disjoint sets: passages and texts are nodes, each leads to another of its group, and the last
    # one, which leads to itself, stands for the group.
    leader: dict[_Node, _Node] = {}

    def find(node: _Node) -> _Node:
        while leader.setdefault(node, node) != node:
            leader[node] = leader[leader[node]]  # which halves the way of the next search
            node = leader[node]
        return node

    # 1) A question links its passages with its text.
    for asked in itertools.chain.from_iterable(files):
        text = _text_node(asked)
        for passage in asked.passages:
            leader[find(("passage", passage))] = find(text)
    # 2) A group is named after its first question, or that question's first passage.
    names: dict[_Node, str] = {}
    grouped: list[list[Asked]] = []
    for file in files:
        grouped.append([])
        for asked in file:
            name = f"passage {asked.passages[0]}" if asked.passages else f"question {asked.question.id}"
            group = names.setdefault(find(_text_node(asked)), name)
            question = replace(asked.question, group=group)
            grouped[-1].append(asked._replace(question=question))
    return grouped


def _text_node(asked: Asked) -> _Node:
    return "text", question_key(asked.question.question)


def _without_overlap(files: Sequence[Sequence[Asked]], counts: Counter[str]) -> list[Sequence[Asked]]:
    """The files, the first without questions whose text is in the second."""
    if len(files) == 1:
        return list(files)
    train, test = files
    test_texts = {_text_node(asked) for asked in test}
    train_only = [asked for asked in train if _text_node(asked) not in test_texts]
    counts["questions_skipped_as_in_test"] += len(train) - len(train_only)
    return [train_only, test]


def _split(files: Sequence[Sequence[Asked]], seed: int) -> dict[str, Sequence[Asked]]:
    """Train, dev and test part: of one file test is held out first, and dev always of what is left."""
    if len(files) == 1:
        files = _hold_out(files[0], _generator(seed, "hold out test"))
    train, test = files
    # Checkpoints are chosen with dev questions, so no test question may be one.
    train, dev = _hold_out(train, _generator(seed, "hold out dev"))
    return {"train": train, "dev": dev, "test": test}


def _hold_out(questions: Sequence[Asked], generator: Generator) -> tuple[list[Asked], list[Asked]]:
    """The questions that stay and a tenth that does not, whole groups in random order as far as they fit."""
    sizes = Counter(asked.question.group for asked in questions)
    # There is room for one group at least, the smallest.
    room = max(round(HELD_OUT * len(questions)), min(sizes.values(), default=0))
    held_groups: set[str] = set()
    for group in generator.permutation(list(sizes)).tolist():
        if sizes[group] <= room:
            held_groups.add(group)
            room -= sizes[group]
    stay: list[Asked] = []
    held: list[Asked] = []
    for asked in questions:
        part = held if asked.question.group in held_groups else stay
        part.append(asked)
    return stay, held


def _draw(questions: Sequence[Asked], size: int, generator: Generator) -> list[Asked]:
    """At most `size` of the questions, in their order; a larger draw contains a smaller one."""
    drawn = generator.permutation(len(questions))[:size]
    return [questions[index] for index in sorted(drawn.tolist())]


def _draw_groups(questions: Sequence[Asked], size: int, generator: Generator) -> list[Asked]:
    """At most `size` of the questions, in their order: groups in random order, the last one cut.

    Questions on one passage retrieve the same chunks, which are then read once for all of them.
    """
    # 1) Where the questions of each group are.
    groups: dict[str, list[int]] = {}
    for index, asked in enumerate(questions):
        groups.setdefault(asked.question.group, []).append(index)
    # 2) Whole groups, until there are enough.
    names = list(groups)
    drawn: list[int] = []
    for number in generator.permutation(len(names)).tolist():
        group = names[number]
        drawn += groups[group]
    return [questions[index] for index in sorted(drawn[:size])]


def _with_gold(asked: Asked, chunks_of: ChunksOf, counts: Counter[str], first_of: dict[str, str]) -> Question:
    """The question with its gold chunks: those of its gold passages that contain an answer.

    A yes/no question has none, because containing "no" answers nothing.
    """
    question = asked.question
    yes_no = is_yes_no(question.answers)
    gold: list[str] = []
    for passage in asked.passages:
        for chunk in chunks_of.get(passage, ()):
            if not yes_no and contains_answer(chunk.passage, question.answers):
                gold.append(chunk.id)
    counts["drawn_questions_yes_no"] += yes_no
    counts["drawn_questions_without_gold_chunk"] += not gold and not yes_no
    absent = [passage for passage in asked.passages if passage not in chunks_of]
    counts["gold_passages_not_in_corpus"] += len(absent)
    if absent:
        first_of.setdefault("gold_passages_not_in_corpus", f"{quoted(absent[0])} of {asked.where}")
    return replace(question, gold_chunks=tuple(gold))


def _generator(seed: int, purpose: str) -> Generator:
    """Random numbers of their own for every purpose, so that no draw depends on another."""
    return np.random.default_rng([seed, *purpose.encode()])
