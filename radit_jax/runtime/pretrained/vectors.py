"""How an encoder's vectors are made, in sentence-transformers' layout, which is read and written here.

modules.json                          the modules in order
1_Pooling/config.json                 [CLS]'s vector, the last token's, or the mean of all tokens'
sentence_bert_config.json             the number of tokens at which texts are cut
config_sentence_transformers.json     prompts of queries and documents, and the vectors' width
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from etils import epath

from radit_jax.config import BertConfig, EncoderConfig, Pooling, layers_of
from radit_jax.runtime.pretrained.fields import Field, read_fields, shown_value
from radit_jax.runtime.pretrained.hf_config import REMEDY, SIZE, AnyEncoder
from radit_jax.runtime.storage.files import as_object, parse_json, read_json, write_whole

_MODULE_PREFIX = "sentence_transformers.models"  # of classes in a modules.json of any version
# The names under which sentence-transformers' encode_query and encode_document look for a prompt.
PROMPT_NAMES = {"query": ("query",), "chunk": ("document", "passage", "corpus")}
_MODULE_KINDS = ("Transformer", "Pooling", "Normalize")
# The names of each pooling in a checkpoint; the last one is the oldest.
_POOLING_NAMES: dict[Pooling, tuple[str, ...]] = {
    "cls": ("cls", "cls_token"),
    "mean": ("mean", "mean_tokens"),
    "last": ("lasttoken",),
}
_MAX_FOLDER_NAME = 200
_TRANSFORMER = {
    "max_seq_length": Field("max_length", int, 1, 1 << 30, None),
    "do_lower_case": Field("lower_case", bool, default=False),
}
_MODEL = {
    "truncate_dim": Field("truncate_dim", int, *SIZE, None),
    "default_prompt_name": Field("default_prompt", str, default=""),
}


class Vectors(NamedTuple):
    """What an encoder's files say of its vectors; None, or an empty value, where they say nothing."""

    pooling: Pooling | None = None
    normalize: bool | None = None
    max_length: int | None = None  # tokens
    lower_case: bool = False  # texts are lower-cased before they are tokenised
    prompts: tuple[tuple[str, str], ...] = ()  # (name, text that is put before others)
    default_prompt: str = ""  # the name of the prompt where the caller names none
    truncate_dim: int | None = None  # the width to which vectors are cut, last of all
    pools_prompt: bool = True  # whether the prompt's tokens are part of the mean

    def settings(
        self,
        where: str,
        pooling: Pooling | None,
        normalize: bool | None,
        poolings: Sequence[Pooling] = ("cls", "mean"),
    ) -> dict[str, Any]:
        """The fields of an encoder's config that say how vectors are made, by the files and by the caller.

        `poolings` are those that the network computes, its usual one first. ValueError where the caller
        contradicts the files, or the network does not compute it. Where neither says anything, vectors are
        those of the usual pooling, not normalised.
        """
        # The two that a caller may state.
        asked_and_own = {"pooling": (pooling, self.pooling), "normalize": (normalize, self.normalize)}
        for name, (asked, own) in asked_and_own.items():
            if asked is not None and own is not None and asked != own:
                raise ValueError(
                    f"{where}: expected {name} {asked}, as was asked for, got {name} {own} by its own "
                    f"files. Leave {name} unset, or name another checkpoint."
                )
        pooling = self.pooling or pooling or poolings[0]
        if pooling not in poolings:
            raise ValueError(
                f"{where}: expected pooling {' or '.join(poolings)}, which its network computes, got "
                f"{pooling}. Use such an encoder, or set that pooling."
            )
        return {
            "pooling": pooling,
            "normalize": bool(normalize) if self.normalize is None else self.normalize,
            "prompts": self.prompts,
            "default_prompt": self.default_prompt,
            "truncate_dim": self.truncate_dim,
        }


def with_side(
    config: AnyEncoder,
    side: str,
    prompt: str | None,
    where: str,
) -> AnyEncoder:
    """`config` for one tower, query or chunk, with that side's prompt as the default.

    `prompt` is the experiment's, if it sets one; ValueError where the checkpoint has another.
    """
    prompts = dict(config.prompts)
    names = [name for name in PROMPT_NAMES[side] if prompts.get(name)]
    name = names[0] if names else PROMPT_NAMES[side][0]
    # The checkpoint's own prompt for this side, or for all texts.
    own_prompt = prompts.get(name) or config.prompt
    if prompt is not None and own_prompt and prompt != own_prompt:
        raise ValueError(
            f"{where}: expected {side}_prompt {shown_value(prompt)}, as the experiment says, got "
            f"{shown_value(own_prompt)} by its own files. Leave {side}_prompt unset, or name another "
            "checkpoint."
        )
    text = own_prompt or prompt or ""
    if text:
        prompts[name] = text
    default_prompt = name if text else ""
    return replace(config, prompts=tuple(prompts.items()), default_prompt=default_prompt)


