"""A folder of real text: passages cut into chunks, and questions divided into train, dev and test.

    passages.jsonl          {"id": "p7", "title": "Emma", "text": "Emma is a novel by Jane Austen …"}
    questions_train.jsonl   {"id": "q1", "question": "Who wrote Emma?", "answers": ["Jane Austen"],
    questions_dev.jsonl      "positive_passage_ids": ["p7"]}      (optional, or "positive_passage_id": "p7")

Other fields are ignored. `questions_dev.jsonl` is the test part: the dev part, with which checkpoints are
chosen, is held out of the train questions. Instead of the two files there may be one `questions.jsonl`, of
which a tenth becomes the test part. Both parts are held out by gold passage: questions on one passage, or on
passages linked by a question, stay on one side.
"""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from etils import epath

from radit_jax.config import Folder
from radit_jax.data.corpus import SPLITS, CorpusData
from radit_jax.data.records import Chunk, Question
from radit_jax.text.metrics import contains_answer, is_yes_no

PASSAGES = "passages.jsonl"
TRAIN = "questions_train.jsonl"
TEST = "questions_dev.jsonl"
SINGLE = "questions.jsonl"
HELD_OUT = 0.1  # the share of the questions that a held-out part is drawn from

_PASSAGE_FIELDS = {"id": "a string", "title": "a string", "text": "a string"}
_QUESTION_FIELDS = {"id": "a string", "question": "a string", "answers": "a list of strings"}


@dataclass(frozen=True)
class _Asked:
    """A question with the gold passages that its line names."""

    question: Question
    passages: tuple[str, ...]


def folder_files(folder: str | os.PathLike[str]) -> tuple[epath.Path, ...]:
    """The files that `read` reads: the passages, then the questions."""
    root = epath.Path(folder)
    pair = (root / TRAIN).exists() or (root / TEST).exists()
    names = (PASSAGES, TRAIN, TEST) if pair else (PASSAGES, SINGLE)
    missing = [name for name in names if not (root / name).exists()]
    if missing:
        raise ValueError(
            f"data folder {root}: no {' and no '.join(missing)}; needed are {PASSAGES} with {TRAIN} "
            f"and {TEST}, or with {SINGLE}; name a folder that has them by --set data.folder=PATH"
        )
    return tuple(root / name for name in names)


def read(settings: Folder, seed: int) -> CorpusData:
    """Read, check, split and draw: the same files, settings and seed give the same data."""
    passages_file, *question_files = folder_files(settings.folder)
    counts: Counter[str] = Counter()
    chunks_of = _read_chunks(passages_file, settings.max_words, counts)
    parts = _split(_read_questions(question_files, counts), seed)
    questions = {}
    for part in SPLITS:
        size = getattr(settings, f"{part}_questions")
        if size and not parts[part]:
            raise ValueError(
                f"data folder {settings.folder}: no {part} questions after the split by gold passage; "
                "needed is at least one of each part; add questions on other passages"
            )
        drawn = _draw(parts[part], size, _generator(seed, f"draw {part}"))
        questions[part] = [_with_gold(asked, chunks_of, counts) for asked in drawn]
    chunks = [chunk for chunks in chunks_of.values() for chunk in chunks]
    return CorpusData(chunks, questions, counts=dict(counts))


