"""Answers by Eq. 2: greedy answers under ten chunks, each distinct one scored under all ten.

A question's chunks are MiniLM's top ten with equal weights. `RADIT_LM` names a folder with a trained language
model in Hugging Face's form. Without it the weights are drawn, so that no answer ends early: each has as many
tokens as wiki's answers have on average with a terminator, and nearly all are distinct, so that there is as
much to score as there can be. The questions are one batch of a run over all test questions, the median one by
how much its chunks are shared. The peers, whose rate does not depend on the number of questions, take the
first ones. They read prompts in batches of like length.
"""

import json
import pathlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from benchmarks.compare import Benchmark, Target, Worker
from benchmarks.worker import Once, Work

QUESTIONS_PER_BATCH = 16
NUM_BATCHES = 1
NEW_TOKENS = 8
SEQUENCE_LENGTH = 512
BATCH = 32  # rows that PyTorch reads together
# Questions that the peers answer:
OF_CACHED = 8
OF_ANEW = 2

Prompts = list[list[list[int]]]  # of each question after each of its chunks, as token ids
Place = tuple[int, int]  # question, chunk
Answer = tuple[int, ...]

STOP = -1  # as a target: any of the ids that end an answer
NOTHING = -2  # as a target: no token


class Ends(NamedTuple):
    """The ids that end an answer: alone, or as the last piece of its text."""

    alone: Sequence[int]
    closing: Sequence[int]

    def cut(self, row: Sequence[int]) -> Answer:
        """A generated row as targets: up to its end, which is STOP or a closing piece."""
        for place, token in enumerate(row):
            if token in self.alone:
                return (*row[:place], STOP)
            if token in self.closing:
                return tuple(row[: place + 1])
        return tuple(row)


class Read(NamedTuple):
    """Prompts that transformers has generated from, and its cache of them."""

    places: Sequence[Place]
    answers: list[Answer]  # as targets
    mask: Any  # 1 at the cache's slots that hold a prompt's tokens
    cache: Any
    logits: Any  # of the token after each prompt


