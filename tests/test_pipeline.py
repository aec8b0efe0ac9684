"""What makes a stage's fingerprint, which stages are needed, and why one has to run."""

import pathlib
import shutil
from dataclasses import replace

import jax.numpy as jnp
import numpy as np
import pytest
from gguf_files import write_gguf

from radit_jax import config, train
from radit_jax.config import Folder, Instructions, LmConfig, MeshConfig, ProfileConfig
from radit_jax.config.renamed_settings import with_old_names
from radit_jax.pipeline.graph import KINDS, stages
from radit_jax.pipeline.runner import Run
from radit_jax.pipeline.stage import Stage
from radit_jax.report.run_stages import run_folders
from radit_jax.runtime.storage.fingerprints import canonical
from radit_jax.runtime.storage.workdir import Workdir

TINY = config.load_experiment(str(train.TINY))


def changed(*assignments):
    return config.override_settings(TINY, assignments)


def fingerprints(experiment, workdir):
    return {name: folder.fingerprint for name, folder in Run(experiment, Workdir(workdir)).folders.items()}


def differing(one, other):
    assert set(one) == set(other)
    return {name for name in one if one[name] != other[name]}


def downstream(*names):
    """The stages and all that read them, however far down."""
    found = set(names)
    for stage in stages(TINY).values():
        if found & set(stage.inputs.values()):
            found.add(stage.name)
    return found


def finish(run, *names):
    for name in names:
        run.folders[name].finish(settings=canonical(run.stages[name].settings))


@pytest.mark.parametrize(
    ("assignment", "first"),
    [
        ("r_ft.tau=0.5", ["r_ft"]),
        ("score.shard_size=7", ["score", "r_ft"]),
        ("score.language_model=lm_ft", ["score", "r_ft"]),
        ("retrieve.num_chunks=5", ["retrieve/r_ft"]),
        ("lm_ft.batch_size=8", ["lm_ft"]),
        ("lm_ft.force_gold=true", ["retrieve/lm_ft", "lm_ft"]),
        ("base.lm.batch_size=8", ["base/lm"]),
        ("base.retriever.temperature=0.5", ["base/retriever"]),
        ("index.kind=exact", ["index/retriever"]),
        ("evaluate.bootstrap_samples=9", ["evaluate", "export"]),
        ("data.documents=9", ["corpus"]),
        ("retrieve.temperature=0.9", ["r_ft", "evaluate", "export"]),
        ("r_ft.corpus_text_fraction=0.9", ["retrieve/r_ft", "r_ft"]),
    ],
)
def test_a_setting_changes_its_stage_and_all_that_read_it_and_nothing_else(tmp_path, assignment, first):
    before, after = fingerprints(TINY, tmp_path), fingerprints(changed(assignment), tmp_path)
    assert differing(before, after) == downstream(*first)


def test_the_seed_changes_everything(tmp_path):
    before, after = fingerprints(TINY, tmp_path), fingerprints(changed("seed=1"), tmp_path)
    assert differing(before, after) == set(before)


def test_neither_mesh_nor_profile_nor_name_nor_workdir_changes_anything(tmp_path):
    mesh = MeshConfig(replica=2, tensor=4, attention="xla", remat="full")
    elsewhere = replace(TINY, mesh=mesh, profile=ProfileConfig("2:3"), name="other")
    assert fingerprints(elsewhere, tmp_path / "b") == fingerprints(TINY, tmp_path / "a")


@pytest.mark.parametrize(
    "assignment",
    ("lm_ft.accumulate_steps=4", "embed.batch_size=8", "score.batch_size=2", "evaluate.prompts_per_batch=20"),
)
def test_what_makes_room_in_memory_leaves_what_is_finished_current(tmp_path, assignment):
    assert fingerprints(changed(assignment), tmp_path) == fingerprints(TINY, tmp_path)


def test_computing_in_other_numbers_changes_its_stage(tmp_path):
    before = fingerprints(TINY, tmp_path)
    assert "lm_ft" in differing(fingerprints(changed("lm_ft.dtype=bfloat16"), tmp_path), before)
    assert "score" in differing(fingerprints(changed("score.dtype=bfloat16"), tmp_path), before)


