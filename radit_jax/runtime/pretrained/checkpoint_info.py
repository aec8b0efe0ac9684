"""What a checkpoint says of itself, by its small files alone: read before any weight, and without jax."""

from dataclasses import fields, replace
from typing import Any, NamedTuple

from etils import epath

from radit_jax.config import (
    VECTOR_SETTINGS,
    BertConfig,
    Experiment,
    LlamaConfig,
    LmConfig,
    RetrieverConfig,
)
from radit_jax.runtime.pretrained import hub
from radit_jax.runtime.pretrained.hf_config import (
    REMEDY,
    Pooling,
    bert_config,
    llama_config,
    model_type,
    own_config,
    read_config,
)
from radit_jax.runtime.pretrained.vectors import Vectors, read_vectors, transformer_folder, with_side
from radit_jax.runtime.storage import bucket
from radit_jax.runtime.storage.files import read_json

SIDES: tuple[str, ...] = ("query", "chunk")


class CheckpointInfo(NamedTuple):
    """A checkpoint before its weights are read."""

    folder: epath.Path
    config: LlamaConfig | BertConfig
    vectors: Vectors  # what the files say of an encoder's vectors; empty of ours, whose config says it
    is_ours: bool

    @property
    def says_pooling(self) -> bool:
        """Whether the checkpoint says how tokens' vectors become one."""
        return self.is_ours or self.vectors.pooling is not None


def is_ours(folder: epath.PathLike) -> bool:
    """Whether the folder holds a model in our own form."""
    path = epath.Path(folder) / "config.json"
    return path.exists() and "module" in read_json(path, REMEDY)


def locate(source: str) -> epath.Path:
    """The folder that `source` names with its small files at least; in a bucket it may be a model of ours."""
    return epath.Path(source if bucket.is_bucket(source) else hub.find_small(source))


def describe(
    source: str,
    *,
    expected: str = "",
    num_layers: int | None = None,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
) -> CheckpointInfo:
    """The checkpoint that `source` names. `expected` is the network that it has to be: llama or bert.

    `num_layers`, `pooling` and `normalize` are a BERT's, see `Vectors.settings`.
    """
    own = locate(source)
    if is_ours(own):
        values = read_json(own / "config.json", REMEDY)
        config, said = own_config(values, f"{own}/config.json"), Vectors()
        if expected:
            model_type({"model_type": values["module"].lower()}, f"{own}/config.json", expected)
        if isinstance(config, BertConfig):  # it says both, so that a caller who says otherwise is refused
            Vectors(config.pooling, config.normalize).settings(str(own), pooling, normalize)
        return CheckpointInfo(own, config, said, is_ours=True)
    config, said = describe_folder(own, expected, num_layers, pooling, normalize)
    return CheckpointInfo(own, config, said, is_ours=False)


def describe_folder(
    folder: epath.PathLike,
    expected: str = "",
    num_layers: int | None = None,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
) -> tuple[LlamaConfig | BertConfig, Vectors]:
    """Settings and vectors of a checkpoint in Hugging Face's form."""
    inner = transformer_folder(folder)
    values = read_config(inner)
    if model_type(values, f"{inner}/config.json", expected) == "llama":
        return llama_config(values, str(inner)), Vectors()
    said = read_vectors(folder)
    settings = said.settings(str(folder), pooling, normalize)
    config = bert_config(values, str(inner), **settings)
    if num_layers:
        config = first_layers(config, num_layers, str(inner))
    return config, said


def first_layers(config: BertConfig, num_layers: int, where: str) -> BertConfig:
    """The settings of a BERT's first layers."""
    if num_layers > config.num_layers:
        raise ValueError(
            f"{where}: expected num_layers of at most the checkpoint's {config.num_layers}, got "
            f"{num_layers}. Ask for fewer layers."
        )
    return replace(config, num_layers=num_layers)


# ---- what an experiment asks of its checkpoints ----


def check_lm(lm: LmConfig) -> LlamaConfig | None:
    """The shape of the base language model, refused where its checkpoint is not what the settings say.

    None where it is to be trained without a shape, which `config.check` refuses.
    """
    if not lm.checkpoint:
        return lm.model
    described = describe(lm.checkpoint, expected="llama")
    assert isinstance(described.config, LlamaConfig)
    hub.check_weights(lm.checkpoint)
    _demand(described.config, lm.checkpoint, _settings(lm.model))
    return described.config


