"""LSR scores on disk: what score and r_ft's refreshes leave, and all that Eq. 4 needs."""

import dataclasses
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Int

from radit_jax.runtime.row_parts import read_array_parts
from radit_jax.runtime.storage.stage_folder import StageFolder


@dataclass(frozen=True)
class Scores:
    """E examples' answers under their K chunks and under none."""

    chunk_rows: Int[np.ndarray, "E K"]
    retrieval_scores: Float[np.ndarray, "E K"]  # of the untuned retriever for the first candidates
    answer_log_probs: Float[np.ndarray, "E K"]  # nats, summed over the answer's tokens, without a terminator
    no_chunk_log_probs: Float[np.ndarray, " E"]
    answer_token_counts: Int[np.ndarray, " E"]
    token_counts: Int[np.ndarray, "E K"]  # chunk, prompt and answer, as the language model read them
    truncated: Bool[np.ndarray, "E K"]  # the chunk was cut to fit the row

    def save(self, folder: StageFolder, name: str = "scores.npz") -> None:
        """Write all arrays as one file of the folder."""
        folder.write_arrays(name, **dataclasses.asdict(self))

    @classmethod
    def load(cls, folder: StageFolder, name: str = "scores.npz") -> "Scores":
        """The scores that `save` wrote, or the score stage in parts."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**read_array_parts(folder, name, *names))
