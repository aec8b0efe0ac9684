import dataclasses
import importlib.util
import pathlib

import pytest

from radit_jax import config

TINY = str(pathlib.Path(__file__).parent.parent / "experiments" / "tiny.py")


def test_an_override_is_parsed_by_the_type_of_its_setting() -> None:
    changed = config.override_settings(
        config.load_experiment(TINY),
        ["seed=3", "r_ft.tau=0.5", "lm_ft.force_gold=true", "r_ft.target=posterior"],
    )
    assert (changed.seed, changed.r_ft.tau, changed.lm_ft.force_gold) == (3, 0.5, True)
    assert changed.r_ft.target == "posterior"


def test_results_are_named_by_what_was_asked() -> None:
    evaluate = config.load_experiment(TINY).evaluate
    assert evaluate.results_name == "corpus-test"
    asked = dataclasses.replace(evaluate, tasks=("nq", "raw/mine.jsonl"), split="dev")
    assert asked.results_name == "nq+mine-dev"
    assert dataclasses.replace(asked, name="five shots").results_name == "five shots"


@pytest.mark.parametrize("name", ["a/b", "..", "a\nb"])
def test_a_name_of_results_that_is_no_folder_is_refused(name: str) -> None:
    named = config.override_settings(config.load_experiment(TINY), [f"evaluate.name={name}"])
    with pytest.raises(ValueError, match=r"^evaluate\.name: expected one name of a folder, got "):
        config.check_experiment(named)


def test_names_of_tasks_stand_between_commas() -> None:
    changed = config.override_settings(
        config.load_experiment(TINY), ["evaluate.tasks=nq, own.jsonl", "evaluate.tasks_folder=raw"]
    )
    assert changed.evaluate.tasks == ("nq", "own.jsonl")
    config.check_experiment(changed)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (
            ["evaluate.tasks=own.jsonl", "evaluate.answers=false"],
            "evaluate.answers: expected true with evaluate.tasks, .* got false",
        ),
        (
            ["evaluate.tasks=nq"],
            "evaluate.tasks: expected evaluate.tasks_folder with nq, got none",
        ),
        (["lm_ft.select=kilt_dev"], "lm_ft.select: expected lm_ft.select_folder with kilt_dev, got none"),
    ],
)
def test_tasks_without_their_files_are_refused(assignments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.check_experiment(config.override_settings(config.load_experiment(TINY), assignments))


def test_a_checkpoint_by_set_takes_the_place_of_a_model_to_be_trained(capsys) -> None:
    tiny = config.load_experiment(TINY)
    changed = config.override_settings(tiny, ["base.retriever.checkpoint=./bge", "base.lm.checkpoint=./lm"])
    assert changed.base.lm.model is changed.base.retriever.model is None
    assert changed.base.retriever.pooling is None  # tiny's own encoder takes the mean
    assert capsys.readouterr().err.count("trains from scratch") == 2
    # What is said of the checkpoint by --set stays said.
    said = ["base.retriever.checkpoint=./bge", "base.retriever.pooling=cls", "base.lm.checkpoint=./lm"]
    said.append("base.lm.model.hidden_size=64")
    changed = config.override_settings(tiny, said)
    assert changed.base.retriever.pooling == "cls"
    assert changed.base.lm.model and changed.base.lm.model.hidden_size == 64


def test_a_model_that_describes_an_experiments_own_checkpoint_goes_on_describing_it(capsys) -> None:
    llama = config.load_experiment("experiments/radit_7b.py")
    changed = config.override_settings(llama, ["base.lm.checkpoint=./copy"])
    assert changed.base.lm.model == llama.base.lm.model
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("rank=-1", r"^lm_ft.lora.rank: expected a whole number, 0 <= x <= 2147483647, got -1\.$"),
        ("alpha=0", r"^lm_ft.lora.alpha: expected 1e-30 <= x <= 1e\+30, got 0\.0\.$"),
        ("targets=q_proj,lm_head", r"^lm_ft.lora.targets: expected some of q_proj, .*, got lm_head\.$"),
        ("targets=", r"^lm_ft.lora.targets: expected some of .*, got none\.$"),
        ("quantize=int4", r"^lm_ft.lora.quantize: expected adapters, .*, got int4 with rank 0"),
    ],
)
def test_adapters_that_cannot_be_are_refused(assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.check_experiment(
            config.override_settings(config.load_experiment(TINY), [f"lm_ft.lora.{assignment}"])
        )


def test_quantising_without_qwix_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = config.override_settings(
        config.load_experiment(TINY), ["lm_ft.lora.rank=4", "lm_ft.lora.quantize=int8"]
    )
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(
        ValueError, match=r"expected the package qwix for int8, got none\. pip install 'radit_jax\["
    ):
        config.check_experiment(asked)


def test_the_updates_to_trace_are_a_first_and_a_last() -> None:
    assert config.ProfileConfig().updates is None
    assert config.override_settings(
        config.load_experiment(TINY), ["profile.steps=10:15"]
    ).profile.updates == (10, 15)


@pytest.mark.parametrize("steps", ["10", "15:10", "0:3", "1:2:3", "a:b", "-1:4"])
def test_updates_that_cannot_be_traced_are_refused(steps: str) -> None:
    with pytest.raises(
        ValueError, match=r"^profile.steps: expected FIRST:LAST, counted from 1, got '.*'\. Write"
    ):
        config.check_experiment(
            config.override_settings(config.load_experiment(TINY), [f"profile.steps={steps}"])
        )


def test_an_override_reaches_nested_settings() -> None:
    changed = config.override_settings(config.load_experiment(TINY), ["base.lm.optimizer.steps=7"])
    optimizer = changed.base.lm.optimizer
    assert optimizer and optimizer.steps == 7
    assert changed.base.lm.model == config.load_experiment(TINY).base.lm.model


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("r_ft.tua=1", "expected a setting of RFtConfig, got 'tua'. Did you mean 'tau'?"),
        ("rft.tau=1", "Did you mean 'r_ft'?"),
        ("r_ft.tau", "expected section.field=value, got no value. Write"),
        ("r_ft.tau=warm", "expected a number, got 'warm'."),
        ("lm_ft.batch_size=1.5", "expected a whole number, got '1.5'."),
        ("evaluate.shots=few", "expected a whole number, got 'few'."),
        ("r_ft.target=best", "expected one of lsr, posterior, got 'best'."),
        ("lm_ft.force_gold=1", "expected true or false, got '1'."),
        ("seed.x=1", "expected a section of settings, got seed, which is 0. Set it whole."),
        ("r_ft=1", "expected a single setting, got a section of them. Write --set section.field=value."),
        ("name=other", "expected a setting of Experiment, got 'name'."),
    ],
)
def test_a_wrong_override_says_what_would_be_right(assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match="--set") as error:
        config.override_settings(config.load_experiment(TINY), [assignment])
    assert message in str(error.value)