def folder_of(path, text):
    path.mkdir(parents=True)
    (path / "passages.jsonl").write_text(text)
    return str(path)


def test_data_from_a_folder_are_their_bytes_and_not_their_path(tmp_path):
    def of(path):
        (pathlib.Path(path) / "questions.jsonl").touch()
        return fingerprints(replace(TINY, data=Folder(folder=path)), tmp_path / "run")

    data = of(folder_of(tmp_path / "data", "a"))
    assert of(folder_of(tmp_path / "elsewhere" / "copy", "a")) == data
    assert differing(of(folder_of(tmp_path / "other", "b")), data) == set(data)


def with_checkpoints(lm="", query="", chunk=""):
    base = replace(TINY.base, lm=LmConfig(checkpoint=lm)) if lm else TINY.base
    if query:
        base = replace(base, retriever=replace(base.retriever, checkpoint=query, chunk_checkpoint=chunk))
    return replace(TINY, base=base)


def test_what_is_not_read_of_a_folder_makes_nothing_stale(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("passages.jsonl", "questions.jsonl"):
        (tmp_path / "data" / name).write_text("{}")
    e = replace(TINY, data=Folder(str(tmp_path / "data")))
    before = fingerprints(e, tmp_path)
    for name in (".DS_Store", "notes.txt", "passages.jsonl.orig", "run/workdir.json"):
        (tmp_path / "data" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "data" / name).write_text("x")
    assert fingerprints(e, tmp_path) == before
    (tmp_path / "data" / "questions.jsonl").write_text("{ }")
    assert fingerprints(e, tmp_path)["corpus"] != before["corpus"]


def test_a_checkpoint_that_moved_is_the_same_checkpoint(tmp_path):
    one = folder_of(tmp_path / "one", "weights")
    copied = shutil.copytree(one, tmp_path / "two")
    before = fingerprints(with_checkpoints(lm=one), tmp_path / "run")
    assert fingerprints(with_checkpoints(lm=str(copied)), tmp_path / "run") == before
    (copied / "passages.jsonl").write_text("weightz")  # as many bytes
    after = fingerprints(with_checkpoints(lm=str(copied)), tmp_path / "run")
    assert differing(before, after) == downstream("base/lm")


def test_a_gguf_file_is_the_same_checkpoint_by_its_path_and_by_its_folder(tmp_path):
    embeddings = {"token_embd.weight": np.zeros((8, 2), np.float32)}
    (tmp_path / "one").mkdir()
    path = write_gguf(tmp_path / "one" / "m.gguf", embeddings)
    before = fingerprints(with_checkpoints(lm=str(path)), tmp_path / "run")
    copied = shutil.copytree(tmp_path / "one", tmp_path / "two")
    (copied / "README.md").write_text("Of the folder, not of the file.")
    assert fingerprints(with_checkpoints(lm=str(copied)), tmp_path / "run") == before
    write_gguf(copied / "m.gguf", {"token_embd.weight": np.ones((8, 2), np.float32)})
    assert fingerprints(with_checkpoints(lm=str(copied)), tmp_path / "run") != before


def test_the_checkpoints_of_the_two_towers_are_told_apart(tmp_path):
    one, two = folder_of(tmp_path / "one", "1"), folder_of(tmp_path / "two", "2")
    before = fingerprints(with_checkpoints(query=one, chunk=two), tmp_path / "run")
    after = fingerprints(with_checkpoints(query=two, chunk=one), tmp_path / "run")
    assert differing(before, after) == downstream("base/retriever")


def test_a_chunk_checkpoint_may_be_a_copy_of_the_query_checkpoint(tmp_path):
    one = folder_of(tmp_path / "one", "1")
    copied = str(shutil.copytree(one, tmp_path / "two"))
    assert fingerprints(with_checkpoints(query=one, chunk=copied), tmp_path / "run") == fingerprints(
        with_checkpoints(query=one, chunk=one), tmp_path / "run"
    )


def test_a_source_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ValueError, match="nowhere: expected a file or a folder, got none"):
        Run(with_checkpoints(lm=str(tmp_path / "nowhere")), Workdir(tmp_path / "run"))


