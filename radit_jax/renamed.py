"""Module paths of release 0.1, which import what took their place, with a warning, until release 0.3.

`MOVED` gives each old path its new modules, and the new names of what was renamed on the way. Paths are
written without `radit_jax.`. An old path that is now a package, such as `runtime.pretrained`, is no alias.
"""

import importlib
import sys
import types
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from typing import Any, NamedTuple

PACKAGE = "radit_jax."


class Moved(NamedTuple):
    """Where an old module's names are: in the first of `modules` that has them, renamed as in `names`."""

    modules: tuple[str, ...]
    names: dict[str, str]


class OldPaths(MetaPathFinder):
    """Finds the modules of `MOVED` by their old paths."""

    def find_spec(
        self, fullname: str, path: Any = None, target: types.ModuleType | None = None
    ) -> ModuleSpec | None:
        """An alias for the old path of a module of the package; None for any other name."""
        moved = MOVED.get(fullname.removeprefix(PACKAGE)) if fullname.startswith(PACKAGE) else None
        return ModuleSpec(fullname, _Alias(moved)) if moved else None


class _Alias(Loader):
    """Makes a module whose names are looked up in the new ones when they are asked for."""

    def __init__(self, moved: Moved):
        self.moved = moved

    def create_module(self, spec: ModuleSpec) -> types.ModuleType:
        module = types.ModuleType(spec.name)
        new = " and ".join(PACKAGE + name for name in self.moved.modules)
        warnings.warn(f"{spec.name} has moved to {new}. Import it from there.", FutureWarning, stacklevel=2)

        def find(name: str) -> Any:
            return _find(spec.name, self.moved, name)

        module.__dict__["__getattr__"] = find
        return module

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing is run: the new modules hold everything."""

    def get_code(self, fullname: str) -> types.CodeType | None:
        """What `python -m` runs for the old path of a command: the new module."""
        command = PACKAGE + self.moved.modules[0]
        run = f"import runpy; runpy.run_module({command!r}, run_name='__main__', alter_sys=True)"
        return compile(run, fullname, "exec")


def install() -> None:
    """Let imports find old paths, after everything that is found by its own."""
    if not any(isinstance(finder, OldPaths) for finder in sys.meta_path):
        sys.meta_path.append(OldPaths())


def _find(old: str, moved: Moved, name: str) -> Any:
    """The value that the old module had under `name`."""
    new_name = moved.names.get(name, name)
    for path in moved.modules:
        module = importlib.import_module(PACKAGE + path)
        if hasattr(module, new_name):
            return getattr(module, new_name)
    raise AttributeError(f"module {old!r} has no attribute {name!r}")


MOVED = {
    "data.beam": Moved(
        ("data.sources.beam", "data.readers.parts"), {"Part": "FileRange", "count": "count_chunks"}
    ),
    "data.benchmarks": Moved(
        (
            "data.eval_tasks.registry",
            "data.eval_tasks.kilt",
            "data.eval_tasks.task",
            "data.eval_tasks.multiple_choice",
        ),
        {
            "BENCHMARKS": "EVAL_TASKS",
            "Benchmark": "EvalTask",
            "Item": "EvalExample",
            "Part": "TaskPart",
            "Source": "TaskFile",
        },
    ),
    "data.build": Moved(
        ("data.finetuning.tfds_builders",), {"build": "build_dataset", "build_named": "build_datasets"}
    ),
    "data.cloze": Moved(("data.batches.cloze",), {"Candidate": "ClozeSpan"}),
    "data.corpus": Moved(
        ("data.artifacts.corpus", "data.artifacts.chunk_writing", "data.artifacts.chunks"), {}
    ),
    "data.documents": Moved(
        ("data.readers.documents", "data.readers.chunking", "data.readers.unique_ids"), {}
    ),
    "data.examples": Moved(("data.batches.examples",), {"Tokenizer": "TextTokenizer"}),
    "data.finetuning.tasks": Moved(
        ("data.finetuning.datasets",),
        {"TASKS": "DATASETS", "Task": "Dataset", "task_named": "dataset_named"},
    ),
    "data.folder": Moved(("data.sources.folder",), {"read": "read_folder", "surprises": "folder_warnings"}),
    "data.instructions": Moved(
        ("data.sources.instructions",), {"check": "check_files", "surprises": "instruction_warnings"}
    ),
    "data.kilt_pages": Moved(("data.readers.kilt_pages",), {}),
    "data.lines": Moved(
        ("data.readers.lines", "data.readers.tables"), {"as_object": "line_object", "shown": "quoted"}
    ),
    "data.order": Moved(("data.batches.order",), {}),
    "data.overlap": Moved(("data.finetuning.asked_elsewhere", "retrieval.copied_answers"), {}),
    "data.packing": Moved(
        ("data.batches.packing",),
        {
            "Sequence": "PrefixTree",
            "branch_places": "continuation_places",
            "has_branches": "has_continuations",
            "join": "concatenate_spans",
        },
    ),
    "data.questions": Moved(("data.readers.questions",), {}),
    "data.retrieved": Moved(("data.artifacts.retrieved",), {}),
    "data.scores": Moved(("data.artifacts.lsr_scores",), {}),
    "data.sequences": Moved(("data.batches.prefix_trees",), {}),
    "data.shots": Moved(("data.batches.few_shot",), {}),
    "data.world": Moved(
        ("data.sources.generated_world", "data.sources.world_vocabulary"),
        {"KINDS": "ENTITY_KINDS", "read": "generate_world"},
    ),
    "harness": Moved(
        ("evaluation.harness_model", "lm_eval"),
        {"Forced": "ContinuationRequest", "LONGEST": "DEFAULT_ANSWER_TOKENS"},
    ),
    "init": Moved(("commands.init",), {}),
    "lm.benchmarking": Moved(
        ("evaluation.task_suite", "evaluation.questions"),
        {
            "Mark": "ExampleResult",
            "Sat": "TaskResult",
            "Trial": "LoadedTask",
            "TrialChunks": "TaskChunks",
            "load_trials": "load_tasks",
            "retrieve": "retrieve_for_task",
            "sit": "evaluate_task",
        },
    ),
    "lm.choosing": Moved(
        ("evaluation.multiple_choice",), {"BLOCK": "ITEMS_PER_BLOCK", "Chosen": "ChoiceResult"}
    ),
    "lm.exam": Moved(
        ("evaluation.corpus_questions", "evaluation.questions"),
        {"Exam": "CorpusQuestionEval", "Sitting": "SystemInputs", "fitting": "questions_that_fit"},
    ),
    "lm.signal": Moved(("lm.lsr_diagnostics",), {}),
    "method.decode": Moved(
        ("method.generation", "method.answer_scoring", "lm.ensemble", "lm.answer_rows", "lm.prefix_sharing"),
        {
            "Candidate": "AnswerCandidate",
            "Decoding": "DecodeState",
            "ROWS": "PROMPTS_PER_PREFILL",
            "Reading": "PrefillBatch",
            "Rows": "TokenRows",
            "SHARED": "MAX_WHOLE_PROMPT",
            "STEPS": "STEPS_PER_CALL",
            "TAIL": "SUFFIX_SLOTS",
            "Transfer": "DevicePlacement",
            "advance": "decode_steps",
            "begin": "init_decode",
            "cut_prompts": "split_shared_prefixes",
            "forced_log_probs": "continuation_log_likelihood",
            "lay_out": "build_prefill_batch",
            "readings": "prefill_batches",
        },
    ),
    "method.lm": Moved(
        ("method.likelihood",),
        {"SLOTS": "TARGETS_PER_PART", "branch_log_probs": "continuation_log_probs"},
    ),
    "models.llama": Moved(("models.decoder",), {"Llama": "DecoderLm", "LlamaSelfAttention": "SelfAttention"}),
    "new_experiment": Moved(("commands.new_experiment",), {}),
    "planning.need": Moved(
        ("planning.resources",),
        {
            "Need": "ResourceEstimate",
            "Program": "StageProgram",
            "count": "num_parameters",
            "judged": "check_fits",
            "need_of": "estimate",
            "size": "num_bytes",
        },
    ),
    "planning.packed": Moved(("planning.estimates",), {}),
    "planning.site": Moved(("planning.deployment",), {"Site": "Deployment"}),
    "ranges": Moved(("config.ranges",), {}),
    "retrieval.trees": Moved(("retrieval.scann",), {"Tree": "ScannShard", "Trees": "ScannShards"}),
    "runtime.bucket": Moved(
        ("runtime.storage.bucket", "runtime.storage.lease"),
        {"modified": "last_modified", "remove": "delete_objects", "subfolders": "list_prefixes"},
    ),
    "runtime.checkpoint": Moved(("runtime.storage.checkpoints",), {}),
    "runtime.described": Moved(
        ("runtime.pretrained.checkpoint_info",),
        {"Described": "CheckpointInfo", "check_experiment": "check_checkpoints", "place": "locate"},
    ),
    "runtime.errors": Moved(("errors",), {}),
    "runtime.fields": Moved(("runtime.pretrained.fields",), {"shown": "shown_value"}),
    "runtime.files": Moved(("runtime.storage.files",), {}),
    "runtime.hf_config": Moved(
        (
            "runtime.pretrained.hf_config",
            "runtime.pretrained.decoder_config",
            "runtime.pretrained.fields",
            "config",
        ),
        {
            "BERTS": "NETWORKS",
            "LLAMA_FIELDS": "DECODER_FIELDS",
            "llama_config": "decoder_config",
            "llama_json": "decoder_json",
            "model_type": "network_of",
        },
    ),
    "runtime.hosts": Moved(
        ("runtime.distributed.processes", "runtime.distributed.topology"),
        {
            "Program": "ProcessGroup",
            "Told": "T",
            "by_first": "on_process_zero",
            "find_place": "find_topology",
            "heeding_signals": "handling_signals",
            "is_first": "is_process_zero",
            "is_several": "is_multiprocess",
            "join": "join_processes",
            "leave": "shutdown",
            "meet": "barrier",
            "share": "process_index_and_count",
        },
    ),
    "runtime.hub": Moved(("runtime.pretrained.hub",), {}),
    "runtime.licences": Moved(("runtime.pretrained.licences",), {}),
    "runtime.locks": Moved(("runtime.storage.locks",), {}),
    "runtime.memory": Moved(
        ("runtime.distributed.memory",), {"DoesNotFit": "DoesNotFitError", "share": "bytes_per_device"}
    ),
    "runtime.mesh": Moved(
        ("runtime.distributed.mesh",),
        {
            "fit_module": "configure_attention",
            "laid_out": "abstract_sharded",
            "spread_like": "batch_placer",
            "ways": "data_parallel_size",
        },
    ),
    "runtime.models": Moved(("runtime.pretrained.model_io",), {"num_parameters": "count_parameters"}),
    "runtime.progress": Moved(
        ("runtime.monitoring.progress", "runtime.monitoring.metrics", "runtime.monitoring.trackers"),
        {"check_wandb": "check_trackers"},
    ),
    "runtime.publish": Moved(
        ("runtime.pretrained.hf_export",), {"publish": "export_hf", "publish_adapters": "export_peft"}
    ),
    "runtime.rendezvous": Moved(
        ("runtime.distributed.rendezvous", "runtime.distributed.join_token"),
        {
            "Line": "JsonConnection",
            "Place": "ProcessTopology",
            "TOKEN": "TOKEN_VARIABLE",
            "Token": "JoinToken",
            "roll_call": "rendezvous",
        },
    ),
    "runtime.sources": Moved(("runtime.storage.source_hashes",), {}),
    "runtime.speed": Moved(("runtime.monitoring.throughput", "runtime.distributed.accelerators"), {}),
    "runtime.store": Moved(
        (
            "runtime.storage.stage_folder",
            "runtime.storage.top_level_folder",
            "runtime.storage.workdir",
            "runtime.storage.fingerprints",
            "runtime.storage.manifests",
        ),
        {"PublishedFolder": "TopLevelFolder"},
    ),
    "runtime.targets": Moved(("runtime.distributed.accelerators",), {}),
    "runtime.tensorfiles": Moved(("runtime.pretrained.tensor_files",), {}),
    "runtime.tokenizers": Moved(
        (
            "runtime.pretrained.tokenizers",
            "runtime.pretrained.tokenizer_files",
            "runtime.pretrained.tokenizer_training",
        ),
        {},
    ),
    "runtime.vectors": Moved(("runtime.pretrained.vectors",), {}),
    "settings": Moved(("commands.settings",), {}),
    "text.report": Moved(
        ("text.results_table",),
        {
            "CONTEXTS": "CONTEXT_TITLES",
            "RETRIEVERS": "RETRIEVER_TITLES",
            "SYSTEMS": "SYSTEM_TITLES",
            "table": "results_table",
        },
    ),
}