# ---- read ----


def read_vectors(folder: epath.PathLike) -> Vectors:
    """What the folder's files say of an encoder's vectors. Without a `modules.json` they say little."""
    folder = epath.Path(folder)
    vectors, by_cosine = _read_model(folder / "config_sentence_transformers.json")
    if not (folder / "modules.json").exists():
        return vectors
    # Where vectors are compared by cosine, the comparison normalises, and the files leave it open.
    vectors = vectors._replace(normalize=None if by_cosine else False)
    for kind, module_folder in _modules(folder / "modules.json"):
        if kind == "Transformer":
            fields = _read_transformer(module_folder / "sentence_bert_config.json")
            vectors = vectors._replace(**fields)
        elif kind == "Pooling":
            pooling, pools_prompt = _read_pooling(module_folder / "config.json")
            vectors = vectors._replace(pooling=pooling, pools_prompt=pools_prompt)
        else:
            vectors = vectors._replace(normalize=True)
    # Here a mean is over all tokens.
    has_prompt = any(text for _, text in vectors.prompts)
    if has_prompt and not vectors.pools_prompt:
        raise ValueError(
            f"{folder}: expected vectors that are the mean of all tokens, got include_prompt false, which "
            "leaves out those of the prompt. Use such an encoder."
        )
    return vectors


def _modules(path: epath.Path) -> list[tuple[str, epath.Path]]:
    """(kind, folder of its settings) of each module in a `modules.json`."""
    modules = parse_json(path.read_bytes(), str(path), REMEDY)
    if not isinstance(modules, list):
        raise ValueError(f"{path}: expected a list of modules, got {shown_value(modules)}. {REMEDY}")
    kinds_and_folders = []
    # Each has a class of sentence-transformers, and a folder next to the list.
    table = {"type": Field("type", str), "path": Field("path", str)}
    for number, module in enumerate(modules):
        where = f"{path}: module {number}"
        fields = read_fields(as_object(module, where, REMEDY), table, where, REMEDY)
        kind = fields["type"].rpartition(".")[2]
        if kind not in _MODULE_KINDS:
            raise ValueError(
                f"{path}: expected modules Transformer, Pooling and Normalize only, got {shown_value(kind)}. "
                "Use such an encoder."
            )
        _check_folder_name(fields["path"], where)
        kinds_and_folders.append((kind, path.parent / fields["path"]))
    return kinds_and_folders


def _check_folder_name(name: str, where: str) -> None:
    """Raise ValueError for a name that could lead out of the checkpoint."""
    is_short = len(name) <= _MAX_FOLDER_NAME
    is_plain = name.isprintable() and "\\" not in name
    leads_out = name.startswith("/") or ".." in name.split("/")
    if leads_out or not is_short or not is_plain:
        raise ValueError(
            f"{where}: expected the name of a folder beside it, got {shown_value(name)}. {REMEDY}"
        )


def _read_transformer(path: epath.Path) -> dict[str, Any]:
    """`max_length` and `lower_case`."""
    values = read_json(path, REMEDY) if path.exists() else {}
    return read_fields(values, _TRANSFORMER, str(path), REMEDY)


def _read_pooling(path: epath.Path) -> tuple[Pooling, bool]:
    """The pooling, and whether it includes the prompt's tokens."""
    if not path.exists():
        raise ValueError(f"{path}: expected the settings of the pooling, got no such file. {REMEDY}")
    values = read_json(path, REMEDY)
    modes = []
    # The newest form names the mode; older ones have a true field for it.
    if "pooling_mode" in values:
        modes.append(values["pooling_mode"])
    for name, value in values.items():
        if value is True:
            modes.append(name.removeprefix("pooling_mode_"))
    modes = [mode for mode in modes if mode != "include_prompt"]
    pools_prompt = values.get("include_prompt", True) is not False
    # One mode, and no other besides. Of a mean, the prompt may be left out.
    for pooling, names in _POOLING_NAMES.items():
        if len(modes) == 1 and modes[0] in names:
            return pooling, pools_prompt or pooling != "mean"
    raise ValueError(
        f"{path}: expected pooling by {', '.join(_POOLING_NAMES)}, got {shown_value(modes)}. Use such an "
        "encoder."
    )