def check_retriever(retriever: RetrieverConfig) -> dict[str, CheckpointInfo]:
    """Both towers' checkpoints, with the settings that each tower has; refused where they do not fit."""
    found = {}
    for side, checkpoint in (
        ("query", retriever.checkpoint),
        ("chunk", retriever.chunk_checkpoint or retriever.checkpoint),
    ):
        layers = {"num_layers": retriever.num_layers} if retriever.num_layers else {}
        described = describe(
            checkpoint, expected="bert", pooling=retriever.pooling, normalize=retriever.normalize, **layers
        )
        hub.check_weights(checkpoint)
        _demand(described.config, checkpoint, {**_settings(retriever.model), **layers})
        assert isinstance(described.config, BertConfig)
        config = tower_config(described.config, retriever, side, str(described.folder))
        if config.prompt and config.pooling == "mean" and not described.vectors.pools_prompt:
            raise ValueError(
                f"{described.folder}: expected vectors that are the mean of all tokens, got include_prompt "
                "false, which leaves out those of the prompt. Use such an encoder."
            )
        found[side] = described._replace(config=config)
    query, chunk = (found[side].config.vector_size for side in SIDES)
    if query != chunk:
        raise ValueError(
            f"base.retriever: expected encoders whose vectors are equally wide, got {query} numbers of "
            f"{retriever.checkpoint} and {chunk} of {retriever.chunk_checkpoint}. Name two of one pair."
        )
    return found


def tower_config(config: BertConfig, retriever: RetrieverConfig, side: str, where: str) -> BertConfig:
    """The settings of the tower of a side, query or chunk: how its vectors are made, and its prompt."""
    if retriever.pooling is not None:
        config = replace(config, pooling=retriever.pooling)
    if retriever.normalize is not None:
        config = replace(config, normalize=retriever.normalize)
    prompt = retriever.query_prompt if side == "query" else retriever.chunk_prompt
    return with_side(config, side, prompt, where)


def check_checkpoints(experiment: Experiment) -> None:
    """Refuse checkpoints that the settings do not fit.

    So with rows longer than the language model's window, and texts longer than the encoders' positions.
    """
    e = experiment
    shape = check_lm(e.base.lm)
    for section, length in (
        ("base.lm", 0 if e.base.lm.checkpoint else e.base.lm.sequence_length),
        ("lm_ft", e.lm_ft.sequence_length),
        ("score", e.score.sequence_length),
        ("evaluate", e.evaluate.sequence_length),
    ):
        if shape is not None and length > shape.max_length:
            raise ValueError(
                f"{section}.sequence_length: expected at most {shape.max_length} tokens, the language "
                f"model's window, got {length}. Lower it."
            )
    for section, retriever in (("base.retriever", e.base.retriever), ("lm_ft.retriever", e.lm_ft.retriever)):
        if retriever is not None:
            _check_positions(section, retriever)


def _check_positions(section: str, retriever: RetrieverConfig) -> None:
    if retriever.checkpoint:
        positions = {side: one.config.max_length for side, one in check_retriever(retriever).items()}
    elif retriever.model is not None:
        positions = dict.fromkeys(SIDES, retriever.model.max_length)
    else:
        return
    for side, length in (("query", retriever.query_length), ("chunk", retriever.chunk_length)):
        if length > positions[side]:
            raise ValueError(
                f"{section}.{side}_length: expected at most {positions[side]} tokens, the positions that the "
                f"{side} encoder knows, got {length}. Lower it."
            )


def _settings(model: LlamaConfig | BertConfig | None) -> dict[str, Any]:
    """What settings say in so many words of a checkpoint's network: how vectors are made only where set."""
    if model is None:
        return {}
    return {
        f.name: getattr(model, f.name)
        for f in fields(model)
        if f.name not in VECTOR_SETTINGS or getattr(model, f.name) != f.default
    }


def _demand(config: LlamaConfig | BertConfig, checkpoint: str, wanted: dict[str, Any]) -> None:
    """Refuse a checkpoint that is not what the settings say of it."""
    found = {name: getattr(config, name, None) for name in wanted}
    if found != wanted:
        differing = [name for name in wanted if found[name] != wanted[name]]
        got, expected = (", ".join(f"{name} {v[name]}" for name in differing) for v in (found, wanted))
        raise ValueError(
            f"checkpoint {checkpoint}: expected {expected} by the experiment's base, got {got}. Name the "
            "right checkpoint, or describe this one."
        )
