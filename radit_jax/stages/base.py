"""base: what RA-DIT starts from. Checkpoints are read; without one, a small model is trained from scratch.

The language model learns from the corpus' documents or, where it has none, from cloze questions on its
passages. The dual encoder learns on InfoNCE, from the data's groups of hard negatives or, where it has none,
from sentences and the passages that they were taken from.
"""

import itertools
import random
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from radit_jax.config import BertConfig, EncoderConfig, LmConfig, MeshConfig, ProfileConfig, RetrieverConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.batches.cloze import cloze_sequence
from radit_jax.data.batches.order import shuffled
from radit_jax.data.batches.packing import PrefixTree, span, to_batch
from radit_jax.data.records import Chunk
from radit_jax.lm.training import LmTraining, PackedTrees, train_lm
from radit_jax.method.likelihood import LmBatch
from radit_jax.method.optimizers import learning_rates, make_optimizer
from radit_jax.method.steps import ContrastiveBatch, init_state, make_contrastive_step
from radit_jax.models.bert import Bert
from radit_jax.models.decoder import DecoderLm
from radit_jax.models.mimetic_init import mimetic_init
from radit_jax.runtime.distributed.mesh import init_sharded, make_mesh, put_batch, row_layout
from radit_jax.runtime.loop import Reporting, Saving, train
from radit_jax.runtime.monitoring.metrics import Metrics
from radit_jax.runtime.pretrained import hub
from radit_jax.runtime.pretrained.checkpoint_info import SIDES, check_lm, check_retriever, tower_config
from radit_jax.runtime.pretrained.licences import origin
from radit_jax.runtime.pretrained.model_io import (
    Model,
    count_parameters,
    no_tokenizer,
    open_model,
    save_model,
)
from radit_jax.runtime.pretrained.router import tower_folder
from radit_jax.runtime.pretrained.tokenizer_training import train_bpe, train_wordpiece
from radit_jax.runtime.pretrained.tokenizers import Tokenizer
from radit_jax.runtime.storage.checkpoints import Checkpoints
from radit_jax.runtime.storage.stage_folder import StageFolder, StageInputs

CHECKPOINT_EVERY = 200  # steps
Group = Sequence[tuple[str, str]]  # pairs of query and passage, each other's hard negatives


def run_lm(
    inputs: StageInputs,
    output: StageFolder,
    *,
    lm: LmConfig,
    seed: int,
    mesh: MeshConfig,
    profile: ProfileConfig | None = None,
    dtype: str = "float32",
) -> dict[str, Any]:
    """The base language model with its tokeniser; `dtype` is that of a checkpoint's parameters."""
    if lm.checkpoint:
        check_lm(lm)
        folder = str(hub.find(lm.checkpoint))
        model = open_model(folder, expected="decoder", mesh=make_mesh(mesh), dtype=dtype)
        _demand_tokenizer(model, lm.checkpoint)
        # The saved model says how it reads a prompt, to every stage after this one.
        model = model._replace(tokenizer=model.tokenizer.with_prompt(lm.prompt))
        facts = {"origin": _origin("language model", lm.checkpoint)}
    else:
        corpus = Corpus(inputs["corpus"])
        model, facts = _pretrain_lm(corpus, output, lm, seed, mesh, profile)
    save_model(output.path / "lm", model)
    output.commit("lm")
    return {"parameters": count_parameters(model.params), **facts}


