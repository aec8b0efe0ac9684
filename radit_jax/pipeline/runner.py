"""The runner: fingerprints, which stages are current, what is missing and why, and making it."""

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from etils import epath

from radit_jax.config import Experiment, Instructions, checkpoint_folder
from radit_jax.config.descriptions import settings_by_path
from radit_jax.config.renamed_settings import with_new_names, with_old_names
from radit_jax.data.artifacts.scores_file import read_scores
from radit_jax.data.eval_tasks import registry
from radit_jax.data.readers.kilt_pages import read_titles
from radit_jax.data.sources import instructions
from radit_jax.pipeline import early_checks
from radit_jax.pipeline.graph import KINDS, stages
from radit_jax.pipeline.sessions import session
from radit_jax.pipeline.stage import Stage
from radit_jax.runtime.distributed import processes
from radit_jax.runtime.monitoring import trackers
from radit_jax.runtime.monitoring.progress import begin_stage
from radit_jax.runtime.monitoring.time_left import LoopSeconds, TimeLeft
from radit_jax.runtime.pretrained import checkpoint_info, hub
from radit_jax.runtime.storage.fingerprints import canonical, fingerprint
from radit_jax.runtime.storage.stage_folder import StageFolder, StageInputs
from radit_jax.runtime.storage.workdir import Workdir

# By section: settings that change memory and speed, and results by rounding at most; and where results lie.
NOT_IN_FINGERPRINT = {
    "embed": {"batch_size"},
    "lm_ft": {"accumulate_steps"},
    "score": {"batch_size"},
    "evaluate": {"batch_size", "prompts_per_batch", "name"},
}
DEFAULT = "the default"  # in place of the value of a field that is not there