def _read_model(path: epath.Path) -> tuple[Vectors, bool]:
    """Prompts and width, and whether vectors are compared by their cosines."""
    if not path.exists():
        return Vectors(), False
    values = read_json(path, REMEDY)
    # 1) The prompts: any names, with texts.
    prompts = as_object(values.get("prompts") or {}, f"{path}: prompts", REMEDY)
    table = {name: Field(name, str, default="") for name in prompts}
    texts = read_fields(prompts, table, f"{path}: prompts", REMEDY)
    # 2) Which of them counts, and the width.
    fields = read_fields(values, _MODEL, str(path), REMEDY)
    default_prompt = fields["default_prompt"]
    if default_prompt and default_prompt not in texts:
        raise ValueError(
            f"{path}: expected default_prompt_name to be one of its prompts, got "
            f"{shown_value(default_prompt)}. {REMEDY}"
        )
    by_cosine = values.get("similarity_fn_name") == "cosine"
    return Vectors(prompts=tuple(texts.items()), **fields), by_cosine


def transformer_folder(folder: epath.PathLike) -> epath.Path:
    """The folder of a checkpoint's network and tokeniser, which old sentence-transformers put inside."""
    folder = epath.Path(folder)
    inner = folder / "0_Transformer"
    is_inner = not (folder / "config.json").exists() and inner.exists()
    return inner if is_inner else folder


# ---- write ----


def module_class(kind: str) -> str:
    """The class of a module, by a name that every version of sentence-transformers knows."""
    return f"{_MODULE_PREFIX}.{kind}"


def module_names(config: EncoderConfig) -> dict[str, str]:
    """The modules of an encoder in their order: each one's folder, and its kind.

    >>> module_names(BertConfig(8, hidden_size=4, num_layers=1, num_heads=1, ffn_size=4))
    {'': 'Transformer', '1_Pooling': 'Pooling'}
    """
    kinds = _MODULE_KINDS if config.normalize else _MODULE_KINDS[:2]
    # The network's own files are at the top.
    names = [f"{number}_{kind}" if number else "" for number, kind in enumerate(kinds)]
    return dict(zip(names, kinds, strict=True))


def similarity(config: EncoderConfig) -> str:
    """How two vectors are compared: unit vectors by their cosine, which is then Eq. 1's inner product."""
    return "cosine" if config.normalize else "dot"


def write_vectors(
    folder: epath.PathLike,
    config: EncoderConfig,
    max_length: int,
    lower_case: bool,
) -> None:
    """Let sentence-transformers load a folder with an encoder's network in Hugging Face's form.

    `max_length` is the number of tokens at which it cuts texts.
    """
    folder = epath.Path(folder)
    modules = []
    for number, (path, kind) in enumerate(module_names(config).items()):
        (folder / path).mkdir(parents=True, exist_ok=True)
        modules.append({"idx": number, "name": str(number), "path": path, "type": module_class(kind)})
    pooling: dict[str, Any] = {"word_embedding_dimension": layers_of(config).hidden_size}
    pooling |= {"pooling_mode_max_tokens": False, "pooling_mode_mean_sqrt_len_tokens": False}
    for mode, names in _POOLING_NAMES.items():
        pooling[f"pooling_mode_{names[-1]}"] = mode == config.pooling
    model: dict[str, Any] = {
        "prompts": dict(config.prompts),
        "default_prompt_name": config.default_prompt or None,
        "similarity_fn_name": similarity(config),
    }
    if config.truncate_dim is not None:
        model["truncate_dim"] = config.truncate_dim
    transformer: dict[str, Any] = {"max_seq_length": max_length, "do_lower_case": lower_case}
    # No vector goes through a BERT's pooler, and files without one load without a warning. DistilBERT's
    # class has none that could be left out.
    if isinstance(config, BertConfig) and config.family != "distilbert":
        transformer["model_args"] = {"add_pooling_layer": False}
    _write_json(folder / "modules.json", modules)
    _write_json(folder / "sentence_bert_config.json", transformer)
    _write_json(folder / "config_sentence_transformers.json", model)
    _write_json(folder / "1_Pooling/config.json", pooling)


def _write_json(path: epath.Path, value: Any) -> None:
    text = json.dumps(value, indent=2) + "\n"
    write_whole(path, text)
