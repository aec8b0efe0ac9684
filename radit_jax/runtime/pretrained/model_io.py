"""A model in a folder: in our own form (Orbax parameters, `config.json`, tokeniser) or in Hugging Face's.

Stages and exports use our own form. Hugging Face's is read here, and written by `hf_export.py`.
"""

import contextlib
import json
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from etils import epath
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import Mesh

from radit_jax.config import BertConfig, DecoderConfig, EncoderConfig, LastTokenConfig, Pooling
from radit_jax.models.bert import Bert
from radit_jax.models.decoder import DecoderLm
from radit_jax.models.frozen import frozen_shapes
from radit_jax.models.last_token import LastTokenEncoder, TextEncoder
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.distributed.answering_mesh import AnsweringModel
from radit_jax.runtime.distributed.cpus import limit_kept_memory
from radit_jax.runtime.distributed.memory import DoesNotFitError
from radit_jax.runtime.pretrained import hub
from radit_jax.runtime.pretrained.checkpoint_info import describe, describe_folder, is_ours, locate
from radit_jax.runtime.pretrained.gguf_file import is_gguf
from radit_jax.runtime.pretrained.hf_config import (
    REMEDY_OF_OURS,
    own_config,
    own_declared,
    own_json,
    read_declared,
)
from radit_jax.runtime.pretrained.hf_weights import (
    load_bert,
    load_decoder,
    load_last_token,
    match_bert,
    match_decoder,
    match_last_token,
    parameter_shapes,
)
from radit_jax.runtime.pretrained.router import tower_folder
from radit_jax.runtime.pretrained.tokenizer_files import (
    check_tokenizer,
    has_tokenizer,
    load_tokenizer,
    save_tokenizer,
)
from radit_jax.runtime.pretrained.tokenizers import Tokenizer
from radit_jax.runtime.pretrained.vectors import Vectors, transformer_folder
from radit_jax.runtime.storage import bucket, checkpoints
from radit_jax.runtime.storage.entries import link_or_copy
from radit_jax.runtime.storage.files import SEAL, parse_json, read_json, write_whole
from radit_jax.runtime.storage.top_level_folder import TopLevelFolder

MODULES: dict[Any, Any] = {
    DecoderConfig: DecoderLm,
    BertConfig: Bert,
    LastTokenConfig: LastTokenEncoder,
}


# Where frozen parameters are held in the dtype of their network. A host has room, and keeps them as saved.
CASTS_FROZEN = ("gpu", "tpu")
_MANIFEST_ABOVE = 3  # the folders above a model's in which a manifest may list it


class Model(NamedTuple):
    """A network, its parameters and its tokeniser."""

    module: Any  # DecoderLm or a TextEncoder; the caller knows which
    params: Any  # a plain nested dict of arrays
    tokenizer: Any  # a Tokenizer, or None


def save_model(path: epath.PathLike, model: Model, params_of: epath.Path | None = None) -> None:
    """Write `model` to the folder `path` in our own form.

    `params_of` is a folder on the same disk, finished by all processes, with a model of the same parameters.
    They are not stored a second time.
    """
    path = epath.Path(path)
    path.mkdir(parents=True, exist_ok=True)
    # All processes write the parameters together, and process 0 the rest.
    if params_of is None:
        checkpoints.save_params(path / "params", model.params)
    if not processes.is_process_zero():
        return
    if params_of is not None:
        link_or_copy(params_of / "params", path / "params")
    settings = own_json(model.module.config)
    if model.tokenizer is not None:
        save_tokenizer(path / "tokenizer", model.tokenizer)
        if model.tokenizer.declared:
            settings["declared"] = model.tokenizer.declared
    write_whole(path / "config.json", json.dumps(settings, indent=2))


def load_model(
    path: epath.PathLike,
    *,
    dtype: str = "float32",
    mesh: Mesh | None = None,
    frozen: bool = False,
) -> Model:
    """The model of our own form in the folder `path`; it computes in `dtype`, on parameters as saved.

    They are spread over `mesh`, and each device reads its part; without one, they are on the first local
    device. Accelerators hold those of a `frozen` model, which nothing trains, in `dtype` where the network
    casts them to it in any case.
    """
    path = epath.Path(path)
    config, tokenizer = _read_own(path)
    module = MODULES[type(config)](config, dtype=jnp.dtype(dtype))

    def held(shapes: Any) -> Any:
        return _held(shapes, dtype, mesh) if frozen else shapes

    try:
        params = checkpoints.load_params(path / "params", mesh=mesh, held=held)
    except (DoesNotFitError, jax.errors.JaxRuntimeError, MemoryError):
        raise
    except Exception as error:  # Orbax raises many kinds where files are damaged
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"{path}/params: expected parameters that Orbax reads, got {type(error).__name__}: {reason}. "
            f"{REMEDY_OF_OURS}"
        ) from None
    _check_shapes(module, params, path)
    limit_kept_memory(sum(array.nbytes for array in jax.tree.leaves(params)))
    return Model(module, params, tokenizer)