@dataclass(frozen=True)
class Run:
    """An experiment in a workdir: where each stage's output lies, and which outputs are there."""

    experiment: Experiment
    workdir: Workdir
    plan_only: bool = False  # sources that are not there become `absent`; otherwise they are an error
    stages: dict[str, Stage] = field(init=False)  # by name
    folders: dict[str, StageFolder] = field(init=False)  # by the stage's name
    absent: dict[str, str] = field(init=False, default_factory=dict)  # sources, and what is wrong with them
    unreached: set[str] = field(init=False, default_factory=set)  # those of them on a hub without an answer

    def __post_init__(self) -> None:
        object.__setattr__(self, "stages", stages(self.experiment))
        object.__setattr__(self, "folders", {})
        # In the table's order, because a fingerprint includes those of the stages that are read.
        for stage in self.stages.values():
            make_folder = self.workdir.published if stage.kind == "export" else self.workdir.folder
            self.folders[stage.name] = make_folder(stage.kind, self._fingerprint(stage))

    def _fingerprint(self, stage: Stage) -> str:
        parents = {role: folder.fingerprint for role, folder in self._inputs(stage).items()}
        identities = {path: self._identity_or_absent(stage, path) for path in stage.sources}
        # A source is its content: the same checkpoint in another folder is the same checkpoint.
        numbered = {str(number): identities[path] for number, path in enumerate(stage.sources)}
        # Fingerprints keep the names that settings had before they were renamed.
        settings = with_old_names(canonical(stage.settings))
        settings = _without_paths(_that_change_results(settings), identities)
        return fingerprint(stage.kind, stage.version, settings, parents, numbered)

    def _inputs(self, stage: Stage) -> StageInputs:
        """The folders that a stage reads, by what its function calls them."""
        return {role: self.folders[name] for role, name in stage.inputs.items()}

    def _identity_or_absent(self, stage: Stage, source: str) -> str:
        """The identity of a source; "absent" where it is not there and only a plan is asked for."""
        if source in self.absent:
            return "absent"
        try:
            return self._identity(stage, source)
        except ValueError as error:
            if not self.plan_only:
                raise
            self.absent[source] = str(error)
            if isinstance(error, hub.UnreachedError):
                self.unreached.add(source)
            return "absent"

    def _identity(self, stage: Stage, source: str) -> str:
        """The commit of a checkpoint from the hub; the hash of any other file or folder."""

        def identity() -> str:
            commit = hub.identity(source) if stage.kind == "base" else None
            files = stage.files_read[source]() if source in stage.files_read else None
            folder = checkpoint_folder(source)
            if stage.kind == "base" and commit is None:
                folder, files = hub.content(source)
            return commit or self.workdir.source_hash(folder, files)

        return processes.on_process_zero(f"the identity of {source}", identity)

    def needed(self, kind: str) -> list[Stage]:
        """The stages of `kind` ('all': every stage) and all that they read, in order."""
        if kind not in (*KINDS, "all"):
            raise ValueError(f"--stage: expected one of {', '.join(KINDS)} and all, got {kind!r}.")
        all_stages = self.stages.values()
        names = {stage.name for stage in all_stages if kind in (stage.kind, "all")}
        # A stage comes after those that it reads, so one pass from the end finds all of them.
        for stage in reversed(all_stages):
            if stage.name in names:
                names.update(stage.inputs.values())
        return [stage for stage in all_stages if stage.name in names]

    def missing(self, kind: str) -> Iterator[Stage]:
        """The stages of `needed` whose folders are not complete, in order."""
        # Two stages with one fingerprint share a folder, as a retriever in two roles does: one of them runs.
        made: set[str] = set()
        for stage in self.needed(kind):
            folder = self.folders[stage.name]
            path = str(folder.home)
            if not folder.complete and path not in made:
                made.add(path)
                yield stage

    def check_checkpoints(self) -> None:
        """Refuse checkpoints that do not fit the settings, by what their small files say.

        Where one is absent, none is read.
        """
        checkpoints: set[str] = set()
        for stage in self.stages.values():
            if stage.kind == "base":
                checkpoints.update(stage.sources)
        if not checkpoints & self.absent.keys():
            checkpoint_info.check_checkpoints(self.experiment)

    def check_weights(self, stages: Iterable[Stage]) -> None:
        """Refuse checkpoints whose tensors or tokeniser do not fit their settings, before a stage runs."""
        early_checks.check_stored_models(stages, self.absent)

    def look_at_data(self, stages: Iterable[Stage]) -> list[str]:
        """Refuse data that a corpus stage among `stages` would refuse; lines on what small data is."""
        sources = set()
        for stage in stages:
            if stage.kind == "corpus":
                sources.update(stage.sources)
        absent = sorted(self.absent.keys() & sources)
        # What is there and cannot be read is an error; what is not there may come.
        for source in absent:
            if epath.Path(source).exists():
                raise ValueError(self.absent[source])
        if not sources or absent:
            return []
        return early_checks.look_at_data(self.experiment)

    def check_tasks(self, stages: Iterable[Stage]) -> None:
        """Refuse tasks that the stages could not ask, before one of them runs; absent files are not read."""
        for stage in stages:
            evaluate = stage.settings.get("evaluate")
            # An export has evaluation's settings too, but asks nothing.
            if stage.kind not in ("lm_ft", "evaluate") or evaluate is None:
                continue
            if not self.absent.keys() & set(stage.sources):
                registry.check_tasks(evaluate)
                if evaluate.tasks and evaluate.kilt_titles:
                    read_titles(evaluate.kilt_titles)

    def check_scores(self, stages: Iterable[Stage]) -> None:
        """Refuse a file of scores with a wrong line, before a stage runs; an absent file is not read."""
        for stage in stages:
            file = stage.settings.get("file")
            if stage.kind == "score" and file and file not in self.absent:
                for _ in read_scores(file):
                    pass

    def check_corpus(self) -> None:
        """Refuse to go on, before anything is trained, without the datasets or with too few chunks."""
        e = self.experiment
        corpus = self.folders["corpus"]
        if isinstance(e.data, Instructions) and not corpus.complete:
            instructions.check_files(e.data)
        if not corpus.complete:
            return
        early_checks.check_num_chunks(e, corpus.manifest["chunks"])
        if e.score.file and not self.folders["score"].complete and e.score.file not in self.absent:
            early_checks.check_scored_examples(e.score.file, corpus)

    def why(self, stage: Stage) -> str:
        """Why `stage` has to run, in words for a person."""
        folder = self.folders[stage.name]
        if folder.half_written:
            return "was interrupted; resumes"
        # Roles of one kind, as retrieve/lm_ft and retrieve/r_ft, have settings of their own.
        earlier = []
        for manifest in self.workdir.manifests(stage.kind):
            recorded = manifest.get("settings")
            settings = with_new_names(recorded) if isinstance(recorded, dict) else {}
            if settings.keys() == stage.settings.keys():
                earlier.append(settings)
        if not earlier:
            return "was never run"
        changes = differences(earlier[-1], canonical(stage.settings))
        return "changed: " + "; ".join(changes) if changes else "what it reads has changed"

    def make(self, stage: Stage, place: str = "", time_left: TimeLeft | None = None) -> LoopSeconds | None:
        """Run one stage and commit what it made; `place` says where it stands among others, as 3/12.

        Returns what its loops took; None of a stage that went on where an earlier run had stopped.
        """
        output = self.folders[stage.name]
        inputs = self._inputs(stage)
        is_whole = not output.half_written
        clock = begin_stage(stage.name, place, time_left)
        title = f"{clock.place()} {stage.name}".lstrip()
        print(f"── {title}: {self.why(stage)}", flush=True)
        start = time.monotonic()
        output.fetch_logs()
        # No fingerprint covers how a stage runs.
        how: dict[str, Any] = {"mesh": self.experiment.mesh}
        if stage.trains:
            how["profile"] = self.experiment.profile
        with session(output) as seconds_of_all:
            with trackers.tracking(self._context(stage)):
                facts = self._run(stage, inputs, output, how)
                if output.has("results.json"):
                    _log_figures(output)
            read = {name: self.folders[name].fingerprint for name in stage.inputs.values()}
            record = {"inputs": read, "seconds": round(seconds_of_all(), 1), "device": _devices()}
            output.finish(settings=canonical(stage.settings), **record, **facts)
        seconds = time.monotonic() - start
        self.drop_checkpoints(stage)
        print(f"   {stage.name}: done in {seconds:.1f} s{_summary(facts)}", flush=True)
        loop_seconds = clock.end_stage(stage.kind)
        return loop_seconds if is_whole else None

    def _context(self, stage: Stage) -> trackers.StageContext:
        """What trackers are told of a stage."""
        settings = settings_by_path(self.experiment)
        return trackers.StageContext(self.workdir.path.name, stage.name, settings)

    def evict(self, rest: Sequence[Stage]) -> None:
        """Delete this machine's copies of what none of `rest`, the stages to be made, reads or writes.

        In a bucket all of it stays. Once nothing is left to be made, nothing more has to be deleted.
        """
        if not rest:
            return
        used = {self.folders[stage.name].home for stage in rest}
        for stage in rest:
            used |= {folder.home for folder in self._inputs(stage).values()}
        for folder in self.folders.values():
            if folder.home not in used:
                folder.evict()

    def drop_checkpoints(self, stage: Stage) -> None:
        """Delete the training state of a stage that has finished; a kill may have left it."""
        if stage.trains and not self.experiment.keep_checkpoints:
            self.folders[stage.name].drop("checkpoints")

    @staticmethod
    def _run(
        stage: Stage, inputs: StageInputs, output: StageFolder, how: Mapping[str, Any]
    ) -> dict[str, Any]:
        from radit_jax.runtime.distributed.memory import naming_remedy  # jax, which a dry run does without

        def run() -> dict[str, Any]:
            with naming_remedy(stage.kind):
                return stage.function(inputs, output, **how, **stage.settings)

        return processes.on_process_zero(stage.name, run) if stage.single_process else run()


