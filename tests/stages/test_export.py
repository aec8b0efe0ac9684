"""An export holds what was tuned, in every form that was asked for, and says where it comes from."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest
from small import CHUNKS, QUESTIONS

import radit_jax
from radit_jax.config import EvaluateConfig, ExportConfig, LoraConfig, MeshConfig
from radit_jax.data.artifacts.corpus import Corpus
from radit_jax.data.artifacts.lsr_scores import Scores
from radit_jax.data.artifacts.retrieved import Retrieved
from radit_jax.data.artifacts.scores_file import import_scores
from radit_jax.data.batches.examples import question_example
from radit_jax.models.lora import init_adapters
from radit_jax.runtime.pretrained.hf_export import ADAPTERS, export_peft
from radit_jax.runtime.pretrained.model_io import save_model
from radit_jax.runtime.storage.workdir import Workdir
from radit_jax.stages import export

EXAMPLES = [question_example(question, question.answers[0]) for question in QUESTIONS["train"][:2]]
ROWS = np.array([[0, 1, 2], [1, 3, -1]])
SCORES = Scores(
    chunk_rows=ROWS,
    retrieval_scores=np.zeros((2, 3), np.float32),
    answer_log_probs=np.array([[-4.0, -2.0, -8.0], [-3.0, -1.5, 0.0]], np.float32),
    no_chunk_log_probs=np.zeros(2, np.float32),
    answer_token_counts=np.array([2, 3]),
    truncated=np.zeros((2, 3), bool),
    token_counts=np.full((2, 3), 9),
)
FIGURE = {"value": 0.5, "low": 0.25, "high": 0.75}
RESULTS = {"num_questions": 2, "systems": {"radit": {"exact_match": FIGURE}}}


@pytest.fixture(scope="module")
def tuned(inputs, lm, searcher, tmp_path_factory):
    """The inputs of export. The tuned query encoder is the base one turned round: the worst is its best."""
    workdir = Workdir(tmp_path_factory.mktemp("tuned"))
    folders = {
        name: workdir.folder(name, name) for name in ("lm_ft", "r_ft", "retrieved", "scores", "evaluated")
    }
    save_model(folders["lm_ft"].path / "lm", lm._replace(params=jax.tree.map(lambda x: 2 * x, lm.params)))
    folders["lm_ft"].commit("lm")
    encoder = searcher.encoder.model
    norm = encoder.params["encoder"]["layer"]["output"]["LayerNorm"]
    norm = {"scale": -norm["scale"], "bias": -norm["bias"]}
    layer = encoder.params["encoder"]["layer"]
    layer = layer | {"output": layer["output"] | {"LayerNorm": norm}}
    save_model(
        folders["r_ft"].path / "query_encoder",
        encoder._replace(params=encoder.params | {"encoder": {"layer": layer}}),
    )
    folders["r_ft"].commit("query_encoder")
    Retrieved(EXAMPLES, ROWS, np.zeros(ROWS.shape, np.float32)).save(folders["retrieved"], "train")
    SCORES.save(folders["scores"])
    folders["evaluated"].write_json("results.json", RESULTS)
    labels = {"role": "language model", "name": "a/labeller", "licence": "mit", "source": "its page"}
    folders["scores"].finish(scorer="a/labeller", origin=labels)
    for folder in folders.values():
        if not folder.complete:
            folder.finish()
    return {**inputs, **folders, "base_lm": inputs["lm"]}


def run(tuned, path, evaluate=EvaluateConfig(), **changed):  # noqa: B008
    output = Workdir(path).published("export", "0" * 12)
    facts = export.run(
        tuned,
        output,
        evaluate=evaluate,
        temperature=0.5,
        lm_score="mean_log_prob",
        tau=0.25,
        export=ExportConfig(**changed),
        mesh=MeshConfig(),
    )
    output.finish(**facts)
    return output


@pytest.fixture(scope="module")
def whole(tuned, tmp_path_factory):
    return run(tuned, tmp_path_factory.mktemp("whole"), lsr_scores=True, run_depth=4)


def test_the_tuned_models_open_in_both_forms_with_the_same_parameters(whole, tuned):
    for name, stage in (("lm", "lm_ft"), ("query_encoder", "r_ft"), ("chunk_encoder", "retriever")):
        _, expected, _ = radit_jax.load(str(tuned[stage].path / name))
        for folder in (whole.path / name, whole.path / export.MODELS[name]):
            module, params, tokenizer = radit_jax.load(str(folder))
            jax.tree.map(np.testing.assert_array_equal, params, expected)
            assert tokenizer.encode("Elm Tower") and module.config.hidden_size == 16


def test_the_manifest_has_every_form_and_its_largest_error(whole):
    assert whole.manifest["largest_errors"] == {"lm": 0, "query_encoder": 0, "chunk_encoder": 0}
    names = {"README.md", "hf/lm/config.json", "hf/retriever/query_encoder/tokenizer.json", "runs/r_ft.trec"}
    assert names | {"lm/config.json", "lsr_scores.jsonl"} <= set(whole.manifest["files"])
    for name in whole.manifest["files"]:
        whole.verified_path(name)


@pytest.fixture
def copied(whole, tmp_path):
    return pathlib.Path(shutil.copytree(whole.path, tmp_path / "export"))


@pytest.mark.parametrize("model", ["lm", "hf/lm", "hf/retriever/query_encoder"])
def test_a_model_opens_whatever_a_person_writes_next_to_it(copied, model):
    for name in ("README.md", ".gitattributes", ".DS_Store", "notes.txt"):
        (copied / model / name).write_text("mine")
    radit_jax.load(str(copied / model))


@pytest.mark.parametrize(
    "damaged", ["hf/lm/model.safetensors", "hf/lm/config.json", "hf/lm/tokenizer.json", "lm/config.json"]
)
def test_a_model_whose_weights_settings_or_tokeniser_changed_is_refused(copied, damaged):
    file = copied / damaged
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(ValueError, match=f"{file.name}: expected the bytes that were written"):
        radit_jax.load(str(file.parent))
    file.unlink()
    with pytest.raises(ValueError, match=f"{file.name}: expected the .* bytes that were written, got 0"):
        radit_jax.load(str(file.parent))


def test_runs_rank_the_chunks_of_the_evaluated_questions(whole):
    runs = {}
    for tag in ("base", "r_ft"):
        lines = [line.split() for line in (whole.path / "runs" / f"{tag}.trec").read_text().splitlines()]
        assert [(line[0], line[3], line[5]) for line in lines] == [
            (question.id, str(rank), tag) for question in QUESTIONS["test"] for rank in range(1, 5)
        ]
        for place in (0, 4):
            scores = [float(line[4]) for line in lines[place : place + 4]]
            assert scores == sorted(scores, reverse=True)
        runs[tag] = [line[2] for line in lines]
    assert set(runs["base"]) <= {chunk.id for chunk in CHUNKS}
    # Turned round, the query encoder puts those first that came last.
    assert not set(runs["base"][:4]) & set(runs["r_ft"][:4])
    assert (whole.path / "runs" / "qrels.trec").read_text() == "q6 0 c6 1\nq7 0 c7 1\n"


def test_runs_are_of_the_test_questions_where_evaluate_has_a_split_that_only_tasks_have(tuned, tmp_path):
    made = run(tuned, tmp_path, EvaluateConfig(split="official"), hf=False, run_depth=1)
    lines = (made.path / "runs" / "base.trec").read_text().splitlines()
    assert [line.split()[0] for line in lines] == [question.id for question in QUESTIONS["test"]]


def test_lsr_scores_are_eq_4_before_its_softmax(whole):
    rows = [json.loads(line) for line in (whole.path / "lsr_scores.jsonl").read_text().splitlines()]
    assert rows[0]["query"] == QUESTIONS["train"][0].question
    assert rows[0]["pos"] == [CHUNKS[1].passage]  # -2 / 2 tokens / 0.25
    assert rows[0]["neg"] == [CHUNKS[0].passage, CHUNKS[2].passage]
    assert (rows[0]["pos_scores"], rows[0]["neg_scores"]) == ([-4.0], [-8.0, -16.0])
    # The third place holds no chunk.
    assert rows[1]["pos"] == [CHUNKS[3].passage] and rows[1]["neg"] == [CHUNKS[1].passage]
    assert rows[1]["pos_scores"] == [-2.0] and rows[1]["neg_scores"] == [-4.0]


def test_another_run_reads_the_exported_scores(whole, tuned):
    retrieved, chunks = Retrieved.load(tuned["retrieved"], "train"), Corpus(tuned["corpus"]).chunks
    scores, facts = import_scores(whole.path / "lsr_scores.jsonl", retrieved, chunks)
    np.testing.assert_array_equal(scores.answer_log_probs, SCORES.answer_log_probs)
    np.testing.assert_array_equal(scores.answer_token_counts, SCORES.answer_token_counts)
    assert facts["scorer"] == "a/labeller"


def test_the_card_has_the_results_and_what_the_models_were_made_of(whole):
    card = (whole.path / "README.md").read_text()
    assert "| radit | 0.500 [0.250, 0.750] |" in card
    assert "| language model | trained from scratch |" in card
    assert "| labels | labeller | mit (by its page)" in card


def test_adapters_of_lm_ft_are_exported_as_they_are(tuned, lm, tmp_path):
    lora = LoraConfig(rank=2)
    source = Workdir(tmp_path).folder("lm_ft", "adapted")
    save_model(source.path / "lm", lm)
    export_peft(source.path / ADAPTERS, init_adapters(lm.params, lora, jax.random.key(0)), lora)
    for name in ("lm", ADAPTERS):
        source.commit(name)
    source.finish()
    output = run({**tuned, "lm_ft": source}, tmp_path / "out", run_depth=0)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        exported = output.verified_path("hf/lm_adapter") / file
        assert exported.read_bytes() == (source.path / ADAPTERS / file).read_bytes()


def test_forms_that_are_not_asked_for_are_not_written(tuned, tmp_path):
    output = run(
        {name: folder for name, folder in tuned.items() if name != "evaluated"},
        tmp_path,
        hf=False,
        run_depth=0,
        measured=False,
    )
    assert not [name for name in output.manifest["files"] if name.startswith(("hf", "runs", "lsr"))]
    assert "Nothing was measured" in (output.path / "README.md").read_text()
    assert output.manifest["largest_errors"] == {}


def snippet(folder, root):
    """The first code of a model card, with the model's place in this test."""
    card = (root / folder / "README.md").read_text()
    code = card.split("```python\n")[1].split("```")[0]
    assert f'name = "{folder}"' in code
    return code.replace(f'name = "{folder}"', f'name = "{root / folder}"')


@pytest.mark.filterwarnings("ignore")  # of sentence-transformers and what it imports
@pytest.mark.parametrize("folder", ["hf/lm", "hf/retriever"])
def test_the_snippet_of_each_card_runs_as_it_is(whole, folder, capsys):
    pytest.importorskip("sentence_transformers")
    exec(snippet(folder, whole.path), {})
    assert capsys.readouterr().out


def test_weights_of_an_export_are_not_stored_twice(tuned, tmp_path):
    output = run(tuned, tmp_path, hf=False, run_depth=0)
    linked = {file for file in pathlib.Path(output.path).rglob("*") if file.stat().st_nlink > 1}
    assert linked and {file.relative_to(output.path).parts[0] for file in linked} >= {
        "lm",
        "query_encoder",
        "chunk_encoder",
        "base_query_encoder",
    }
    # An export that is deleted leaves the stages whole.
    output.clear()
    for stage, name in (("lm_ft", "lm"), ("r_ft", "query_encoder"), ("retriever", "chunk_encoder")):
        tuned[stage].verified_path(name)
