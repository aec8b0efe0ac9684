"""Encoders of other families than BERT's, as sentence-transformers keeps them: read, written, read by it."""

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import small
import tokenizers
import torch
import transformers
from exact import assert_stored, model_in_float64, torch_in_float64
from safetensors.torch import load_file
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import radit_jax
from radit_jax.config import MeshConfig
from radit_jax.data.batches.packing import pack_texts
from radit_jax.method.steps import RftBatch, init_state, make_r_ft_step
from radit_jax.retrieval.search import Encoder
from radit_jax.runtime.distributed.mesh import make_mesh
from radit_jax.runtime.pretrained.hf_export import export_hf
from radit_jax.runtime.pretrained.model_io import Model, load_model, save_model

pytestmark = [
    pytest.mark.usefixtures("float64"),
    pytest.mark.filterwarnings("ignore"),  # of sentence-transformers and what it imports
]
SPECIALS = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]  # ids 0 to 4
TEXTS = ["Who built  Dray Tower?", "Zoë's tower in Ostley: </s> or?", "tower " * 60, ""]


# ---- small checkpoints of each family, with the tokeniser that it has ----


def unigram():
    """XLM-RoBERTa's: SentencePiece's unigram model, whose every word begins with a space."""
    rust = tokenizers.Tokenizer(models.Unigram())
    rust.normalizer = normalizers.NFKC()
    metaspace = pre_tokenizers.Metaspace(prepend_scheme="always")
    rust.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), metaspace])
    rust.decoder = decoders.Metaspace(prepend_scheme="always")
    return rust, trainers.UnigramTrainer(vocab_size=150, special_tokens=SPECIALS, unk_token="<unk>")


def byte_bpe():
    """RoBERTa's."""
    rust = tokenizers.Tokenizer(models.BPE())
    rust.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    rust.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return rust, trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIALS, initial_alphabet=alphabet)


def wordpiece():
    """MPNet's: BERT's pieces with RoBERTa's special tokens."""
    rust = tokenizers.Tokenizer(models.WordPiece(unk_token="<unk>"))
    rust.normalizer = normalizers.BertNormalizer()
    rust.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    rust.decoder = decoders.WordPiece()
    return rust, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIALS)


def qwen():
    """Qwen3-Embedding's: it ends every text with a token, and begins it with none."""
    rust, _ = byte_bpe()
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    return rust, trainers.BpeTrainer(vocab_size=300, special_tokens=specials, initial_alphabet=alphabet)


class Kind(NamedTuple):
    network: Any  # transformers' class
    tokenizer: Callable[[], Any]
    pooling: str  # as its 1_Pooling/config.json says it


KINDS = {
    "roberta": Kind(transformers.RobertaModel, byte_bpe, "cls_token"),
    "xlm-roberta": Kind(transformers.XLMRobertaModel, unigram, "mean_tokens"),  # multilingual-e5
    "mpnet": Kind(transformers.MPNetModel, wordpiece, "mean_tokens"),  # all-mpnet-base-v2
    "distilbert": Kind(transformers.DistilBertModel, wordpiece, "mean_tokens"),  # multi-qa-distilbert-cos-v1
    "bert": Kind(transformers.BertModel, unigram, "mean_tokens"),  # multilingual-e5-small
    "qwen3": Kind(transformers.Qwen3Model, qwen, "lasttoken"),  # Qwen3-Embedding
}
PROMPTS = {"query": "query: ", "document": "passage: "}


def their_tokenizer(kind):
    rust, trainer = kind.tokenizer()
    rust.train_from_iterator([chunk.passage for chunk in small.CHUNKS], trainer)
    if kind.pooling == "lasttoken":
        end = [("<|endoftext|>", 0)]
        rust.post_processor = processors.TemplateProcessing("$A <|endoftext|>", None, end)
        specials = {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "padding_side": "left"}
    else:
        rust.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), trim_offsets=True)
        names = ("cls", "pad", "sep", "unk", "mask")
        specials = {f"{name}_token": token for name, token in zip(names, SPECIALS, strict=True)}
        specials |= {"bos_token": "<s>", "eos_token": "</s>"}
    return transformers.PreTrainedTokenizerFast(tokenizer_object=rust, model_max_length=48, **specials)


def write(path, value):
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value))


