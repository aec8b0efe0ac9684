"""sentence-transformers' files of any content."""

import json

import pytest

from radit_jax.config import BertConfig
from radit_jax.runtime.pretrained.vectors import read_vectors, with_side

BERT = BertConfig(vocab_size=11, hidden_size=8, num_layers=1, num_heads=2, ffn_size=12)
ST = "sentence_transformers.models"
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": f"{ST}.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": f"{ST}.Pooling"},
]
FILES = {
    "modules.json": MODULES,
    "1_Pooling/config.json": {"pooling_mode_mean_tokens": True},
    "sentence_bert_config.json": {"max_seq_length": 24, "do_lower_case": True},
    "config_sentence_transformers.json": {
        "prompts": {"query": "query: ", "document": "passage: "},
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
        "truncate_dim": 4,
    },
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "1_Pooling").mkdir()
    for name, value in FILES.items():
        (tmp_path / name).write_text(json.dumps(value))
    return tmp_path


def test_everything_that_the_files_say_is_read(folder):
    said = read_vectors(folder)
    assert (said.pooling, said.max_length, said.lower_case, said.truncate_dim) == ("mean", 24, True, 4)
    assert said.prompts == (("query", "query: "), ("document", "passage: ")) and said.default_prompt == ""


def test_vectors_compared_by_cosines_leave_normalising_to_the_settings(folder):
    assert read_vectors(folder).settings("here", None, None)["normalize"] is False
    assert read_vectors(folder).settings("here", None, True)["normalize"] is True
    (folder / "config_sentence_transformers.json").unlink()
    with pytest.raises(ValueError, match="expected normalize True, as was asked for, got normalize False"):
        read_vectors(folder).settings("here", None, True)


@pytest.mark.parametrize(
    ("prompts", "default", "side", "expected"),
    [
        ({"query": "q: ", "document": "d: ", "passage": "p: "}, "", "chunk", "d: "),
        ({"query": "q: ", "document": "", "passage": "p: "}, "", "chunk", "p: "),
        ({"query": "q: ", "corpus": "c: "}, "", "chunk", "c: "),
        ({"any": "a: "}, "any", "query", "a: "),
        ({"any": "a: "}, "", "query", ""),
        ({"query": "", "document": ""}, "", "query", ""),
    ],
)
def test_a_side_takes_the_prompt_that_sentence_transformers_takes(prompts, default, side, expected):
    config = BertConfig(**(vars(BERT) | {"prompts": tuple(prompts.items()), "default_prompt": default}))
    tower = with_side(config, side, None, "here")
    assert tower.prompt == expected and dict(prompts).items() <= dict(tower.prompts).items() | {("query", "")}


def test_means_that_leave_out_the_prompt_are_refused_where_there_is_one(folder):
    pooling = {"pooling_mode_mean_tokens": True, "include_prompt": False}
    (folder / "1_Pooling/config.json").write_text(json.dumps(pooling))
    with pytest.raises(ValueError, match="mean of all tokens, got include_prompt false"):
        read_vectors(folder)
    (folder / "config_sentence_transformers.json").unlink()
    assert read_vectors(folder).pooling == "mean"


@pytest.mark.parametrize("name", FILES)
def test_files_of_any_content_are_read_or_refused_by_their_names(folder, name):
    values = [None, True, -1, 0, 1.5, "", "text", [], {}, [[]], [{}], 10**30, {"a": {}}]
    contents = [b"", b"\xff\xfe", b"[" * 5000, *(json.dumps(value).encode() for value in values)]
    good = FILES[name]
    for value in values:
        if isinstance(good, dict):
            contents += [json.dumps(good | {field: value}).encode() for field in good]
        else:
            changed = [[MODULES[0], MODULES[1] | {field: value}] for field in MODULES[1]]
            contents += [json.dumps(modules).encode() for modules in changed]
    for content in contents:
        (folder / name).write_bytes(content)
        try:
            read_vectors(folder)
        except ValueError as error:
            assert f"{folder}" in str(error) and ": expected " in str(error) and str(error)[-1] == "."


@pytest.mark.parametrize("path", ["../other", "/etc", "1_Pooling/../../x", "9" * 5000, "a\x00b", "a\\b"])
def test_modules_lie_inside_their_checkpoint(folder, path):
    (folder / "modules.json").write_text(json.dumps([MODULES[0], MODULES[1] | {"path": path}]))
    with pytest.raises(ValueError, match="module 1: expected the name of a folder beside it, got"):
        read_vectors(folder)