def _devices() -> str:
    """The devices of all processes in words, as `8 × TPU v5 lite`."""
    import jax  # which a dry run does without

    return f"{jax.device_count()} × {jax.devices()[0].device_kind}"


def _log_figures(output: StageFolder) -> None:
    """Show evaluation's results as training's metrics are shown, in TensorBoard and in trackers."""
    from radit_jax.runtime.monitoring.metrics import Metrics  # TensorBoard, which a dry run does without

    results = processes.on_process_zero("the figures", lambda: output.read_json("results.json"))
    metrics = Metrics(output.path / "figures.jsonl")
    # A run that was killed here writes them again.
    metrics.drop_after(-1, "evaluate")
    metrics.write(0, "evaluate", figures_by_path(results))
    metrics.flush()


def figures_by_path(results: Mapping[str, Any], path: str = "") -> dict[str, float]:
    """The value of each figure in `results.json`, without its interval, by the names that lead to it.

    >>> figures_by_path({"systems": {"radit": {"f1": {"value": 0.5, "low": 0.4, "high": 0.6}}}, "seed": 3})
    {'systems/radit/f1': 0.5}
    """
    value = results.get("value")
    if isinstance(value, int | float):
        return {path: float(value)}
    figures = {}
    for name, inner in results.items():
        if isinstance(inner, Mapping):
            inner_path = f"{path}/{name}" if path else name
            figures |= figures_by_path(inner, inner_path)
    return figures


def _summary(facts: Mapping[str, Any]) -> str:
    """The facts that one word says, behind what goes before.

    >>> _summary({"steps": 8, "signal": []}), _summary({})
    ('; steps 8', '')
    """
    words = []
    for name, value in facts.items():
        if isinstance(value, int | float | str):
            words.append(f"{name} {value}")
    return f"; {', '.join(words)}" if words else ""


def _that_change_results(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A stage's settings without those of `NOT_IN_FINGERPRINT`."""
    fingerprinted = dict(settings)
    for section, left_out in NOT_IN_FINGERPRINT.items():
        values = fingerprinted.get(section)
        if isinstance(values, dict):
            fingerprinted[section] = {name: value for name, value in values.items() if name not in left_out}
    return fingerprinted


def _without_paths(settings: Any, sources: Mapping[str, str]) -> Any:
    """`settings` with the word "source" for every path of a source."""
    if isinstance(settings, dict):
        return {key: _without_paths(value, sources) for key, value in settings.items()}
    if isinstance(settings, list):
        return [_without_paths(value, sources) for value in settings]
    is_source = isinstance(settings, str) and settings in sources
    return "source" if is_source else settings


def differences(before: Any, after: Any, path: str = "") -> list[str]:
    """The settings in which two canonical settings differ, as `path before → after`.

    A field that was added later is not there at its default.

    >>> differences({"seed": 1}, {"seed": 2, "answered_questions": 9})
    ['answered_questions the default → 9', 'seed 1 → 2']
    """
    if not (isinstance(before, dict) and isinstance(after, dict)):
        return [] if before == after else [f"{path} {before} → {after}"]
    changes = []
    for key in sorted({*before, *after}):
        key_path = f"{path}.{key}" if path else key
        was, becomes = before.get(key, DEFAULT), after.get(key, DEFAULT)
        changes += differences(was, becomes, key_path)
    return changes
