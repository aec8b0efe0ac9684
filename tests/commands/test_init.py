"""`radit init` writes an experiment that loads, on whatever it finds."""

import json
import pathlib

import pytest
import small

from radit_jax import config, train
from radit_jax.commands import init, new_experiment
from radit_jax.config import DecoderConfig
from radit_jax.runtime.pretrained import model_io
from radit_jax.runtime.pretrained.hf_export import export_hf

TEXTS = [f"Tower {n} was built by Mara Crane in the year {1800 + n}." for n in range(60)]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    export_hf(folder / "lm", small.language_model())
    export_hf(folder / "encoder", small.encoder())
    return folder


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """60 passages and 40 questions, from inside the folder next to them."""
    folder = tmp_path / "my docs"
    folder.mkdir()
    rows = ["question,answer"]
    with open(folder / "texts.jsonl", "w") as file:
        for number in range(60):
            file.write(json.dumps({"id": number, "text": TEXTS[number]}) + "\n")
    for number in range(40):
        rows.append(f"When was Tower {number} built?,{1800 + number}")
    (folder / "faq.csv").write_text("\n".join(rows) + "\n")
    monkeypatch.chdir(tmp_path)
    return folder


def run(*arguments):
    return init.main([str(argument) for argument in arguments])


def test_an_experiment_on_own_data_and_own_checkpoints_loads(mine, checkpoints, capsys):
    assert run(mine, "--lm", checkpoints / "lm", "--encoder", checkpoints / "encoder") == 0
    experiment = config.load_experiment("my_docs.py")
    config.check_experiment(experiment)
    assert experiment.name == "my_docs"
    assert experiment.base.lm.checkpoint == str(checkpoints / "lm")
    assert experiment.base.retriever.chunk_length == 64  # the encoder's positions
    assert experiment.retrieve.temperature == 0.05  # its vectors are normalised
    assert experiment.lm_ft.lora.rank == 0  # a small network learns whole
    said = capsys.readouterr().out
    assert "questions  faq.csv" in said
    assert "data       60 chunks; 32 train, 4 dev, 4 test questions" in said
    assert "there are 4 independent test questions to evaluate with" in said
    assert "missing" not in said
    assert "radit run my_docs.py --dry-run" in said


def test_the_file_imports_what_it_uses_and_nothing_else(mine, checkpoints):
    assert run(mine, "--lm", checkpoints / "lm", "--encoder", checkpoints / "encoder") == 0
    text = pathlib.Path("my_docs.py").read_text()
    assert "DecoderConfig" not in text and text.count("LmFtConfig") == 2
    assert max(map(len, text.splitlines())) <= 110


def test_without_checkpoints_small_models_are_trained_and_missing_ones_said(mine, capsys, monkeypatch):
    monkeypatch.setattr(new_experiment.importlib.util, "find_spec", lambda name: None)
    assert run(mine, "--output", "mine.py") == 0
    said = capsys.readouterr().out
    assert "missing    --lm: a language model that reads" in said
    assert "missing    --encoder: a pretrained encoder" in said
    experiment = config.load_experiment("mine.py")
    assert experiment.base.lm.model and experiment.base.retriever.model
    assert experiment.score.language_model == "lm_ft"  # a weak one is tuned before it labels


def test_text_alone_gets_questions_of_its_own(mine, capsys):
    (mine / "faq.csv").unlink()
    assert run(mine) == 0
    assert "were made of the text; they measure retrieval" in capsys.readouterr().out
    experiment = config.load_experiment("my_docs.py")
    assert experiment.data.train_file.endswith("my_docs_questions.jsonl")


def test_a_file_that_is_there_is_not_written_over(mine, capsys):
    assert run(mine) == 0
    assert run(mine) == 1
    assert "my_docs.py: expected no file of that name" in capsys.readouterr().err
    assert run(mine, "--force") == 0


def test_a_wrong_line_is_named_by_file_and_line(mine, capsys):
    with open(mine / "texts.jsonl", "a") as file:
        file.write('{"id": 60}\n')
    assert run(mine) == 1
    assert "texts.jsonl line 61: expected a field text or contents" in capsys.readouterr().err


