"""Models in the forms that transformers, PEFT, vLLM and sentence-transformers load.

A language model's folder is `LlamaForCausalLM`'s. An encoder's is `BertModel`'s and at once one of
sentence-transformers, which says how vectors are made. Each is read back, tensor by tensor.
"""

import copy
import json
from typing import Any

from etils import epath
from tokenizers import processors

from radit_jax.config import BertConfig, LlamaConfig, LoraConfig
from radit_jax.runtime.pretrained import hf_config
from radit_jax.runtime.pretrained.checkpoint_info import describe_folder
from radit_jax.runtime.pretrained.hf_weights import adapters_to_peft, to_hf
from radit_jax.runtime.pretrained.model_io import Model
from radit_jax.runtime.pretrained.tensor_files import SHARD_BYTES, largest_error, write_tensors
from radit_jax.runtime.pretrained.tokenizers import Tokenizer, load_tokenizer, save_tokenizer
from radit_jax.runtime.pretrained.vectors import write_vectors
from radit_jax.runtime.storage.files import read_json, write_whole

ADAPTERS = "hf/lm_adapter"  # where a run keeps them
NOT_THE_SAME = (
    "This checkpoint cannot be written in Hugging Face's form: export without it by --set export.hf=false."
)
PROBE = "Background: Zoë's 1,984 naïve cafés – 東京.\n\nQ: Where?\nA: "


def export_hf(
    folder: epath.PathLike, model: Model, *, dtype: str = "float32", shard_bytes: int = SHARD_BYTES
) -> float:
    """Write `model` into `folder`; the largest error of a parameter that was read back.

    In float32 it is 0, in bfloat16 the rounding's.
    """
    folder, config = epath.Path(folder), model.module.config
    folder.mkdir(parents=True, exist_ok=True)
    tensors = to_hf(model.params)
    write_tensors(folder, tensors, dtype=dtype, shard_bytes=shard_bytes)
    save_tokenizer(folder, _with_marks(model.tokenizer, config))
    # A tokeniser of transformers 5 may be of a class that 4, which vLLM may bring, does not know.
    _set(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    _write_config(folder, config, model.tokenizer, dtype)
    _check_config(folder, config)
    _check_tokenizer(folder, model.tokenizer, config.vocab_size)
    return largest_error(folder, tensors)


def export_peft(folder: epath.PathLike, adapters: Any, lora: LoraConfig, base: str = "") -> float:
    """Write adapters into `folder` as PEFT loads them; the largest error of one that was read back: 0.

    `base` names the checkpoint that they belong to, where there is one that others can find.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = adapters_to_peft(adapters)
    write_tensors(folder, tensors, stem="adapter_model")
    values = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base or None,
        "r": lora.rank,
        "lora_alpha": lora.alpha,
        "target_modules": sorted(lora.targets),
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
    }
    write_whole(folder / "adapter_config.json", json.dumps(values, indent=2) + "\n")
    return largest_error(folder, tensors)


def _write_config(
    folder: epath.Path, config: LlamaConfig | BertConfig, tokenizer: Tokenizer, dtype: str
) -> None:
    declared = tokenizer.declared
    if isinstance(config, BertConfig):
        values, names = hf_config.bert_json(config, dtype), ("pad",)
        length = min(tokenizer.hf.model_max_length, config.max_length)
        write_vectors(folder, config, length, bool(declared.get("do_lower_case")))
    else:
        values, names = hf_config.llama_json(config, dtype), ("bos", "eos", "pad")
    # Special ids are as they came: null stays null, and a list a list.
    ids = {f"{name}_token_id": _own_id(tokenizer, name, config) for name in names} | declared.get(
        "config", {}
    )
    write_whole(folder / "config.json", json.dumps(values | ids, indent=2) + "\n")
    if declared.get("generation"):
        generation = json.dumps(declared["generation"], indent=2) + "\n"
        write_whole(folder / "generation_config.json", generation)


def _own_id(tokenizer: Tokenizer, name: str, config: LlamaConfig | BertConfig) -> int | None:
    """The tokeniser's own id of a special token, where the network has an embedding for it."""
    number = getattr(tokenizer.hf, f"{name}_token_id")
    return number if number is not None and number < config.vocab_size else None


def _check_config(folder: epath.Path, config: LlamaConfig | BertConfig) -> None:
    """Refuse a config.json that describes another network than the model's."""
    written, _ = describe_folder(folder)
    if written != config:
        raise ValueError(f"{folder / 'config.json'}: expected {config}, got {written}. {NOT_THE_SAME}")


def _check_tokenizer(folder: epath.Path, tokenizer: Tokenizer, vocab_size: int) -> None:
    """Refuse tokeniser files that give a text other ids than the model's tokeniser does."""
    expected = tokenizer.encode(PROBE)
    found = load_tokenizer(folder, vocab_size).encode(PROBE)
    if found != expected:
        raise ValueError(
            f"{folder}/tokenizer.json, tokenizer_config.json: expected {PROBE!r} as the ids {expected}, as "
            f"the model's own tokeniser has it, got {found}. {NOT_THE_SAME}"
        )


def _with_marks(tokenizer: Tokenizer, config: LlamaConfig | BertConfig) -> Tokenizer:
    """A copy that puts in `<bos>`, or `[CLS] … [SEP]`, by itself: others expect that of a tokeniser."""
    hf = copy.deepcopy(tokenizer.hf)
    if isinstance(config, BertConfig):
        names = [hf.convert_ids_to_tokens(number) for number in (tokenizer.cls_id, tokenizer.sep_id)]
        form = f"{names[0]} $A {names[1]}"
    else:
        names = [hf.convert_ids_to_tokens(tokenizer.bos_id)]
        form = f"{names[0]} $A"
    ids = [(name, hf.convert_tokens_to_ids(name)) for name in names]
    hf.backend_tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=ids)
    return Tokenizer(hf, config.vocab_size, tokenizer.declared)


def _set(path: epath.Path, **values: Any) -> None:
    content = read_json(path, "Export again.") | values
    write_whole(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")
