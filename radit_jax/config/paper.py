"""The paper's own values (arXiv 2310.01352), by the path of the setting in an `Experiment`.

A class of settings stands at several paths, and the paper says something else at each: the optimiser of LM-ft
is not that of R-ft. Settings that are not here are ones of which the paper says nothing. What it says is of
its largest model, LLaMA 65B.
"""

from typing import Any, NamedTuple


class Paper(NamedTuple):
    """A value of the paper, and the place in it."""

    value: Any
    place: str


_HYPER = "table of LM-ft's hyper-parameters"
_MIXTURE = "section on fine-tuning data"
_CORPUS = "section on the retrieval corpus"
_LM_FT = "section on LM-ft"
_R_FT = "section on R-ft"
_R_FT_APPENDIX = "appendix on R-ft"
_TASKS = ("mmlu", "nq", "trivia_qa", "eli5", "hotpotqa", "fever", "aida", "zsre", "trex", "wow")

PAPER = {
    # The data: Wikipedia, and datasets of which each gives LM-ft at most η examples.
    "data.max_words": Paper(200, _CORPUS),
    "data.expected_chunks": Paper(37_000_000, f"{_CORPUS}: Wikipedia of 20 December 2021"),
    "data.lm_ft_cap": Paper(7500, f"{_MIXTURE}, η"),
    "data.dialogue_fraction": Paper(0.05, _MIXTURE),
    # What both stages start from.
    "base.lm.checkpoint": Paper("huggyllama/llama-65b", "LLaMA 65B, and 7B and 13B"),
    "base.lm.prompt": Paper("plain", "table of templates"),
    "base.retriever.checkpoint": Paper("facebook/dragon-plus-query-encoder", "DRAGON+"),
    "base.retriever.chunk_checkpoint": Paper("facebook/dragon-plus-context-encoder", "DRAGON+"),
    # LM-ft, of all parameters.
    "lm_ft.optimizer.steps": Paper(500, _HYPER),
    "lm_ft.optimizer.peak_lr": Paper(1e-5, _HYPER),
    "lm_ft.optimizer.end_lr": Paper(1e-7, _HYPER),
    "lm_ft.optimizer.warmup_steps": Paper(200, _HYPER),
    "lm_ft.optimizer.decay": Paper("cosine", _HYPER),
    "lm_ft.lora.rank": Paper(0, "full fine-tuning"),
    "lm_ft.batch_size": Paper(128, f"{_HYPER}; 64 for 7B"),
    "lm_ft.sequence_length": Paper(2048, _HYPER),
    "lm_ft.chunks_per_example": Paper(3, f"{_LM_FT}, k̃"),
    "lm_ft.corpus_text_fraction": Paper(0.1, _MIXTURE),
    "lm_ft.select": Paper("kilt_dev", _HYPER),
    "lm_ft.select_questions": Paper(2500, "section on evaluation"),
    "lm_ft.validate_every": Paper(100, _HYPER),
    # R-ft, of the query encoder, towards the labels of the untuned LM.
    "retrieve.num_chunks": Paper(10, _R_FT),
    "score.language_model": Paper("base", "LLaMA 65B labels for all sizes"),
    "r_ft.optimizer.peak_lr": Paper(1e-5, _R_FT_APPENDIX),
    "r_ft.optimizer.warmup_steps": Paper(1237, _R_FT_APPENDIX),
    "r_ft.batch_size": Paper(512, f"{_R_FT_APPENDIX}, 16 × 32"),
    "r_ft.tau": Paper(0.01, _R_FT_APPENDIX),
    "r_ft.direction": Paper("retrieval_to_lsr", "Eq. 5 as printed"),
    "r_ft.target": Paper("lsr", "Eq. 5"),
    "r_ft.corpus_text_fraction": Paper(0.95, _R_FT_APPENDIX),
    "r_ft.text_tokens": Paper(50, _R_FT_APPENDIX),
    "r_ft.num_examples": Paper(947_368, f"{_R_FT_APPENDIX}: 900,000 chunks are 95 % of it"),
    "r_ft.train_chunk_encoder": Paper(False, _R_FT),
    "r_ft.refresh_every": Paper(0, _R_FT),
    "r_ft.validate_every": Paper(500, _R_FT_APPENDIX),
    # Answering by Eq. 2.
    "evaluate.chunks_per_answer": Paper(10, "Eq. 2, k"),
    "evaluate.ensemble": Paper("answer", "Eq. 2"),
    "evaluate.tasks": Paper(_TASKS, "table of results"),
}