def prepare(folder: pathlib.Path) -> Mapping[str, Any]:
    """The prompts as tokens, and the language model in Hugging Face's form."""
    from benchmarks import inputs
    from radit_jax.data.batches.prefix_trees import prompt_tokens
    from radit_jax.lm.answering import stops_of
    from radit_jax.lm.prefix_sharing import group_by_shared_chunks
    from radit_jax.text.prompts import question_prompt

    texts = inputs.texts()
    rows = inputs.candidates(folder.parent, texts.passages, texts.test, "test")
    tokenizer = inputs.answering_model(folder / "lm").tokenizer
    order = np.array(group_by_shared_chunks(rows, QUESTIONS_PER_BATCH))
    whole = order[: len(order) - len(order) % QUESTIONS_PER_BATCH].reshape(-1, QUESTIONS_PER_BATCH)
    distinct = np.array([len(np.unique(rows[own])) for own in whole])
    middle = np.argsort(distinct, kind="stable")[len(whole) // 2 :][:NUM_BATCHES]
    made = [
        [
            prompt_tokens(tokenizer, texts.passages[row], prompt, max_length=SEQUENCE_LENGTH - NEW_TOKENS)[0]
            for row in rows[number]
        ]
        for number in whole[middle].ravel()
        for prompt in [question_prompt(texts.test[number].question)]
    ]
    inputs.write_json(folder / "prompts.json", made)
    inputs.write_json(folder / "ends.json", stops_of(tokenizer))
    return {
        "inputs": texts.source,
        "language model": inputs.answering_model_name(),
        "questions": len(made),
        "tokens a prompt": float(np.mean([len(prompt) for own in made for prompt in own])),
        "new tokens an answer": NEW_TOKENS,
        "prompts to distinct chunks of a batch": float(len(made) * rows.shape[1] / distinct[middle].sum()),
        "of all test questions' batches": float(whole.size * rows.shape[1] / distinct.sum()),
        "of all test questions at once": rows.size / len(np.unique(rows)),
    }


def ours(folder: pathlib.Path) -> Once:
    """A batch reads each chunk once; the prompts' caches are used to decode and to score."""
    return _ours(folder, "float32")


def ours_bfloat16(folder: pathlib.Path) -> Once:
    """The same with `evaluate.dtype=bfloat16`."""
    return _ours(folder, "bfloat16")


def _ours(folder: pathlib.Path, dtype: str) -> Once:
    import jax.numpy as jnp

    from benchmarks import inputs
    from radit_jax.lm.answering import stops_of
    from radit_jax.lm.ensemble import DecodeOptions, answer_questions

    model = inputs.answering_model(folder / "lm")
    module = model.module.clone(dtype=jnp.dtype(dtype))
    prompts = _prompts(folder)
    weights = [np.full(len(own), -np.log(len(own)), np.float32) for own in prompts]

    options = DecodeOptions(NEW_TOKENS, stops_of(model.tokenizer), QUESTIONS_PER_BATCH)

    def once() -> Work:
        found = answer_questions(module, model.params, prompts, weights, options)
        return Work(len(found), _output([(own[0].tokens, own[0].log_prob) for own in found]))

    return once


def transformers_cached(folder: pathlib.Path) -> Once:
    """`generate` in batches, caches kept: the answers are continuations of a prompt under a 4D mask."""
    return _transformers(folder, "float32", _scored_by_caches, OF_CACHED)


def transformers_cached_bfloat16(folder: pathlib.Path) -> Once:
    """The same in bfloat16."""
    return _transformers(folder, "bfloat16", _scored_by_caches, OF_CACHED)


def transformers_anew(folder: pathlib.Path) -> Once:
    """`generate` in batches; every answer is read again after every chunk, the head on the answer's rows."""
    return _transformers(folder, "float32", _scored_anew, OF_ANEW)


def agreement(outputs: Mapping[str, np.ndarray]) -> Mapping[str, Any]:
    """Whether the best answers are those of transformers that reads everything anew, and their log-probs."""
    told: dict[str, Any] = {}
    reference = outputs["transformers, all read anew"]
    for name, output in outputs.items():
        if output is not reference:
            own = output[: len(reference)]
            same = (own[:, 1:] == reference[:, 1:]).all(axis=1)
            told[f"{name}, share of the same best answers"] = float(same.mean())
            differences = np.abs(own[same, 0] - reference[same, 0])
            told[f"{name}, largest difference of their log-probabilities in nats"] = float(
                differences.max(initial=0)
            )
    return told


BENCHMARK = Benchmark(
    name="answering",
    title="Answers by Eq. 2",
    unit="questions",
    workers=(
        Worker("radit_jax", "ours"),
        Worker("radit_jax, bfloat16", "ours_bfloat16"),
        Worker("transformers, all read anew", "transformers_anew"),
        Worker("transformers, caches kept", "transformers_cached"),
        Worker("transformers, caches kept, bfloat16", "transformers_cached_bfloat16"),
    ),
    prepare=prepare,
    agreement=agreement,
    targets=(Target("transformers, all read anew", 4.0), Target("transformers, caches kept", 1.0)),
)


def _prompts(folder: pathlib.Path) -> Prompts:
    return json.loads((folder / "prompts.json").read_text())


def _output(best: Sequence[tuple[Answer, float]]) -> np.ndarray:
    """A row for each question: its best answer's log-probability and tokens, −1 after the last."""
    rows = np.full((len(best), 1 + NEW_TOKENS), -1.0)
    for row, (tokens, log_prob) in zip(rows, best, strict=True):
        row[: 1 + len(tokens)] = [log_prob, *tokens]
    return rows


def _transformers(folder: pathlib.Path, dtype: str, score: Any, num_questions: int) -> Once:
    import torch
    from transformers import AutoModelForCausalLM

    model: Any = AutoModelForCausalLM.from_pretrained(folder / "lm", dtype=getattr(torch, dtype)).eval()
    prompts = _prompts(folder)[:num_questions]
    ends = Ends(*json.loads((folder / "ends.json").read_text()))

    @torch.inference_mode()
    def once() -> Work:
        read = list(_generated(model, prompts, ends))
        answers = {
            place: answer for own in read for place, answer in zip(own.places, own.answers, strict=True)
        }
        unique = [
            list(dict.fromkeys(answers[question, chunk] for chunk in range(len(own))))
            for question, own in enumerate(prompts)
        ]
        scores = score(model, prompts, unique, read, ends)
        return Work(len(prompts), _output([_best(unique[q], scores[q]) for q in range(len(prompts))]))

    return once


def _generated(model: Any, prompts: Prompts, ends: Ends) -> Iterator[Read]:
    """Greedy answers to all prompts, those of like length together, padded on the left."""
    import torch

    places = [(question, chunk) for question, own in enumerate(prompts) for chunk in range(len(own))]
    places.sort(key=lambda place: len(prompts[place[0]][place[1]]))
    for start in range(0, len(places), BATCH):
        some = places[start : start + BATCH]
        width = max(len(prompts[q][chunk]) for q, chunk in some)
        ids = torch.zeros((len(some), width), dtype=torch.long)
        mask = torch.zeros_like(ids)
        for row, (q, chunk) in enumerate(some):
            ids[row, width - len(prompts[q][chunk]) :] = torch.tensor(prompts[q][chunk])
            mask[row, width - len(prompts[q][chunk]) :] = 1
        told = model.generate(
            ids,
            attention_mask=mask,
            do_sample=False,
            max_new_tokens=NEW_TOKENS,
            eos_token_id=[*ends.alone, *ends.closing],
            pad_token_id=0,
            return_dict_in_generate=True,
            output_logits=True,
        )
        cache = told.past_key_values
        cache.crop(width - cache.get_seq_length())  # a negative number: so many slots less
        answers = [ends.cut(row) for row in told.sequences[:, width:].tolist()]
        yield Read(some, answers, mask, cache, told.logits[0])


def _scored_by_caches(
    model: Any,
    prompts: Prompts,
    unique: Sequence[Sequence[Answer]],
    read: Sequence[Read],
    ends: Ends,
) -> list[np.ndarray]:
    """Log-probabilities [chunks, answers] of each question: a prompt's answers stand in a row after it."""
    import torch

    scores = [np.zeros((len(own), len(unique[q]))) for q, own in enumerate(prompts)]
    for part in read:
        targets = _padded([unique[q] for q, _ in part.places])
        num_rows, most, longest = targets.shape
        later = longest - 1  # an answer's targets but for the first, which the prompt predicts
        slots = torch.arange(most * later)
        own = (slots[:, None] // later == slots[None] // later) & (slots[:, None] >= slots[None])
        before = part.mask.bool()[:, None, None].expand(-1, 1, len(slots), -1)
        hidden = model.model(
            targets[:, :, :-1].clamp(min=0).flatten(1),
            attention_mask=torch.cat([before, own.expand(num_rows, 1, -1, -1)], dim=-1),
            position_ids=part.mask.sum(1, keepdim=True) + slots % later,
            past_key_values=part.cache,
        ).last_hidden_state
        # The head runs on the slots that are used.
        used = targets[:, :, 1:] != NOTHING
        logits = model.lm_head(hidden.unflatten(1, (most, later))[used])
        found = torch.zeros(used.shape)
        found[used] = _target_log_probs(logits, targets[:, :, 1:][used], ends)
        first = part.logits[:, None].expand(-1, most, -1)
        sums = found.sum(2) + _target_log_probs(first, targets[:, :, 0], ends)
        for row, (q, chunk) in enumerate(part.places):
            scores[q][chunk] = sums[row, : len(unique[q])].numpy()
    return scores


def _scored_anew(
    model: Any,
    prompts: Prompts,
    unique: Sequence[Sequence[Answer]],
    read: Sequence[Read],
    ends: Ends,
) -> list[np.ndarray]:
    """The same with a row for every pair, pairs of like length together."""
    import torch

    scores = [np.zeros((len(own), len(unique[q]))) for q, own in enumerate(prompts)]
    pairs = [
        (q, chunk, number)
        for q, own in enumerate(prompts)
        for chunk in range(len(own))
        for number in range(len(unique[q]))
    ]
    pairs.sort(key=lambda pair: len(prompts[pair[0]][pair[1]]))
    for start in range(0, len(pairs), BATCH):
        some = pairs[start : start + BATCH]
        texts = [[*prompts[q][chunk], *unique[q][number][:-1]] for q, chunk, number in some]
        lengths = torch.tensor([len(text) for text in texts])
        ids = torch.zeros((len(texts), int(lengths.max())), dtype=torch.long)
        for row, text in enumerate(texts):
            ids[row, : len(text)] = torch.tensor(text)
        mask = torch.arange(ids.shape[1])[None] < lengths[:, None]
        hidden = model.model(ids, attention_mask=mask.long()).last_hidden_state
        # The prompt's last token predicts the first target.
        targets = _padded([[unique[q][number]] for q, _, number in some])[:, 0]
        starts = torch.tensor([len(prompts[q][chunk]) - 1 for q, chunk, _ in some])
        places = (starts[:, None] + torch.arange(targets.shape[1])).clamp(max=ids.shape[1] - 1)
        predicting = hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
        found = _target_log_probs(model.lm_head(predicting), targets, ends).sum(1)
        for (q, chunk, number), value in zip(some, found.tolist(), strict=True):
            scores[q][chunk, number] = value
    return scores


def _padded(answers: Sequence[Sequence[Answer]]) -> Any:
    """The answers of each row as targets [rows, answers, tokens], two tokens at least."""
    import torch

    most = max(map(len, answers))
    longest = max(len(answer) for of_row in answers for answer in of_row)
    targets = torch.full((len(answers), most, max(2, longest)), NOTHING)
    for row, of_row in enumerate(answers):
        for number, answer in enumerate(of_row):
            targets[row, number, : len(answer)] = torch.tensor(answer)
    return targets


def _target_log_probs(logits: Any, targets: Any, ends: Ends) -> Any:
    """Each target's log-probability: of all ends together for STOP, 0 for NOTHING."""
    log_probs = logits.float().log_softmax(-1)
    of_tokens = log_probs.gather(-1, targets.clamp(min=0)[..., None])[..., 0]
    of_ends = log_probs[..., list(ends.alone)].logsumexp(-1)
    found = of_tokens.where(targets != STOP, of_ends)
    return found.masked_fill(targets == NOTHING, 0.0)


def _best(answers: Sequence[Answer], scores: np.ndarray) -> tuple[Answer, float]:
    """The most probable answer under chunks with equal weights, without its end."""
    mixed = np.logaddexp.reduce(scores - np.log(len(scores)), axis=0)
    best = answers[int(mixed.argmax())]
    return tuple(token for token in best if token != STOP), float(mixed.max())
