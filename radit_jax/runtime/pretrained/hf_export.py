"""Models written in the forms that transformers, PEFT, vLLM and sentence-transformers load.

A language model's folder is one of `LlamaForCausalLM`. An encoder's folder is one of `BertModel` and also one
of sentence-transformers, which says how vectors are made. Each is read back, tensor by tensor.
"""

import copy
import json
from typing import Any

from etils import epath
from tokenizers import processors

from radit_jax.config import BertConfig, DecoderConfig, EncoderConfig, LastTokenConfig, LoraConfig
from radit_jax.runtime.pretrained import hf_config
from radit_jax.runtime.pretrained.checkpoint_info import describe_folder
from radit_jax.runtime.pretrained.decoder_config import decoder_json
from radit_jax.runtime.pretrained.hf_weights import adapters_to_peft, to_hf
from radit_jax.runtime.pretrained.model_io import Model
from radit_jax.runtime.pretrained.tensor_files import SHARD_BYTES, largest_error, write_tensors
from radit_jax.runtime.pretrained.tokenizer_files import load_tokenizer, save_tokenizer
from radit_jax.runtime.pretrained.tokenizers import Tokenizer
from radit_jax.runtime.pretrained.vectors import write_vectors
from radit_jax.runtime.storage.files import read_json, write_whole

ADAPTERS = "hf/lm_adapter"  # the adapters' name in a stage's folder
NOT_THE_SAME = (
    "This checkpoint cannot be written in Hugging Face's form: export without it by --set export.hf=false."
)
# A text that tokenisers disagree on where their settings differ.
PROBE = "Background: Zoë's 1,984 naïve cafés – 東京.\n\nQ: Where?\nA: "


def export_hf(
    folder: epath.PathLike,
    model: Model,
    *,
    dtype: str = "float32",
    shard_bytes: int = SHARD_BYTES,
) -> float:
    """Write `model` to `folder`, and return the largest error of a parameter that was read back.

    In float32 the error is 0, in bfloat16 that of rounding.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    config = model.module.config
    # 1) Write the weights, the tokeniser and the settings.
    tensors = to_hf(model.params)
    if isinstance(config, LastTokenConfig):  # without a head the decoder is the whole model
        tensors = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    write_tensors(folder, tensors, dtype=dtype, shard_bytes=shard_bytes)
    save_tokenizer(folder, _adding_specials(model.tokenizer, config))
    # transformers 5 may name a class that transformers 4, which vLLM may bring, does not know.
    _set_values(folder / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")
    _write_config(folder, config, model.tokenizer, dtype)

    # 2) Read back what was written.
    _check_config(folder, config)
    _check_tokenizer(folder, model.tokenizer, config)
    return largest_error(folder, tensors)


def export_peft(
    folder: epath.PathLike,
    adapters: Any,
    lora: LoraConfig,
    base: str = "",
) -> float:
    """Write adapters to `folder` in PEFT's form, and return the largest error of one that was read back: 0.

    `base` names the checkpoint that they belong to, if others can find it.
    """
    folder = epath.Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tensors = adapters_to_peft(adapters)
    write_tensors(folder, tensors, stem="adapter_model")
    # LoRA without dropout or biases: ready to be used, or trained further.
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
    _write_json(folder / "adapter_config.json", values)
    return largest_error(folder, tensors)


def _write_config(
    folder: epath.Path,
    config: DecoderConfig | EncoderConfig,
    tokenizer: Tokenizer,
    dtype: str,
) -> None:
    """Write config.json, generation_config.json, and an encoder's files that say how vectors are made."""
    declared = tokenizer.declared
    names = ("bos", "eos", "pad")
    if isinstance(config, BertConfig):
        values = hf_config.bert_json(config, dtype)
        names = ("pad",)
    elif isinstance(config, LastTokenConfig):
        values = decoder_json(config.decoder, dtype)
        values["architectures"] = [name.replace("ForCausalLM", "Model") for name in values["architectures"]]
    else:
        values = decoder_json(config, dtype)
    # sentence-transformers reads how an encoder's vectors are made.
    if not isinstance(config, DecoderConfig):
        max_length = min(tokenizer.hf.model_max_length, config.max_length)
        write_vectors(folder, config, max_length, bool(declared.get("do_lower_case")))
    for name in names:
        values[f"{name}_token_id"] = _known_id(tokenizer, name, config)
    # Declared ids stay as they are: null stays null, and a list a list.
    values |= declared.get("config", {})
    _write_json(folder / "config.json", values)
    if declared.get("generation"):
        _write_json(folder / "generation_config.json", declared["generation"])


def _known_id(tokenizer: Tokenizer, name: str, config: DecoderConfig | EncoderConfig) -> int | None:
    """The tokeniser's own id of a special token, if the network has an embedding for it."""
    number = getattr(tokenizer.hf, f"{name}_token_id")
    return number if number is not None and number < config.vocab_size else None


def _write_json(path: epath.Path, values: Any) -> None:
    text = json.dumps(values, indent=2) + "\n"
    write_whole(path, text)


def _check_config(folder: epath.Path, config: DecoderConfig | EncoderConfig) -> None:
    """Refuse a config.json that describes another network than the model's."""
    written, _ = describe_folder(folder)
    if written != config:
        raise ValueError(f"{folder / 'config.json'}: expected {config}, got {written}. {NOT_THE_SAME}")


def _check_tokenizer(folder: epath.Path, tokenizer: Tokenizer, config: DecoderConfig | EncoderConfig) -> None:
    """Refuse tokeniser files that give a text other ids than the model's tokeniser does."""
    written = load_tokenizer(folder, config.vocab_size)
    if isinstance(config, DecoderConfig):
        expected, found = tokenizer.encode(PROBE), written.encode(PROBE)
    else:
        expected, found = tokenizer.encode_all([PROBE]), written.encode_all([PROBE])
    if found != expected:
        raise ValueError(
            f"{folder}/tokenizer.json, tokenizer_config.json: expected {PROBE!r} as the ids {expected}, as "
            f"the model's own tokeniser has it, got {found}. {NOT_THE_SAME}"
        )


def _adding_specials(tokenizer: Tokenizer, config: DecoderConfig | EncoderConfig) -> Tokenizer:
    """A copy that adds `<bos>`, if any, or `[CLS]` and `[SEP]` by itself, as others expect of a tokeniser."""
    hf = copy.deepcopy(tokenizer.hf)
    before, after = tokenizer.marks
    if isinstance(config, DecoderConfig):
        before, after = list(tokenizer.plain.start_ids), []
    # `$A` is the text in tokenizers' templates.
    template = ["$A"]
    template[:0] = hf.convert_ids_to_tokens(before)
    template += hf.convert_ids_to_tokens(after)
    marks = [(hf.convert_ids_to_tokens(number), number) for number in {*before, *after}]
    hf.backend_tokenizer.post_processor = processors.TemplateProcessing(template, None, marks)
    return Tokenizer(hf, config.vocab_size, tokenizer.declared)


def _set_values(path: epath.Path, **values: Any) -> None:
    """Set fields of a JSON file."""
    content = read_json(path, "Export again.") | values
    text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
    write_whole(path, text)