def test_a_plan_needs_no_source_and_lists_those_that_are_not_there(tmp_path):
    run = Run(with_checkpoints(lm=str(tmp_path / "nowhere")), Workdir(tmp_path / "run"), plan_only=True)
    assert [stage.name for stage in run.missing("all")] == list(run.stages)
    assert list(run.absent) == [str(tmp_path / "nowhere")]
    assert "expected a file or a folder, got none" in run.absent[str(tmp_path / "nowhere")]
    assert not (tmp_path / "run").exists()


INSTRUCTIONS = Instructions(corpus="corpus", datasets="datasets")


def plan_of(folder, data=INSTRUCTIONS, **changed):
    experiment = replace(with_checkpoints(lm="lm", query="encoder"), data=data, **changed)
    return Run(experiment, Workdir(folder / "run"), plan_only=True).folders


@pytest.mark.parametrize(
    ("changed", "kept"),
    [
        ({"lm_ft_cap": 9}, {"corpus/chunks", "embed/retriever"}),
        ({"max_words": 9}, set()),
        ({"corpus": "moved"}, {"corpus/chunks", "corpus", "embed/retriever", "evaluate"}),
    ],
)
def test_other_examples_leave_the_chunks_and_their_embeddings_and_no_path_counts(tmp_path, changed, kept):
    before, after = plan_of(tmp_path), plan_of(tmp_path, replace(INSTRUCTIONS, **changed))
    same = {name for name in before if before[name].fingerprint == after[name].fingerprint}
    assert same >= kept | {"base/lm", "base/retriever"}  # checkpoints do not read the corpus
    assert kept or "embed/retriever" not in same
    assert ("corpus" in same) == ("corpus" in kept)


def test_tuned_chunks_are_embedded_and_indexed_for_the_evaluation(tmp_path):
    both = replace(TINY, r_ft=replace(TINY.r_ft, train_chunk_encoder=True))
    table = stages(both)
    assert dict(table["embed/r_ft"].inputs) == {"corpus": "corpus", "retriever": "r_ft"}
    assert table["index/r_ft"].inputs["retriever"] == "r_ft"
    for name in ("evaluate", "export"):
        assert table[name].inputs["r_ft_embeddings"] == "embed/r_ft"
        assert table[name].inputs["embeddings"] == "embed/retriever"
    assert "r_ft_embeddings" not in stages(TINY)["evaluate"].inputs


def with_own_retriever(retriever):
    return replace(TINY, lm_ft=replace(TINY.lm_ft, retriever=retriever))


def test_two_roles_with_the_same_settings_share_a_folder_and_are_made_once(tmp_path):
    run = Run(with_own_retriever(TINY.base.retriever), Workdir(tmp_path))
    for kind in ("base", "embed", "index"):
        role, other = run.folders[f"{kind}/lm_ft_retriever"], run.folders[f"{kind}/retriever"]
        assert role.path == other.path
    made = [stage.name for stage in run.missing("all")]
    assert not [name for name in made if "lm_ft_retriever" in name]
    assert run.folders["retrieve/lm_ft"].fingerprint == fingerprints(TINY, tmp_path)["retrieve/lm_ft"]


def test_a_stage_that_goes_on_keeps_its_training_state_where_two_roles_share_it(tmp_path, monkeypatch):
    run = Run(with_own_retriever(TINY.base.retriever), Workdir(tmp_path))
    finish(run, "corpus", "base/lm")
    (run.folders["base/retriever"].path / "checkpoints").mkdir(parents=True)
    monkeypatch.setattr(Run, "check_corpus", lambda self: None)
    monkeypatch.setattr(Run, "check_checkpoints", lambda self: None)
    monkeypatch.setattr(Run, "make", lambda self, stage, place, time_left: None)
    monkeypatch.setattr(train, "prepare_jax", lambda workdir: None)
    train.execute(run, "retrieve")
    assert (run.folders["base/retriever"].path / "checkpoints").exists()


