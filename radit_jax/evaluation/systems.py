"""The five systems of the ablation, their parts, and which of them are compared.

Letters of axes: Q questions, K chunks that an answer is mixed over, D ranks to which a ranking is judged.

Titles are those of `text/results_table.py`, which prints them; the names are the keys of `results.json`.
"""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from radit_jax.text.results_table import CONTEXT_TITLES, LM_TITLES, RETRIEVER_TITLES, SYSTEM_TITLES

LMS = tuple(LM_TITLES)  # base_lm, and lm_ft_lm after LM-ft
RETRIEVERS = tuple(RETRIEVER_TITLES)  # base, and r_ft after R-ft
CONTEXTS = tuple(CONTEXT_TITLES)  # which one chunk a language model is given, to see how it uses a chunk
STAGE_OF_LM = {"base_lm": "base_lm", "lm_ft_lm": "lm_ft"}  # the stage whose folder holds a language model


class System(NamedTuple):
    """A language model with a retriever."""

    title: str
    lm: str  # of LMS
    retriever: str | None  # of RETRIEVERS; None: closed book


_PARTS = {  # name -> language model, retriever
    "closed_book": ("base_lm", None),
    "base": ("base_lm", "base"),
    "lm_ft": ("lm_ft_lm", "base"),
    "r_ft": ("base_lm", "r_ft"),
    "radit": ("lm_ft_lm", "r_ft"),
}
SYSTEMS = {name: System(SYSTEM_TITLES[name], lm, retriever) for name, (lm, retriever) in _PARTS.items()}

GAINS = {  # name -> the system after a change, the system before it
    "lm_ft-base": ("lm_ft", "base"),
    "r_ft-base": ("r_ft", "base"),
    "radit-lm_ft": ("radit", "lm_ft"),
    "radit-base": ("radit", "base"),
}


class SystemInputs(NamedTuple):
    """What a system answers with: its language model, and each question's chunks with their weights."""

    lm: str
    rows: Int[np.ndarray, "Q K"]  # NO_CHUNK: closed book
    log_probs: Float[np.ndarray, "Q K"]  # log p_R

    def equals(self, other: "SystemInputs") -> bool:
        """Whether both would answer alike."""
        same_rows = np.array_equal(self.rows, other.rows)
        same_weights = np.array_equal(self.log_probs, other.log_probs)
        return self.lm == other.lm and same_rows and same_weights

    def first(self, num_questions: int) -> "SystemInputs":
        """The same for the first questions."""
        return SystemInputs(self.lm, self.rows[:num_questions], self.log_probs[:num_questions])


def first_alike(name: str, inputs: Mapping[str, SystemInputs]) -> str:
    """The first system that would answer as this one does: those that answer alike are asked once."""
    return next(other for other in inputs if inputs[other].equals(inputs[name]))


class RetrievedChunks(NamedTuple):
    """A retriever's ranking for each question, and log p_R of its first K."""

    rows: Int[np.ndarray, "Q D"]  # the best first; D is at least K
    log_probs: Float[np.ndarray, "Q K"]

    def of(self, places: Int[np.ndarray, " q"]) -> "RetrievedChunks":
        """The same for the questions at these places."""
        return RetrievedChunks(self.rows[places], self.log_probs[places])
