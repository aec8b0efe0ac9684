"""Split a corpus into chunks on many machines, with Apache Beam (`--help` lists the options).

    python -m radit_jax.data.sources.beam --corpus=psgs_w100.tsv --output=OUT             # on this machine
    python -m radit_jax.data.sources.beam --corpus=gs://B/kilt_knowledgesource.json --output=gs://B/chunks \\
        --runner=DataflowRunner --project=P --region=us-west4 --temp_location=gs://B/tmp \\
        --sdk_container_image=IMAGE --experiments=use_runner_v2
    … --runner=FlinkRunner --flink_master=HOST:8081 --environment_type=DOCKER --environment_config=IMAGE
    … --runner=SparkRunner --spark_master_url=spark://HOST:7077 --environment_type=DOCKER …

Then `--set data.corpus=OUT` reads the chunks instead of the corpus, and they are the same, in the same order
and files. Flags that are not ours are Beam's. IMAGE has this package with its extra `beam`, and `gcs` for
gs://. Beam asks for an older protobuf than constraints.txt has: install it in an environment of its own.

A corpus is cut into parts at line ends, where its form allows it: what is compressed, a JSON list, or a
table whose fields may hold line ends, is one part. The first pass counts each part's chunks, so that the
second knows the row of every chunk and can group them by the file they belong to.
"""

import argparse
import io
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, get_args

from etils import epath

from radit_jax.data.artifacts.chunk_rows import CHUNK_HASHES
from radit_jax.data.artifacts.chunk_writing import CHUNKS_PER_FILE, write_chunk_file
from radit_jax.data.artifacts.chunks import CHUNKS
from radit_jax.data.artifacts.corpus import PREPARED
from radit_jax.data.readers.chunking import count_document, own_ids, split_document
from radit_jax.data.readers.documents import corpus_format
from radit_jax.data.readers.parts import FileRange, find_parts, part_documents
from radit_jax.data.readers.tables import Quoting
from radit_jax.data.readers.unique_ids import refuse_repeated_id
from radit_jax.data.records import Chunk
from radit_jax.data.sources.instructions import corpus_path
from radit_jax.errors import exit_command, run_command
from radit_jax.runtime.storage.files import read_json, write_whole

COUNTED = "counted.json"  # in the output: what `summarise` says, before the chunks are written


