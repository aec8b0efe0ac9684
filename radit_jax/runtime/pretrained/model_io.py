"""A model in a folder: ours (Orbax parameters, `config.json`, the tokeniser), or a checkpoint of others.

Stages and exports use our own form. Hugging Face's is read here and written by `publish.py`.
"""

import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from flax.traverse_util import flatten_dict
from jax.sharding import Mesh

from radit_jax.config import BertConfig, LlamaConfig
from radit_jax.models.bert import Bert
from radit_jax.models.llama import Llama
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.memory import DoesNotFitError
from radit_jax.runtime.pretrained import hub
from radit_jax.runtime.pretrained.checkpoint_info import describe, describe_folder, is_ours, locate
from radit_jax.runtime.pretrained.hf_config import (
    REMEDY_OF_OURS,
    Pooling,
    own_config,
    own_declared,
    own_json,
    read_declared,
)
from radit_jax.runtime.pretrained.hf_weights import load_bert, load_llama, parameter_shapes
from radit_jax.runtime.pretrained.tokenizers import (
    Tokenizer,
    check_tokenizer,
    has_tokenizer,
    load_tokenizer,
    save_tokenizer,
)
from radit_jax.runtime.pretrained.vectors import transformer_folder
from radit_jax.runtime.storage import checkpoints
from radit_jax.runtime.storage.files import SEAL, parse_json, read_json, write_whole
from radit_jax.runtime.storage.top_level_folder import TopLevelFolder

MODULES: dict[Any, Any] = {LlamaConfig: Llama, BertConfig: Bert}


class Model(NamedTuple):
    """A network, its parameters (a plain nested dict of arrays) and its tokeniser, or None."""

    module: Any  # Llama or Bert: who loads a model knows which
    params: Any
    tokenizer: Any


def save_model(path: epath.PathLike, model: Model) -> None:
    """Write `model` into the folder `path`."""
    path = epath.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    checkpoints.save_params(path / "params", model.params)
    if not processes.is_process_zero():
        return
    settings = own_json(model.module.config)
    if model.tokenizer is not None:
        save_tokenizer(path / "tokenizer", model.tokenizer)
        if model.tokenizer.declared:
            settings["declared"] = model.tokenizer.declared
    write_whole(path / "config.json", json.dumps(settings, indent=2))


def load_model(path: epath.PathLike, *, dtype: str = "float32", mesh: Mesh | None = None) -> Model:
    """The model in the folder `path`, computing in `dtype`; parameters are the saved ones, bit for bit.

    They lie over `mesh`, to which each device reads its part; without one, on the first local device.
    """
    path = epath.Path(path)
    config, tokenizer = _read_own(path)
    module = MODULES[type(config)](config, dtype=jnp.dtype(dtype))
    try:
        params = checkpoints.load_params(path / "params", mesh=mesh)
    except (DoesNotFitError, jax.errors.JaxRuntimeError, MemoryError):
        raise
    except Exception as error:  # Orbax's, which raises many kinds where files are damaged
        first = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path}/params: expected parameters that Orbax reads, got {type(error).__name__}: {first}. "
            f"{REMEDY_OF_OURS}"
        ) from None
    _check_shapes(module, params, path)
    return Model(module, params, tokenizer)


def load_own_tokenizer(path: epath.PathLike) -> Tokenizer:
    """The tokeniser of the model of ours in the folder `path`."""
    _, tokenizer = _read_own(epath.Path(path))
    if tokenizer is None:
        raise ValueError(f"{path}: expected a model with a tokeniser, got none. {REMEDY_OF_OURS}")
    return tokenizer


