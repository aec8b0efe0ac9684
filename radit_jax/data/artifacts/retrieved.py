"""Examples with the chunks that were retrieved for them: what retrieve leaves for LM-ft and R-ft."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from radit_jax.command_line import run_stage
from radit_jax.data.records import Example, record_from_json
from radit_jax.runtime.row_parts import read_array_parts, read_parts, write_parts
from radit_jax.runtime.storage.stage_folder import StageFolder


@dataclass(frozen=True)
class Retrieved:
    """E examples with K chunks each, best first."""

    examples: Sequence[Example]
    chunk_rows: Int[np.ndarray, "E K"]  # rows of the corpus; −1 is no chunk
    retrieval_scores: Float[np.ndarray, "E K"]  # s(q, c) of the untuned retriever

    @property
    def is_question(self) -> Bool[np.ndarray, " E"]:
        """Whether an example was made of a question, not cut from a chunk."""
        return np.array([not example.source_chunk for example in self.examples], dtype=bool)

    def take(self, places: Int[np.ndarray, " e"]) -> "Retrieved":
        """The examples at these places, with their chunks."""
        examples = [self.examples[place] for place in places.tolist()]
        return Retrieved(examples, self.chunk_rows[places], self.retrieval_scores[places])

    def save(self, folder: StageFolder, split: str) -> None:
        """Write the examples of a split as JSON lines, and their chunks as arrays, in parts."""

        def write_examples(part: str, rows: slice) -> None:
            folder.write_jsonl(part, map(dataclasses.asdict, self.examples[rows]))

        def write_chunks(part: str, rows: slice) -> None:
            arrays = {"chunk_rows": self.chunk_rows, "retrieval_scores": self.retrieval_scores}
            folder.write_arrays(part, **{name: array[rows] for name, array in arrays.items()})

        num_examples = len(self.examples)
        write_parts(folder, f"{split}.jsonl", num_examples, write_examples)
        write_parts(folder, f"{split}.npz", num_examples, write_chunks)

    @classmethod
    def load(cls, folder: StageFolder, split: str) -> "Retrieved":
        """The examples of a split; ValueError where their chunks are not as many rows as they are."""
        # 1) The examples. Each of several processes reads some of the parts.
        examples: list[Example] = []
        for part, data in read_parts(folder, f"{split}.jsonl"):
            where = str(folder.home / part)
            records = folder.parse_jsonl(part, data)
            examples += [record_from_json(Example, record, where) for record in records]

        # 2) Their chunks.
        arrays = read_array_parts(folder, f"{split}.npz", "chunk_rows", "retrieval_scores")
        if any(array.ndim != 2 or len(array) != len(examples) for array in arrays.values()):
            shapes = {name: array.shape for name, array in arrays.items()}
            raise ValueError(
                f"{folder.home / split}.npz: expected what was retrieved for {len(examples)} examples, got "
                f"{shapes}. Delete the folder {folder.home} and run {run_stage(folder.stage)}."
            )
        return cls(examples, **arrays)
