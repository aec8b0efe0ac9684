"""How an encoder's vectors are made, in sentence-transformers' layout: a checkpoint's, and that of an export.

modules.json                          which modules follow each other
1_Pooling/config.json                 [CLS]'s vector, or the mean of all tokens'
sentence_bert_config.json             the number of tokens at which texts are cut
config_sentence_transformers.json     texts put before queries and documents, and the vectors' width
"""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from etils import epath

from radit_jax.config import BertConfig
from radit_jax.runtime.pretrained.fields import Field, read_fields, shown_value
from radit_jax.runtime.pretrained.hf_config import REMEDY, SIZE, Pooling
from radit_jax.runtime.storage.files import as_object, parse_json, read_json, write_whole

_ST = "sentence_transformers.models"  # its classes are called this in a modules.json of any age
PROMPT_NAMES = {"query": ("query",), "chunk": ("document", "passage", "corpus")}  # where its encode_* look
_TRANSFORMER = {
    "max_seq_length": Field("max_length", int, 1, 1 << 30, None),
    "do_lower_case": Field("lower_case", bool, default=False),
}
_MODEL = {
    "truncate_dim": Field("truncate_dim", int, *SIZE, None),
    "default_prompt_name": Field("default_prompt", str, default=""),
}


class Vectors(NamedTuple):
    """What an encoder's files say; None, or nothing, where they do not."""

    pooling: Pooling | None = None
    normalize: bool | None = None
    max_length: int | None = None  # tokens
    lower_case: bool = False  # texts are lower-cased before they are tokenised
    prompts: tuple[tuple[str, str], ...] = ()  # names and the texts that are put before others
    default_prompt: str = ""  # the name of the one that counts where nobody names one
    truncate_dim: int | None = None  # vectors are cut to so many numbers, last of all
    pools_prompt: bool = True  # the prompt's tokens are part of the mean

    def settings(self, where: str, pooling: Pooling | None, normalize: bool | None) -> dict[str, Any]:
        """The fields of `BertConfig` that say how vectors are made, with what a caller says in so many words.

        Who says otherwise than the files is refused. Where nobody says a word they are [CLS]'s, as they are.
        """
        for name, wanted, found in (
            ("pooling", pooling, self.pooling),
            ("normalize", normalize, self.normalize),
        ):
            if None not in (wanted, found) and wanted != found:
                raise ValueError(
                    f"{where}: expected {name} {wanted}, as was asked for, got {name} {found} by its own "
                    f"files. Leave {name} unset, or name another checkpoint."
                )
        return {
            "pooling": self.pooling or pooling or "cls",
            "normalize": bool(normalize) if self.normalize is None else self.normalize,
            "prompts": self.prompts,
            "default_prompt": self.default_prompt,
            "truncate_dim": self.truncate_dim,
        }


def with_side(config: BertConfig, side: str, prompt: str | None, where: str) -> BertConfig:
    """`config` for the tower of a side, query or chunk: its prompt is what stands before all of its texts.

    `prompt` is what the experiment says in so many words; another one than the checkpoint's own is refused.
    """
    prompts = dict(config.prompts)
    names = [name for name in PROMPT_NAMES[side] if prompts.get(name)]
    name = names[0] if names else PROMPT_NAMES[side][0]
    own = prompts.get(name) or config.prompt
    if prompt is not None and own and prompt != own:
        raise ValueError(
            f"{where}: expected {side}_prompt {shown_value(prompt)}, as the experiment says, "
            f"got {shown_value(own)} by its own files. Leave {side}_prompt unset, or name another checkpoint."
        )
    text = own or prompt or ""
    if text:
        prompts[name] = text
    return replace(config, prompts=tuple(prompts.items()), default_prompt=name if text else "")


def read_vectors(folder: epath.PathLike) -> Vectors:
    """What the folder's files say of an encoder's vectors; without a `modules.json` that is nothing."""
    folder = epath.Path(folder)
    said, by_cosine = _read_model(folder / "config_sentence_transformers.json")
    if not (folder / "modules.json").exists():
        return said
    # Vectors that are compared by their cosines and are not normalised leave that to who compares them.
    said = said._replace(normalize=None if by_cosine else False)
    for kind, place in _modules(folder / "modules.json"):
        if kind == "Transformer":
            said = said._replace(**_read_transformer(place / "sentence_bert_config.json"))
        elif kind == "Pooling":
            pooling, pools_prompt = _read_pooling(place / "config.json")
            said = said._replace(pooling=pooling, pools_prompt=pools_prompt)
        else:
            said = said._replace(normalize=True)
    if not said.pools_prompt and any(text for _, text in said.prompts):
        raise ValueError(
            f"{folder}: expected vectors that are the mean of all tokens, got include_prompt false, which "
            "leaves out those of the prompt. Use such an encoder."
        )
    return said