def _read_own(path: epath.Path) -> tuple[LlamaConfig | BertConfig, Tokenizer | None]:
    """Settings and tokeniser, if there is one, of a model of ours."""
    if not (path / "config.json").exists():
        raise ValueError(f"{path}: expected a config.json, got none. {REMEDY_OF_OURS}")
    values = read_json(path / "config.json", REMEDY_OF_OURS)
    config = own_config(values, f"{path}/config.json")
    if not (path / "tokenizer").exists():
        return config, None
    declared = own_declared(values, f"{path}/config.json")
    tokenizer = load_tokenizer(path / "tokenizer", config.vocab_size, declared=declared)
    check_tokenizer(tokenizer, config, str(path))
    return config, tokenizer


def _check_shapes(module: Llama | Bert, params: Any, path: epath.Path) -> None:
    arrays: dict[str, Any] = flatten_dict(params, sep="/")
    found = {name: array.shape for name, array in arrays.items()}
    expected = {name: shape.shape for name, shape in parameter_shapes(module).items()}
    if found != expected:
        name = min(name for name in {**found, **expected} if found.get(name) != expected.get(name))
        raise ValueError(
            f"{path}: expected {name} of shape {expected.get(name)} by its config.json, got "
            f"{found.get(name)}. {REMEDY_OF_OURS}"
        )


def load_pretrained(
    source: str,
    *,
    expected: str = "",
    num_layers: int | None = None,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
    dtype: str = "float32",
    mesh: Mesh | None = None,
) -> Model:
    """The LLaMA or BERT that `source` names (`hub.find`), its parameters in `dtype` over `mesh`.

    `expected` is the network that it has to be: llama or bert. `num_layers`, `pooling` and `normalize` are a
    BERT's, see `load_bert`. A folder without a tokeniser has None for it.
    """
    folder = hub.find(source)
    inner = transformer_folder(folder)
    config, vectors = describe_folder(folder, expected, num_layers, pooling, normalize)
    tokenizer = None
    if has_tokenizer(inner):
        declared = read_declared(inner)
        if vectors.lower_case:
            declared["do_lower_case"] = True
        tokenizer = load_tokenizer(inner, config.vocab_size, lower_case=vectors.lower_case, declared=declared)
        check_tokenizer(tokenizer, config, str(folder))
    if isinstance(config, BertConfig):
        _, params = load_bert(
            folder, num_layers, pooling=pooling, normalize=normalize, dtype=dtype, mesh=mesh
        )
        if tokenizer is not None:
            longest = vectors.max_length or tokenizer.hf.model_max_length
            tokenizer.hf.model_max_length = min(longest, config.max_length)
    else:
        _, params = load_llama(folder, dtype=dtype, mesh=mesh)
    return Model(MODULES[type(config)](config), params, tokenizer)


def open_model(source: str, **options: Any) -> Model:
    """A model of ours, or of others with `load_pretrained`'s options.

    What an export or a stage recorded is checked against its size and its hash first.
    """
    path = locate(source)
    _check_recorded(path)
    if not is_ours(path):
        return load_pretrained(source, **options)
    how = ("expected", "pooling", "normalize")
    describe(source, **{name: value for name, value in options.items() if name in how})
    return load_model(path, mesh=options.get("mesh"))


def _check_recorded(path: epath.Path) -> None:
    """Refuse a folder whose bytes are not those that the manifest of its stage or its export vouches for."""
    for home, name in (
        (path.parent, path.name),
        (path.parent.parent, f"{path.parent.name}/{path.name}"),  # export/hf/lm
    ):
        if not _is_ours_or_damaged(home / "manifest.json"):
            continue
        recorded = TopLevelFolder(home)
        if recorded.complete and recorded.holds(name):
            recorded.verified_path(name)


def _is_ours_or_damaged(manifest: epath.Path) -> bool:
    """Whether a file may be a manifest of ours: other programs give that name to theirs, too."""
    try:
        found = parse_json(manifest.read_bytes(), str(manifest), "")
    except FileNotFoundError:
        return False
    except ValueError:
        return True
    return isinstance(found, dict) and bool(found.keys() & {"stage", "fingerprint", SEAL})


def count_parameters(params: Any) -> int:
    """The numbers in all arrays of the tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
