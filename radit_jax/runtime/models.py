"""A model in a folder: ours (Orbax parameters, `config.json`, the tokeniser), or a checkpoint of others.

Stages and exports use our own form. Hugging Face's is read here and written by `publish.py`.
"""

import dataclasses
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from jax.sharding import Mesh

from radit_jax.config import BertConfig, LlamaConfig, RopeScaling
from radit_jax.models.bert import Bert
from radit_jax.models.llama import Llama
from radit_jax.runtime import checkpoint, hosts, hub
from radit_jax.runtime.hf_config import Pooling, read_config, read_vectors, transformer_folder
from radit_jax.runtime.pretrained import load_bert, load_llama
from radit_jax.runtime.tokenizers import check_tokenizer, load_tokenizer, save_tokenizer

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
    if not hosts.is_first():
        return
    if model.tokenizer is not None:
        save_tokenizer(path / "tokenizer", model.tokenizer)
    settings = {"module": type(model.module).__name__, "config": dataclasses.asdict(model.module.config)}
    (path / "config.json").write_text(json.dumps(settings, indent=2))


def load_model(path: epath.PathLike, *, dtype: str = "float32", mesh: Mesh | None = None) -> Model:
    """The model in the folder `path`, computing in `dtype`; parameters are the saved ones, bit for bit.

    They lie over `mesh`, to which each device reads its part; without one, on the first local device.
    """
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
    params = checkpoint.load_params(path / "params", mesh=mesh)
    tokenizer = load_tokenizer(path / "tokenizer") if (path / "tokenizer").exists() else None
    return Model(module, params, tokenizer)


def load_pretrained(
    source: str,
    *,
    num_layers: int | None = None,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    dtype: str = "float32",
    mesh: Mesh | None = None,
) -> Model:
    """The LLaMA or BERT that `source` names (`hub.find`), its parameters in `dtype` over `mesh`.

    `num_layers`, `pooling` and `normalize` are a BERT's, see `load_bert`.
    """
    folder = hub.find(source)
    inner = transformer_folder(folder)
    tokenizer = load_tokenizer(inner)
    if read_config(inner).get("model_type") == "bert":
        config, params = load_bert(
            folder, num_layers, pooling=pooling, normalize=normalize, dtype=dtype, mesh=mesh
        )
        vectors = read_vectors(folder)
        longest = (vectors and vectors.max_length) or tokenizer.hf.model_max_length
        tokenizer.hf.model_max_length = min(longest, config.max_length)
    else:
        config, params = load_llama(folder, dtype=dtype, mesh=mesh)
    check_tokenizer(tokenizer, config, str(folder))
    return Model(Bert(config) if isinstance(config, BertConfig) else Llama(config), params, tokenizer)


def open_model(source: str, **options: Any) -> Model:
    """A model of ours, or of others with `load_pretrained`'s options."""
    config = epath.Path(source) / "config.json"
    if config.exists() and "module" in json.loads(config.read_text()):
        return load_model(source, mesh=options.get("mesh"))
    return load_pretrained(source, **options)


def num_parameters(params: Any) -> int:
    return sum(leaf.size for leaf in jax.tree.leaves(params))