def test_a_run_with_the_work_of_an_earlier_one_is_told_its_time(tmp_path, monkeypatch):
    told = []

    def make(self, stage, place, time_left):
        time_left.begin(stage.name)
        told.append((place, time_left.left()))
        return {stage.kind: 100.0}

    monkeypatch.setattr(Run, "make", make)
    for assignment in ("seed=0", "seed=1"):
        run = Run(replace(changed(assignment), name="mine"), Workdir(tmp_path))
        with run.workdir.lock():
            train.make_stages(run, [run.stages["corpus"], run.stages["base/lm"]])
    assert told[:2] == [("1/2", None), ("2/2", None)]
    assert told[2] == ("1/2", pytest.approx(200.0, abs=10)) and told[3][1] is not None


def test_an_export_of_other_settings_is_not_taken_for_one_that_was_interrupted(tmp_path):
    first = Run(TINY, Workdir(tmp_path))
    finish(first, "export")
    again = Run(changed("r_ft.tau=0.5"), Workdir(tmp_path))
    assert again.why(again.stages["export"]) == "changed: tau 0.02 → 0.5"
    (tmp_path / "export" / "manifest.json").unlink()
    again.folders["export"].write("lm", b"")
    assert Run(TINY, Workdir(tmp_path)).why(first.stages["export"]) == "was interrupted; resumes"


