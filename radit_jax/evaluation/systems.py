"""The five systems of the ablation, what they are made of, and which of them are compared.

Titles are those of `text/results_table.py`, which prints them; the names are the keys of `results.json`.
"""

from typing import NamedTuple

from radit_jax.text.results_table import CONTEXT_TITLES, LM_TITLES, RETRIEVER_TITLES, SYSTEM_TITLES

LMS = tuple(LM_TITLES)  # base_lm, and lm_ft_lm after LM-ft
RETRIEVERS = tuple(RETRIEVER_TITLES)  # base, and r_ft after R-ft
CONTEXTS = tuple(CONTEXT_TITLES)  # which one chunk a language model is given, to see what it makes of it
STAGE_OF_LM = {"base_lm": "base_lm", "lm_ft_lm": "lm_ft"}  # the stage whose folder holds a language model


class System(NamedTuple):
    """A language model with a retriever."""

    title: str
    lm: str  # of LMS
    retriever: str | None  # of RETRIEVERS; None: closed book


def _system(name: str, lm: str, retriever: str | None) -> tuple[str, System]:
    return name, System(SYSTEM_TITLES[name], lm, retriever)


SYSTEMS = dict(
    [
        _system("closed_book", "base_lm", None),
        _system("base", "base_lm", "base"),
        _system("lm_ft", "lm_ft_lm", "base"),
        _system("r_ft", "base_lm", "r_ft"),
        _system("radit", "lm_ft_lm", "r_ft"),
    ]
)

GAINS = {  # name -> the system after a change, the system before it
    "lm_ft-base": ("lm_ft", "base"),
    "r_ft-base": ("r_ft", "base"),
    "radit-lm_ft": ("radit", "lm_ft"),
    "radit-base": ("radit", "base"),
}
