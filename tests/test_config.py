import pathlib

import pytest

from radit_jax import config

TINY = str(pathlib.Path(__file__).parent.parent / "experiments" / "tiny.py")


def test_an_override_is_parsed_by_the_type_of_its_setting() -> None:
    changed = config.override(
        config.load(TINY), ["seed=3", "r_ft.tau=0.5", "lm_ft.force_gold=true", "r_ft.target=posterior"]
    )
    assert (changed.seed, changed.r_ft.tau, changed.lm_ft.force_gold) == (3, 0.5, True)
    assert changed.r_ft.target == "posterior"


def test_names_of_tasks_stand_between_commas() -> None:
    changed = config.override(
        config.load(TINY), ["evaluate.tasks=nq, own.jsonl", "evaluate.tasks_folder=raw"]
    )
    assert changed.evaluate.tasks == ("nq", "own.jsonl")
    config.check(changed)


@pytest.mark.parametrize(
    ("assignments", "message"),
    [
        (
            ["evaluate.tasks=nq"],
            "evaluate.tasks: nq came without evaluate.tasks_folder, needed is",
        ),
        (["evaluate.shots=-1"], "evaluate.shots -1, .* must be 0 or more"),
        (["lm_ft.select=kilt_dev"], "lm_ft.select: kilt_dev came without lm_ft.select_folder"),
    ],
)
def test_tasks_without_their_files_are_refused(assignments: list[str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.check(config.override(config.load(TINY), assignments))


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("rank=-1", r"^lm_ft.lora: rank -1, alpha 16.0 came, needed are a rank of 0 or more"),
        ("alpha=0", r"^lm_ft.lora: rank 0, alpha 0.0 came"),
        ("targets=q_proj,lm_head", r"^lm_ft.lora.targets: lm_head came, needed are some of q_proj, k_proj, "),
        ("targets=", r"^lm_ft.lora.targets: none came"),
        ("quantize=int4", r"^lm_ft.lora.quantize: int4 came with rank 0, needed are adapters"),
    ],
)
def test_adapters_that_cannot_be_are_refused(assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        config.check(config.override(config.load(TINY), [f"lm_ft.lora.{assignment}"]))


def test_quantising_without_qwix_names_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = config.override(config.load(TINY), ["lm_ft.lora.rank=4", "lm_ft.lora.quantize=int8"])
    monkeypatch.setattr(config.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"int8 came, needed is the package qwix; pip install 'radit_jax\["):
        config.check(asked)


def test_the_updates_to_trace_are_a_first_and_a_last() -> None:
    assert config.ProfileConfig().updates is None
    assert config.override(config.load(TINY), ["profile.steps=10:15"]).profile.updates == (10, 15)


@pytest.mark.parametrize("steps", ["10", "15:10", "0:3", "1:2:3", "a:b", "-1:4"])
def test_updates_that_cannot_be_traced_are_refused(steps: str) -> None:
    with pytest.raises(ValueError, match=r"^profile.steps: .* came, needed is FIRST:LAST, counted from 1"):
        config.check(config.override(config.load(TINY), [f"profile.steps={steps}"]))


def test_an_override_reaches_nested_settings() -> None:
    changed = config.override(config.load(TINY), ["base.lm.optimizer.steps=7"])
    assert changed.base.lm.optimizer.steps == 7
    assert changed.base.lm.model == config.load(TINY).base.lm.model


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("r_ft.tua=1", "RFtConfig has no setting 'tua'; did you mean 'tau'?"),
        ("rft.tau=1", "did you mean 'r_ft'?"),
        ("r_ft.tau", "no value; write --set section.field=value"),
        ("r_ft.tau=warm", "'warm' came; needed is a number"),
        ("lm_ft.batch_size=1.5", "needed is a whole number"),
        ("evaluate.shots=few", "needed is a whole number"),
        ("r_ft.target=best", "needed is one of lsr, posterior"),
        ("lm_ft.force_gold=1", "needed is true or false"),
        ("seed.x=1", "without settings of its own"),
        ("r_ft=1", "section.field=value"),
        ("name=other", "no setting 'name'"),
    ],
)
def test_a_wrong_override_says_what_would_be_right(assignment: str, message: str) -> None:
    with pytest.raises(ValueError, match="--set") as error:
        config.override(config.load(TINY), [assignment])
    assert message in str(error.value)


def test_a_missing_experiment_file_is_named(tmp_path: pathlib.Path) -> None:
    with pytest.raises(ValueError, match="no file"):
        config.load(str(tmp_path / "absent.py"))


def test_an_experiment_that_is_no_python_file_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "tiny.yaml").write_text("name: tiny\n")
    with pytest.raises(ValueError, match=r"tiny.yaml' does not end in .py"):
        config.load(str(tmp_path / "tiny.yaml"))


def test_a_file_without_an_experiment_is_named(tmp_path: pathlib.Path) -> None:
    (tmp_path / "empty.py").write_text("x = 1\n")
    with pytest.raises(ValueError, match=r"defines no function experiment\(\)"):
        config.load(str(tmp_path / "empty.py"))


@pytest.mark.parametrize(
    "assignment",
    [
        "r_ft.tau=0",
        "r_ft.text_fraction=1",
        "lm_ft.text_fraction=1.0",
        "lm_ft.chunks_per_example=0",
        "r_ft.temperature=-1",
        "index.shard_size=0",
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_stage(assignment: str) -> None:
    with pytest.raises(ValueError, match=assignment.partition("=")[0].partition(".")[0]):
        config.check(config.override(config.load(TINY), [assignment]))


def test_a_corpus_alone_teaches_r_ft_where_the_number_of_examples_is_given() -> None:
    settings = ["r_ft.num_examples=9", "r_ft.text_fraction=1"]
    config.check(config.override(config.load(TINY), settings))


def test_candidates_are_not_refreshed_where_the_chunk_encoder_learns() -> None:
    settings = ["r_ft.train_chunk_encoder=true", "r_ft.refresh_every=9"]
    with pytest.raises(ValueError, match="refresh_every: 9 came with train_chunk_encoder.*set one"):
        config.check(config.override(config.load(TINY), settings))


def test_names_are_given_with_commas_between_them() -> None:
    experiment = config.load(str(pathlib.Path(TINY).parent / "radit_7b.py"))
    data = config.override(experiment, ["data.lm_ft_datasets=gsm8k,coqa"]).data
    assert isinstance(data, config.Instructions) and data.lm_ft_datasets == ("gsm8k", "coqa")


def test_dialogues_and_text_leave_room_for_the_rest() -> None:
    experiment = config.load(str(pathlib.Path(TINY).parent / "radit_7b.py"))
    with pytest.raises(ValueError, match="data.dialogue_fraction: 0.9 came beside lm_ft.text_fraction 0.1"):
        config.check(config.override(experiment, ["data.dialogue_fraction=0.9"]))


def test_an_installed_package_can_hold_a_checkpoint() -> None:
    assert config.checkpoint_folder("package:numpy/linalg").endswith("numpy/linalg")
    with pytest.raises(ValueError, match="'no_such_package' is not installed"):
        config.checkpoint_folder("package:no_such_package/model")


@pytest.mark.parametrize("parts", [0, 5])
def test_a_batch_is_taken_in_equal_parts(parts: int) -> None:
    message = f"lm_ft.accumulate_steps: {parts} came, needed is a divisor of lm_ft.batch_size 24"
    with pytest.raises(ValueError, match=message):
        config.check(config.override(config.load(TINY), [f"lm_ft.accumulate_steps={parts}"]))
