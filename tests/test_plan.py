"""Planning: sizes by hand on a small experiment, verdicts, and real compilations for TPUs (slow)."""

import json
import os
import subprocess
import sys
from dataclasses import replace

import jax
import pytest
import small as tiny

from radit_jax import config, plan
from radit_jax.commands import init
from radit_jax.planning import deployment, resources
from radit_jax.planning.deployment import Counts, Deployment
from radit_jax.planning.storage import BYTES_PER_WORD
from radit_jax.planning.table import PLANNERS
from radit_jax.runtime.distributed.accelerators import GIB, find_target
from radit_jax.runtime.pretrained.hf_export import export_hf
from radit_jax.runtime.pretrained.model_io import count_parameters

SMALL = """
from radit_jax.config import *

def experiment():
    llama = DecoderConfig(
        vocab_size=512, hidden_size=64, num_layers=3, num_heads=4, num_kv_heads=2, head_size=16, ffn_size=96
    )
    bert = BertConfig(vocab_size=500, hidden_size=32, num_layers=2, num_heads=2, ffn_size=64)
    return Experiment(
        name="small",
        data=Instructions(expected_chunks=1_000_000, expected_r_ft_tasks=50, max_words=100),
        base=BaseConfig(
            lm=LmConfig(checkpoint="x", model=llama), retriever=RetrieverConfig(checkpoint="x", model=bert)
        ),
        lm_ft=LmFtConfig(OptimizerConfig(steps=10, peak_lr=1e-4), batch_size=16, sequence_length=128),
        r_ft=RFtConfig(OptimizerConfig(steps=10, peak_lr=1e-4), batch_size=16),
    )
"""
# Embedding and head; per layer q, k, v, o, three of the feed-forward network and two norms; the last norm.
LM_PARAMS = 2 * 512 * 64 + 3 * (2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96 + 2 * 64) + 64


@pytest.fixture
def small(tmp_path):
    path = tmp_path / "small.py"
    path.write_text(SMALL)
    return str(path)


def needs(path, target="h100-8", **counts):
    experiment = config.load_experiment(path)
    place = Deployment(experiment, find_target(target), Counts.of(experiment, None, 10))
    return {name: make(place) for name, make in PLANNERS.items()}


def test_parameters_state_and_disk_are_those_of_the_networks(small):
    stages = needs(small)
    assert stages["lm_ft"].params == LM_PARAMS
    norms = 3 * 2 * 64 + 64  # on every chip; all else is cut into eight
    share = 4 * ((LM_PARAMS - norms) / 8 + norms)
    assert stages["score"].held == share
    assert stages["lm_ft"].held == 4 * share + 2 * 4 + 4  # the base; Adam's two moments; counts of steps
    assert stages["embed"].disk == 1_000_000 * 32 * 4
    assert stages["index"].disk == stages["r_ft"].host == 0.75 * stages["embed"].disk  # one shard, one host
    assert stages["index"].host == 2.5 * stages["embed"].disk  # while its tree is built
    assert stages["corpus"].disk == 1_000_000 * 100 * BYTES_PER_WORD


def test_operations_are_those_of_the_examples(small):
    stages = needs(small)
    tokens = 16 * 128
    kernels = LM_PARAMS - 2 * 512 * 64 - 3 * 2 * 64 - 64
    pair = 128  # a chunk of 100 words and an example fill a row; half of the example is answer
    attended, targets = tokens * (pair + 1) / 2, 50 * 16
    step = 6 * (tokens * kernels + targets * 64 * 512 + attended * 3 * 2 * 64)
    assert stages["lm_ft"].flops == pytest.approx(10 * step)
    assert stages["lm_ft"].seconds >= stages["lm_ft"].flops / (8 * find_target("h100-8").chip.flops)


@pytest.mark.parametrize("stage", ["embed", "retrieve", "lm_ft", "score", "r_ft", "evaluate"])
def test_every_program_compiles_where_its_target_has_a_compiler(small, monkeypatch, stage):
    """Eight devices of the host stand in for a slice, whose compiler is then the CPU's."""
    monkeypatch.setattr(deployment, "stand_in_devices", lambda *_: jax.devices())
    experiment, slice_of_8 = config.load_experiment(small), replace(find_target("v5p-16"), topology="cpu")
    counts = Counts.of(experiment, None, 10)
    need = PLANNERS[stage](Deployment(experiment, slice_of_8, counts))
    assert not need.estimated
    assert need.held < need.peak


