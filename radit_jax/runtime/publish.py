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
from radit_jax.runtime import hf_config
from radit_jax.runtime.models import Model
from radit_jax.runtime.pretrained import adapters_to_peft, to_hf
from radit_jax.runtime.tensorfiles import SHARD_BYTES, largest_error, write_tensors
from radit_jax.runtime.tokenizers import Tokenizer, load_tokenizer, save_tokenizer

ADAPTERS = "hf/lm_adapter"  # where a run keeps them
PROBE = "Background: Zoë's 1,984 naïve cafés – 東京.\n\nQ: Where?\nA: "


def publish(
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
    same = load_tokenizer(folder).encode(PROBE) == model.tokenizer.encode(PROBE)
    assert same, f"{folder}: the tokeniser that was written gives other ids"
    return largest_error(folder, tensors)


def publish_adapters(folder: epath.PathLike, adapters: Any, lora: LoraConfig, base: str = "") -> float:
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
    (folder / "adapter_config.json").write_text(json.dumps(values, indent=2) + "\n")
    return largest_error(folder, tensors)


def _write_config(
    folder: epath.Path, config: LlamaConfig | BertConfig, tokenizer: Tokenizer, dtype: str
) -> None:
    ids = {"bos": tokenizer.bos_id, "eos": tokenizer.eos_id, "pad": tokenizer.pad_id}
    if isinstance(config, BertConfig):
        values = hf_config.bert_json(config, dtype) | {"pad_token_id": tokenizer.pad_id}
        hf_config.write_vectors(folder, config, min(tokenizer.hf.model_max_length, config.max_length))
    else:
        values = hf_config.llama_json(config, dtype) | {f"{name}_token_id": ids[name] for name in ids}
    (folder / "config.json").write_text(json.dumps(values, indent=2) + "\n")


def _check_config(folder: epath.Path, config: LlamaConfig | BertConfig) -> None:
    values, where = hf_config.read_config(folder), str(folder)
    if isinstance(config, BertConfig):
        vectors = hf_config.read_vectors(folder)
        assert vectors is not None
        written = hf_config.bert_config(values, vectors.pooling, vectors.normalize, where)
    else:
        written = hf_config.llama_config(values, where)
    assert written == config, f"{folder}: config.json says {written}, the model is {config}"


def _with_marks(tokenizer: Tokenizer, config: LlamaConfig | BertConfig) -> Tokenizer:
    """A copy that puts in `<bos>`, or `[CLS] … [SEP]`, by itself: others expect that of a tokeniser."""
    hf = copy.deepcopy(tokenizer.hf)
    if isinstance(config, BertConfig):
        form, names = f"{hf.cls_token} $A {hf.sep_token}", (hf.cls_token, hf.sep_token)
    else:
        form, names = f"{hf.bos_token} $A", (hf.bos_token,)
    ids = [(name, hf.convert_tokens_to_ids(name)) for name in names]
    hf.backend_tokenizer.post_processor = processors.TemplateProcessing(single=form, special_tokens=ids)
    return Tokenizer(hf)


def _set(path: epath.Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values, indent=2, ensure_ascii=False) + "\n")
