"""Planning: sizes by hand on a small experiment, verdicts, and real compilations for TPUs (slow)."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import jax
import pytest
import small as tiny
from gguf_files import write_whole_model

from radit_jax import config, plan
from radit_jax.commands import init
from radit_jax.planning import deployment, evaluate, files, resources
from radit_jax.planning.assumptions import Assumptions
from radit_jax.planning.deployment import Counts, Deployment
from radit_jax.planning.prices import read_prices
from radit_jax.planning.resources import ResourceEstimate
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
    assert stages["corpus"].disk == 1_000_000 * 100 * Assumptions.chunk_bytes_per_word


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
    _, planned_for, _, *lines, time, files = capsys.readouterr().out.splitlines()
    assert planned_for == (
        "1,000,000 chunks of 100 words, 1,000 examples for R-ft, 1,000 questions to answer (by the settings)"
    )
    assert [line.split()[0] for line in lines] == list(PLANNERS)
    assert all(line.endswith(" fits") for line in [*lines, files])
    assert "~" in lines[4]  # lm_ft's peak is estimated
    assert re.match(r"all stages: at least .* min, about .* min, .* chip-hours, no price is known", time)


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


def test_a_gguf_file_is_planned_by_its_own_settings(small, tmp_path, capsys):
    write_whole_model(tmp_path)
    text = SMALL.replace('checkpoint="x", model=llama', f'checkpoint="{tmp_path}/model.gguf"')
    file = tmp_path / "gguf.py"
    file.write_text(text)
    assert plan.main([f"--experiment={file}", "--target=h100-1", "--stage=score", "--json"]) == 0
    (score,) = json.loads(capsys.readouterr().out)["stages"]
    # Embedding and head of nine tokens; q, k, v, o, three of the feed-forward network; three norms of 32.
    assert score["params"] == 2 * 9 * 32 + 2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 3 * 32


def test_with_estimate_a_slice_is_not_compiled_and_its_peaks_are_marked(small, capsys, monkeypatch):
    def compile_it(*_):
        raise AssertionError("compiled")

    monkeypatch.setattr(resources, "compiled_peak", compile_it)
    monkeypatch.setattr(deployment, "stand_in_devices", lambda *_: jax.devices())
    arguments = [f"--experiment={small}", "--target=v5e-8", "--stage=lm_ft"]
    assert plan.main([*arguments, "--estimate"]) == 0
    assert "~" in capsys.readouterr().out.splitlines()[-3]
    with pytest.raises(AssertionError, match="compiled"):
        plan.main(arguments)


def test_what_does_not_fit_is_named_with_its_remedy_and_the_exit_says_so(small, capsys):
    too_much = ["--chunks=60000000000", "--set", "lm_ft.batch_size=16777216"]
    assert plan.main([f"--experiment={small}", "--target=h100-8", *too_much]) == 1
    *lines, files = capsys.readouterr().out.splitlines()
    verdicts = {line.split()[0]: line.partition("does not fit: ")[2] for line in lines}
    assert verdicts["lm_ft"].startswith("raise lm_ft.accumulate_steps")
    assert verdicts["index"].startswith("a host has 1743 GiB of memory")
    assert "GiB of a host that has 5,588: --workdir in a bucket, or on a larger disk" in files
    assert not verdicts["score"]


def test_between_slices_go_gradients_and_the_parts_of_a_copy_that_others_hold(small):
    def bytes_in(*settings, target="h100-16"):
        experiment = config.override_settings(config.load_experiment(small), settings)
        place = Deployment(experiment, find_target(target), Counts.of(experiment, None, 10))
        return {stage: PLANNERS[stage](place).dcn for stage in ("lm_ft", "score", "embed", "retrieve")}

    # 1) Gradients in bfloat16, and the embedding's in float32, each summed with the other node's.
    in_bf16 = 2 * LM_PARAMS
    gradients = in_bf16 + 2 * 512 * 64
    half = "lm_ft.dtype=bfloat16"
    nothing = {"score": 0, "embed": 0, "retrieve": 0}
    assert bytes_in("mesh.replica=-1", half) == {"lm_ft": gradients, **nothing}
    # 2) One copy over both: half of the weights comes in for each pass, and half of the sums.
    shared = bytes_in(half)
    assert shared["lm_ft"] == 2 * in_bf16 / 2 + gradients / 2
    assert shared["score"] == 0 < shared["retrieve"]  # each node scores pairs of its own
    # 3) Of four copies on four nodes: three quarters come in to be summed, and three to be shared.
    assert bytes_in("mesh.replica=4", half, target="h100-32")["lm_ft"] == 1.5 * gradients
    assert bytes_in(target="h100-8") == {"lm_ft": 0, **nothing}


def test_what_a_step_brings_into_a_slice_is_a_line_of_its_own(small, capsys):
    arguments = [f"--experiment={small}", "--target=v5e-8", "--slices=2", "--stage=lm_ft", "--estimate"]
    assert plan.main([*arguments, "--set", "mesh.replica=-1"]) == 0
    heading, *_, row, between, _, _ = capsys.readouterr().out.splitlines()
    assert heading == "small on 2 × v5e-8: 16 chips on 2 hosts"
    assert row.endswith(" fits")
    assert between.strip() == "each step brings 0.00 GiB into every slice over the slower network"
    # Tensor parallelism over both would be refused on the machines, and is here.
    assert plan.main([*arguments, "--set", "mesh.fsdp=1"]) == 1
    assert "got replica 1 × fsdp 1 × tensor 16" in capsys.readouterr().err


def sums(capsys, *options):
    """The sums of all stages, in numbers, and the exit code."""
    code = plan.main([*options, "--questions=10", "--json"])
    return json.loads(capsys.readouterr().out)["totals"], code


def test_a_disk_holds_all_stages_together_and_a_further_name_of_a_file_takes_nothing(small, capsys):
    stages = needs(small)
    totals, _ = sums(capsys, f"--experiment={small}", "--target=h100-8")
    assert totals["disk"]["workdir"] == sum(need.disk for need in stages.values())
    # Exported for others are the language model and three towers in float32; all else is linked.
    assert stages["export"].disk == 4 * stages["export"].params < stages["export"].linked
    # Checkpoints on the hub: 16 bits a number of the language model, 32 of the encoder for both towers.
    tower = stages["embed"].params
    assert totals["disk"]["downloads"] == 2 * LM_PARAMS + 4 * tower


def test_a_workdir_in_a_bucket_takes_the_disk_of_its_copies(small, capsys):
    """Embedding holds the chunks, two towers and what it writes; a TPU VM has a boot disk of 100 GB."""
    stages = needs(small)
    options = [f"--experiment={small}", "--stage=embed", "--workdir=gs://bucket/run"]
    totals, code = sums(capsys, *options, "--target=h100-8")
    towers = 2 * 4 * stages["embed"].params
    assert totals["disk"]["workdir"] == stages["corpus"].disk + towers + stages["embed"].disk
    assert code == 0
    many = [*options, "--target=v5e-16", "--estimate", "--chunks=3000000000"]
    totals, code = sums(capsys, *many)
    assert code == 1 and "of a host that has 93: --scratch on a larger disk" in totals["fault"]
    totals, code = sums(capsys, *many, "--disk=2000")
    assert (code, totals["fault"]) == (0, "")


def test_copies_that_no_later_stage_reads_are_gone_from_a_disk(small):
    experiment = config.load_experiment(small)
    place = Deployment(experiment, find_target("h100-8"), Counts.of(experiment, None, 10))
    reads = {"embed": [["corpus/chunks"]], "lm_ft": [["base/lm"]], "evaluate": [["base/lm", "lm_ft"]]}
    stages = [ResourceEstimate("embed", written=5.0), ResourceEstimate("lm_ft"), ResourceEstimate("evaluate")]
    disk = files.disk_of(stages, place, reads, in_bucket=True)
    # The chunks are the most at first, and at last the two models: the base and the one that was written.
    chunks, lm = files.left_by(place, "corpus/chunks"), 4 * LM_PARAMS
    assert disk.workdir == max(chunks + 5, 2 * lm) == chunks + 5
    assert files.disk_of(stages[1:], place, reads, in_bucket=True).workdir == 2 * lm


def test_a_stage_reads_what_it_is_given_and_hosts_share_what_all_of_them_write(small, capsys):
    def rows(target):
        assert plan.main([f"--experiment={small}", f"--target={target}", "--json"]) == 0
        return {row["stage"]: row for row in json.loads(capsys.readouterr().out)["stages"]}

    one, two = rows("h100-8"), rows("h100-16")
    towers = 2 * 4 * one["embed"]["params"]
    # Of the chunks a host reads and verifies its share.
    chunks = one["corpus"]["disk"]
    assert [one["embed"]["read"], two["embed"]["read"]] == [chunks + towers, chunks / 2 + towers]
    assert one["embed"]["written"] == 2 * two["embed"]["written"] == 1_000_000 * 32 * 4
    # A host opens the embeddings that it searches, and writes what its examples retrieved; process 0 alone
    # writes the predictions.
    assert one["index"]["read"] - two["index"]["read"] == (one["embed"]["disk"] + chunks) / 2
    assert one["retrieve"]["written"] == 2 * two["retrieve"]["written"]
    assert one["evaluate"]["written"] == two["evaluate"]["written"]


def test_hosts_that_answer_apart_score_a_part_of_the_batch_each(small, monkeypatch):
    batches = []
    real = evaluate.answering_program

    def noted(place, settings, *rest, **options):
        batches.append(settings.batch_size)
        return real(place, settings, *rest, **options)

    monkeypatch.setattr(evaluate, "answering_program", noted)
    experiment = config.load_experiment(small)
    experiment = replace(experiment, evaluate=replace(experiment.evaluate, batch_size=64))
    for name in ("h100-8", "h100-16", "h100-64"):
        place = Deployment(experiment, find_target(name), Counts.of(experiment, None, 10))
        evaluate.plan_evaluate(place)
    # A row at least on each of a host's eight chips.
    assert batches == [64, 32, 8]


def test_models_that_nothing_trains_are_held_in_the_dtype_that_they_compute_in(small):
    """Kernels and embeddings in half the bytes, the 7 norms of 64 in float32; what trains stays as it is."""
    experiment = config.load_experiment(small)
    counts = Counts.of(experiment, None, 10)

    def held(stage, **changed):
        place = Deployment(replace(experiment, **changed), find_target("h100-8"), counts)
        return PLANNERS[stage](place).held

    # A chip has an eighth of everything but the norms, which all have.
    norms = 7 * 64
    cast = (LM_PARAMS - norms) / 8
    full, half = 4 * (cast + norms), 2 * cast + 4 * norms
    score = replace(experiment.score, dtype="bfloat16")
    assert [held("score"), held("score", score=score)] == [full, half]
    answering = replace(experiment.evaluate, dtype="bfloat16")
    # What answers is whole on a chip that has room for it.
    whole, halved = 4 * LM_PARAMS, 2 * LM_PARAMS + 2 * norms
    assert [held("evaluate"), held("evaluate", evaluate=answering)] == [2 * whole, 2 * halved]
    embed = replace(experiment.embed, dtype="bfloat16")
    assert held("embed") / 2 < held("embed", embed=embed) < 0.6 * held("embed")
    # The network under adapters, whose own state is as it was.
    adapters = replace(experiment.lm_ft, lora=config.LoraConfig(rank=2))
    saved = held("lm_ft", lm_ft=adapters) - held("lm_ft", lm_ft=replace(adapters, dtype="bfloat16"))
    assert saved == full - half
    whole = replace(experiment.lm_ft, dtype="bfloat16")
    assert held("lm_ft", lm_ft=whole) == held("lm_ft")


def test_each_host_embeds_its_own_shards_on_its_own_chips(small):
    one, four = needs(small)["embed"], needs(small, "h100-32")["embed"]
    assert four.held == one.held  # cut over the eight chips of a host, not over 32
    assert four.dcn == 0
    assert four.flops == pytest.approx(one.flops)
    # A host's batch is a quarter, so it reads the weights as often as one host alone does.
    assert four.traffic == pytest.approx(4 * one.traffic)


def test_a_model_that_takes_more_than_half_of_a_host_is_planned_on_all_of_them(small):
    experiment = config.load_experiment(small)
    counts = Counts.of(experiment, None, 10)
    place = Deployment(experiment, find_target("h100-16"), counts)
    half = 0.5 * 8 * place.target.chip.memory
    own, num_parts = place.apart(half)
    assert (own.target.num_chips, own.target.num_slices, num_parts) == (8, 1, 2)
    assert place.apart(half + 1) == (place, 1)
    # Pairs are laid out by the host that scores them.
    one, two = (needs(small, name)["score"] for name in ("h100-8", "h100-16"))
    assert one.realistic == pytest.approx(2 * two.realistic)


def test_chips_are_rented_by_the_hour_at_the_price_of_a_file(small, capsys, tmp_path):
    prices = tmp_path / "prices.toml"
    prices.write_text('[h100]\nprice = 3\ncurrency = "EUR"\ndate = "2026-11-30"\nsource = "a contract"\n')
    options = [f"--experiment={small}", "--target=h100-8"]
    totals, _ = sums(capsys, *options, f"--prices={prices}")
    assert totals["chip_hours"] == pytest.approx(8 * totals["realistic"] / 3600)
    assert totals["cost"] == pytest.approx(3 * totals["chip_hours"])
    plan.main([*options, f"--prices={prices}"])
    assert " EUR at 3 (2026-11-30, a contract)" in capsys.readouterr().out
    assert sums(capsys, *options)[0]["cost"] is None


def test_a_realistic_time_follows_its_assumptions(small, capsys):
    def row(*assumed):
        words = [word for text in assumed for word in ("--assume", text)]
        plan.main([f"--experiment={small}", "--target=h100-8", "--stage=score", "--json", *words])
        (found,) = json.loads(capsys.readouterr().out)["stages"]
        return found

    # 1,000 examples with ten chunks and alone, each laid out in 0.16 ms; then their files.
    files = (row()["read"] + row()["written"]) / 1.4e9
    assert row()["limit"] == "host"
    assert row("lay_out_pair=0.002")["realistic"] == pytest.approx(11_000 * 0.002 + files)
    slow = row("mfu=1e-6")
    assert slow["limit"] == "arithmetic"
    computing = slow["flops"] / (8 * 989e12 * 1e-6)
    assert slow["realistic"] == pytest.approx(computing + files)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--assume", "speed=1"], "--assume: expected NAME=VALUE with a name among mfu, "),
        (["--assume", "mfu=0"], "got 'mfu=0'"),
        (["--prices", "none.toml"], "none.toml: expected a table of prices in TOML, got"),
        (["--hosts", "2"], "--hosts: expected 1 or more with a kind alone among v4, "),
        (["--words", "0"], "plan: expected --words >= 1, got 0."),
    ],
)
def test_what_a_plan_cannot_rest_on_is_refused(small, capsys, options, message):
    assert plan.main([f"--experiment={small}", "--target=h100-8", *options]) == 1
    assert message in capsys.readouterr().err


def test_a_price_says_when_and_where_it_was_read(tmp_path):
    file = tmp_path / "prices.toml"
    for text in ("[h100]\nprice = 3\n", "[h101]\nprice = 3\n", "h100 = 3\n"):
        file.write_text(text)
        with pytest.raises(ValueError, match="a currency, a date and a source, got h10"):
            read_prices(file)
    assert read_prices() == {}


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
    peak = float(row.split()[3])
    assert 1 < peak * GIB < find_target(target).chip.memory
