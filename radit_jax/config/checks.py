"""Refuses settings that cannot work, before any stage runs.

A number's own range is in its type (`ranges.py`); here is what settings ask of each other.
"""

import importlib.util
import os
import re

from radit_jax.config.data_settings import Instructions
from radit_jax.config.ranges import check_values
from radit_jax.config.settings import (
    OWN_LABELLERS,
    BaseConfig,
    EvaluateConfig,
    Experiment,
    LmConfig,
    LmFtConfig,
    LoraConfig,
    OptimizerConfig,
    RetrieverConfig,
    RFtConfig,
    ScoreConfig,
)
from radit_jax.config.shapes import (
    PROJECTIONS,
    BertConfig,
    DecoderConfig,
    EncoderConfig,
    LastTokenConfig,
    shape_error,
)


def check_experiment(experiment: Experiment) -> None:
    """Refuse settings that are out of their range or cannot work together, before any stage runs."""
    e = experiment
    check_values(e)
    _check_folder_name(e.name, "name")
    for axis in ("replica", "fsdp", "tensor", "answering_tensor"):
        if not getattr(e.mesh, axis):
            raise ValueError(f"mesh.{axis}: expected 1 or more, or -1 for what the devices give, got 0.")
    _check_base(e.base)
    _check_lm_ft(e.lm_ft)
    _check_score(e.score, e.r_ft)
    _check_r_ft(e.r_ft)
    _check_tasks(e.evaluate)
    _ = e.profile.updates  # raises ValueError where profile.steps has another form
    if isinstance(e.data, Instructions) and not e.data.dialogue_fraction + e.lm_ft.corpus_text_fraction < 1:
        raise ValueError(
            f"data.dialogue_fraction: expected a sum with lm_ft.corpus_text_fraction below 1, got "
            f"{e.data.dialogue_fraction} + {e.lm_ft.corpus_text_fraction}. Lower one."
        )


def _check_folder_name(name: str, where: str) -> None:
    is_one_name = os.path.basename(name) == name and name not in ("", ".", "..")
    if not is_one_name or not name.isprintable():
        raise ValueError(f"{where}: expected one name of a folder, got {name!r}.")


def _check_base(base: BaseConfig) -> None:
    _check_prompt(base.lm)
    for name, model in (("base.lm", base.lm), ("base.retriever", base.retriever)):
        if not model.checkpoint and (model.model is None or model.optimizer is None):
            raise ValueError(
                f"{name}: expected a checkpoint, or a model with its optimizer, got neither. Give one."
            )
        if model.model:
            check_shape(model.model, f"{name}.model")
        if model.optimizer:
            _check_optimizer(model.optimizer, f"{name}.optimizer")
    if not base.retriever.checkpoint:
        _check_trained_retriever(base.retriever)


def _check_trained_retriever(retriever: RetrieverConfig) -> None:
    """Refuse what only a checkpoint can be."""
    # Training from scratch knows BERT's tokeniser and its network only.
    where, model = "base.retriever", retriever.model
    if not isinstance(model, BertConfig):
        raise ValueError(
            f"{where}.model: expected a BertConfig for an encoder that is trained from scratch, got a "
            f"{type(model).__name__}. Name a checkpoint of such an encoder."
        )
    # Its relatives have tokenisers of other kinds, whose padding is 1.
    if model.family != "bert":
        raise ValueError(
            f"{where}.model.family: expected bert for an encoder that is trained from scratch, got "
            f"{model.family}. Name a checkpoint of that family."
        )
    # A setting of the retriever goes before the model's own.
    if retriever.pooling == "last":
        raise ValueError(f"{where}.pooling: expected cls or mean for a BERT, got last. Choose one of them.")


def _check_prompt(lm: LmConfig) -> None:
    if lm.prompt == "chat" and not lm.checkpoint:
        raise ValueError(
            "base.lm.prompt: expected plain for a language model that is trained from scratch, got chat. "
            "Name a checkpoint with a chat template."
        )


def check_shape(model: DecoderConfig | EncoderConfig, where: str) -> None:
    """Refuse a network whose settings contradict each other; `where` names it in the ValueError."""
    if isinstance(model, LastTokenConfig):
        model, where = model.decoder, f"{where}.decoder"
    if isinstance(model, BertConfig):
        if model.hidden_size % model.num_heads:
            raise ValueError(
                f"{where}.num_heads: expected a divisor of hidden_size {model.hidden_size}, got "
                f"{model.num_heads}."
            )
        return
    if error := shape_error(model):
        raise ValueError(f"{where}.{error}.")


def _check_optimizer(optimizer: OptimizerConfig, where: str) -> None:
    # A warm-up longer than the run is no error: who tries a recipe out cuts its steps, and nothing else.
    if optimizer.end_lr > optimizer.peak_lr:
        raise ValueError(
            f"{where}.end_lr: expected at most peak_lr {optimizer.peak_lr}, got {optimizer.end_lr}."
        )
    if optimizer.name == "muon" and not optimizer.adam_lr:
        raise ValueError(f"{where}.adam_lr: expected x > 0 with name='muon', got {optimizer.adam_lr}.")


