"""Small tokenisers of the kinds that families of language models have, trained on a few texts."""

import copy
import functools
import json

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from radit_jax.runtime.pretrained.tokenizers import Tokenizer

TEXTS = [
    "Background: Paris lies on the Seine, in France.\n\nQ: Where does Paris lie?\nA: on the Seine.\n",
    "user\nassistant\nmodel\nsystem\n\nYou are a helpful assistant. [INST] Lyon [/INST] Nice.\n\n\n  \n",
    "The capital of France is Paris; its population is 2,102,650. été über 東京\r\n",
    "Q: Where?\nA:\nParis\n\n  \n  Lyon",
] * 4
# What text is split at: contractions, words with one sign before them, digits, signs with the line ends after
# them, white space. Qwen takes digits one by one, Llama 3 in threes.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}DIGITS"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def byte_level(specials: list[str], digits: str) -> tokenizers.Tokenizer:
    """A BPE of bytes whose pieces hold line ends with what is before them."""
    rust = tokenizers.Tokenizer(models.BPE())
    split = tokenizers.Regex(SPLIT.replace("DIGITS", digits))
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(split, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    rust.decoder = decoders.ByteLevel()
    rust.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=specials,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    rust.train_from_iterator(TEXTS, trainer)
    return rust


def starting_with(rust: tokenizers.Tokenizer, bos: str) -> processors.TemplateProcessing:
    """The step that puts `bos` before a text."""
    return processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, rust.token_to_id(bos))])


@functools.cache
def qwen() -> PreTrainedTokenizerFast:
    """Qwen2's and 3's kind: no `<bos>`."""
    rust = byte_level(["<|endoftext|>", "<|im_start|>", "<|im_end|>"], "")
    rust.normalizer = normalizers.NFC()
    return PreTrainedTokenizerFast(tokenizer_object=rust, eos_token="<|im_end|>", pad_token="<|endoftext|>")


@functools.cache
def smollm() -> PreTrainedTokenizerFast:
    """SmolLM's kind: its `<bos>` is its `<eos>`, and no text begins with it."""
    name = "<|endoftext|>"
    rust = byte_level([name], "")
    return PreTrainedTokenizerFast(tokenizer_object=rust, bos_token=name, eos_token=name)


@functools.cache
def llama3() -> PreTrainedTokenizerFast:
    """Llama 3's kind, which puts `<|begin_of_text|>` in by itself."""
    names = ["<|begin_of_text|>", "<|end_of_text|>"]
    headers = ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    rust = byte_level([*names, *headers], "{1,3}")
    rust.post_processor = processors.Sequence([rust.post_processor, starting_with(rust, names[0])])
    return PreTrainedTokenizerFast(tokenizer_object=rust, bos_token=names[0], eos_token="<|eot_id|>")


@functools.cache
def gemma() -> PreTrainedTokenizerFast:
    r"""Gemma's kind: SentencePiece with `<bos>`, no space before a text, and runs of line ends as pieces."""
    # 1) Learn pieces of words and of line ends apart.
    rust = tokenizers.Tokenizer(models.BPE())
    rust.normalizer = normalizers.Replace(" ", "▁")
    rust.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex("\n+"), "isolated"),
            pre_tokenizers.Split("▁", "merged_with_next"),
        ]
    )
    trainer = trainers.BpeTrainer(vocab_size=160, show_progress=False)
    rust.train_from_iterator([text.replace("東京", "") for text in TEXTS], trainer)
    learnt = json.loads(rust.to_str())["model"]

    # 2) Special tokens and bytes are first, as in SentencePiece. Nothing splits a text.
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<start_of_turn>", "<end_of_turn>"]
    pieces = [*specials, *(f"<0x{byte:02X}>" for byte in range(256)), *learnt["vocab"]]
    vocab = {piece: number for number, piece in enumerate(pieces)}
    merges = [tuple(merge) for merge in learnt["merges"]]
    model = models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)
    rust = tokenizers.Tokenizer(model)
    rust.normalizer = normalizers.Replace(" ", "▁")
    rust.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    rust.add_special_tokens(specials)
    rust.post_processor = starting_with(rust, "<bos>")
    return PreTrainedTokenizerFast(
        tokenizer_object=rust, bos_token="<bos>", eos_token="<eos>", pad_token="<pad>", unk_token="<unk>"
    )


def prepending(hf: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """LLaMA's tokeniser as older files have it: a space before every text between two special tokens."""
    rust = tokenizers.Tokenizer.from_str(hf.backend_tokenizer.to_str())
    rust.pre_tokenizer = None  # pyright: ignore[reportAttributeAccessIssue]
    rust.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    return PreTrainedTokenizerFast(
        tokenizer_object=rust, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


# ---- chat templates of the shapes that families have ----

ROLES = "{% for m in messages %}"
SYSTEM = "<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n"
TEMPLATES = {
    # A default for the system, no <bos>, texts as they are.
    "qwen": (
        "{% if messages[0].role != 'system' %}{{ '" + SYSTEM + "' }}{% endif %}" + ROLES + ""
        "{{ '<|im_start|>' + m.role + '\\n' + m.content + '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    # What a reasoning model writes when it does not reason.
    "qwen3": (
        ROLES + "{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
        "{{ '<think>\\n\\n</think>\\n\\n' + m.content.split('</think>')[-1].lstrip('\\n') }}"
        "{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    ),
    # Another name for the assistant, and texts without white space at their ends.
    "gemma": (
        "{{ bos_token }}" + ROLES + "{% set role = 'model' if m.role == 'assistant' else m.role %}"
        "{{ '<start_of_turn>' + role + '\\n' + m.content | trim + '<end_of_turn>\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"
    ),
    # The date in the system's text, and headers between two special tokens each.
    "llama3": (
        "{{ bos_token + '<|start_header_id|>system<|end_header_id|>\\n\\nToday Date: ' + "
        "strftime_now('%d %b %Y') + '\\n\\n<|eot_id|>' }}" + ROLES + ""
        "{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\\n\\n' + m.content | trim + '<|eot_id|>' }}"
        "{% endfor %}{% if add_generation_prompt %}"
        "{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"
    ),
    # Marks that are special tokens, and a space before either text.
    "mistral": (
        "{{ bos_token }}" + ROLES + "{% if m.role == 'user' %}{{ '[INST] ' + m.content + '[/INST]' }}"
        "{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
    ),
    # Marks that are no special tokens, and spaces around an answer.
    "llama": (
        ROLES + "{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content + ' [/INST]' }}"
        "{% else %}{{ ' ' + m.content + ' ' + eos_token }}{% endif %}{% endfor %}"
    ),
    # For a tokeniser of ours: roles as words, `<bos>` and `<eos>`.
    "ours": (
        "{{ bos_token }}" + ROLES + "{{ m.role + ': ' + m.content }}"
        "{{ eos_token if m.role == 'assistant' else '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}assistant:{% endif %}"
    ),
}


def in_chat(tokenizer: Tokenizer) -> Tokenizer:
    """A tokeniser of ours that reads prompts in a template."""
    hf = copy.deepcopy(tokenizer.hf)
    hf.chat_template = TEMPLATES["ours"]
    return Tokenizer(hf, tokenizer.vocab_size).with_prompt("chat")
