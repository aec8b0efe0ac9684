import json

import pytest
from gguf_files import write_gguf

from radit_jax.runtime.pretrained.licences import origin
from radit_jax.text.card import Origin


def write(folder, **files):
    for name, text in files.items():
        (folder / name.replace("_md", ".md").replace("_json", ".json")).write_text(text)
    return folder


def licence(folder, source="runs/lm"):
    found = origin("language model", source, folder)
    return found.licence, found.source


def test_a_readmes_metadata_come_first(tmp_path):
    write(tmp_path, README_md="---\nlanguage: en\nlicense: llama3.2\n---\n# A model\nlicense: mit\n")
    write(tmp_path, LICENSE="MIT License\n")
    assert licence(tmp_path) == ("llama3.2", "its README.md")


def test_a_licence_of_another_name_goes_by_it(tmp_path):
    write(tmp_path, README_md="---\nlicense: other\nlicense_name: Falcon-LLM\n---\n")
    assert licence(tmp_path) == ("falcon-llm", "its README.md")


def test_a_licence_file_is_known_by_its_first_line(tmp_path):
    write(tmp_path, README_md="# no metadata", LICENSE="\n  LLAMA 2 COMMUNITY LICENSE AGREEMENT \nterms\n")
    assert licence(tmp_path) == ("llama 2 community license agreement", "its licence file")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hub:facebook/dragon-plus-context-encoder", "cc-by-nc-4.0"),
        ("facebook/dragon-plus-query-encoder@main", "cc-by-nc-4.0"),
        ("meta-llama/Llama-2-7b-hf", "llama2"),
        ("meta-llama/Meta-Llama-3-8B", "llama3"),
        ("meta-llama/Llama-3.1-8B", "llama3.1"),
        ("meta-llama/Llama-3.2-1B", "llama3.2"),
        ("google/gemma-3-270m", "gemma"),
        ("huggyllama/llama-65b", "llama 1 (for research only)"),
    ],
)
def test_a_repository_without_metadata_is_known_by_its_name(tmp_path, source, expected):
    assert licence(tmp_path, source) == (expected, "its page on the hub")


def test_a_copy_is_known_by_what_its_config_was_made_of(tmp_path):
    write(tmp_path, config_json=json.dumps({"_name_or_path": "meta-llama/Llama-2-7b-hf"}))
    assert licence(tmp_path) == ("llama2", "the page of meta-llama/Llama-2-7b-hf")


@pytest.mark.parametrize(
    "head",
    ["license: [mit, 3]", "license:\n  - mit", "license: {a: 1}", "license: 3", "license: true", "---"],
)
def test_metadata_of_any_kind_is_read_or_passed_over(tmp_path, head):
    write(tmp_path, README_md=f"---\n{head}\n---\n")
    assert isinstance(licence(tmp_path)[0], str)


def test_what_others_wrote_is_one_short_line(tmp_path):
    write(tmp_path, LICENSE="\n# A\tlicence\x1b[2J \u202e" + "of many words " * 20_000)
    found = licence(tmp_path)[0]
    assert found.startswith("a licence [2j of many words") and len(found) <= 80 and found.isprintable()
    (tmp_path / "README.md").write_bytes(b"---\nlicense: \xff\xfe\n---\n")
    assert licence(tmp_path)[1] == "its README.md"


@pytest.mark.parametrize("named", [3, None, [{}], {"a": 1}, True, "x" * 10_000])
def test_a_config_that_names_no_origin_is_passed_over(tmp_path, named):
    write(tmp_path, config_json=json.dumps({"_name_or_path": named}))
    assert licence(tmp_path) == ("", "")


def test_what_says_nothing_stays_unknown(tmp_path):
    write(tmp_path, config_json=json.dumps({"_name_or_path": "someone/llama-like"}))
    assert origin("data", "hub:someone/thing", tmp_path) == Origin("data", "someone/thing", "")
    assert origin("data", "gone", tmp_path / "gone") == Origin("data", "gone", "")


def test_a_gguf_file_says_its_licence_or_its_folder_does(tmp_path):
    write(tmp_path, README_md="---\nlicense: mit\n---\n")
    silent = write_gguf(tmp_path / "silent.gguf", {})
    assert licence(silent) == ("mit", "its README.md")
    gemma = write_gguf(tmp_path / "gemma.gguf", {}, **{"general.license": "gemma"})
    assert licence(gemma) == ("gemma", "its metadata")
