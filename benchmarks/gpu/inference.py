"""The frozen language models: LSR scoring and answering by Eq. 2, in bfloat16."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.gpu.bench import Bench, drawn, measure, one_device_mesh
from benchmarks.gpu.inputs import Draw, pair_counts
from radit_jax.config import DecoderConfig, MeshConfig, ScoreConfig
from radit_jax.lm.ensemble import DecodeOptions, answer_questions
from radit_jax.lm.scoring import PairScorer
from radit_jax.method.generation import Stops
from radit_jax.models.decoder import DecoderLm
from radit_jax.models.flops import attended_pairs, training_flops
from radit_jax.runtime.distributed.mesh import configure_attention, row_layout
from radit_jax.runtime.pretrained.model_io import Model

SHARED = 4  # questions that share a chunk
BATCHES = 4  # of questions that are answered in a turn
MESH = MeshConfig()


def scoring(bench: Bench) -> None:
    """(Example, chunk) pairs of chunks that each have one question, and of chunks that have several."""
    sizes = bench.sizes
    for name, config, chunks in _models(bench, sizes.chunks_small, sizes.chunks_large):
        for questions in (1, SHARED):
            what = f"{name}, {questions} questions a chunk"
            with bench.trying(what):
                _score(bench, what, config, chunks, questions)


def answering(bench: Bench) -> None:
    """Questions by Eq. 2: each is decoded under each of its chunks, and every answer scored under all."""
    sizes = bench.sizes
    for name, config, questions in _models(bench, sizes.questions_small, sizes.questions_large):
        with bench.trying(name):
            _answer(bench, name, config, questions)


def _models(bench: Bench, small: int, large: int) -> list[tuple[str, DecoderConfig, int]]:
    """The two models with how much each is given."""
    models = [("small", bench.sizes.small, small), ("large", bench.sizes.large, large)]
    return [model for model in models if model[2]]


def _params(module: DecoderLm) -> Any:
    return drawn(module, jnp.bfloat16, jnp.zeros((1, 2), jnp.int32))


def _score(bench: Bench, what: str, config: DecoderConfig, chunks: int, questions: int) -> None:
    # 1) The scorer of the stage.
    sizes = bench.sizes
    devices = one_device_mesh()
    plain = DecoderLm(config, dtype=jnp.bfloat16)
    rows = configure_attention(plain, devices, MESH, row_length=sizes.row_length)
    settings = ScoreConfig(batch_size=sizes.score_rows, sequence_length=sizes.row_length, dtype="bfloat16")
    no_tokenizer: Any = None
    model = Model(plain.clone(layout=row_layout(devices)), _params(plain), no_tokenizer)
    scorer = PairScorer(model, devices, settings, rows)

    # 2) All pairs in a turn.
    draw = Draw(sizes, config)
    trees = [draw.chunk(questions) for _ in range(chunks)]
    results: Any = None

    def turn() -> Any:
        nonlocal results
        results = scorer.score_trees(trees)

    clock = measure(turn, most_seconds=sizes.turn_seconds, most_turns=3)
    if not np.isfinite(results).all():
        raise FloatingPointError("expected finite log-probabilities, got others")

    # 3) A third of a training step's arithmetic, for nothing is differentiated.
    counts = np.array([pair_counts(tree) for tree in trees]).sum(axis=0)
    tokens, attended = counts.tolist()
    targets = sum(tree.num_targets for tree in trees)
    flops = training_flops(config, tokens=tokens, attended=attended, targets=targets) / 3
    bench.rate(
        what,
        chunks * questions,
        "pairs",
        clock=clock,
        flops=flops,
        attention=rows.attention if questions == 1 else "xla",
        fill=scorer.filled.share,
        tokens=tokens,
    )


def _answer(bench: Bench, name: str, config: DecoderConfig, questions: int) -> None:
    sizes = bench.sizes
    plain = DecoderLm(config, dtype=jnp.bfloat16)
    module = configure_attention(plain, one_device_mesh(), MESH)
    params = _params(plain)
    draw = Draw(sizes, config)
    num_chunks = sizes.chunks_per_question
    num_questions = BATCHES * questions
    prompts = []
    for _ in range(num_questions):
        prompts.append([draw.tokens(*sizes.asked) for _ in range(num_chunks)])
    weights = np.full((num_questions, num_chunks), -np.log(num_chunks), np.float32)
    # No id ends an answer but two that are never drawn, so nearly all have their full length.
    options = DecodeOptions(sizes.new_tokens, Stops((0, 1)), questions_per_batch=questions)
    answers: Any = None

    def turn() -> Any:
        nonlocal answers
        answers = answer_questions(module, params, prompts, weights, options)

    clock = measure(turn, most_seconds=sizes.turn_seconds, most_turns=2)

    # Each prompt is read once, then its answer is decoded, and all answers of its question are scored.
    num_prompts = num_questions * num_chunks
    num_answers = sum(map(len, answers))
    prompt_tokens = sum(len(prompt) for by_chunk in prompts for prompt in by_chunk)
    decoded = num_prompts * sizes.new_tokens
    scored = num_answers * num_chunks * sizes.new_tokens
    length = round(prompt_tokens / num_prompts)
    attended = attended_pairs(config, sequences=num_prompts, length=length) + length * (decoded + scored)
    tokens = prompt_tokens + decoded + scored
    flops = training_flops(config, tokens=tokens, attended=attended, targets=decoded + scored) / 3
    bench.rate(
        f"{name}, {num_chunks} chunks a question",
        num_questions,
        "questions",
        clock=clock,
        flops=flops,
        attention=module.attention,
        **{"tokens a prompt": length, "answers a question": num_answers / num_questions},
    )
