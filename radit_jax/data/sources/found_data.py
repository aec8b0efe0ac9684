"""What a folder that a person brings holds: passages or documents, and questions in one or two files."""

import itertools
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from etils import epath

from radit_jax.config import Folder
from radit_jax.data.artifacts.corpus import CorpusData
from radit_jax.data.readers.documents import (
    Passages,
    corpus_files,
    corpus_format,
    find_corpus,
    packed_or_plain,
    read_chunked,
)
from radit_jax.data.readers.lines import one_of
from radit_jax.data.readers.questions import read_questions
from radit_jax.data.records import Chunk
from radit_jax.data.sources.folder import question_names, read_folder, source_files
from radit_jax.data.sources.small_data import SMALL_BYTES

TABLES = (".jsonl", ".json", ".tsv", ".csv", ".parquet")
MANY_DOCUMENTS = 30  # from which on questions made of the text may be divided by their documents
MEASURED_CHUNKS = 500  # at most, whose tokens are counted
ASKED_CHUNKS = 2000  # at most, on which questions are made
FIRST_LINES = 20  # of a file, by which it is known
FEWEST_CHUNKS = 11  # a ranking is judged to rank 10, and a text's own chunk is left out


@dataclass(frozen=True)
class FoundData:
    """A folder's data as settings, and what is known of it."""

    settings: Folder
    passages: epath.Path
    format: str
    corpus: CorpusData | None  # None: too large to be read here
    made_questions: int = 0  # questions that were made of the text; 0: people's own

    @property
    def num_train(self) -> int:
        """The questions to learn from."""
        if self.corpus is None:
            return self.settings.train_questions
        return len(self.corpus.questions["train"])

    @property
    def num_chunks(self) -> int | None:
        """The chunks of the corpus; None where it is too large to be read here."""
        if self.corpus is None:
            return None
        assert isinstance(self.corpus.chunks, Passages)
        return len(self.corpus.chunks)

    @property
    def first_texts(self) -> list[str]:
        """The texts of the first chunks, from which the length of the others is guessed."""
        texts: list[str] = []
        for _, chunks in read_chunked(self.passages, self.format, self.settings.max_words):
            texts += [chunk.text for chunk in chunks]
            if len(texts) >= MEASURED_CHUNKS:
                break
        return texts

    @property
    def question_files(self) -> list[epath.Path]:
        """The files of questions, to learn from and to evaluate with."""
        root = epath.Path(self.settings.folder)
        return [packed_or_plain(root, name) for name in question_names(self.settings, root)]


def find_data(folder: str, passages: str = "", questions: str = "", test_questions: str = "") -> Folder:
    """The settings of the data in `folder`; the names of files are found where they are not given.

    Without questions `train_file` is empty, and no file of that name is there.
    """
    root = epath.Path(folder)
    if not root.is_dir():
        raise ValueError(f"{folder}: expected a folder with passages or documents, got none. Name one.")
    settings = Folder(
        folder=str(Path(folder).resolve()),
        passages_file=passages,
        train_file=questions,
        test_file=test_questions,
    )
    # 1) Questions: by our names, or whatever file reads as questions.
    if not questions and not _have_usual_names(settings):
        train, test = _question_files(root, passages)
        settings = replace(settings, train_file=train, test_file=test)
    # 2) Passages: by their usual names, or the file that is left.
    if not passages and find_corpus(root) is None:
        settings = replace(settings, passages_file=_passages_file(root, settings))
    return settings


def has_questions(settings: Folder) -> bool:
    """Whether the folder has any file of questions."""
    return bool(settings.train_file) or _have_usual_names(settings)


def _have_usual_names(settings: Folder) -> bool:
    root = epath.Path(settings.folder)
    names = question_names(settings, root)
    return any(packed_or_plain(root, name).exists() for name in names)


def _tables(root: epath.Path) -> list[epath.Path]:
    """The files in a folder that may hold passages or questions."""
    files = []
    for file in sorted(root.iterdir()):
        is_table = file.name.removesuffix(".gz").endswith(TABLES)
        if is_table and not file.name.startswith("."):
            files.append(file)
    return files


def _maybe_questions(root: epath.Path) -> list[epath.Path]:
    return [*_tables(root), *sorted(root.glob("questions*.txt"))]