def abstract_model(source: epath.PathLike, dtype: str = "float32") -> AnsweringModel:
    """The language model that `source` names, by its small files; as devices hold it frozen, in `dtype`."""
    config = describe(str(source), expected="decoder").config
    assert isinstance(config, DecoderConfig), "`describe` has checked it"
    shapes = unflatten_dict(parameter_shapes(DecoderLm(config)), sep="/")
    return AnsweringModel.of(config, _held(shapes, dtype), dtype)


def _held(shapes: Any, dtype: str, mesh: Mesh | None = None) -> Any:
    """The shapes of frozen parameters on the devices of `mesh`, or on this process's."""
    return frozen_shapes(shapes, dtype) if casts_frozen(mesh) else shapes


def casts_frozen(mesh: Mesh | None = None) -> bool:
    """Whether frozen parameters are cast on the devices of `mesh`, or on this process's."""
    device = jax.local_devices()[0] if mesh is None else mesh.devices.flat[0]
    return device.platform in CASTS_FROZEN


def load_own_tokenizer(path: epath.PathLike) -> Tokenizer:
    """The tokeniser of the model of our own form in the folder `path`."""
    _, tokenizer = _read_own(epath.Path(path))
    if tokenizer is None:
        raise ValueError(f"{path}: expected a model with a tokeniser, got none. {REMEDY_OF_OURS}")
    return tokenizer


def _read_own(path: epath.Path) -> tuple[DecoderConfig | EncoderConfig, Tokenizer | None]:
    """Settings and tokeniser, if there is one, of a model of our own form."""
    if not (path / "config.json").exists():
        raise ValueError(f"{path}: expected a config.json, got none. {REMEDY_OF_OURS}")
    values = read_json(path / "config.json", REMEDY_OF_OURS)
    config = own_config(values, f"{path}/config.json")
    # A retriever's chunk encoder, for example, may have none.
    if not (path / "tokenizer").exists():
        return config, None
    declared = own_declared(values, f"{path}/config.json")
    tokenizer = load_tokenizer(path / "tokenizer", config.vocab_size, declared=declared)
    check_tokenizer(tokenizer, config, str(path))
    return config, tokenizer


def _check_shapes(module: DecoderLm | TextEncoder, params: Any, path: epath.Path) -> None:
    """Raise ValueError where the parameters are not those of the network in config.json."""
    arrays: dict[str, Any] = flatten_dict(params, sep="/")
    found = {name: array.shape for name, array in arrays.items()}
    shapes = parameter_shapes(module)
    expected = {name: shape.shape for name, shape in shapes.items()}
    # The error names the first that differs, or is missing on one side.
    names = sorted(found.keys() | expected.keys())
    differing = [name for name in names if found.get(name) != expected.get(name)]
    if differing:
        name = differing[0]
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
    """The language model or encoder in Hugging Face's form that `source` names (`hub.find`).

    Its parameters are in `dtype` over `mesh`. `expected` is what it has to be: decoder or encoder.
    `num_layers`, `pooling` and `normalize` are an encoder's, see `load_bert`. The tokeniser is None where the
    folder has none.
    """
    # Small files first: what does not fit is refused before weights are read.
    folder = hub.find(source)
    config, vectors = describe_folder(folder, expected, num_layers, pooling, normalize)
    tokenizer = _load_hf_tokenizer(folder, config, vectors)
    if isinstance(config, BertConfig):
        _, params = load_bert(
            folder, num_layers, pooling=pooling, normalize=normalize, dtype=dtype, mesh=mesh
        )
    elif isinstance(config, LastTokenConfig):
        _, params = load_last_token(folder, pooling=pooling, normalize=normalize, dtype=dtype, mesh=mesh)
    else:
        _, params = load_decoder(folder, dtype=dtype, mesh=mesh)
    return Model(MODULES[type(config)](config), params, tokenizer)