def _pretrain_lm(
    corpus: Corpus,
    output: StageFolder,
    lm: LmConfig,
    seed: int,
    mesh: MeshConfig,
    profile: ProfileConfig | None,
) -> tuple[Model, dict[str, Any]]:
    """Train a tokeniser and a language model; facts for the manifest."""
    started = time.monotonic()
    assert lm.model is not None and lm.optimizer is not None, "config.checks lets no such settings pass"
    documents = corpus.documents()
    passages = [chunk.passage for chunk in corpus.chunks]
    # A tokeniser of few texts may have fewer tokens than it was asked for.
    tokenizer = train_bpe([*documents, *passages], lm.model.vocab_size)
    module = DecoderLm(replace(lm.model, vocab_size=tokenizer.vocab_size))
    # Without documents, an endless series of questions is made of the passages.
    facts = {}
    if documents:
        trees = [document_tree(tokenizer, text, lm.sequence_length) for text in documents]
        packed = PackedTrees(trees, row_length=lm.sequence_length, batch_size=lm.batch_size, seed=seed)
        batch_at = packed.shuffled
        facts = packed.facts
    else:
        batch_at = cloze_batches(list(corpus.chunks), tokenizer, lm, seed)
    params, trained = train_lm(
        "base",
        module,
        init_lm(module, lm.init, seed),
        batch_at,
        output,
        training=LmTraining(lm.optimizer, mesh, checkpoint_every=CHECKPOINT_EVERY, profile=profile),
        started=started,
    )
    return Model(module, params, tokenizer), {**facts, **trained}


def cloze_batches(
    passages: Sequence[Chunk], tokenizer: Tokenizer, lm: LmConfig, seed: int
) -> Callable[[int], LmBatch]:
    """Batches of questions on passages, an endless series: `lm.batch_size` rows of `lm.sequence_length`.

    A row is one tree: a passage with as many questions on it as fit. At most half a row's tokens are targets.
    """
    length = lm.sequence_length
    targets = length // 2

    def batch_at(step: int) -> LmBatch:
        # A tree depends on its number and the seed alone, so a resumed run goes on in the series.
        first = step * lm.batch_size
        trees = [
            cloze_sequence(passages, tokenizer, seed, number, max_tokens=length, max_targets=targets)
            for number in range(first, first + lm.batch_size)
        ]
        rows = [(number,) for number in range(len(trees))]
        return to_batch(trees, rows, row_length=length, targets_per_row=targets)

    return batch_at


def init_lm(module: DecoderLm, init: str, seed: int) -> Any:
    """Drawn parameters; with `init="mimetic"` attention starts as `mimetic_init` makes it."""
    key = jax.random.key(seed)
    any_tokens = jax.ShapeDtypeStruct((1, 8), jnp.int32)
    # The draws alone: the network is traced, but does not run.
    params = module.lazy_init(key, any_tokens)["params"]
    if init == "mimetic":
        return mimetic_init(params, module.config, jax.random.fold_in(key, 1))
    return params


def document_tree(tokenizer: Tokenizer, text: str, max_length: int) -> PrefixTree:
    """A document as one continuation: every token but the first is predicted."""
    tokens = [*tokenizer.start_ids, *tokenizer.encode(text), tokenizer.eos_id]
    whole = span(tokens[:max_length], 1.0)
    whole.weights[0] = 0.0  # nothing predicts it
    return PrefixTree(span([]), (whole,))


def run_retriever(
    inputs: StageInputs,
    output: StageFolder,
    *,
    retriever: RetrieverConfig,
    seed: int,
    mesh: MeshConfig,
    profile: ProfileConfig | None = None,
) -> dict[str, Any]:
    """The base dual encoder: two towers of one network, each with its own parameters."""
    if retriever.checkpoint:
        query, chunk, facts = _from_checkpoints(retriever, mesh)
    else:
        corpus = Corpus(inputs["corpus"])
        query, chunk, facts = _pretrain_retriever(corpus, output, retriever, seed, mesh, profile)
    # Each tower keeps how it reads a text: the marks that its tokeniser knows, and how much it reads.
    towers = (("query", query, retriever.query_length), ("chunk", chunk, retriever.chunk_length))
    for side, tower, max_length in towers:
        # T-REx's queries have the separator's token between entity and relation; a passage is text.
        tower = tower._replace(tokenizer=tower.tokenizer.reading_marks(side == "query"))
        tower.tokenizer.hf.model_max_length = max_length
        # Parameters that both towers have are stored once.
        is_stored = side == "chunk" and chunk.params is query.params
        stored = output.path / "query_encoder" if is_stored else None
        save_model(output.path / f"{side}_encoder", tower, params_of=stored)
        output.commit(f"{side}_encoder")
        facts[f"{side}_vectors"] = _vectors(tower.module.config)
    return {"parameters": count_parameters(query.params), **facts}