def _question_files(root: epath.Path, passages: str) -> tuple[str, str]:
    """The names of the train and the test questions in a folder; "" where there are none."""
    corpus = find_corpus(root)
    names = []
    for file in _maybe_questions(root):
        if file.name != passages and file != corpus and _reads_as_questions(file):
            names.append(file.name)
    # A name says which part a file is.
    test = [name for name in names if any(word in name.lower() for word in ("test", "dev", "eval"))]
    train = [name for name in names if name not in test]
    if len(test) > 1 or len(train) > 1:
        raise ValueError(
            f"{root}: expected one file of questions, or one to learn from and one to evaluate with, got "
            f"{', '.join(names)}. Name them by --questions=NAME and --test-questions=NAME."
        )
    if test and not train:
        return test[0], ""
    return (train[0] if train else ""), (test[0] if test else "")


def _reads_as_questions(file: epath.Path) -> bool:
    """Whether a file's first lines are questions, and any has answers."""
    return not why_no_questions(file)


def why_no_questions(file: epath.Path) -> str:
    """What makes a file's first lines no questions with answers; "" where they are."""
    try:
        first_questions = list(itertools.islice(read_questions(file), FIRST_LINES))
    except ValueError as error:
        return str(error)
    if any(asked.question.answers for asked in first_questions):
        return ""
    return f"{file}: expected questions with answers, got none in the first {FIRST_LINES} lines."


def unread_tables(settings: Folder) -> list[str]:
    """What is said of each table in the folder that is neither its passages nor its questions."""
    root = epath.Path(settings.folder)
    read = {os.fspath(file) for file in source_files(settings)}
    warnings = []
    for file in _maybe_questions(root):
        if os.fspath(file) not in read:
            reason = why_no_questions(file)
            as_questions = f" as questions ({reason})" if reason else ""
            warnings.append(f"{file.name} is not read{as_questions}")
    return warnings


def _passages_file(root: epath.Path, settings: Folder) -> str:
    """The name of the one table that holds passages."""
    taken = (settings.train_file, settings.test_file)
    names = [file.name for file in _tables(root) if file.name not in taken]
    if len(names) == 1:
        return names[0]
    if names:
        raise ValueError(
            f"{root}: expected one file of passages, got {', '.join(names)}. Name it by --passages=NAME."
        )
    raise ValueError(
        f"{root}: expected documents (.md, .html, .pdf, .txt) or a file of passages "
        f"({one_of(TABLES)}), got neither. Put them into the folder."
    )


def look_at(settings: Folder, made_file: Path) -> FoundData:
    """Read the data, if it is small, and make questions of its text where it has none.

    Made questions are written to `made_file`. Raises ValueError, with file and line, for what cannot be read.
    """
    root = epath.Path(settings.folder)
    passages = root / settings.passages_file if settings.passages_file else find_corpus(root)
    assert passages is not None, "find_data has named one"
    form = corpus_format(passages)
    made = 0
    if not has_questions(settings):
        made = _make_questions(passages, form, settings.max_words, made_file)
        settings = replace(settings, train_file=str(made_file.resolve()))

    # Counting takes reading.
    size = sum(file.stat().length for file in corpus_files(passages))
    corpus = read_folder(settings, 0) if size <= SMALL_BYTES else None
    if corpus is not None:
        assert isinstance(corpus.chunks, Passages)
        _check_size(passages, len(corpus.chunks))
    return FoundData(settings, passages, form, corpus, made)


def _check_size(passages: epath.Path, num_chunks: int) -> None:
    if num_chunks < FEWEST_CHUNKS:
        raise ValueError(
            f"{passages}: expected at least {FEWEST_CHUNKS} chunks to retrieve from, got {num_chunks}. Add "
            "passages."
        )


def _make_questions(passages: epath.Path, form: str, max_words: int, file: Path) -> int:
    """Write cloze questions on the first chunks, and say how many there are."""
    chunks: list[Chunk] = []
    documents: list[str] = []
    for document, of_document in read_chunked(passages, form, max_words):
        chunks += of_document
        documents += [document.id] * len(of_document)
        if len(chunks) >= ASKED_CHUNKS:
            break
    lines = list(_question_lines(chunks, documents))
    if len(lines) < FEWEST_CHUNKS:
        raise ValueError(
            f"{passages}: expected {FEWEST_CHUNKS} passages with a sentence to make a question of, got "
            f"{len(lines)}. Add passages, or bring questions."
        )
    file.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return len(lines)


def _question_lines(chunks: list[Chunk], documents: list[str]) -> Iterator[dict[str, object]]:
    """Our form of questions; of few documents none is named, because one's questions stay together."""
    from radit_jax.data.batches.cloze import questions_on  # imports jax

    names_documents = len(set(documents)) >= MANY_DOCUMENTS
    for place, (number, cloze) in enumerate(questions_on(chunks, seed=0)):
        line: dict[str, object] = {
            "id": f"made:{place}",
            "question": cloze.question,
            "answers": [cloze.answer],
        }
        if names_documents:
            line["positive_passage_ids"] = [documents[number]]
        yield line