def _check_lm_ft(lm_ft: LmFtConfig) -> None:
    _check_optimizer(lm_ft.optimizer, "lm_ft.optimizer")
    _check_lora(lm_ft.lora)
    if lm_ft.batch_size % lm_ft.accumulate_steps:
        raise ValueError(
            f"lm_ft.accumulate_steps: expected a divisor of lm_ft.batch_size {lm_ft.batch_size}, got "
            f"{lm_ft.accumulate_steps}. Change one of the two."
        )
    if retriever := lm_ft.retriever:
        if retriever.model:
            check_shape(retriever.model, "lm_ft.retriever.model")
        if retriever.optimizer:
            _check_optimizer(retriever.optimizer, "lm_ft.retriever.optimizer")
    if lm_ft.select == "kilt_dev" and not lm_ft.select_folder:
        raise ValueError(
            "lm_ft.select: expected lm_ft.select_folder with kilt_dev, got none. Name the folder of KILT's "
            "development files."
        )


def _check_score(score: ScoreConfig, r_ft: RFtConfig) -> None:
    # A bare word is a slip: a folder of that name is written with a slash.
    name = score.language_model
    if name not in OWN_LABELLERS and not re.search(r"[/:.]", name):
        raise ValueError(
            f"score.language_model: expected {' or '.join(OWN_LABELLERS)}, a checkpoint or a file of scores "
            f"(.jsonl), got {name!r}. Write ./{name} for a folder."
        )
    if score.file and r_ft.refresh_every:
        raise ValueError(
            "r_ft.refresh_every: expected 0 with scores from a file, which has none of new candidates, got "
            f"{r_ft.refresh_every}. Set it to 0, or let a model label: score.language_model=base."
        )


def _check_r_ft(r_ft: RFtConfig) -> None:
    _check_optimizer(r_ft.optimizer, "r_ft.optimizer")
    if r_ft.corpus_text_fraction == 1 and not r_ft.num_examples:
        raise ValueError(
            "r_ft.corpus_text_fraction: expected a share below 1, got 1. Set r_ft.num_examples where the "
            "corpus alone teaches."
        )
    if r_ft.train_chunk_encoder and r_ft.refresh_every:
        raise ValueError(
            "r_ft.refresh_every: expected 0 with train_chunk_encoder, whose chunks have no stored "
            f"embeddings to search, got {r_ft.refresh_every}. Set one of the two."
        )


def _check_lora(lora: LoraConfig) -> None:
    unknown = [name for name in lora.targets if name not in PROJECTIONS]
    if unknown or not lora.targets:
        raise ValueError(
            f"lm_ft.lora.targets: expected some of {', '.join(PROJECTIONS)}, got "
            f"{', '.join(unknown) or 'none'}."
        )
    if lora.quantize != "none" and not lora.rank:
        raise ValueError(
            f"lm_ft.lora.quantize: expected adapters, which learn in place of what is quantised, got "
            f"{lora.quantize} with rank 0. Set lm_ft.lora.rank."
        )
    if lora.quantize != "none" and importlib.util.find_spec("qwix") is None:
        raise ValueError(
            f"lm_ft.lora.quantize: expected the package qwix for {lora.quantize}, got none. "
            "pip install 'radit_jax[qlora]'"
        )


def _check_tasks(evaluate: EvaluateConfig) -> None:
    """Evaluation's split, the length of its answers, the folder of its tasks and that of its results."""
    _check_folder_name(evaluate.results_name, "evaluate.name")
    # Without tasks the corpus' own questions are asked; they have the splits test and dev only.
    if evaluate.split in ("official", "hidden") and not evaluate.tasks:
        raise ValueError(
            f"evaluate.split: expected test or dev of the corpus' own questions, got {evaluate.split}. Set "
            "one of the two, or name evaluate.tasks."
        )
    if evaluate.tasks and not evaluate.answers:
        raise ValueError(
            "evaluate.answers: expected true with evaluate.tasks, whose questions are answered, got false. "
            "Leave one of the two out."
        )
    # A prompt and its answer share a row.
    if evaluate.max_new_tokens >= evaluate.sequence_length:
        raise ValueError(
            "evaluate.max_new_tokens: expected less than evaluate.sequence_length "
            f"{evaluate.sequence_length}, got {evaluate.max_new_tokens}."
        )
    # A task with an extension, such as mine.jsonl, is a file. Any other is a task of the registry.
    by_name = [name for name in evaluate.tasks if not os.path.splitext(name)[1]]
    if by_name and not evaluate.tasks_folder:
        raise ValueError(
            f"evaluate.tasks: expected evaluate.tasks_folder with {by_name[0]}, got none. Name the folder "
            "of its official files."
        )


def checkpoint_folder(path: str) -> str:
    """`package:NAME/FOLDER` as the folder inside that installed package; other paths as they are."""
    if not path.startswith("package:"):
        return path
    package, _, folder = path.removeprefix("package:").partition("/")
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):  # no name of a package
        spec = None
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"checkpoint {path}: expected the installed package {package!r}, got none. "
            "Install it with pip (see README)."
        )
    return f"{spec.submodule_search_locations[0]}/{folder}"
