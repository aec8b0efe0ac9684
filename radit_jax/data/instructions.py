"""The paper's data: a corpus to retrieve from, and the examples of D_L and D_R drawn from their datasets.

    corpus/     a corpus in a form of `documents.py`
    datasets/   gsm8k/train.jsonl …, the publishers' files, or what `radit_jax.data.build` wrote

Every dataset's dev part gives the examples that checkpoints are chosen with; of a dataset without one some of
the train part are held out. The dev examples of D_R are also the questions: the index is tuned and measured
with them, and those with a short answer can be evaluated on.
"""

from collections import Counter
from collections.abc import Iterator

from etils import epath

from radit_jax.config import Instructions
from radit_jax.data.benchmarks import Item, draw_shots, find_task
from radit_jax.data.corpus import PREPARED, CorpusData
from radit_jax.data.documents import corpus_files, find_corpus, read_chunked
from radit_jax.data.finetuning.mixture import Drawn, has_split, lm_ft_tasks, r_ft_tasks, tasks_of
from radit_jax.data.finetuning.sources import Split
from radit_jax.data.lines import Quoting
from radit_jax.data.records import Chunk, Example, Question

SHORT_ANSWER = 5  # words: what may be evaluated by exact match
_TOLERANCE = 0.05  # of an expected count: the paper rounds, and files are revised


def read_chunks(
    passages: str, format: str, max_words: int, counts: Counter[str], quoting: Quoting = "auto"
) -> Iterator[Chunk]:
    """The chunks of a corpus' file or folder, a document in memory at a time; what was read is counted."""
    path = corpus_path(passages)
    for _, chunks in read_chunked(path, format, max_words, quoting):
        counts["documents"] += 1
        counts["documents_split"] += len(chunks) > 1
        counts["documents_skipped_without_text"] += not chunks
        yield from chunks
    if counts["documents"] == counts["documents_skipped_without_text"]:
        raise ValueError(f"{path}: expected a document with text to retrieve, got none. Write one per line.")


def corpus_path(passages: str) -> epath.Path:
    """The corpus' file that `data.corpus` names, or finds in a folder."""
    root = epath.Path(passages)
    if not root.exists():
        raise ValueError(
            f"data.corpus: no {root} came, needed is a corpus to retrieve from; "
            "name its folder by --set data.corpus=PATH"
        )
    path = find_corpus(root) if root.is_dir() else root
    if path is None:
        raise ValueError(
            f"data.corpus {root}: no corpus in it, needed is passages.jsonl or another form; "
            "name its file by --set data.passages_file=NAME"
        )
    return path


def corpus_sources(passages: str, format: str) -> list[epath.Path] | None:
    """The files that the chunks are read from; None where Beam prepared them, and all of the folder is."""
    if (epath.Path(passages) / PREPARED).exists():
        return None
    return corpus_files(corpus_path(passages), format)


def check(settings: Instructions) -> None:
    """Refuse names of no dataset, and datasets without files, before the corpus is read."""
    for name in settings.lm_ft_benchmarks:
        find_task(name)
    wanted = {}
    if settings.lm_ft_datasets or not settings.lm_ft_benchmarks:
        wanted["lm_ft"] = tasks_of("lm_ft", settings.lm_ft_datasets or None)
    wanted["r_ft"] = tasks_of("r_ft", settings.r_ft_datasets or None)
    for mixture, tasks in wanted.items():
        absent = [task.name for task in tasks if not has_split(task, settings.datasets, "train")]
        if absent:
            raise ValueError(
                f"data.datasets {settings.datasets}: no train part of {', '.join(absent)} came; get their "
                "files (python -m radit_jax.data.build --help), or name those that are there by "
                f"--set data.{mixture}_datasets=NAME,NAME"
            )