def test_a_missing_experiment_file_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="expected a file or the name of an experiment, got '.*absent.py'"):
        config.load_experiment(str(tmp_path / "absent.py"))


def test_an_experiment_that_is_no_python_file_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "tiny.yaml").write_text("name: tiny\n")
    with pytest.raises(ValueError, match=r"expected a file that ends in .py, got '.*tiny.yaml'\."):
        config.load_experiment(str(tmp_path / "tiny.yaml"))


def test_a_file_without_an_experiment_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"expected a function experiment\(\), got none\."):
        config.load_experiment(str(tmp_path / "empty.py"))


@pytest.mark.parametrize(
    "assignment",
    [
        "r_ft.tau=0",
        "r_ft.corpus_text_fraction=1",
        "lm_ft.corpus_text_fraction=1.0",
        "lm_ft.chunks_per_example=0",
        "retrieve.temperature=-1",
        "index.shard_size=0",
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_stage(assignment: str) -> None:
    with pytest.raises(ValueError, match=assignment.partition("=")[0].partition(".")[0]):
        config.check_experiment(config.override_settings(config.load_experiment(TINY), [assignment]))


def test_a_corpus_alone_teaches_r_ft_where_the_number_of_examples_is_given() -> None:
    settings = ["r_ft.num_examples=9", "r_ft.corpus_text_fraction=1"]
    config.check_experiment(config.override_settings(config.load_experiment(TINY), settings))


def test_candidates_are_not_refreshed_where_the_chunk_encoder_learns() -> None:
    settings = ["r_ft.train_chunk_encoder=true", "r_ft.refresh_every=9"]
    with pytest.raises(
        ValueError, match="refresh_every: expected 0 with train_chunk_encoder.*got 9. Set one"
    ):
        config.check_experiment(config.override_settings(config.load_experiment(TINY), settings))


def test_names_are_given_with_commas_between_them() -> None:
    experiment = config.load_experiment(str(pathlib.Path(TINY).parent / "radit_7b.py"))
    data = config.override_settings(experiment, ["data.lm_ft_datasets=gsm8k,coqa"]).data
    assert isinstance(data, config.Instructions) and data.lm_ft_datasets == ("gsm8k", "coqa")


def test_dialogues_and_text_leave_room_for_the_rest() -> None:
    experiment = config.load_experiment(str(pathlib.Path(TINY).parent / "radit_7b.py"))
    with pytest.raises(
        ValueError, match=r"data.dialogue_fraction: expected a sum .* below 1, got 0.9 \+ 0.1"
    ):
        config.check_experiment(config.override_settings(experiment, ["data.dialogue_fraction=0.9"]))


def test_an_installed_package_can_hold_a_checkpoint() -> None:
    assert config.checkpoint_folder("package:numpy/linalg").endswith("numpy/linalg")
    with pytest.raises(ValueError, match="expected the installed package 'no_such_package', got none"):
        config.checkpoint_folder("package:no_such_package/model")


def test_a_batch_is_taken_in_equal_parts() -> None:
    with pytest.raises(ValueError, match="lm_ft.accumulate_steps: expected a divisor of .* 24, got 5"):
        config.check_experiment(
            config.override_settings(config.load_experiment(TINY), ["lm_ft.accumulate_steps=5"])
        )


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        (
            "base.retriever.model.num_heads=3",
            "base.retriever.model.num_heads: expected a divisor of hidden_size",
        ),
        ("base.retriever.pooling=last", "base.retriever.pooling: expected cls or mean for a BERT, got last"),
        (
            "base.retriever.model.family=roberta",
            "base.retriever.model.family: expected bert for an encoder that is trained from scratch, got rob",
        ),
        (
            "base.lm.model.num_kv_heads=4",
            "base.lm.model.num_kv_heads: expected a divisor of num_heads 2, got 4",
        ),
        ("base.lm.model.head_size=7", "base.lm.model.head_size: expected an even number, for RoPE, got 7"),
        ("base.lm.model.window=64", "base.lm.model.window: expected None with family llama, got 64"),
        ("base.lm.model.global_every=2", "base.lm.model.global_every: expected at most 0, with .* got 2"),
        ("base.lm.model.logit_cap=30", "base.lm.model.logit_cap: expected None with family llama, got 30"),
        ("base.lm.model.family=gemma2", "base.lm.model.query_divisor: expected a number with family gemma2"),
        ("lm_ft.optimizer.end_lr=1", "lm_ft.optimizer.end_lr: expected at most peak_lr 0.001, got 1.0"),
        ("base.lm.optimizer.name=muon", "base.lm.optimizer.adam_lr: expected x > 0 with name='muon', got 0"),
        ("evaluate.max_new_tokens=512", "evaluate.max_new_tokens: expected less than .* 512, got 512"),
        (
            "score.language_model=lm-ft",
            r"score.language_model: expected base or lm_ft, a checkpoint or a file of scores \(.jsonl\), got "
            r"'lm-ft'. Write ./lm-ft for a folder",
        ),
        ("base.lm.prompt=chat", "base.lm.prompt: expected plain for a language model that is trained from"),
        ("mesh.tensor=0", "mesh.tensor: expected 1 or more, or -1 for what the devices give, got 0"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        config.check_experiment(config.override_settings(config.load_experiment(TINY), [assignment]))


def test_only_a_bert_is_trained_from_scratch() -> None:
    tiny = config.load_experiment(TINY)
    encoder = config.LastTokenConfig(tiny.base.lm.model)
    base = dataclasses.replace(tiny.base, retriever=dataclasses.replace(tiny.base.retriever, model=encoder))
    with pytest.raises(
        ValueError, match=r"^base\.retriever\.model: expected a BertConfig .* got a LastToken"
    ):
        config.check_experiment(dataclasses.replace(tiny, base=base))


@pytest.mark.parametrize("name", ["", "..", "a/b", "a\nb"])
def test_a_name_that_is_no_folders_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="^name: expected one name of a folder, got"):
        config.check_experiment(dataclasses.replace(config.load_experiment(TINY), name=name))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def experiment(:\n", r":1: invalid syntax"),
        ("def experiment():\n    return 1 / 0\n", r":2: ZeroDivisionError: division by zero\. Mend"),
        ("def experiment():\n    raise ValueError('Say it.')\n", r":2: ValueError: Say it\. Mend"),
        ("import nothing_of_the_kind\n", r":1: ModuleNotFoundError: No module named"),
        ("raise SystemExit('no')\n", r":1: SystemExit: no\."),
        ("def experiment():\n    pass\n", r": expected an Experiment from experiment\(\), got NoneType"),
        ("experiment = 3\n", r": TypeError: 'int' object is not callable"),
    ],
)
def test_an_experiment_that_fails_says_where(tmp_path: pathlib.Path, text: str, message: str) -> None:
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(ValueError, match=rf"mine\.py.*{message}"):
        config.load_experiment(str(tmp_path / "mine.py"))


@pytest.mark.parametrize(
    ("name", "checkpoint", "file"),
    [
        ("base", "", ""),
        ("lm_ft", "", ""),
        ("./base", "./base", ""),
        ("hub:huggyllama/llama-65b", "hub:huggyllama/llama-65b", ""),
        ("package:llama/folder", "package:llama/folder", ""),
        ("runs/65b/scores.jsonl.gz", "", "runs/65b/scores.jsonl.gz"),
        ("model.gguf", "model.gguf", ""),
    ],
)
def test_labels_come_from_an_own_model_a_checkpoint_or_a_file(name: str, checkpoint: str, file: str) -> None:
    e = config.override_settings(config.load_experiment(TINY), [f"score.language_model={name}"])
    config.check_experiment(e)
    assert (e.score.checkpoint, e.score.file) == (checkpoint, file)


def test_candidates_are_not_refreshed_where_scores_are_a_files() -> None:
    settings = ["score.language_model=./scores.jsonl", "r_ft.refresh_every=9"]
    with pytest.raises(ValueError, match="^r_ft.refresh_every: expected 0 with scores from a file.*got 9"):
        config.check_experiment(config.override_settings(config.load_experiment(TINY), settings))
    settings[0] = "score.language_model=./checkpoint"  # which scores them
    config.check_experiment(config.override_settings(config.load_experiment(TINY), settings))