def test_a_checkpoint_in_the_users_home_is_found(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder_of(tmp_path / "lm", "lm")
    assert fingerprints(with_checkpoints("~/lm"), tmp_path) == fingerprints(
        with_checkpoints(str(tmp_path / "lm")), tmp_path
    )


def test_a_retriever_of_lm_fts_own_changes_what_lm_ft_reads_and_not_r_ft(tmp_path):
    own = Run(with_own_retriever(replace(TINY.base.retriever, pooling="cls")), Workdir(tmp_path))
    shared = fingerprints(TINY, tmp_path)
    changed_stages = {name for name in shared if own.folders[name].fingerprint != shared[name]}
    assert changed_stages == {"retrieve/lm_ft", "lm_ft", "evaluate", "export"}
    assert "index/lm_ft_retriever" in [stage.name for stage in own.missing("retrieve")]


@pytest.mark.parametrize("kind", [*KINDS, "all"])
def test_every_needed_stage_stands_behind_those_that_it_reads(tmp_path, kind):
    for experiment in (TINY, with_own_retriever(TINY.base.retriever), changed("score.language_model=lm_ft")):
        needed = Run(experiment, Workdir(tmp_path)).needed(kind)
        names = [stage.name for stage in needed]
        for place, stage in enumerate(needed):
            assert set(stage.inputs.values()) <= set(names[:place])
        assert kind == "all" or {stage.kind for stage in needed} >= {kind}


def test_a_kind_needs_all_its_roles_and_no_stage_that_it_does_not_read(tmp_path):
    run = Run(TINY, Workdir(tmp_path))
    names = {kind: [stage.name for stage in run.needed(kind)] for kind in (*KINDS, "all")}
    assert names["corpus"] == ["corpus"]
    assert names["base"] == ["corpus", "base/lm", "base/retriever"]
    assert names["embed"] == ["corpus", "base/retriever", "embed/retriever"]
    assert "lm_ft" not in names["r_ft"]
    assert names["all"] == list(run.stages)


def test_what_is_finished_is_not_missing(tmp_path):
    run = Run(TINY, Workdir(tmp_path))
    finish(run, "corpus", "base/retriever")
    assert [stage.name for stage in run.missing("embed")] == ["embed/retriever"]


def test_why_a_stage_runs_is_said_in_words(tmp_path):
    run = Run(TINY, Workdir(tmp_path))
    assert run.why(run.stages["r_ft"]) == "was never run"
    run.folders["r_ft"].write("metrics.jsonl", b"")
    assert run.why(run.stages["r_ft"]) == "was interrupted; resumes"
    finish(run, *run.stages)
    again = Run(changed("r_ft.tau=0.5", "r_ft.target=posterior", "seed=2"), Workdir(tmp_path))
    before = canonical(TINY.r_ft)["tau"]
    assert again.why(again.stages["r_ft"]) == (
        f"changed: r_ft.target lsr → posterior; r_ft.tau {before} → 0.5; seed 0 → 2"
    )
    assert again.why(again.stages["embed/retriever"]) == "what it reads has changed"


def test_what_has_changed_since_a_manifest_with_old_names_is_said_by_new_names(tmp_path):
    run = Run(TINY, Workdir(tmp_path))
    for name, stage in run.stages.items():
        run.folders[name].finish(settings=with_old_names(canonical(stage.settings)))
    assert not list(run.missing("all"))
    again = Run(changed("retrieve.temperature=0.25", "lm_ft.corpus_text_fraction=0.5"), Workdir(tmp_path))
    assert again.why(again.stages["r_ft"]) == "changed: temperature 0.1 → 0.25"
    assert again.why(again.stages["lm_ft"]) == "changed: lm_ft.corpus_text_fraction 0.1 → 0.5"
    assert again.why(again.stages["retrieve/lm_ft"]) == "changed: corpus_text_fraction 0.1 → 0.5"


def test_stages_that_train_are_told_what_to_trace(tmp_path, monkeypatch):
    told = {}

    def function(stage):
        return lambda inputs, output, **settings: told.update({stage.name: settings.get("profile")}) or {}

    monkeypatch.setattr(Stage, "function", property(function))
    run = Run(changed("profile.steps=2:3"), Workdir(tmp_path))
    for stage in run.stages.values():
        run.make(stage)
    traced = {name for name, profile in told.items() if profile == ProfileConfig("2:3")}
    assert traced == {"base/lm", "base/retriever", "lm_ft", "r_ft"}
    assert {told[name] for name in told if name not in traced} == {None}


def test_a_manifest_says_what_its_stage_read_and_how_long_it_took(tmp_path, monkeypatch):
    monkeypatch.setattr(Stage, "function", property(lambda stage: lambda inputs, output, **settings: {}))
    run = Run(TINY, Workdir(tmp_path))
    for stage in run.stages.values():
        run.make(stage)
    manifest = run.folders["lm_ft"].manifest
    assert manifest["inputs"] == {
        name: run.folders[name].fingerprint for name in ("corpus", "base/lm", "retrieve/lm_ft")
    }
    assert manifest["seconds"] >= 0 and manifest["device"] == "8 × cpu"
    # A report finds the stages of a run by that.
    found = run_folders(Workdir(tmp_path))
    assert {name: folder.fingerprint for name, folder in found.items()} == {
        name: folder.fingerprint for name, folder in run.folders.items() if name != "export"
    }


def test_a_stage_beyond_the_devices_memory_ends_with_what_to_set(tmp_path, monkeypatch):
    def function(stage):
        return lambda inputs, output, **settings: jnp.zeros((1 << 40, 1 << 10)).block_until_ready()

    monkeypatch.setattr(Stage, "function", property(function))
    run = Run(TINY, Workdir(tmp_path))
    with pytest.raises(ValueError, match="^lm_ft: expected .* the devices' memory, .* set mesh.remat=full"):
        run.make(run.stages["lm_ft"])


def test_why_compares_a_role_with_its_own_earlier_run(tmp_path):
    run = Run(TINY, Workdir(tmp_path))
    finish(run, "retrieve/r_ft")
    assert run.why(run.stages["retrieve/lm_ft"]) == "was never run"
    finish(run, "retrieve/lm_ft")
    again = Run(changed("retrieve.num_chunks=5"), Workdir(tmp_path))
    assert again.why(again.stages["retrieve/r_ft"]) == "changed: num_chunks 10 → 5"


def test_every_entry_is_a_function_of_its_kinds_module():
    tables = (
        stages(with_own_retriever(TINY.base.retriever)),
        stages(changed("score.language_model=a.jsonl")),
    )
    for stage in (stage for table in tables for stage in table.values()):
        assert stage.entry.partition(":")[0] == stage.kind
        assert callable(stage.function)


def test_tasks_are_the_bytes_of_their_files_and_not_their_path(tmp_path):
    for name, text in (("one", "a"), ("two", "a"), ("three", "b")):
        (tmp_path / name / "nq_open").mkdir(parents=True)
        (tmp_path / name / "nq_open" / "NQ-open.dev.jsonl").write_text(text)
    one, two, three = (
        fingerprints(changed("evaluate.tasks=nq", f"evaluate.tasks_folder={tmp_path / name}"), tmp_path / "w")
        for name in ("one", "two", "three")
    )
    assert one == two
    assert differing(two, three) == {"evaluate", "export"}


def test_what_a_task_does_not_read_of_its_folder_makes_nothing_stale(tmp_path):
    for name in ("piqa/train.jsonl", "piqa/valid.jsonl", "piqa/valid-labels.lst", "mmlu/test/art_test.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("a")
    asked = ("evaluate.tasks=piqa,mmlu", f"evaluate.tasks_folder={tmp_path}")

    def stale_after(name, *more):
        before = fingerprints(changed(*asked, *more), tmp_path / "w")
        (tmp_path / name).write_text("b")
        return differing(before, fingerprints(changed(*asked, *more), tmp_path / "w"))

    for name in ("README.md", "piqa/notes.txt", "piqa/train.jsonl", "boolq.jsonl", "mmlu/test/notes"):
        assert not stale_after(name)
    for name in ("piqa/valid.jsonl", "piqa/valid-labels.lst", "mmlu/test/art_test.csv", "mmlu/test/new.csv"):
        assert stale_after(name) == {"evaluate", "export"}
    (tmp_path / "piqa" / "train.jsonl").write_text("a")
    assert stale_after("piqa/train.jsonl", "evaluate.shots=1") == {"evaluate", "export"}


def test_a_file_of_judgements_is_read_with_its_queries(tmp_path):
    (tmp_path / "qrels").mkdir()
    judged, queries = tmp_path / "qrels" / "test.tsv", tmp_path / "queries.jsonl"
    for file in (judged, queries):
        file.write_text("a")
    before = fingerprints(changed(f"evaluate.tasks={judged}"), tmp_path / "w")
    queries.write_text("b")
    after = fingerprints(changed(f"evaluate.tasks={judged}"), tmp_path / "w")
    assert differing(before, after) == {"evaluate", "export"}


def of_instructions(folder):
    data = Instructions(
        corpus=str(folder),
        datasets=str(folder / "datasets"),
        lm_ft_datasets=("ecqa",),
        r_ft_datasets=("wiki_qa",),
    )
    return fingerprints(replace(TINY, data=data), folder / "w")


def test_what_is_not_read_of_the_datasets_makes_nothing_stale(tmp_path):
    datasets = tmp_path / "datasets"
    read = [
        datasets / "wiki_qa" / "WikiQA-train.tsv",
        datasets / "ecqa" / "author_split" / "train_ids.txt",
        datasets / "ecqa" / "ecqa.jsonl",
        datasets / "commonsense_qa" / "train_rand_split.jsonl",
    ]
    for file in (tmp_path / "passages.jsonl", *read):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("a")
    before = of_instructions(tmp_path)
    for name in ("README.md", "wiki_qa/notes.txt", "quarel/quarel-v1-train.jsonl", "run/workdir.json"):
        (datasets / name).parent.mkdir(exist_ok=True)
        (datasets / name).write_text("x")
        assert of_instructions(tmp_path) == before
    # A changed file, one that its records are joined with, and a part that was not there.
    for file in (*read, datasets / "wiki_qa" / "WikiQA-test.tsv"):
        file.write_text("b")
        after = of_instructions(tmp_path)
        assert "corpus" in differing(before, after) and after["corpus/chunks"] == before["corpus/chunks"]
        before = after


def test_of_datasets_that_were_built_the_records_are_read(tmp_path):
    built = tmp_path / "datasets" / "radit_wiki_qa" / "raw" / "1.0.0"
    built.mkdir(parents=True)
    (tmp_path / "passages.jsonl").write_text("a")
    records = built / "radit_wiki_qa-train.array_record-00000-of-00001"
    for file in (records, built / "dataset_info.json"):
        file.write_text("a")
    before = of_instructions(tmp_path)
    (tmp_path / "datasets" / "radit_wiki_qa" / "notes.txt").write_text("a")
    assert of_instructions(tmp_path) == before
    records.write_text("b")
    assert "corpus" in differing(before, of_instructions(tmp_path))


def test_rows_too_short_for_a_tasks_answers_are_refused_before_anything_runs(tmp_path):
    (tmp_path / "wow-dev-kilt.jsonl").write_text("a")
    e = changed("evaluate.tasks=wow", f"evaluate.tasks_folder={tmp_path}", "evaluate.sequence_length=64")
    run = Run(e, Workdir(tmp_path / "w"))
    with pytest.raises(ValueError, match=r"evaluate\.sequence_length: expected more than 64 .* wow, got 64"):
        run.check_tasks(run.missing("all"))
    run.check_tasks(run.missing("lm_ft"))  # which asks no task
    longer = Run(config.override_settings(e, ["evaluate.sequence_length=65"]), Workdir(tmp_path / "w"))
    longer.check_tasks(longer.missing("all"))
    absent = Run(config.override_settings(e, ["evaluate.tasks=eli5"]), Workdir(tmp_path / "w"))
    with pytest.raises(ValueError, match=r"eli5: expected kilt/eli5-dev-kilt\.jsonl in .*, got none"):
        absent.check_tasks(absent.missing("evaluate"))


def test_a_malformed_table_of_titles_is_refused_before_anything_runs(tmp_path, capsys):
    (tmp_path / "wow-dev-kilt.jsonl").write_text("a")
    titles = tmp_path / "titles.tsv"
    titles.write_text("Emma\t7\nPersuasion\n")
    settings = ("tasks=wow", f"tasks_folder={tmp_path}", f"kilt_titles={titles}", "sequence_length=128")
    options = [part for setting in settings for part in ("--set", f"evaluate.{setting}")]
    for more in ([], ["--dry-run"]):
        assert train.main([f"--workdir={tmp_path / 'w'}", *options, *more]) == 1
        assert "titles.tsv line 2: expected 2 columns" in capsys.readouterr().err
    assert not list((tmp_path / "w").glob("corpus*"))


def test_a_users_own_questions_are_their_bytes_too(tmp_path):
    for name, text in (("one", "a"), ("two", "a"), ("three", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "own.jsonl").write_text(text)
    one, two, three = (
        fingerprints(changed(f"evaluate.tasks={tmp_path / name / 'own.jsonl'}"), tmp_path / "w")
        for name in ("one", "two", "three")
    )
    assert one == two
    assert differing(two, three) == {"evaluate", "export"}


def test_an_unknown_task_is_named_before_any_stage_runs(tmp_path):
    with pytest.raises(ValueError, match="got 'hotpot'. Did you mean 'hotpotqa'"):
        Run(changed("evaluate.tasks=hotpot", f"evaluate.tasks_folder={tmp_path}"), Workdir(tmp_path / "w"))


def test_kilts_development_tasks_make_lm_ft_read_a_retriever_and_their_files(tmp_path):
    (tmp_path / "kilt").mkdir()
    plain, chosen = stages(TINY), changed("lm_ft.select=kilt_dev", f"lm_ft.select_folder={tmp_path / 'kilt'}")
    assert set(stages(chosen)["lm_ft"].inputs) - set(plain["lm_ft"].inputs) == {
        "retriever",
        "embeddings",
        "index",
    }
    (tmp_path / "kilt" / "wow-dev-kilt.jsonl").write_text("a")
    one = fingerprints(chosen, tmp_path / "w")
    (tmp_path / "kilt" / "wow-dev-kilt.jsonl").write_text("another")
    assert differing(one, fingerprints(chosen, tmp_path / "w")) == downstream("lm_ft")


def test_how_evaluation_asks_chooses_lm_fts_checkpoint_on_kilt_alone(tmp_path):
    on_kilt = ("lm_ft.select=kilt_dev", f"lm_ft.select_folder={tmp_path}")

    def changes(setting, *chosen):
        before, after = (fingerprints(changed(*chosen, *more), tmp_path / "w") for more in ((), (setting,)))
        return differing(before, after)

    for setting in ("chunks_per_answer=3", "ensemble=token", "max_new_tokens=5", "shots=1", "dtype=bfloat16"):
        assert "lm_ft" in changes(f"evaluate.{setting}", *on_kilt)
        assert "lm_ft" not in changes(f"evaluate.{setting}")
    for setting in ("split=dev", "bootstrap_samples=9", "prompts_per_batch=8"):
        assert "lm_ft" not in changes(f"evaluate.{setting}", *on_kilt)


# ---- labels from elsewhere ----


def labelled_by(name):
    return changed(f"score.language_model={name}")


def test_a_checkpoint_that_labels_is_a_base_model_whose_content_counts_and_not_its_path(tmp_path):
    one = folder_of(tmp_path / "one", "weights")
    copied = shutil.copytree(one, tmp_path / "two")
    table = stages(labelled_by(one))
    assert table["base/labeller"].settings["lm"] == LmConfig(checkpoint=one)
    assert table["base/labeller"].sources == (one,)
    for name, role in (("score", "lm"), ("r_ft", "lm"), ("retrieve/r_ft", "labeller")):
        assert table[name].inputs[role] == "base/labeller"
    before = fingerprints(labelled_by(one), tmp_path / "run")
    assert fingerprints(labelled_by(copied), tmp_path / "run") == before
    (copied / "passages.jsonl").write_text("weightz")
    changed_stages = differing(before, fingerprints(labelled_by(copied), tmp_path / "run"))
    assert changed_stages == {"base/labeller", *downstream("retrieve/r_ft")}
    # Of a run that labels with its own model, only what the labels reach is another.
    plain = fingerprints(TINY, tmp_path / "run")
    same = {name for name in plain if plain[name] == before[name]}
    assert same == set(plain) - downstream("retrieve/r_ft")


def test_a_labeller_that_is_the_base_checkpoint_is_made_once_unless_its_dtype_is_another(tmp_path):
    path = folder_of(tmp_path / "lm", "weights")
    e = replace(with_checkpoints(lm=path), score=replace(TINY.score, language_model=path))
    run = Run(e, Workdir(tmp_path / "run"))
    assert run.folders["base/labeller"].path == run.folders["base/lm"].path
    e = replace(e, score=replace(e.score, dtype="bfloat16"))
    run = Run(e, Workdir(tmp_path / "run"))
    assert run.stages["base/labeller"].settings["dtype"] == "bfloat16"
    assert run.folders["base/labeller"].path != run.folders["base/lm"].path


def test_a_file_of_scores_takes_the_place_of_scoring_and_its_content_counts(tmp_path):
    for name, text in (("one", "{}"), ("two", "{}"), ("three", "{ }")):
        (tmp_path / f"{name}.jsonl").write_text(text)
    one, two, three = (
        fingerprints(labelled_by(tmp_path / f"{name}.jsonl"), tmp_path / "run")
        for name in ("one", "two", "three")
    )
    assert one == two
    assert differing(two, three) == downstream("score")
    assert differing(one, fingerprints(TINY, tmp_path / "run")) == downstream("score")
    table = stages(labelled_by("one.jsonl"))
    assert "lm" not in table["score"].inputs
    assert table["r_ft"].inputs["lm"] == "base/lm"  # for development examples, which the file lacks


def test_a_wrong_line_of_a_file_of_scores_is_named_before_anything_runs(tmp_path, capsys):
    scores = tmp_path / "scores.jsonl"
    scores.write_text('{"id": "a"}\n')
    options = [f"--workdir={tmp_path / 'w'}", f"--set=score.language_model={scores}"]
    for more in ([], ["--dry-run"]):
        assert train.main([*options, *more]) == 1
        assert "scores.jsonl line 1: expected the fields id, query" in capsys.readouterr().err
    assert not list((tmp_path / "w").glob("corpus*"))
    scores.unlink()
    assert train.main([*options, "--dry-run"]) == 1
    assert f"missing    {scores}: expected a file or a folder" in capsys.readouterr().out