def test_adapters_leave_the_base_as_it_is_and_out_of_the_state(small):
    experiment = config.override_settings(config.load_experiment(small), ["lm_ft.lora.rank=2"])
    need = PLANNERS["lm_ft"](Deployment(experiment, find_target("h100-8"), Counts.of(experiment, None, 10)))
    whole = needs(small)
    assert need.params == whole["lm_ft"].params
    assert whole["score"].held < need.held < 2 * whole["score"].held  # the base once, and little more


def test_only_the_exported_forms_bring_a_whole_model_to_a_hosts_devices(small):
    assert needs(small)["export"].held == 4 * LM_PARAMS / 8
    experiment = config.override_settings(config.load_experiment(small), ["export.hf=false"])
    need = PLANNERS["export"](Deployment(experiment, find_target("h100-8"), Counts.of(experiment, None, 10)))
    assert need.held == need.peak == 0


def test_every_stage_has_a_line_that_ends_with_its_verdict(small, capsys):
    assert plan.main([f"--experiment={small}", "--target=h100-8"]) == 0
    _, planned_for, _, *lines = capsys.readouterr().out.splitlines()
    assert planned_for == (
        "1,000,000 chunks of 100 words, 1,000 examples for R-ft, 1,000 questions to answer (by the settings)"
    )
    assert [line.split()[0] for line in lines] == list(PLANNERS)
    assert all(line.endswith(" fits") for line in lines)
    assert "~" in lines[4]  # lm_ft's peak is estimated


def test_own_checkpoints_and_a_small_folder_say_their_sizes(tmp_path, capsys):
    export_hf(tmp_path / "lm", tiny.language_model())
    export_hf(tmp_path / "encoder", tiny.encoder())
    folder = tmp_path / "mine"
    folder.mkdir()
    passages, questions = [], []
    for number in range(60):
        passages.append({"id": number, "text": f"Tower {number} is high."})
    for number in range(40):
        questions.append({"question": f"How high is Tower {number}?", "answers": ["high"]})
    for name, lines in (("passages", passages), ("questions", questions)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text)
    options = [str(folder), f"--lm={tmp_path}/lm", f"--encoder={tmp_path}/encoder"]
    assert init.main([*options, f"--output={tmp_path}/mine.py"]) == 0
    capsys.readouterr()

    arguments = [f"--experiment={tmp_path}/mine.py", "--target=h100-1", "--stage=base"]
    assert plan.main(arguments) == 0
    _, planned_for, *_ = capsys.readouterr().out.splitlines()
    # A tenth of 40 questions tests, a tenth of the others chooses; half of R-ft's examples are text.
    assert planned_for == (
        "60 chunks of 4 words, 64 examples for R-ft, 4 questions to answer (counted in its folder)"
    )
    models = [tiny.language_model(), tiny.encoder(), tiny.encoder()]
    assert plan.main([*arguments, "--json"]) == 0
    (base,) = json.loads(capsys.readouterr().out)["stages"]
    assert base["params"] == sum(count_parameters(model.params) for model in models)
    assert plan.main([*arguments, "--chunks=900"]) == 0
    assert "900 chunks of 200 words" in capsys.readouterr().out  # data.max_words


def test_with_estimate_a_slice_is_not_compiled_and_its_peaks_are_marked(small, capsys, monkeypatch):
    def compile_it(*_):
        raise AssertionError("compiled")

    monkeypatch.setattr(resources, "compiled_peak", compile_it)
    monkeypatch.setattr(deployment, "stand_in_devices", lambda *_: jax.devices())
    arguments = [f"--experiment={small}", "--target=v5e-8", "--stage=lm_ft"]
    assert plan.main([*arguments, "--estimate"]) == 0
    assert "~" in capsys.readouterr().out.splitlines()[-1]
    with pytest.raises(AssertionError, match="compiled"):
        plan.main(arguments)


def test_what_does_not_fit_is_named_with_its_remedy_and_the_exit_says_so(small, capsys):
    too_much = ["--chunks=60000000000", "--set", "lm_ft.batch_size=16777216"]
    assert plan.main([f"--experiment={small}", "--target=h100-8", *too_much]) == 1
    lines = capsys.readouterr().out.splitlines()
    verdicts = {line.split()[0]: line.partition("does not fit: ")[2] for line in lines}
    assert verdicts["lm_ft"].startswith("raise lm_ft.accumulate_steps")
    assert verdicts["index"].startswith("a host has 1743 GiB of memory")
    assert verdicts["embed"].startswith("a host has 5588 GiB of disk: --workdir in a bucket")
    assert not verdicts["score"]


