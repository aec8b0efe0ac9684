"""A checkpoint's network and vectors by its small files alone: read before any weight, and without jax."""

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any, NamedTuple

from etils import epath

from radit_jax.config import (
    VECTOR_SETTINGS,
    BertConfig,
    DecoderConfig,
    EncoderConfig,
    Experiment,
    LastTokenConfig,
    LmConfig,
    Pooling,
    RetrieverConfig,
)
from radit_jax.runtime.pretrained import hub
from radit_jax.runtime.pretrained.decoder_config import decoder_config
from radit_jax.runtime.pretrained.fields import check_fixed
from radit_jax.runtime.pretrained.gguf_file import is_gguf, settings_file
from radit_jax.runtime.pretrained.hf_config import (
    REMEDY,
    AnyEncoder,
    Network,
    bert_config,
    checked_width,
    network_of,
    own_config,
    read_config,
)
from radit_jax.runtime.pretrained.router import tower_folder
from radit_jax.runtime.pretrained.vectors import Vectors, read_vectors, transformer_folder, with_side
from radit_jax.runtime.storage import bucket
from radit_jax.runtime.storage.files import read_json

SIDES: tuple[str, ...] = ("query", "chunk")
# How each network makes a vector, the usual way first.
POOLINGS: dict[Network, tuple[Pooling, ...]] = {"bert": ("cls", "mean"), "decoder": ("last",)}
WORDS = {"decoder": "a language model", "encoder": "an encoder of texts"}


class CheckpointInfo(NamedTuple):
    """What is known of a checkpoint before its weights are read."""

    folder: epath.Path
    config: DecoderConfig | EncoderConfig
    vectors: Vectors  # what the files say of an encoder's vectors; empty in our own form
    is_ours: bool  # whether it is in our own form

    @property
    def says_pooling(self) -> bool:
        """Whether the checkpoint says how tokens' vectors become one."""
        return self.is_ours or self.vectors.pooling is not None


def is_ours(folder: epath.PathLike) -> bool:
    """Whether the folder holds a model in our own form, by its `config.json`."""
    path = epath.Path(folder) / "config.json"
    return path.exists() and "module" in read_json(path, REMEDY)


def locate(source: str) -> epath.Path:
    """The folder that `source` names, with at least its small files; a bucket can hold a model of ours."""
    if bucket.is_bucket(source):
        return epath.Path(source)
    return epath.Path(hub.find_small(source))


def describe(
    source: str,
    *,
    expected: str = "",
    side: str = "",
    num_layers: int | None = None,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
) -> CheckpointInfo:
    """The checkpoint that `source` names. `expected` is what it has to be: decoder or encoder.

    `side` says which encoder of a Router with two is meant. `num_layers` asks for a BERT's first layers;
    `pooling` and `normalize` are an encoder's, see `Vectors.settings`.
    """
    folder = tower_folder(locate(source), side)
    # 1) Hugging Face's form.
    if not is_ours(folder):
        config, vectors = describe_folder(folder, expected, num_layers, pooling, normalize)
        return CheckpointInfo(folder, config, vectors, is_ours=False)
    # 2) Our own.
    where = f"{folder}/config.json"
    values = read_json(folder / "config.json", REMEDY)
    config = own_config(values, where)
    kind = "decoder" if isinstance(config, DecoderConfig) else "encoder"
    if expected not in ("", kind):
        raise ValueError(
            f"{where}: expected {WORDS[expected]}, got {WORDS[kind]}. Name another of our models."
        )
    if not isinstance(config, DecoderConfig):
        # Our form says both, so a caller who says otherwise is refused.
        own_vectors = Vectors(config.pooling, config.normalize)
        own_vectors.settings(str(folder), pooling, normalize, [config.pooling])
    return CheckpointInfo(folder, config, Vectors(), is_ours=True)


def describe_folder(
    folder: epath.PathLike,
    expected: str = "",
    num_layers: int | None = None,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
) -> tuple[DecoderConfig | EncoderConfig, Vectors]:
    """Settings and vectors of a checkpoint in Hugging Face's form; the arguments are those of `describe`.

    A decoder is an encoder where one is expected. Where nothing is, it is one that has sentence-transformers'
    list of modules, or that the caller gives a pooling.
    """
    inner = transformer_folder(folder)
    values = read_config(inner)
    network = network_of(values, settings_file(inner), expected)
    has_modules = (epath.Path(folder) / "modules.json").exists()
    asks_for_vectors = has_modules or pooling is not None
    is_encoder = expected == "encoder" or (not expected and asks_for_vectors)
    if network == "decoder" and not is_encoder:
        return decoder_config(values, str(inner)), Vectors()
    # An encoder's vectors are described by files of their own.
    vectors = read_vectors(folder)
    settings = vectors.settings(str(folder), pooling, normalize, POOLINGS[network])
    if network == "decoder":
        return _last_token_config(values, str(inner), num_layers, settings), vectors
    config = bert_config(values, str(inner), **settings)
    if num_layers:
        config = first_layers(config, num_layers, str(inner))
    return config, vectors