def check_stored(
    source: str,
    *,
    expected: str,
    side: str = "",
    num_layers: int | None = None,
    pooling: Pooling | None = None,
    normalize: bool | None = None,
) -> None:
    """Refuse what `load_pretrained` would refuse, by the tokeniser and the headers of tensors' files alone.

    Of a checkpoint on the hub only the tokeniser is looked at, and of torch's pickles too, which have no
    header. A model in our own form has been checked when it was written. `side` is that of a tower.
    """
    folder = tower_folder(locate(source), side)
    if is_ours(folder):
        return
    config, vectors = describe_folder(folder, expected, num_layers, pooling, normalize)
    if _load_hf_tokenizer(folder, config, vectors) is None:
        raise no_tokenizer(source)
    # Tensors are mapped, and none is read.
    inner = transformer_folder(folder)
    if not is_gguf(inner) and not list(epath.Path(inner).glob("*.safetensors")):
        return
    if isinstance(config, BertConfig):
        match_bert(folder, num_layers, pooling=pooling, normalize=normalize)
    elif isinstance(config, LastTokenConfig):
        match_last_token(folder, pooling=pooling, normalize=normalize)
    else:
        match_decoder(folder)


def stored_tokenizer(source: str) -> Tokenizer:
    """The tokeniser of the language model that `source` names, without its weights."""
    folder = locate(source)
    if is_ours(folder):
        return load_own_tokenizer(folder)
    config, vectors = describe_folder(folder, "decoder")
    tokenizer = _load_hf_tokenizer(folder, config, vectors)
    if tokenizer is None:
        raise no_tokenizer(source)
    return tokenizer


def no_tokenizer(source: str) -> ValueError:
    """The error of a checkpoint without a tokeniser."""
    return ValueError(
        f"checkpoint {source}: expected a tokenizer.json, tokenizer.model or vocab.txt, got none. "
        "Put its tokeniser into its folder."
    )


def _load_hf_tokenizer(
    folder: epath.PathLike, config: DecoderConfig | EncoderConfig, vectors: Vectors
) -> Tokenizer | None:
    """The tokeniser of a checkpoint in Hugging Face's form, if it has one, checked against its network."""
    inner = transformer_folder(folder)
    if not has_tokenizer(inner):
        return None
    # The files of the network say things that the tokeniser has to keep.
    declared = read_declared(inner)
    if vectors.lower_case:
        declared["do_lower_case"] = True
    tokenizer = load_tokenizer(inner, config.vocab_size, lower_case=vectors.lower_case, declared=declared)
    check_tokenizer(tokenizer, config, str(folder))
    if not isinstance(config, DecoderConfig):
        max_length = vectors.max_length or tokenizer.hf.model_max_length
        tokenizer.hf.model_max_length = min(max_length, config.max_length)
    return tokenizer


def open_model(source: str, **options: Any) -> Model:
    """A model of our own form, or of Hugging Face's with the options of `load_pretrained`.

    Parameters of our own form have the dtype that they were saved in, unless `dtype` is given.

    What an export or a stage has recorded is first checked against its size and hash.
    """
    path = tower_folder(locate(source), side="")
    _check_recorded(path)
    if not is_ours(path):
        return load_pretrained(source, **options)
    # Options that contradict the model's own settings are refused.
    stated = {"expected", "pooling", "normalize"} & options.keys()
    describe(source, **{name: options[name] for name in stated})
    model = load_model(path, mesh=options.get("mesh"))
    if "dtype" not in options:
        return model
    params = jax.tree.map(lambda leaf: leaf.astype(options["dtype"]), model.params)
    return model._replace(params=params)


def _check_recorded(path: epath.Path) -> None:
    """Refuse a folder whose bytes are not those in the manifest of its stage or export."""
    # The manifest may be in the parent folder, or higher, as for export/hf/retriever/query_encoder.
    for home in list(path.parents)[:_MANIFEST_ABOVE]:
        name = str(path.relative_to(home))
        if not _is_ours_or_damaged(home / "manifest.json"):
            continue
        recorded = TopLevelFolder(home)
        if recorded.complete and recorded.holds(name):
            # A disk may be each host's own, where each has to verify what it has.
            alone = contextlib.nullcontext() if bucket.is_bucket(home) else processes.apart()
            with alone:
                recorded.verified_path(name)


def _is_ours_or_damaged(manifest: epath.Path) -> bool:
    """Whether a file may be a manifest of ours: other programs use that name, too."""
    try:
        values = parse_json(manifest.read_bytes(), str(manifest), "")
    except FileNotFoundError:
        return False
    # A damaged manifest of ours has to be reported, not passed over.
    except ValueError:
        return True
    if not isinstance(values, dict):
        return False
    return not values.keys().isdisjoint({"stage", "fingerprint", SEAL})


def count_parameters(params: Any) -> int:
    """The numbers in all arrays of the tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(params))