def _vectors(config: EncoderConfig) -> str:
    """How a tower's vectors are made, in words."""
    # In the order in which they act.
    words: str = config.pooling
    if config.normalize:
        words += ", normalised"
    if config.prompt:
        words += f", behind {config.prompt!r}"
    return words


def _from_checkpoints(retriever: RetrieverConfig, mesh: MeshConfig) -> tuple[Model, Model, dict[str, Any]]:
    """The query tower, the chunk tower, and where they are from."""
    # Say it once for a checkpoint that serves as both towers.
    described = check_retriever(retriever)
    by_folder = {checkpoint.folder: checkpoint for checkpoint in described.values()}
    for checkpoint in by_folder.values():
        if not checkpoint.says_pooling and retriever.pooling is None:
            # Each network has its usual way.
            is_bert = isinstance(checkpoint.config, BertConfig)
            whose = "[CLS]'s" if is_bert else "the last token's"
            print(
                f"   {checkpoint.folder} does not say how its vectors are made: they are {whose}, as they "
                "are, unless base.retriever.pooling and .normalize say otherwise",
                flush=True,
            )

    def load_tower(side: str, checkpoint: str) -> Model:
        # An export of a retriever has both towers in one folder.
        folder = tower_folder(hub.find(checkpoint), side)
        model = open_model(
            str(folder),
            expected="encoder",
            num_layers=retriever.num_layers or None,
            pooling=retriever.pooling,
            normalize=retriever.normalize,
            mesh=make_mesh(mesh),
        )
        _demand_tokenizer(model, checkpoint)
        return model._replace(module=model.module.clone(config=described[side].config))

    # Without a checkpoint of their own, chunks are embedded as queries are.
    query = retriever.checkpoint
    chunk = retriever.chunk_checkpoint or query
    facts = {"origin": _origin("query encoder", query), "chunk_origin": _origin("chunk encoder", chunk)}
    query_tower, chunk_tower = load_tower("query", query), load_tower("chunk", chunk)
    # Towers of one checkpoint have one set of parameters.
    if len(by_folder) == 1:
        chunk_tower = chunk_tower._replace(params=query_tower.params)
    return query_tower, chunk_tower, facts


def _demand_tokenizer(model: Model, checkpoint: str) -> None:
    if model.tokenizer is None:
        raise no_tokenizer(checkpoint)


def _origin(role: str, checkpoint: str) -> dict[str, str]:
    """The checkpoint's licence, for the export's model card."""
    found = origin(role, checkpoint, hub.find(checkpoint))
    return found._replace(hub_id=hub.repository(checkpoint) or found.hub_id)._asdict()


