"""What can be refused before a stage runs, and is: a dry run and a run begin with these checks."""

from collections.abc import Iterable, Mapping

from etils import epath

from radit_jax.config import Experiment, Folder, Instructions
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.artifacts.scores_file import read_scores
from radit_jax.data.readers.columns import columns_in_words
from radit_jax.data.readers.documents import Passages, corpus_format
from radit_jax.data.sources import folder, instructions
from radit_jax.data.sources.found_data import unread_tables
from radit_jax.data.sources.small_data import FEW_TRAIN, SMALL_BYTES, small_data_warnings
from radit_jax.pipeline.stage import Stage
from radit_jax.runtime.storage.stage_folder import StageFolder


def check_stored_models(stages: Iterable[Stage], absent: Mapping[str, str]) -> None:
    """Refuse checkpoints whose tensors or tokeniser do not fit their settings, by their files' headers.

    `absent` has the sources that are not there, which are not read.
    """
    present = []
    for stage in stages:
        sources = set(stage.sources)
        if stage.kind == "base" and sources and not absent.keys() & sources:
            present.append(stage)
    if not present:
        return
    from radit_jax.runtime.pretrained.model_io import check_stored  # jax, for a network's shapes

    for stage in present:
        retriever = stage.settings.get("retriever")
        if retriever is None:
            check_stored(stage.sources[0], expected="decoder")
            continue
        # Without a checkpoint of its own, the chunk tower starts as the query tower.
        towers = {
            "query": retriever.checkpoint,
            "chunk": retriever.chunk_checkpoint or retriever.checkpoint,
        }
        for side, source in towers.items():
            check_stored(
                source,
                expected="encoder",
                side=side,
                num_layers=retriever.num_layers or None,
                pooling=retriever.pooling,
                normalize=retriever.normalize,
            )


def look_at_data(experiment: Experiment) -> list[str]:
    """Refuse data that the corpus stage would refuse; lines on what small data is too little for.

    Large files are known by their names only, because reading them is what the stage does.
    """
    data = experiment.data
    if isinstance(data, Instructions):
        instructions.check_files(data)
        _look_at_passages(data)
        return []
    if not isinstance(data, Folder):
        return []
    files = folder.source_files(data)
    # What was guessed about a table can be seen to be wrong.
    guesses = filter(None, map(columns_in_words, files))
    lines = [f"data       {guess}" for guess in guesses]
    if sum(map(_size, files)) > SMALL_BYTES:
        return lines

    # Reading is what finds a wrong line.
    corpus = folder.read_folder(data, experiment.seed)
    assert isinstance(corpus.chunks, Passages)
    num_chunks = len(corpus.chunks)
    check_num_chunks(experiment, num_chunks)
    parts = [f"{len(questions):,} {split}" for split, questions in corpus.questions.items()]
    lines.append(f"data       {num_chunks:,} chunks; {', '.join(parts)} questions")
    surprises = [
        *unread_tables(data),
        *folder.folder_warnings(corpus),
        *small_data_warnings(corpus.questions),
    ]
    has_few = len(corpus.questions["train"]) < FEW_TRAIN
    if has_few and not experiment.r_ft.corpus_text_fraction:
        surprises.append(
            "R-ft learns from questions alone: r_ft.corpus_text_fraction=0.5 lets it learn from the passages "
            "too"
        )
    for surprise in surprises:
        lines.append(f"warning    {surprise}")
    return lines


def _look_at_passages(data: Instructions) -> None:
    """Refuse a corpus whose name does not say its form."""
    is_prepared = instructions.corpus_sources(data.passages, data.passages_format) is None
    if data.passages_format == "auto" and not is_prepared:
        path = instructions.corpus_path(data.passages)
        corpus_format(path)


def _size(file: epath.Path) -> int:
    return file.stat().length


def check_num_chunks(experiment: Experiment, num_chunks: int) -> None:
    """Refuse settings that ask for more chunks than the corpus has."""
    e = experiment
    chunks_per_query = {
        "lm_ft.chunks_per_example": e.lm_ft.chunks_per_example,
        "retrieve.num_chunks": e.retrieve.num_chunks,
        "evaluate.chunks_per_answer": e.evaluate.chunks_per_answer,
        "recall@10 and MRR@10": 10,
    }
    # An example cut from the corpus must not retrieve its own chunk, which leaves one fewer.
    available = num_chunks - 1
    for name, wanted in chunks_per_query.items():
        if wanted > available:
            raise ValueError(
                f"{name}: expected at most {available} chunks, which is all that the corpus has besides "
                f"an example's own, got {wanted}. Lower the setting or add passages."
            )


def check_scored_examples(file: str, corpus: StageFolder) -> None:
    """Refuse a file of scores that knows none of the corpus' train questions, before anything is trained.

    Whether it has every example and candidate is known once those are retrieved.
    """
    ids = _train_ids(Corpus(corpus))
    if not ids:
        return
    for line in read_scores(file):
        if line.key[0] in ids:
            return
    raise ValueError(
        f"{file}: expected scores of this corpus' train questions, got none of its {len(ids):,} ids (such as "
        f"{sorted(ids)[0]!r}). Name the file that belongs to these data, or let a model label: "
        "score.language_model=base."
    )


def _train_ids(corpus: Corpus) -> set[str]:
    """The ids of the questions that R-ft learns from."""
    drawn = corpus.examples("r_ft", "train")
    if drawn is None:
        return {question.id for question in corpus.questions("train")}
    return {example.id for _, example in drawn}
