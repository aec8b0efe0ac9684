"""What others do on the same device: transformers' networks in PyTorch, where it is importable."""

import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.gpu.bench import Bench, Clock
from benchmarks.gpu.inputs import Draw
from radit_jax.config import DecoderConfig

ROWS = 32  # instances, pairs or prompts in a padded batch
BATCHES = 4  # in a turn


def peers(bench: Bench) -> None:
    """LM-ft, scoring, decoding and embedding on padded batches of like lengths."""
    try:
        import torch
        import transformers  # noqa: F401 - it makes the networks below
    except ImportError as error:
        bench.recorder.left_out(str(error))
        return
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    for name, run in (("LM-ft", _lm_ft), ("scoring", _score), ("decoding", _decode), ("embedding", _embed)):
        what = f"transformers, {name}"
        with bench.trying(what):
            clock, units, unit, notes = run(bench, device)
            # Nothing here may start jax, which would take the memory.
            bench.recorder.write(
                what,
                value=units / clock.seconds,
                unit=f"{unit}/s",
                seconds=clock.seconds,
                first_seconds=clock.first_seconds,
                peak_gib=torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None,
                notes=notes,
            )
        if device == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()


Measured = tuple[Clock, float, str, dict[str, Any]]  # with units of a turn, and what a unit is


def _lm_ft(bench: Bench, device: str) -> Measured:
    """The small model whole: float32 parameters with fused AdamW, products in bfloat16."""
    import torch

    model = _llama(bench.sizes.small, device, torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device == "cuda")
    batches = []
    for tokens, mask, is_answer in _instances(bench, bench.sizes.small):
        labels = np.where(is_answer, tokens, -100)
        batches.append([torch.from_numpy(array).to(device) for array in (tokens, mask, labels)])

    def turn() -> None:
        for tokens, mask, labels in batches:
            with torch.autocast(device, torch.bfloat16):
                loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()

    clock = _measure(bench, turn, device)
    return clock, _num_tokens(batches), "tokens", {"model": "small"}


def _score(bench: Bench, device: str) -> Measured:
    """Pairs one by one by the small model, its head on the rows that predict an answer."""
    import torch

    model = _llama(bench.sizes.small, device, torch.bfloat16).eval()
    batches = []
    for tokens, mask, is_answer in _instances(bench, bench.sizes.small):
        predicts = np.roll(is_answer, -1, axis=1)
        targets = tokens[is_answer]
        batches.append([torch.from_numpy(array).to(device) for array in (tokens, mask, predicts, targets)])

    @torch.inference_mode()
    def turn() -> None:
        for tokens, mask, predicts, targets in batches:
            hidden = model.model(input_ids=tokens, attention_mask=mask).last_hidden_state
            logits = model.lm_head(hidden[predicts]).float()
            torch.nn.functional.cross_entropy(logits, targets, reduction="none").cpu()

    return _measure(bench, turn, device), BATCHES * ROWS, "pairs", {"model": "small"}


def _decode(bench: Bench, device: str) -> Measured:
    """Greedy answers to prompts by the small model; nothing is scored."""
    import torch

    model = _llama(bench.sizes.small, device, torch.bfloat16).eval()
    batches = []
    for tokens, mask, _ in _instances(bench, bench.sizes.small):
        # The prompts end where the rows do.
        batches.append([torch.from_numpy(array[:, ::-1].copy()).to(device) for array in (tokens, mask)])
    length = bench.sizes.new_tokens

    @torch.inference_mode()
    def turn() -> None:
        for tokens, mask in batches:
            options = {
                "max_new_tokens": length,
                "min_new_tokens": length,
                "do_sample": False,
                "pad_token_id": 0,
            }
            model.generate(input_ids=tokens, attention_mask=mask, **options).cpu()

    return _measure(bench, turn, device), BATCHES * ROWS, "prompts", {"model": "small"}


def _embed(bench: Bench, device: str) -> Measured:
    """Full texts by a BERT in bfloat16."""
    import torch
    from transformers import BertConfig, BertModel

    sizes, shape = bench.sizes, bench.sizes.encoder
    config = BertConfig(
        vocab_size=shape.vocab_size,
        hidden_size=shape.hidden_size,
        num_hidden_layers=shape.num_layers,
        num_attention_heads=shape.num_heads,
        intermediate_size=shape.ffn_size,
    )
    model: Any = BertModel(config, add_pooling_layer=False).eval()
    model = model.to(device, torch.bfloat16)
    draw = np.random.default_rng(0)
    tokens = torch.from_numpy(draw.integers(3, shape.vocab_size, (sizes.texts, sizes.text_length)))

    @torch.inference_mode()
    def turn() -> None:
        for _ in range(BATCHES):
            model(input_ids=tokens.to(device)).last_hidden_state[:, 0].float().cpu()

    return _measure(bench, turn, device), BATCHES * sizes.texts, "texts", {"dtype": "bfloat16"}


def _llama(config: DecoderConfig, device: str, dtype: Any) -> Any:
    """Transformers' LLaMA with drawn weights."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = LlamaConfig(
        vocab_size=config.vocab_size,
        hidden_size=config.hidden_size,
        num_hidden_layers=config.num_layers,
        num_attention_heads=config.num_heads,
        num_key_value_heads=config.num_kv_heads,
        head_dim=config.head_size,
        intermediate_size=config.ffn_size,
        tie_word_embeddings=config.tie_embeddings,
    )
    # Drawn on the device: a billion numbers take the host a while.
    with torch.device(device):
        return LlamaForCausalLM(shape).to(dtype)


def _instances(bench: Bench, config: DecoderConfig) -> list[tuple[np.ndarray, ...]]:
    """Padded batches by length: tokens, where one is, and where one is an answer's."""
    draw = Draw(bench.sizes, config)
    trees = [draw.instance() for _ in range(BATCHES * ROWS)]
    instances = [tree.continuations[0] for tree in trees]
    instances.sort(key=lambda instance: len(instance.tokens))
    batches = []
    for start in range(0, len(instances), ROWS):
        batch = instances[start : start + ROWS]
        shape = len(batch), len(batch[-1].tokens)
        tokens, mask = np.zeros((2, *shape), np.int64)
        is_answer = np.zeros(shape, bool)
        for row, instance in enumerate(batch):
            length = len(instance.tokens)
            tokens[row, :length] = instance.tokens
            mask[row, :length] = 1
            is_answer[row, :length] = instance.weights > 0
        batches.append((tokens, mask, is_answer))
    return batches


def _num_tokens(batches: Sequence[Any]) -> float:
    return float(sum(mask.sum().item() for _, mask, _ in batches))


def _measure(bench: Bench, turn: Callable[[], None], device: str) -> Clock:
    """The first turn, and the mean of those after it."""
    import torch

    def seconds_of(count: int) -> float:
        start = time.perf_counter()
        for _ in range(count):
            turn()
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    first = seconds_of(1)
    one = seconds_of(1)
    count = max(1, min(10, int(bench.sizes.turn_seconds / 2 / one)))
    return Clock(first, seconds_of(count) / count)