def _last_token_config(
    values: Mapping[str, Any], folder: str, num_layers: int | None, settings: Mapping[str, Any]
) -> LastTokenConfig:
    """The settings of a decoder as an encoder."""
    where = settings_file(folder)
    # A GGUF file does not say which marks the encoder's texts have.
    if is_gguf(folder):
        raise ValueError(
            f"{where}: expected an encoder in Hugging Face's form, got a GGUF file. Name the folder of the "
            "original."
        )
    if num_layers:
        raise ValueError(
            f"{where}: expected num_layers 0 for a decoder, whose last norm is that of all its layers, got "
            f"{num_layers}. Leave base.retriever.num_layers unset."
        )
    # Some of them were trained further to see what follows a token, too.
    check_fixed(values, where, is_causal=True, use_bidirectional_attention=False)
    return checked_width(LastTokenConfig(decoder_config(values, folder), **settings), where)


def first_layers(config: BertConfig, num_layers: int, where: str) -> BertConfig:
    """The settings of a BERT's first layers."""
    if num_layers > config.num_layers:
        raise ValueError(
            f"{where}: expected num_layers of at most the checkpoint's {config.num_layers}, got "
            f"{num_layers}. Ask for fewer layers."
        )
    return replace(config, num_layers=num_layers)


# ---- an experiment's checkpoints ----


def check_lm(lm: LmConfig) -> DecoderConfig | None:
    """The shape of the base language model; ValueError where its checkpoint is not what the settings say.

    None where there is neither a checkpoint nor a shape, which `config.check` refuses.
    """
    if not lm.checkpoint:
        return lm.model
    info = describe(lm.checkpoint, expected="decoder")
    assert isinstance(info.config, DecoderConfig)
    # Before anything runs, not when the weights are read.
    hub.check_weights(lm.checkpoint)
    _check_config(info.config, lm.checkpoint, _stated_settings(lm.model))
    if lm.prompt == "chat":
        _check_chat(info)
    return info.config


def _check_chat(info: CheckpointInfo) -> None:
    """Raise ValueError for a chat template that cannot serve, or where there is none."""
    # transformers takes seconds to import, which other runs need not wait for.
    from radit_jax.runtime.pretrained.tokenizer_files import load_tokenizer

    folder = info.folder / "tokenizer" if info.is_ours else info.folder
    tokenizer = load_tokenizer(folder, info.config.vocab_size)
    # The labeller is in the base's form too, so the error says whose template it is.
    try:
        tokenizer.with_prompt("chat")
    except ValueError as error:
        raise ValueError(f"{info.folder}: {error}") from None


def check_retriever(retriever: RetrieverConfig) -> dict[str, CheckpointInfo]:
    """Both towers' checkpoints by side, with each tower's settings; ValueError where they do not fit."""
    infos = {
        "query": _check_tower("query", retriever.checkpoint, retriever),
        "chunk": _check_tower("chunk", retriever.chunk_checkpoint or retriever.checkpoint, retriever),
    }
    # Scores are inner products of the two.
    sizes = {}
    for side, info in infos.items():
        assert isinstance(info.config, EncoderConfig)
        sizes[side] = info.config.vector_size
    query_size, chunk_size = (sizes[side] for side in SIDES)
    if query_size != chunk_size:
        raise ValueError(
            f"base.retriever: expected encoders whose vectors are equally wide, got {query_size} numbers of "
            f"{retriever.checkpoint} and {chunk_size} of {retriever.chunk_checkpoint}. Name two of one pair."
        )
    return infos


