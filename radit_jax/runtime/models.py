"""A model in a folder: Orbax parameters, `config.json` and the tokeniser. Stages and exports use the same."""

import dataclasses
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath

from radit_jax.config import BertConfig, LlamaConfig, RopeScaling
from radit_jax.models.bert import Bert
from radit_jax.models.llama import Llama
from radit_jax.runtime import checkpoint
from radit_jax.runtime.tokenizers import load_tokenizer, save_tokenizer

MODULES = {"Llama": (Llama, LlamaConfig), "Bert": (Bert, BertConfig)}


class Model(NamedTuple):
    """A network, its parameters (a plain nested dict of arrays) and its tokeniser, or None."""

    module: Any  # Llama or Bert: who loads a model knows which
    params: Any
    tokenizer: Any


def save_model(path: epath.PathLike, model: Model) -> None:
    """Write `model` into the folder `path`."""
    path = epath.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    checkpoint.save_params(path / "params", model.params)
    if model.tokenizer is not None:
        save_tokenizer(path / "tokenizer", model.tokenizer)
    settings = {"module": type(model.module).__name__, "config": dataclasses.asdict(model.module.config)}
    (path / "config.json").write_text(json.dumps(settings, indent=2))


def load_model(path: epath.PathLike, *, dtype: str = "float32") -> Model:
    """The model in the folder `path`, computing in `dtype`; parameters are the saved ones, bit for bit."""
    path = epath.Path(path)
    if not (path / "config.json").exists():
        raise ValueError(
            f"{path}: no config.json; name a folder that the export stage wrote (export/lm, ...)"
        )
    settings = json.loads((path / "config.json").read_text())
    module_class, config_class = MODULES[settings["module"]]
    values = dict(settings["config"])
    if values.get("rope_scaling"):
        values["rope_scaling"] = RopeScaling(**values["rope_scaling"])
    module = module_class(config_class(**values), dtype=jnp.dtype(dtype))
    params = checkpoint.load_params(path / "params")
    tokenizer = load_tokenizer(path / "tokenizer") if (path / "tokenizer").exists() else None
    return Model(module, params, tokenizer)


def num_parameters(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