def test_between_slices_go_gradients_and_the_parts_of_a_copy_that_others_hold(small):
    def bytes_in(*settings, target="h100-16"):
        experiment = config.override_settings(config.load_experiment(small), settings)
        place = Deployment(experiment, find_target(target), Counts.of(experiment, None, 10))
        return {stage: PLANNERS[stage](place).dcn for stage in ("lm_ft", "score", "embed")}

    # 1) Gradients in bfloat16, and the embedding's in float32, each summed with the other node's.
    in_bf16 = 2 * LM_PARAMS
    gradients = in_bf16 + 2 * 512 * 64
    half = "lm_ft.dtype=bfloat16"
    assert bytes_in("mesh.replica=-1", half) == {"lm_ft": gradients, "score": 0, "embed": 0}
    # 2) One copy over both: half of the weights comes in for each pass, and half of the sums.
    shared = bytes_in(half)
    assert shared["lm_ft"] == 2 * in_bf16 / 2 + gradients / 2
    assert shared["score"] == in_bf16 and shared["embed"] > 0  # scored in float32
    # 3) Of four copies on four nodes: three quarters come in to be summed, and three to be shared.
    assert bytes_in("mesh.replica=4", half, target="h100-32")["lm_ft"] == 1.5 * gradients
    assert bytes_in(target="h100-8") == {"lm_ft": 0, "score": 0, "embed": 0}


def test_what_a_step_brings_into_a_slice_is_a_line_of_its_own(small, capsys):
    arguments = [f"--experiment={small}", "--target=v5e-8", "--slices=2", "--stage=lm_ft", "--estimate"]
    assert plan.main([*arguments, "--set", "mesh.replica=-1"]) == 0
    heading, *_, row, between = capsys.readouterr().out.splitlines()
    assert heading == "small on 2 × v5e-8: 16 chips on 2 hosts"
    assert row.endswith(" fits")
    assert between.strip() == "each step brings 0.00 GiB into every slice over the slower network"
    # Tensor parallelism over both would be refused on the machines, and is here.
    assert plan.main([*arguments, "--set", "mesh.fsdp=1"]) == 1
    assert "got replica 1 × fsdp 1 × tensor 16" in capsys.readouterr().err


def test_a_workdir_in_a_bucket_asks_for_no_disk(small, capsys):
    arguments = [f"--experiment={small}", "--target=h100-8", "--chunks=60000000000", "--stage=embed"]
    assert plan.main(arguments) == 1
    assert plan.main([*arguments, "--workdir=gs://bucket/run"]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(" fits")


def test_an_experiment_without_sizes_is_refused(tmp_path, capsys):
    for old, new, match in (
        (
            "expected_chunks=1_000_000, ",
            "",
            "expected the number of chunks of small's corpus, got none. Give --chunks=N.",
        ),
        ("model=llama", "", "Or state its shape in base.lm.model."),
        ("model=bert", "", "Or state its shape in base.retriever.model."),
    ):
        assert old in SMALL
        (tmp_path / "e.py").write_text(SMALL.replace(old, new))
        assert plan.main([f"--experiment={tmp_path / 'e.py'}", "--target=h100-8"]) == 1
        assert match in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("experiment", "target", "options"),
    [
        ("radit_7b", "v5e-16", []),
        ("radit_7b", "v5e-16", ["--slices=2", "--set=mesh.replica=-1", "--set=lm_ft.select=dev_log_prob"]),
        ("radit_13b", "v5p-16", []),
    ],
)
def test_the_papers_lm_ft_fits_the_slices_that_it_was_planned_for(experiment, target, options):
    pytest.importorskip("libtpu")
    command = [sys.executable, "-m", "radit_jax.plan", f"--experiment=experiments/{experiment}.py"]
    environment = os.environ | {"ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
    environment.pop("XLA_FLAGS", None)
    command += [f"--target={target}", "--stage=lm_ft", "--workdir=gs://bucket/run"]
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (row,) = (line for line in done.stdout.splitlines() if line.startswith("lm_ft "))
    peak = float(row.split()[5])
    assert 1 < peak * GIB < find_target(target).chip.memory