# (row, the fields of a `Chunk`): plain values, which every runner can send.
NumberedChunk = tuple[int, tuple[str, str, str]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Prepare the corpus that the command line names; the exit code."""
    p = argparse.ArgumentParser(
        "python -m radit_jax.data.sources.beam",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    p.add_argument("--corpus", required=True, metavar="PATH", help="a file or folder, as data.corpus")
    p.add_argument("--output", required=True, metavar="FOLDER", help="for the chunks; gs:// or s3:// too")
    p.add_argument("--format", default="auto", help="as data.passages_format")
    p.add_argument("--quoting", default="auto", choices=get_args(Quoting), help="as data.quoting")
    p.add_argument("--max-words", type=int, default=200, metavar="N", help="as data.max_words")
    options, runner_flags = p.parse_known_args(arguments)

    def body() -> None:
        facts = prepare(
            options.corpus,
            options.format,
            options.max_words,
            options.output,
            runner_flags,
            quoting=options.quoting,
        )
        print(f"{facts['chunks']:,} chunks of {facts['counts']['documents']:,} documents: {options.output}")

    return run_command(body)


def prepare(
    corpus: str,
    form: str,
    max_words: int,
    output: str,
    runner_flags: Sequence[str] = (),
    quoting: Quoting = "auto",
) -> dict[str, Any]:
    """Write the chunks of `corpus` into the folder `output`; what was read, which is committed last."""
    beam = _import_beam()
    path = corpus_path(corpus)
    folder = epath.Path(output)
    if (folder / PREPARED).exists():
        raise ValueError(
            f"--output={output}: expected a folder without chunks, got some. Delete it, or name another."
        )
    options = beam.options.pipeline_options.PipelineOptions(list(runner_flags), pipeline_type_check=False)
    with beam.Pipeline(options=options) as pipeline:
        parts = pipeline | beam.Create(find_parts(path, form, quoting)) | beam.Reshuffle()
        # 1) Count the chunks of each part, and refuse ids that are not unique.
        count = beam.FlatMap(count_chunks, max_words).with_outputs("ids", main="counted")
        counted, ids = parts | "count" >> count
        _ = ids | "by id" >> beam.GroupByKey() | beam.Map(refuse_repeated)
        facts = counted | beam.combiners.ToList() | "sum" >> beam.Map(summarise)
        _ = facts | "facts" >> beam.Map(write_facts, output)
        # 2) Knowing the row of every chunk, write them by file.
        number = beam.FlatMap(number_chunks, max_words, beam.pvalue.AsSingleton(facts))
        rows = parts | "number" >> number
        _ = rows | "by file" >> beam.GroupByKey() | "write" >> beam.Map(write_file, output)
    # 3) Commit, by the file that the corpus stage looks for.
    written = read_json(folder / COUNTED, "Delete the folder and prepare the corpus again.")
    if not written["chunks"]:
        raise ValueError(f"{path}: expected a document with text, got none. Write one per line.")
    committed = {"chunks": written["chunks"], "max_words": max_words, "counts": written["counts"]}
    committed["format"] = corpus_format(path) if form == "auto" else form
    write_whole(folder / PREPARED, json.dumps(committed, indent=1) + "\n")
    return committed


# ---- what runs on the workers ----


def count_chunks(part: FileRange, max_words: int) -> Iterator[Any]:
    """The part's number, its chunks and what was read; and, as "ids", each id with its place."""
    beam = _import_beam()
    counts = Counter[str]()
    num_chunks = 0
    for document in part_documents(part):
        chunks = split_document(document, max_words)
        num_chunks += len(chunks)
        count_document(counts, chunks)
        for name in own_ids(document, chunks):
            yield beam.pvalue.TaggedOutput("ids", (name, document.where))
    yield part.number, num_chunks, dict(counts)


def refuse_repeated(places_of_id: tuple[str, Iterable[str]]) -> None:
    """`refuse_repeated_id` for an id and all its places, in whatever order the workers found them."""
    name, places = places_of_id
    refuse_repeated_id(name, sorted(places))


def summarise(counted: Iterable[tuple[int, int, dict[str, int]]]) -> dict[str, Any]:
    """The row of each part's first chunk, the number of chunks, and what was read."""
    total = 0
    starts: dict[int, int] = {}
    counts = Counter[str]()
    for number, num_chunks, part_counts in sorted(counted, key=lambda part: part[0]):
        starts[number] = total
        total += num_chunks
        counts.update(part_counts)
    return {"starts": starts, "chunks": total, "counts": dict(counts)}


def write_facts(facts: dict[str, Any], output: str) -> None:
    """Leave what `summarise` says in the output, for `prepare` to read."""
    write_whole(epath.Path(output) / COUNTED, json.dumps(facts))


def number_chunks(
    part: FileRange, max_words: int, facts: dict[str, Any]
) -> Iterator[tuple[int, NumberedChunk]]:
    """Every chunk of the part with its row, under the number of the file that it belongs to."""
    # The chunks of the parts before come first.
    row = facts["starts"][part.number]
    for document in part_documents(part):
        for chunk in split_document(document, max_words):
            yield row // CHUNKS_PER_FILE, (row, (chunk.id, chunk.title, chunk.text))
            row += 1


def write_file(chunks_of_file: tuple[int, Iterable[NumberedChunk]], output: str) -> None:
    """Write one numbered file of chunks, in the order of their rows."""
    number, numbered = chunks_of_file
    target = epath.Path(output) / CHUNKS / f"{number:05d}"
    in_order = sorted(numbered, key=lambda chunk: chunk[0])
    hashes = io.BytesIO()
    write_chunk_file(target, (Chunk(*fields) for _, fields in in_order), hashes)
    write_whole(epath.Path(output) / CHUNK_HASHES / target.name, hashes.getvalue())


def _import_beam() -> Any:
    try:
        import apache_beam  # pyright: ignore[reportMissingImports]
        import apache_beam.options.pipeline_options  # pyright: ignore[reportMissingImports]  # noqa: F401
    except ImportError:
        raise ValueError(
            "data.sources.beam: expected Apache Beam, got no such package. Run pip install 'radit_jax[beam]' "
            "in an environment of its own."
        ) from None
    return apache_beam


if __name__ == "__main__":
    from radit_jax.data.sources import beam as module  # whose functions workers can import by name

    exit_command(module.main)