def read_examples(settings: Instructions, text_fraction: float, seed: int) -> CorpusData:
    """The examples of D_L and D_R, without chunks; `text_fraction` is that of LM-ft's unsupervised text."""
    drawn = {
        (mixture, split): draw(settings, split, text_fraction, seed)
        for mixture, draw in (("lm_ft", _lm_ft), ("r_ft", _r_ft))
        for split in ("train", "dev")
    }
    for (mixture, split), found in drawn.items():
        if not found.examples:
            raise ValueError(
                f"data.{mixture}_datasets: no {split} example came, needed is one at least; name a dataset "
                "with such a part, or raise data.held_out_fraction"
            )
    drawn["r_ft", "dev"], test = _apart(drawn["r_ft", "dev"], settings.r_ft_dev_examples)
    questions: dict[str, list[Question]] = {s: drawn["r_ft", s].questions for s in ("train", "dev")}
    questions["test"] = test
    return CorpusData(
        (),
        questions,
        examples={name: list(zip(d.questions, d.examples, strict=True)) for name, d in drawn.items()},
        counts={f"{mixture}_{split}": found.counts for (mixture, split), found in drawn.items()},
    )


def surprises(settings: Instructions, num_chunks: int, corpus: CorpusData) -> list[str]:
    """What was expected and did not come, in words."""
    read = sum(count["read"] for count in corpus.counts["r_ft_train"].values())
    pairs = (
        ("expected_chunks", settings.expected_chunks, num_chunks, "chunks"),
        ("expected_r_ft_tasks", settings.expected_r_ft_tasks, read, "train examples of D_R's datasets"),
    )
    return [
        f"{found:,} {what} came, data.{name} is {expected:,}"
        for name, expected, found, what in pairs
        if expected and abs(found - expected) > _TOLERANCE * expected
    ]


def _lm_ft(settings: Instructions, split: Split, text_fraction: float, seed: int) -> Drawn:
    if settings.lm_ft_benchmarks and not settings.lm_ft_datasets:
        return _benchmarks(settings, split, seed)
    return lm_ft_tasks(
        settings.datasets,
        settings.lm_ft_datasets or None,
        split=split,
        cap=settings.lm_ft_cap if split == "train" else settings.lm_ft_dev_examples,
        dialogue_share=settings.dialogue_fraction,
        text_share=text_fraction,
        held_out=settings.held_out_fraction,
        seed=seed,
        on_error=settings.on_error,
    )


def _apart(drawn: Drawn, count: int) -> tuple[Drawn, list[Question]]:
    """The examples that checkpoints are chosen by, and the questions that nothing is chosen by.

    Of each `count` at most: every second question with a short answer is one of the latter.
    """
    short = [number for number, question in enumerate(drawn.questions) if _is_short(question)]
    test = short[::2][:count]
    dev = sorted(set(range(len(drawn.questions))) - set(test))[:count]
    if not test or not dev:
        raise ValueError(
            f"data.r_ft_datasets: {len(drawn.questions)} dev questions came, {len(short)} with an answer of "
            f"at most {SHORT_ANSWER} words, needed are one such to evaluate on and another to choose "
            "checkpoints by; add a dataset such as freebase_qa, or raise data.held_out_fraction"
        )
    kept = Drawn([drawn.examples[n] for n in dev], [drawn.questions[n] for n in dev], drawn.counts)
    return kept, [drawn.questions[n] for n in test]


def _r_ft(settings: Instructions, split: Split, text_fraction: float, seed: int) -> Drawn:
    return r_ft_tasks(
        settings.datasets,
        settings.r_ft_datasets or None,
        split=split,
        count=None if split == "train" else 2 * settings.r_ft_dev_examples,
        held_out=settings.held_out_fraction,
        seed=seed,
        on_error=settings.on_error,
    )


def _benchmarks(settings: Instructions, split: Split, seed: int) -> Drawn:
    """So many examples of each task of the evaluation, from its train or dev part."""
    drawn = Drawn([], [], {})
    for name in settings.lm_ft_benchmarks:
        counts = Counter[str]()
        items = find_task(name).load(settings.datasets, split, counts)
        some = draw_shots(items, settings.benchmark_examples, seed=seed)
        drawn.examples.extend(_benchmark_example(name, item) for item in some)
        drawn.questions.extend(
            Question(f"{name}/{item.id}", item.query, item.answers, prompt=item.prompt) for item in some
        )
        drawn.counts[name] = {**counts, "drawn": len(some)}
    return drawn


def _benchmark_example(name: str, item: Item) -> Example:
    prompt, answer = item.shot
    return Example(f"{name}/{item.id}", item.query, prompt, answer)


def _is_short(question: Question) -> bool:
    return any(len(answer.split()) <= SHORT_ANSWER for answer in question.answers)
