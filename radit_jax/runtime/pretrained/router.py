"""Both towers of a dual encoder as one model of sentence-transformers: its Router, written and read here.

modules.json                          the Router alone
router_config.json                    which modules read a query, and which a document
config_sentence_transformers.json     both prompts, and the form of a passage
query_encoder/  chunk_encoder/        the towers, each a whole model by itself

`encode_query` reads with one tower and `encode_document` with the other. `encode` says neither, and is an
error: no text is embedded with the wrong tower.
"""

import json
from typing import Any

from etils import epath

from radit_jax.config import EncoderConfig
from radit_jax.runtime.pretrained.fields import shown_value
from radit_jax.runtime.pretrained.hf_config import REMEDY
from radit_jax.runtime.pretrained.vectors import module_class, module_names, similarity
from radit_jax.runtime.storage.files import read_json, write_whole
from radit_jax.text.prompts import PASSAGE_FORM

CONFIG = "router_config.json"
TOWERS = {"query": "query_encoder", "chunk": "chunk_encoder"}  # the folder of each side
ROUTES = {"query": "query", "chunk": "document"}  # sentence-transformers' name for each side


def write_router(folder: epath.PathLike, towers: dict[str, EncoderConfig]) -> None:
    """Let sentence-transformers load the folder, in which both `towers` lie, as one model.

    `towers` has the settings of each side, "query" and "chunk".
    """
    # 1) The modules of each route, by the folders that they lie in.
    folder = epath.Path(folder)
    types: dict[str, str] = {}
    structure: dict[str, list[str]] = {}
    prompts: dict[str, str] = {}
    for side, config in towers.items():
        # A tower's first module is the folder itself, and the others lie in it.
        names = [f"{TOWERS[side]}/{name}".rstrip("/") for name in module_names(config)]
        kinds = module_names(config).values()
        types |= {name: module_class(kind) for name, kind in zip(names, kinds, strict=True)}
        structure[ROUTES[side]] = names
        prompts[ROUTES[side]] = config.prompt

    # 2) The settings. Without a default route, a text that is neither a query nor a document is refused.
    parameters = {"default_route": None, "allow_empty_key": False}
    router = {"types": types, "structure": structure, "parameters": parameters}
    model: dict[str, Any] = {
        "prompts": prompts,
        "default_prompt_name": None,
        "similarity_fn_name": similarity(towers["query"]),
        "passage_form": PASSAGE_FORM,
    }
    truncate_dim = towers["query"].truncate_dim
    if truncate_dim is not None:
        model["truncate_dim"] = truncate_dim
    # 3) The files. The folder as a whole has one module.
    modules = [{"idx": 0, "name": "0", "path": "", "type": module_class("Router")}]
    _write_json(folder / "modules.json", modules)
    _write_json(folder / CONFIG, router)
    _write_json(folder / "config_sentence_transformers.json", model)


def tower_folder(folder: epath.PathLike, side: str) -> epath.Path:
    """The folder of one side's tower, "query" or "chunk"; `folder` itself where it is a single encoder.

    Raises ValueError for a Router whose towers are no models by themselves, and for one without a `side`.
    """
    # A single encoder is a tower for either side.
    folder = epath.Path(folder)
    if not (folder / CONFIG).exists():
        return folder
    if not side:
        raise ValueError(
            f"{folder}: expected one encoder, got a Router with two. Name the folder of one of them, as "
            f"{folder / TOWERS['query']}."
        )
    # The first module of a route is its network.
    structure = read_json(folder / CONFIG, REMEDY).get("structure")
    route = structure.get(ROUTES[side]) if isinstance(structure, dict) else None
    first = route[0] if isinstance(route, list) and route else None
    name = first if isinstance(first, str) else ""
    is_inside = bool(name) and ".." not in name.split("/") and not name.startswith("/")
    if not is_inside or not (folder / name / "modules.json").exists():
        raise ValueError(
            f"{folder / CONFIG}: expected the route {ROUTES[side]!r} to begin with the folder of a whole "
            f"encoder, got {shown_value(route)}. Use a Router that export wrote, or two single encoders."
        )
    return folder / name


def _write_json(path: epath.Path, value: Any) -> None:
    text = json.dumps(value, indent=2) + "\n"
    write_whole(path, text)