def _pretrain_retriever(
    corpus: Corpus,
    output: StageFolder,
    retriever: RetrieverConfig,
    seed: int,
    mesh: MeshConfig,
    profile: ProfileConfig | None,
) -> tuple[Model, Model, dict[str, Any]]:
    """Train both towers on InfoNCE; the query tower, the chunk tower, and facts for the manifest."""
    started = time.monotonic()
    assert isinstance(retriever.model, BertConfig) and retriever.optimizer is not None, "see config.checks"
    # 1) The (query, passage) pairs to learn from, and one tokeniser for both towers.
    passages = [chunk.passage for chunk in corpus.chunks]
    groups = corpus.encoder_groups() or sentence_groups(corpus.chunks, seed=seed)
    pairs = itertools.chain.from_iterable(groups)
    queries = [query for query, _ in pairs]
    tokenizer = train_wordpiece([*passages, *queries], retriever.model.vocab_size)
    config = replace(retriever.model, vocab_size=tokenizer.vocab_size)
    # 2) The towers' settings differ only in the prompt, and batches hold texts that have it already. So one
    # network serves both towers in training, with the pooling and normalisation that they share.
    towers = {side: tower_config(config, retriever, side, "base.retriever.model") for side in SIDES}
    query_config = towers["query"]
    config = replace(config, pooling=query_config.pooling, normalize=query_config.normalize)

    # 3) Train them; both start from the same parameters.
    devices = make_mesh(mesh)
    tx = make_optimizer(retriever.optimizer)
    module = Bert(config, layout=row_layout(devices))

    def init() -> Any:
        tokens = jnp.zeros((1, 8), jnp.int32)
        tower = module.init(jax.random.key(seed), tokens, tokens == 0)["params"]
        return init_state({"query": tower, "chunk": tower}, tx)

    state, shardings = init_sharded(init, devices)
    step = make_contrastive_step(module, tx, temperature=retriever.temperature, state_shardings=shardings)
    # The prompts are part of what a tower reads, in training as afterwards.
    prompted_groups = _prompted(groups, towers)
    state = train(
        name="base",
        step=step,
        state=state,
        batch_at=_contrastive_batches(prompted_groups, tokenizer, retriever, seed, devices),
        num_steps=retriever.optimizer.steps,
        saving=Saving(Checkpoints(output.path / "checkpoints"), CHECKPOINT_EVERY),
        reporting=Reporting(
            Metrics(output.path / "metrics.jsonl"),
            profile=profile,
            started=started,
            learning_rates=learning_rates(retriever.optimizer),
        ),
    )

    def tower(side: str) -> Model:
        return Model(module.clone(config=towers[side]), state.params[side], tokenizer)

    return tower("query"), tower("chunk"), {"steps": retriever.optimizer.steps}


def _prompted(groups: Iterable[Group], towers: Mapping[str, BertConfig]) -> list[Group]:
    """The groups with each text after its tower's prompt."""
    query_prompt, chunk_prompt = towers["query"].prompt, towers["chunk"].prompt
    prompted = []
    for group in groups:
        prompted.append([(query_prompt + query, chunk_prompt + passage) for query, passage in group])
    return prompted


def _contrastive_batches(
    groups: Sequence[Group],
    tokenizer: Tokenizer,
    retriever: RetrieverConfig,
    seed: int,
    devices: jax.sharding.Mesh,
) -> Callable[[int], ContrastiveBatch]:
    """Batches of whole groups."""
    order = shuffled(len(groups), batch_size=retriever.groups_per_batch, seed=seed)

    def batch_at(step: int) -> ContrastiveBatch:
        queries, passages = [], []
        for number in order(step):
            queries += [query for query, _ in groups[number]]
            passages += [passage for _, passage in groups[number]]
        query_ids = tokenizer.encode_all(queries, retriever.query_length)
        passage_ids = tokenizer.encode_all(passages, retriever.chunk_length)
        arrays = (*tokenizer.pad(query_ids), *tokenizer.pad(passage_ids))
        return ContrastiveBatch(*put_batch(arrays, devices))

    return batch_at


def sentence_groups(chunks: Iterable[Chunk], seed: int) -> list[Group]:
    """Pairs of a drawn sentence as query and the rest of its passage, for data without questions.

    Every pair is a group of its own; its negatives are the batch's other passages.
    """
    # A passage of one sentence would be left without a text.
    rng = random.Random(seed)
    groups = []
    for chunk in chunks:
        sentences = re.split(r"(?<=[.!?]) ", chunk.text)
        query = sentences.pop(rng.randrange(len(sentences)))
        if sentences:
            rest = replace(chunk, text=" ".join(sentences))
            groups.append([(query, rest.passage)])
    return groups
