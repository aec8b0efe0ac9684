"""What a dry run and a run refuse before a stage runs."""

import json
from dataclasses import replace

import jax
import pytest
import small

from radit_jax import config, train
from radit_jax.config import Folder
from radit_jax.pipeline import graph
from radit_jax.pipeline.early_checks import check_num_chunks, check_scored_examples, look_at_data
from radit_jax.runtime.pretrained.hf_export import export_hf
from radit_jax.runtime.pretrained.tensor_files import open_tensors, write_tensors

TINY = config.load_experiment("experiments/tiny.py")


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    export_hf(folder, small.language_model())
    return folder


@pytest.fixture
def checkpoint(exported, tmp_path):
    """A whole checkpoint, to be damaged."""
    for file in exported.iterdir():
        (tmp_path / "llama").mkdir(exist_ok=True)
        (tmp_path / "llama" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "llama"


def dry_run(tmp_path, *options):
    return train.main([f"--workdir={tmp_path / 'w'}", "--dry-run", *options])


def with_tensors(checkpoint, **changes):
    """Write the checkpoint's weights again; a change of None leaves a tensor out."""
    tensors = open_tensors(checkpoint) | changes
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    read = {name: tensor.whole() for name, tensor in kept.items()}
    written = {name: tensor._replace(read=read[name].__getitem__) for name, tensor in kept.items()}
    write_tensors(checkpoint, written)


# ---- checkpoints ----


def test_a_checkpoint_by_set_replaces_the_model_that_would_be_trained(checkpoint, tmp_path, capsys):
    assert dry_run(tmp_path, f"--set=base.lm.checkpoint={checkpoint}") == 0
    said = capsys.readouterr()
    assert said.err == (
        f"note: base.lm.checkpoint={checkpoint} replaces the model that the experiment trains from scratch\n"
    )
    assert "would run  base/lm" in said.out
    assert not (tmp_path / "w").exists()


def test_missing_and_extra_tensors_are_found_before_anything_runs(checkpoint, tmp_path, capsys):
    options = [f"--set=base.lm.checkpoint={checkpoint}"]
    name = "model.layers.0.mlp.up_proj.weight"
    tensor = open_tensors(checkpoint)[name]
    with_tensors(checkpoint, **{name: None})
    assert dry_run(tmp_path, *options) == 1
    assert f"expected the tensor '{name}' by its settings, got none" in capsys.readouterr().err
    with_tensors(checkpoint, **{name: tensor, "classifier.weight": tensor})
    for more in ([], ["--dry-run"]):
        assert train.main([f"--workdir={tmp_path / 'w'}", *options, *more]) == 1
        assert "expected tensors of this network only, got ['classifier.weight']" in capsys.readouterr().err
    assert not list((tmp_path / "w").glob("corpus*"))


def test_a_tokeniser_of_another_size_is_found_before_anything_runs(checkpoint, tmp_path, capsys):
    values = json.loads((checkpoint / "config.json").read_text())
    changed = values | {"vocab_size": 100}
    (checkpoint / "config.json").write_text(json.dumps(changed))
    assert dry_run(tmp_path, f"--set=base.lm.checkpoint={checkpoint}") == 1
    assert "expected at most 100 ids, for which the network has embeddings" in capsys.readouterr().err


def test_a_network_is_compared_without_starting_a_device(checkpoint, tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a device was asked for")

    monkeypatch.setattr(jax, "devices", refuse)
    monkeypatch.setattr(jax, "local_devices", refuse)
    assert dry_run(tmp_path, f"--set=base.lm.checkpoint={checkpoint}") == 0


# ---- data ----


def folder(path, num_passages=60, num_questions=40):
    passages, questions = [], []
    for number in range(num_passages):
        passages.append({"id": f"p{number}", "text": f"Passage {number} is about the number {number}."})
    for number in range(num_questions):
        asked = {"question": f"Which number is {number}?", "answers": [str(number)]}
        questions.append(asked | {"positive_passage_ids": [f"p{number}"]})
    path.mkdir(exist_ok=True)
    for name, lines in (("passages", passages), ("questions", questions)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (path / f"{name}.jsonl").write_text(text)
    return replace(TINY, data=Folder(folder=str(path)))


def test_sixty_passages_and_forty_questions_are_said_to_be_little(tmp_path):
    count, *warnings = look_at_data(folder(tmp_path))
    assert count == "data       60 chunks; 32 train, 4 dev, 4 test questions"
    assert [line.split()[3] for line in warnings] == ["32", "4", "4"]
    assert warnings[2].endswith("right is known to within ± 35 points, of 100 to within ± 10")


def test_a_wrong_line_of_small_data_is_an_error_of_the_dry_run(tmp_path, capsys):
    folder(tmp_path / "mine")
    with open(tmp_path / "mine" / "passages.jsonl", "a") as file:
        file.write('{"id": "p60"}\n')
    experiment = tmp_path / "mine.py"
    experiment.write_text(
        "from dataclasses import replace\nfrom radit_jax.config import Folder, load_experiment\n"
        "def experiment():\n"
        f"    tiny = load_experiment({str(train.TINY)!r})\n"
        f"    return replace(tiny, name='mine', data=Folder(folder={str(tmp_path / 'mine')!r}))\n"
    )
    assert dry_run(tmp_path, f"--experiment={experiment}") == 1
    assert "passages.jsonl line 61: expected a field text or contents" in capsys.readouterr().err


def test_what_r_ft_learns_from_is_advised_only_where_it_is_not_set(tmp_path):
    experiment = folder(tmp_path)
    advice = (
        "warning    R-ft learns from questions alone: r_ft.corpus_text_fraction=0.5 lets it learn from the"
    )
    for fraction, is_said in ((0.0, True), (0.1, False)):
        r_ft = replace(experiment.r_ft, corpus_text_fraction=fraction)
        lines = look_at_data(replace(experiment, r_ft=r_ft))
        assert any(line.startswith(advice) for line in lines) == is_said
        assert (
            "warning    there are 32 independent train questions to learn from, which is little: bring more"
            in lines
        )


def test_a_dry_run_refuses_the_workdir_that_a_run_would_refuse(tmp_path, capsys):
    (tmp_path / "w").mkdir()
    (tmp_path / "w" / "thesis.tex").write_text("x")
    for more in ([], ["--dry-run"]):
        assert train.main([f"--workdir={tmp_path / 'w'}", *more]) == 1
        assert "expected a workdir or an empty folder, got one with 'thesis.tex'" in capsys.readouterr().err
    (tmp_path / "w" / "thesis.tex").unlink()
    (tmp_path / "w" / "workdir.json").write_text('{"experiment": "wiki_small"}')
    for more in ([], ["--dry-run"]):
        assert train.main([f"--workdir={tmp_path / 'w'}", *more]) == 1
        assert "of the experiment 'tiny', got one of 'wiki_small'" in capsys.readouterr().err
    assert [file.name for file in (tmp_path / "w").iterdir()] == ["workdir.json"]
    assert train.main(["--workdir=/proc/nobody", "--dry-run"]) == 1
    assert "expected a folder that a run may write in" in capsys.readouterr().err


def test_a_form_that_no_reader_knows_is_an_error_of_the_dry_run(tmp_path, capsys):
    folder(tmp_path / "mine")
    (tmp_path / "mine" / "passages.jsonl").rename(tmp_path / "mine" / "passages.docx")
    experiment = tmp_path / "mine.py"
    experiment.write_text(
        "from dataclasses import replace\nfrom radit_jax.config import Folder, load_experiment\n"
        "def experiment():\n"
        f"    data = Folder(folder={str(tmp_path / 'mine')!r}, passages_file='passages.docx')\n"
        "    return replace(load_experiment('tiny'), name='mine', data=data)\n"
    )
    assert dry_run(tmp_path, f"--experiment={experiment}") == 1
    said = capsys.readouterr()
    assert "would run  corpus" in said.out
    assert "passages.docx: expected a name that says its format" in said.err


def test_a_corpus_smaller_than_a_query_asks_for_is_an_error_of_the_dry_run(tmp_path):
    with pytest.raises(ValueError, match="retrieve.num_chunks: expected at most 9 chunks, which is all"):
        look_at_data(folder(tmp_path, num_passages=10, num_questions=10))
    check_num_chunks(TINY, 11)


# ---- a file of scores ----


def scores(path, *ids):
    lines = []
    for name in ids:
        scored = {"id": name, "query": "q", "answer": "a", "chunk_ids": [], "answer_log_probs": []}
        lines.append(scored | {"no_chunk_log_prob": -1.0, "answer_token_count": 1, "scorer": "s"})
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def test_scores_of_other_examples_are_refused_when_the_corpus_is_known(inputs, tmp_path):
    known = small.QUESTIONS["train"][0].id
    check_scored_examples(scores(tmp_path / "own.jsonl", "elsewhere", known), inputs["corpus"])
    with pytest.raises(ValueError, match=r"expected scores of this corpus' train questions, got none of its"):
        check_scored_examples(scores(tmp_path / "other.jsonl", "elsewhere"), inputs["corpus"])


def test_a_file_of_scores_is_read_before_lm_ft():
    own = list(graph.stages(TINY))
    assert own.index("lm_ft") < own.index("score")
    from_file = replace(TINY, score=replace(TINY.score, language_model="scores.jsonl"))
    order = list(graph.stages(from_file))
    assert order.index("score") < order.index("lm_ft")