def _modules(path: epath.Path) -> list[tuple[str, epath.Path]]:
    """The kinds of the modules in a `modules.json`, and the folders of their settings."""
    modules = parse_json(path.read_bytes(), str(path), REMEDY)
    if not isinstance(modules, list):
        raise ValueError(f"{path}: expected a list of modules, got {shown_value(modules)}. {REMEDY}")
    found = []
    table = {"type": Field("type", str), "path": Field("path", str)}
    for number, module in enumerate(modules):
        where = f"{path}: module {number}"
        fields = read_fields(as_object(module, where, REMEDY), table, where, REMEDY)
        kind = fields["type"].rpartition(".")[2]
        if kind not in ("Transformer", "Pooling", "Normalize"):
            raise ValueError(
                f"{path}: expected modules Transformer, Pooling and Normalize only, got {shown_value(kind)}. "
                "Use such an encoder."
            )
        found.append((kind, path.parent / _inside(fields["path"], where)))
    return found


def _inside(name: str, where: str) -> str:
    """The name of a folder in a checkpoint, which leads nowhere else."""
    parts = name.split("/")
    if len(name) > 200 or not name.isprintable() or "\\" in name or ".." in parts or name.startswith("/"):
        raise ValueError(
            f"{where}: expected the name of a folder beside it, got {shown_value(name)}. {REMEDY}"
        )
    return name


def _read_transformer(path: epath.Path) -> dict[str, Any]:
    return read_fields(read_json(path, REMEDY) if path.exists() else {}, _TRANSFORMER, str(path), REMEDY)


def _read_pooling(path: epath.Path) -> tuple[Pooling, bool]:
    if not path.exists():
        raise ValueError(f"{path}: expected the settings of the pooling, got no such file. {REMEDY}")
    values = read_json(path, REMEDY)
    chosen = [values["pooling_mode"]] if "pooling_mode" in values else []  # the newest form
    chosen += [name.removeprefix("pooling_mode_") for name, value in values.items() if value is True]
    modes = [mode for mode in chosen if mode != "include_prompt"]
    pools_prompt = values.get("include_prompt", True) is not False
    if modes in (["cls"], ["cls_token"]):
        return "cls", True
    if modes in (["mean"], ["mean_tokens"]):
        return "mean", pools_prompt
    raise ValueError(
        f"{path}: expected pooling by cls or mean, got {shown_value(modes)}. Use such an encoder."
    )


def _read_model(path: epath.Path) -> tuple[Vectors, bool]:
    """Prompts and width, and whether vectors are compared by their cosines."""
    if not path.exists():
        return Vectors(), False
    values = read_json(path, REMEDY)
    prompts = as_object(values.get("prompts") or {}, f"{path}: prompts", REMEDY)
    table = {name: Field(name, str, default="") for name in prompts}
    texts = read_fields(prompts, table, f"{path}: prompts", REMEDY)
    said = read_fields(values, _MODEL, str(path), REMEDY)
    if said["default_prompt"] and said["default_prompt"] not in texts:
        raise ValueError(
            f"{path}: expected default_prompt_name to be one of its prompts, got "
            f"{shown_value(said['default_prompt'])}. {REMEDY}"
        )
    by_cosine = values.get("similarity_fn_name") == "cosine"
    return Vectors(prompts=tuple(texts.items()), **said), by_cosine


def transformer_folder(folder: epath.PathLike) -> epath.Path:
    """Where a checkpoint's network and tokeniser lie: old sentence-transformers have them a folder deeper."""
    folder = epath.Path(folder)
    deeper = folder / "0_Transformer"
    return deeper if not (folder / "config.json").exists() and deeper.exists() else folder


def write_vectors(folder: epath.PathLike, config: BertConfig, max_length: int, lower_case: bool) -> None:
    """Make a folder with a BERT in Hugging Face's form one that sentence-transformers loads as well.

    `max_length` is the number of tokens at which it cuts texts.
    """
    folder = epath.Path(folder)
    kinds = ["Transformer", "Pooling"] + ["Normalize"] * config.normalize
    paths = ["", *(f"{number}_{kind}" for number, kind in enumerate(kinds) if number)]
    modules = [
        {"idx": number, "name": str(number), "path": path, "type": f"{_ST}.{kind}"}
        for number, (kind, path) in enumerate(zip(kinds, paths, strict=True))
    ]
    pooling = {
        "word_embedding_dimension": config.hidden_size,
        "pooling_mode_cls_token": config.pooling == "cls",
        "pooling_mode_mean_tokens": config.pooling == "mean",
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
    }
    model: dict[str, Any] = {
        "prompts": dict(config.prompts),
        "default_prompt_name": config.default_prompt or None,
        "similarity_fn_name": "cosine" if config.normalize else "dot",
    }
    if config.truncate_dim is not None:
        model["truncate_dim"] = config.truncate_dim
    for path in paths:
        (folder / path).mkdir(parents=True, exist_ok=True)
    _write_json(folder / "modules.json", modules)
    transformer = {"max_seq_length": max_length, "do_lower_case": lower_case}
    _write_json(folder / "sentence_bert_config.json", transformer)
    _write_json(folder / "config_sentence_transformers.json", model)
    _write_json(folder / "1_Pooling/config.json", pooling)


def _write_json(path: epath.Path, value: Mapping[str, Any] | list[Any]) -> None:
    write_whole(path, json.dumps(value, indent=2) + "\n")