def test_a_checkpoint_that_is_none_is_refused(mine, tmp_path, capsys):
    assert run(mine, "--lm", tmp_path / "absent") == 1
    assert "expected a folder, got none of that name" in capsys.readouterr().err


def test_a_large_network_learns_adapters():
    llama = DecoderConfig(
        vocab_size=128_256,
        hidden_size=2048,
        num_layers=16,
        num_heads=32,
        num_kv_heads=8,
        head_size=64,
        ffn_size=8192,
        tie_embeddings=True,
    )
    # Llama 3.2 1B has 1,235,814,400 parameters, 67,584 of them in its 33 norms.
    assert new_experiment.parameters_of(llama) == 1_235_814_400 - 33 * 2048


def test_most_passages_give_a_text_example(mine, checkpoints):
    # Each has 11 words, and with the checkpoint's tokeniser as many tokens as it says.
    assert run(mine, "--output", "words.py") == 0
    assert config.load_experiment("words.py").r_ft.text_tokens == 5
    assert run(mine, "--lm", checkpoints / "lm", "--output", "tokens.py") == 0
    tokenizer = model_io.load_pretrained(str(checkpoints / "lm")).tokenizer
    lengths = sorted(len(tokenizer.encode(text)) for text in TEXTS)
    r_ft = config.load_experiment("tokens.py").r_ft
    assert r_ft.text_tokens == min(50, lengths[15] // 2) > 5
    assert sum(length >= 2 * r_ft.text_tokens for length in lengths) >= 45
    assert r_ft.corpus_text_fraction == 0.5  # 32 questions, and 45 texts or more


def test_no_more_texts_are_asked_for_than_the_passages_give(mine):
    rows = [f"{number},What of it in {number}?,{number}" for number in range(150)]
    (mine / "faq.csv").write_text("id,question,answer\n" + "\n".join(rows) + "\n")
    assert run(mine) == 0
    experiment = config.load_experiment("my_docs.py")
    # 60 texts beside 120 train questions.
    assert experiment.r_ft.corpus_text_fraction == 0.33


def test_columns_that_semicolons_part_are_read_and_said(mine, capsys):
    rows = [f"When was Tower {number} built?;{1800 + number}" for number in range(40)]
    (mine / "faq.csv").write_text("question;answer\n" + "\n".join(rows) + "\n")
    assert run(mine) == 0
    said = capsys.readouterr().out
    assert "data       faq.csv has its columns parted by a semicolon\n" in said
    assert "32 train, 4 dev, 4 test questions" in said


def test_a_file_of_questions_that_cannot_be_read_is_said(mine, capsys):
    (mine / "texts.jsonl").rename(mine / "passages.jsonl")
    (mine / "faq.csv").write_text("frage;antwort\nWann?;1800\n")
    assert run(mine) == 0
    said = capsys.readouterr().out
    assert "warning    faq.csv is not read as questions (" in said
    assert "line 1: expected the columns question with answers" in said
    assert "questions  my_docs_questions.jsonl\n" in said


def test_usual_names_of_questions_are_said_as_they_are(mine, capsys):
    (mine / "faq.csv").rename(mine / "questions.csv")
    for number, name in enumerate(("questions_train.jsonl", "questions_dev.jsonl")):
        lines = [{"question": f"Who is {number} of {n}?", "answers": [f"{n}"]} for n in range(30)]
        (mine / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert run(mine, "--passages", "texts.jsonl") == 0
    said = capsys.readouterr().out
    assert "questions  questions_train.jsonl\nquestions  questions_dev.jsonl\n" in said
    assert "warning    questions.csv is not read\n" in said


@pytest.mark.slow
def test_the_experiment_runs_whole_and_ends_in_a_verdict(mine, checkpoints, capsys):
    assert run(mine, "--lm", checkpoints / "lm", "--encoder", checkpoints / "encoder") == 0
    assert train.main(["--experiment=my_docs.py", "--workdir=run"]) == 0
    said = capsys.readouterr().out
    assert "of 4 questions [" in said and "cannot tell from none" in said
    assert "answers, 4 questions\n" in said
    assert pathlib.Path("run/export/lm").is_dir()
