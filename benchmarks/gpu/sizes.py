"""The sizes of the benchmark: those of an accelerator with 80 GB and more, and tiny ones for a CPU."""

from dataclasses import dataclass
from typing import Literal

from radit_jax.config import BertConfig, DecoderConfig


@dataclass(frozen=True)
class Sizes:
    """Networks, and how much of everything."""

    large: DecoderConfig  # trained with adapters, and scores and answers
    small: DecoderConfig  # trained whole, and scores and answers
    encoder: BertConfig
    turn_seconds: float  # that a measurement lasts, about
    properties: int | None  # of the self-check; None: all
    products: tuple[tuple[int, int, int], ...]  # (rows, in, out) of the products that are a peak
    copied: int  # numbers that are copied
    attention: tuple[tuple[int, int], ...]  # rows and positions of batches that attention is computed of
    heads: tuple[int, int, int]  # of attention: query heads, key heads, head size
    row_length: int  # tokens in a row of LM-ft
    remats: tuple[Literal["none", "full"], ...]  # of LM-ft, one after the other
    lora_rows: int  # in a batch
    full_rows: int
    prompt: tuple[int, int]  # tokens of a chunk with its question: at least, and at most
    asked: tuple[
        int, int
    ]  # tokens of a prompt that is answered; one width of rows, so that little is compiled
    answer: tuple[int, int]  # tokens
    chunks_small: int  # chunks that are scored by the small model, and by the large one; 0: not measured
    chunks_large: int
    score_rows: int  # rows of a batch of scoring
    questions_small: int  # that are answered together by the small model, and by the large one; 0: likewise
    questions_large: int
    chunks_per_question: int
    new_tokens: int
    texts: int  # in a batch of embedding
    text_length: int
    queries: int  # in a batch of R-ft


REAL = Sizes(
    large=DecoderConfig(32000, 4096, 32, 32, 32, 128, 11008),  # LLaMA 7B
    small=DecoderConfig(128256, 2048, 16, 32, 8, 64, 8192, rope_theta=500_000.0, tie_embeddings=True),
    encoder=BertConfig(30522, 768, 12, 12, 3072),  # DRAGON+, a BERT base
    turn_seconds=8.0,
    properties=None,
    products=((4096, 4096, 4096), (8192, 8192, 8192), (16384, 16384, 16384), (16384, 4096, 11008)),
    copied=2**31,
    attention=((8, 2048), (32, 320)),
    heads=(32, 8, 128),
    row_length=2048,
    remats=("none", "full"),
    lora_rows=8,
    full_rows=16,
    prompt=(150, 350),
    asked=(258, 288),
    answer=(4, 28),
    chunks_small=1500,
    chunks_large=300,
    score_rows=16,
    questions_small=16,
    questions_large=8,
    chunks_per_question=10,
    new_tokens=16,
    texts=512,
    text_length=192,
    queries=64,
)
# Heads and rows are as narrow as a kernel takes them.
TINY = Sizes(
    large=DecoderConfig(64, 32, 2, 2, 2, 16, 64),
    small=DecoderConfig(96, 32, 2, 2, 1, 16, 64, tie_embeddings=True),
    encoder=BertConfig(64, 32, 2, 2, 64),
    turn_seconds=0.0,
    properties=2,
    products=((32, 32, 32), (64, 32, 16)),
    copied=2**10,
    attention=((1, 128),),
    heads=(2, 1, 16),
    row_length=128,
    remats=("full",),
    lora_rows=2,
    full_rows=2,
    prompt=(20, 40),
    asked=(40, 44),
    answer=(2, 5),
    chunks_small=0,
    chunks_large=4,
    score_rows=2,
    questions_small=0,
    questions_large=1,
    chunks_per_question=3,
    new_tokens=4,
    texts=4,
    text_length=16,
    queries=4,
)