@pytest.fixture(scope="module", params=KINDS)
def checkpoint(request, tmp_path_factory):
    """A checkpoint as sentence-transformers keeps it: pooled, normalised, with two prompts."""
    folder = tmp_path_factory.mktemp(request.param)
    kind = KINDS[request.param]
    tokenizer = their_tokenizer(kind)
    config = kind.network.config_class(
        vocab_size=len(tokenizer) + 3,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=66,
        initializer_range=0.3,
        **(
            {"head_dim": 8, "num_key_value_heads": 1}
            if request.param == "qwen3"
            else {"layer_norm_eps": 1e-5}
        ),
    )
    torch.manual_seed(0)
    kind.network(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    modules = []
    for number, module in enumerate(("Transformer", "Pooling", "Normalize")):
        path = f"{number}_{module}" if number else ""
        named = {"name": str(number), "type": f"sentence_transformers.models.{module}"}
        modules.append({"idx": number, "path": path, **named})
    write(folder / "modules.json", modules)
    write(
        folder / "1_Pooling/config.json",
        {"word_embedding_dimension": 16, f"pooling_mode_{kind.pooling}": True},
    )
    write(folder / "sentence_bert_config.json", {"max_seq_length": 40, "do_lower_case": False})
    write(folder / "config_sentence_transformers.json", {"prompts": PROMPTS})
    return str(folder)


def theirs(folder):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    return sentence_transformers.SentenceTransformer(str(folder), device="cpu").double()


def embed(model, texts=TEXTS):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return Encoder(model_in_float64(model), mesh).embed(texts)


def test_an_encoder_has_the_vectors_of_sentence_transformers(checkpoint):
    encoder = theirs(checkpoint)
    with torch_in_float64():
        expected = encoder.encode(TEXTS)
    assert_stored(embed(Model(*radit_jax.load(checkpoint))), expected)


def test_an_encoder_reads_the_ids_that_its_own_tokeniser_gives(checkpoint):
    tokenizer = radit_jax.load(checkpoint)[2]
    expected = transformers.AutoTokenizer.from_pretrained(checkpoint)(TEXTS, truncation=True, max_length=40)
    assert tokenizer.encode_all(TEXTS, 40) == expected["input_ids"]


def test_an_encoder_is_exported_as_it_was(checkpoint, tmp_path):
    """By way of our own form, as a run does it: the same tensors, vectors, prompts and length."""
    save_model(tmp_path / "ours", Model(*radit_jax.load(checkpoint)))
    model = load_model(tmp_path / "ours")
    assert export_hf(tmp_path / "out", model) == 0
    tensors = load_file(f"{checkpoint}/model.safetensors")
    written = load_file(tmp_path / "out" / "model.safetensors")
    assert {name for name in tensors if not name.startswith("pooler.")} == written.keys()
    assert all(torch.equal(tensors[name], tensor) for name, tensor in written.items())
    encoder, original = theirs(tmp_path / "out"), theirs(checkpoint)
    assert encoder.prompts == PROMPTS and encoder.max_seq_length == 40
    with torch_in_float64():
        for encode in ("encode", "encode_query", "encode_document"):
            assert_stored(getattr(encoder, encode)(TEXTS), getattr(original, encode)(TEXTS))
    again = radit_jax.load(str(tmp_path / "out"))
    assert again.module.config == model.module.config
    jax.tree.map(np.testing.assert_array_equal, again.params, model.params)


def test_r_ft_trains_an_encoder(checkpoint):
    """Each parameter learns; the gradients are finite."""
    module, params, tokenizer = radit_jax.load(checkpoint)
    chunks = np.random.default_rng(0).normal(size=(2, 3, 16)).astype(np.float32)
    batch = RftBatch(
        queries=pack_texts(tokenizer.encode_all(TEXTS[:2], 40), row_length=64, num_rows=1),
        chunk_embeddings=chunks,
        target_log_probs=np.log(np.full((2, 3), [0.6, 0.3, 0.1], np.float32)),
        chunk_mask=np.ones((2, 3), bool),
    )
    tx = optax.sgd(1.0)
    state, metrics = make_r_ft_step(module, tx, temperature=1.0)(init_state(params, tx), batch)
    assert 0 < metrics["loss"] < jnp.inf and 0 < metrics["grad_norm"] < jnp.inf

    def has_learnt(new, old):
        return bool((new != old).any())

    learnt = jax.tree_util.tree_leaves_with_path(jax.tree.map(has_learnt, state.params, params))
    idle = ["/".join(key.key for key in path) for path, learns in learnt if not learns]
    # A query's scores all move alike with the keys' bias, and its weights do not.
    assert set(idle) <= {"encoder/layer/attention/self/key/bias"}