def _check_tower(side: str, checkpoint: str, retriever: RetrieverConfig) -> CheckpointInfo:
    info = describe(
        checkpoint,
        expected="encoder",
        side=side,
        num_layers=retriever.num_layers or None,
        pooling=retriever.pooling,
        normalize=retriever.normalize,
    )
    # 1) It is what the experiment states.
    hub.check_weights(checkpoint)
    stated = _stated_settings(retriever.model)
    if retriever.num_layers:
        stated["num_layers"] = retriever.num_layers
    _check_config(info.config, checkpoint, stated)

    # 2) It can make the tower's vectors.
    assert isinstance(info.config, EncoderConfig)
    config = tower_config(info.config, retriever, side, str(info.folder))
    if config.prompt and config.pooling == "mean" and not info.vectors.pools_prompt:
        raise ValueError(
            f"{info.folder}: expected vectors that are the mean of all tokens, got include_prompt false, "
            "which leaves out those of the prompt. Use such an encoder."
        )
    return info._replace(config=config)


def tower_config(
    config: AnyEncoder,
    retriever: RetrieverConfig,
    side: str,
    where: str,
) -> AnyEncoder:
    """The settings of one tower, query or chunk: how its vectors are made, and its prompt."""
    # `describe` has refused settings that contradict the checkpoint.
    if retriever.pooling is not None:
        config = replace(config, pooling=retriever.pooling)
    if retriever.normalize is not None:
        config = replace(config, normalize=retriever.normalize)
    prompt = retriever.query_prompt if side == "query" else retriever.chunk_prompt
    return with_side(config, side, prompt, where)


def check_checkpoints(experiment: Experiment) -> None:
    """Raise ValueError for checkpoints that the settings do not fit.

    That includes rows longer than the language model's window, and texts longer than an encoder's positions.
    """
    # 1) The language model, and the rows that it reads.
    base, score = experiment.base, experiment.score
    row_lengths = {
        "base.lm": 0 if base.lm.checkpoint else base.lm.sequence_length,  # a checkpoint is not trained
        "lm_ft": experiment.lm_ft.sequence_length,
        "score": 0 if score.checkpoint else score.sequence_length,
        "evaluate": experiment.evaluate.sequence_length,
    }
    _check_windows(row_lengths, check_lm(base.lm))
    # 2) The model that labels, where it is another.
    if score.checkpoint:
        labeller = check_lm(LmConfig(checkpoint=score.checkpoint, prompt=base.lm.prompt))
        _check_windows({"score": score.sequence_length}, labeller)
    # 3) The encoders, and the texts that they read.
    retrievers = {"base.retriever": base.retriever, "lm_ft.retriever": experiment.lm_ft.retriever}
    for section, retriever in retrievers.items():
        if retriever is not None:
            _check_positions(section, retriever)


def _check_windows(row_lengths: Mapping[str, int], shape: DecoderConfig | None) -> None:
    """Refuse rows, by the section of settings that asks for them, that are longer than a model's window."""
    for section, length in row_lengths.items():
        if shape is not None and length > shape.max_length:
            raise ValueError(
                f"{section}.sequence_length: expected at most {shape.max_length} tokens, the language "
                f"model's window, got {length}. Lower it."
            )


def _check_positions(section: str, retriever: RetrieverConfig) -> None:
    # The number of positions of each encoder.
    if retriever.checkpoint:
        infos = check_retriever(retriever)
        positions = {side: info.config.max_length for side, info in infos.items()}
    elif retriever.model is not None:
        positions = dict.fromkeys(SIDES, retriever.model.max_length)
    else:
        return
    lengths = {"query": retriever.query_length, "chunk": retriever.chunk_length}
    for side, length in lengths.items():
        if length > positions[side]:
            raise ValueError(
                f"{section}.{side}_length: expected at most {positions[side]} tokens, the positions that the "
                f"{side} encoder knows, got {length}. Lower it."
            )


def _stated_settings(model: DecoderConfig | EncoderConfig | None) -> dict[str, Any]:
    """What an experiment states of a checkpoint's network; how vectors are made only where it is set."""
    if model is None:
        return {}
    stated = {}
    for field in fields(model):
        value = getattr(model, field.name)
        if field.name not in VECTOR_SETTINGS or value != field.default:
            stated[field.name] = value
    return stated


def _check_config(
    config: DecoderConfig | EncoderConfig,
    checkpoint: str,
    stated: dict[str, Any],
) -> None:
    """Refuse a checkpoint whose settings are not those that an experiment states."""
    found = {name: getattr(config, name, None) for name in stated}
    differing = [name for name in stated if found[name] != stated[name]]
    if differing:
        # The error names all that differs.
        expected = ", ".join(f"{name} {stated[name]}" for name in differing)
        got = ", ".join(f"{name} {found[name]}" for name in differing)
        raise ValueError(
            f"checkpoint {checkpoint}: expected {expected} by the experiment's base, got {got}. Name the "
            "right checkpoint, or describe this one."
        )