def split_passage(text: str, max_words: int) -> list[str]:
    """`text` in the fewest chunks of fewer than `max_words` words, of equal length within a word.

    White space becomes single spaces, so that a blank line only ever ends a Background.

    >>> split_passage("one two three four five", max_words=4)
    ['one two three', 'four five']
    """
    if max_words < 2:
        raise ValueError(f"max_words: {max_words} came, needed are at least 2; raise data.max_words")
    words = text.split()
    count = -(-len(words) // (max_words - 1))
    bounds = [-(-len(words) * number // count) for number in range(count + 1)] if count else []
    return [" ".join(words[start:end]) for start, end in zip(bounds, bounds[1:], strict=False)]


def _read_chunks(path: epath.Path, max_words: int, counts: Counter[str]) -> dict[str, tuple[Chunk, ...]]:
    """The chunks of every passage, by the passage's id."""
    chunks_of: dict[str, tuple[Chunk, ...]] = {}
    for line in _read_lines(path, _PASSAGE_FIELDS, seen={}):
        texts = split_passage(line["text"], max_words)
        title = " ".join(line["title"].split())
        ids = [f"{line['id']}#{n}" for n in range(1, len(texts) + 1)] if len(texts) > 1 else [line["id"]]
        chunks_of[line["id"]] = tuple(Chunk(i, title, t) for i, t in zip(ids, texts, strict=False))
        counts["passages"] += 1
        counts["passages_split"] += len(texts) > 1
        counts["passages_skipped_without_text"] += not texts
    if not any(chunks_of.values()):
        raise ValueError(
            f"{path}: no passage with text came, needed is a corpus to retrieve from; write one per line"
        )
    return chunks_of


def _read_questions(paths: Sequence[epath.Path], counts: Counter[str]) -> list[list[_Asked]]:
    """The questions of each file, each with the group that its gold passages put it into."""
    seen: dict[str, str] = {}
    files: list[list[_Asked]] = []
    for path in paths:
        files.append([])
        for line in _read_lines(path, _QUESTION_FIELDS, seen):
            answers = tuple(answer for answer in line["answers"] if answer.strip())
            if answers:
                question = Question(line["id"], line["question"], answers)
                files[-1].append(_Asked(question, _gold_passages(line, seen[line["id"]])))
            counts["questions"] += 1
            counts["questions_skipped_without_answer"] += not answers
    return _grouped(files)


def _gold_passages(line: Mapping[str, Any], where: str) -> tuple[str, ...]:
    if line.get("positive_passage_ids") is not None:
        return tuple(_checked(line, "positive_passage_ids", "a list of strings", where))
    if line.get("positive_passage_id") is not None:
        return (_checked(line, "positive_passage_id", "a string", where),)
    return ()


def _read_lines(
    path: epath.Path, fields: Mapping[str, str], seen: dict[str, str]
) -> Iterator[dict[str, Any]]:
    """The objects of a JSON-lines file, checked; `seen` remembers where each id stood."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            where = f"{path} line {number}"
            line = _parse(raw, fields, where)
            if line["id"] in seen:
                raise ValueError(
                    f"{where}: id {line['id']!r} came before, at {seen[line['id']]}; make ids unique"
                )
            seen[line["id"]] = where
            yield line


def _parse(raw: bytes, fields: Mapping[str, str], where: str) -> dict[str, Any]:
    try:
        line = json.loads(raw)
    except ValueError as error:  # of the JSON, or of its UTF-8
        raise ValueError(f"{where}: it is not JSON ({error}); write one JSON object per line") from None
    if not isinstance(line, dict):
        raise ValueError(f"{where}: {raw[:40]!r} came, needed is a JSON object; write one per line")
    for name, kind in fields.items():
        if name not in line:
            raise ValueError(
                f"{where}: no field {name!r}; needed are {', '.join(fields)}; add it to the line"
            )
        _checked(line, name, kind, where)
    return line


def _checked(line: Mapping[str, Any], name: str, kind: str, where: str) -> Any:
    """The field `name`, which has to be a string or a list of strings."""
    value = line[name]
    items = [value] if kind == "a string" else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise ValueError(f"{where}: field {name!r} is {value!r}, needed is {kind}; correct the line")
    return value


def _grouped(files: Sequence[Sequence[_Asked]]) -> list[list[_Asked]]:
    """The questions with their groups: those linked by gold passages share one, the others have their own."""
    leader: dict[str, str] = {}

    def find(passage: str) -> str:
        while leader.setdefault(passage, passage) != passage:
            passage = leader[passage]
        return passage

    for asked in (asked for file in files for asked in file):
        for passage in asked.passages[1:]:
            leader[find(passage)] = find(asked.passages[0])

    def group(asked: _Asked) -> str:
        return f"passage {find(asked.passages[0])}" if asked.passages else f"question {asked.question.id}"

    return [[replace(a, question=replace(a.question, group=group(a))) for a in file] for file in files]


def _split(files: Sequence[Sequence[_Asked]], seed: int) -> dict[str, Sequence[_Asked]]:
    if len(files) == 1:
        files = _hold_out(files[0], _generator(seed, "hold out test"))
    train, test = files
    train, dev = _hold_out(train, _generator(seed, "hold out dev"))
    return {"train": train, "dev": dev, "test": test}


def _hold_out(asked: Sequence[_Asked], generator: np.random.Generator) -> tuple[list[_Asked], list[_Asked]]:
    """The questions that stay and a tenth that does not, whole groups in random order as far as they fit."""
    sizes = Counter(a.question.group for a in asked)
    room = max([round(HELD_OUT * len(asked)), *sorted(sizes.values())[:1]])
    held: set[str] = set()
    for group in generator.permutation(list(sizes)).tolist():
        if sizes[group] <= room:
            held.add(group)
            room -= sizes[group]
    return [a for a in asked if a.question.group not in held], [a for a in asked if a.question.group in held]


def _draw(asked: Sequence[_Asked], size: int, generator: np.random.Generator) -> list[_Asked]:
    """At most `size` of the questions, in their order; a larger draw contains a smaller one."""
    return [asked[n] for n in sorted(generator.permutation(len(asked))[:size].tolist())]


def _with_gold(asked: _Asked, chunks_of: Mapping[str, tuple[Chunk, ...]], counts: Counter[str]) -> Question:
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
