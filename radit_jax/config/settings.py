"""The settings of a run: a frozen dataclass per stage, gathered in an `Experiment`.

An experiment is a Python file under `experiments/` with a function `experiment()` that returns an
`Experiment`; a variant is `dataclasses.replace` of another. A number's type is its range (`ranges.py`).
Nothing here imports jax, so that the command line can say what would run without starting an accelerator.
"""

import re
from dataclasses import InitVar, dataclass, field, replace
from typing import Annotated, Literal

from radit_jax.config.data_settings import Folder, GeneratedWorld, Instructions
from radit_jax.config.ranges import (
    Fraction,
    FractionBelowOne,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveFloat,
    PositiveFraction,
    PositiveInt,
    Range,
    Seed,
    Settings,
    Temperature,
    added,
)
from radit_jax.config.renamed_settings import MovedValue, accept_old_names
from radit_jax.config.shapes import PROJECTIONS, DecoderConfig, Direction, EncoderConfig, LmScoreForm, Pooling

Dtype = Literal["float32", "bfloat16"]
MeshSize = Annotated[int, Range(-1, 1_000_000)]
TextLength = Annotated[int, Range(3, 10_000_000)]  # tokens; the two at a text's ends leave one of its own


@dataclass(frozen=True)
class OptimizerConfig(Settings):
    """An optax optimiser with its learning-rate schedule.

    The schedule warms up linearly over `warmup_steps`, holds `peak_lr` until `decay_from` (a fraction
    of `steps`), and then decays to `end_lr` in the given shape at step `steps`.
    """

    steps: NonNegativeInt
    peak_lr: NonNegativeFloat
    end_lr: NonNegativeFloat = 0.0
    warmup_steps: NonNegativeInt = 0
    decay: Literal["cosine", "linear"] = "linear"
    decay_from: Fraction = 0.0
    name: Literal["adamw", "muon"] = "adamw"
    adam_lr: NonNegativeFloat = 0.0  # muon only: the peak for embeddings, norms and heads, which Adam trains
    b1: FractionBelowOne = 0.9
    b2: FractionBelowOne = 0.95
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat = 1.0


@dataclass(frozen=True)
class MeshConfig(Settings):
    """Sizes of the device mesh, and how its devices compute.

    −1 takes the devices that are left. Where both `fsdp` and `tensor` do, each stage's `fsdp` is the largest
    that divides its batch, and `tensor` is the rest. Nothing here changes a result beyond rounding, so no
    fingerprint knows of it.
    """

    replica: MeshSize = 1
    fsdp: MeshSize = -1
    tensor: MeshSize = -1
    attention: Literal["auto", "xla", "splash", "cudnn"] = "auto"  # of packed rows; auto: what the device has
    remat: Literal["none", "dots", "full"] = "none"  # of an LM's layers, what is computed again for gradients


@dataclass(frozen=True)
class LmConfig(Settings):
    """The base language model: a checkpoint, or one trained from scratch on the corpus' own text."""

    checkpoint: str = ""  # in Hugging Face's form (runtime/pretrained/hub.py) or our export's; empty: none
    prompt: Literal["plain", "chat"] = added("plain")  # chat: in the checkpoint's own chat template
    model: DecoderConfig | None = None  # to be trained, or what the checkpoint has to be
    init: Literal["normal", "mimetic"] = "normal"
    optimizer: OptimizerConfig | None = None
    batch_size: PositiveInt = 16  # rows
    sequence_length: TextLength = 256  # tokens in a row


@dataclass(frozen=True)
class RetrieverConfig(Settings):
    """A dual encoder: two parameter trees of one BERT, from checkpoints or trained from scratch.

    From checkpoints it may be a decoder that is an encoder, too (`LastTokenConfig`).

    How vectors are made, and what stands before texts, a checkpoint's own files say; a setting says it where
    they do not, and one that says otherwise is refused. Where neither does it is [CLS]'s vector as it is.
    """

    checkpoint: str = ""  # in Hugging Face's form (runtime/pretrained/hub.py); empty: from scratch
    chunk_checkpoint: str = ""  # empty: the chunk encoder starts as the query encoder does
    num_layers: NonNegativeInt = 0  # keep the checkpoint's first layers only; 0: all
    pooling: Pooling | None = None  # None: the checkpoint's, or `model`'s
    normalize: bool | None = None  # likewise
    query_prompt: str | None = None  # before every query ("query: "); None: the checkpoint's, if it has one
    chunk_prompt: str | None = None  # before every chunk ("passage: "); likewise
    model: EncoderConfig | None = None  # to be trained, or what the checkpoints have to be
    optimizer: OptimizerConfig | None = None
    groups_per_batch: PositiveInt = 16  # groups of hard negatives in an InfoNCE batch
    temperature: Temperature = 1.0  # of the InfoNCE softmax
    query_length: TextLength = 64  # tokens; longer queries are cut
    chunk_length: TextLength = 256


@dataclass(frozen=True)
class BaseConfig(Settings):
    """What RA-DIT starts from: the untuned language model and the untuned dual encoder."""

    lm: LmConfig
    retriever: RetrieverConfig


@dataclass(frozen=True)
class EmbedConfig(Settings):
    """How the corpus' chunks become vectors."""

    batch_size: PositiveInt = 64
    dtype: Dtype = "float32"
    shard_size: PositiveInt = 4096  # chunks in a shard: what a killed run loses at most


@dataclass(frozen=True)
class IndexConfig(Settings):
    """What searches the chunks' vectors."""

    kind: Literal["auto", "exact", "scann"] = "auto"  # auto: ScaNN's tree for large corpora only
    target_recall: PositiveFraction = 0.95  # recall@10 against exact search, on held-out queries
    shard_size: PositiveInt = 2_000_000  # chunks in a ScaNN tree: 6 GB of 768 numbers, and more in its build


@dataclass(frozen=True)
class RetrieveConfig(Settings):
    """What R-ft and Eq. 2 share of retrieval. Only `num_chunks` makes the stage `retrieve` run again."""

    num_chunks: PositiveInt = 10  # |C'| of R-ft and of Eq. 2: the paper's 10
    temperature: Temperature = 1.0  # of p_R, in R-ft, in answering and in KILT's choice of a checkpoint


@dataclass(frozen=True)
class LoraConfig(Settings):
    """LoRA (`models/lora.py`): adapters of a low rank learn, the network stays as it is."""

    rank: NonNegativeInt = 0  # 0: no adapters, the network itself learns
    alpha: PositiveFloat = 16.0  # adapters are scaled by alpha / rank
    targets: tuple[str, ...] = PROJECTIONS  # what has an adapter, in every layer
    quantize: Literal["none", "int8", "int4"] = "none"  # QLoRA: the frozen kernels, while adapters learn


@accept_old_names("lm_ft")
@dataclass(frozen=True)
class LmFtConfig(Settings):
    """LM-ft, Eq. 3. METHOD: k̃ = 3; 10 % of the examples are unsupervised text."""

    optimizer: OptimizerConfig
    lora: LoraConfig = field(default_factory=LoraConfig)
    batch_size: PositiveInt = 64  # rows
    accumulate_steps: PositiveInt = 1  # parts in which a batch is taken, to save memory
    sequence_length: TextLength = 2048
    dtype: Dtype = "float32"  # to compute in; parameters and optimiser are float32
    chunks_per_example: PositiveInt = 3
    corpus_text_fraction: FractionBelowOne = 0.1
    gold_context_fraction: Fraction = 0.0  # of questions, whose Background is a gold chunk, not retrieved
    retrieved_background: bool = True  # false: examples without a gold context have no Background
    retriever: RetrieverConfig | None = None  # None: the base retriever
    force_gold: bool = False  # put a gold chunk among each example's chunks
    select: Literal["dev_log_prob", "kilt_dev"] = "dev_log_prob"  # what the kept checkpoint is the best in
    select_folder: str = ""  # kilt_dev: KILT's development files
    select_questions: PositiveInt = 2500  # kilt_dev: of each of its six tasks, at most
    validate_every: NonNegativeInt = 100
    validate_examples: NonNegativeInt = added(0)  # of the dev part's, drawn; 0: all
    checkpoint_every: NonNegativeInt = 100

    @property
    def rows_at_a_time(self) -> int:
        """What the devices have of a batch at once."""
        return self.batch_size // self.accumulate_steps


OWN_LABELLERS = ("base", "lm_ft")  # the run's own language models
SCORES_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst")


@dataclass(frozen=True)
class ScoreConfig(Settings):
    """LSR scoring: answer log-probabilities under each chunk, from which Eq. 4 is made later."""

    # Who labels: "base" or "lm_ft"; a checkpoint, as the paper's 65B model labels for all sizes; or a file of
    # scores, FILE.jsonl, as `export.lsr_scores` writes it (data/artifacts/scores_file.py).
    language_model: str = "base"
    batch_size: PositiveInt = 16  # rows
    sequence_length: TextLength = 512
    dtype: Dtype = "float32"  # to compute in; log-probabilities are float32
    shard_size: PositiveInt = 4096  # (example, chunk) pairs in a shard, about

    @property
    def file(self) -> str:
        """The file of scores that `language_model` names, or ""."""
        return self.language_model if self.language_model.endswith(SCORES_SUFFIXES) else ""

    @property
    def checkpoint(self) -> str:
        """The checkpoint that `language_model` names, or ""."""
        return "" if self.file or self.language_model in OWN_LABELLERS else self.language_model


@accept_old_names("r_ft")
@dataclass(frozen=True)
class RFtConfig(Settings):
    """R-ft, Eq. 4 and 5. The temperature of p_R is in `RetrieveConfig`."""

    optimizer: OptimizerConfig
    batch_size: PositiveInt = 64  # queries
    lm_score: LmScoreForm = "token_geomean"
    tau: Temperature = 0.01
    direction: Direction = "retrieval_to_lsr"
    target: Literal["lsr", "posterior"] = "lsr"
    corpus_text_fraction: Fraction = 0.95
    text_tokens: PositiveInt = 50  # a chunk's first tokens are x, its last are y
    num_examples: NonNegativeInt = 0  # of D_R, tasks and text; 0: all tasks, and text for its fraction
    train_chunk_encoder: bool = False  # both encoders learn; the corpus is embedded again for evaluation
    refresh_every: NonNegativeInt = 0  # steps; 0: the candidates of the base retriever stay (the paper)
    validate_every: NonNegativeInt = 100
    checkpoint_every: NonNegativeInt = 100
    _temperature: InitVar[MovedValue | None] = None  # of the old name of `retrieve.temperature`

    def __post_init__(self, _temperature: MovedValue | None) -> None:
        super().__post_init__()
        object.__setattr__(self, "_temperature", _temperature)


OWN_ANSWERS = 16  # tokens of an answer to the corpus' own questions, which are short


@dataclass(frozen=True)
class EvaluateConfig(Settings):
    """What the trained models are asked, and how they answer."""

    split: Literal["test", "dev", "official", "hidden"] = "test"  # tune on dev; docs/tasks.md has the others
    chunks_per_answer: PositiveInt = 10  # k of Eq. 2
    ensemble: Literal["answer", "token", "concatenate"] = "answer"  # over whole answers: the paper's
    max_new_tokens: NonNegativeInt = 0  # of an answer; 0: each task's own, of the corpus' own OWN_ANSWERS
    sequence_length: TextLength = 512  # tokens of Background, prompt and answer; a longer Background is cut
    prompts_per_batch: PositiveInt = 160  # a prompt is one chunk and the question
    batch_size: PositiveInt = 16  # rows of packed answers to be scored
    dtype: Dtype = "float32"  # to compute in, and of what is kept of prompts
    bootstrap_samples: PositiveInt = 2000
    tasks: tuple[str, ...] = ()  # names (data/eval_tasks/registry.py) or files; none: the corpus' questions
    tasks_folder: str = ""  # the tasks' official files
    kilt_titles: str = ""  # a table of titles and KILT's page ids, for a corpus whose ids are others
    questions_per_task: NonNegativeInt = 0  # drawn from each; 0: all. The paper's development takes 2,500
    answers: bool = added(True)  # false: the retrievers alone are measured, without a language model
    answered_questions: NonNegativeInt = added(0)  # of the corpus' own, drawn; 0: all. Retrieval takes all
    shots: NonNegativeInt = 0  # examples in the prompt, each task's own; of the corpus see shot_questions
    shot_questions: PositiveInt = added(300)  # of the corpus' own, asked of the base LM after shots, too
    shot_backgrounds: bool = True  # each shot has its own top chunk before it

    def answering(self, longest: int = OWN_ANSWERS) -> "EvaluateConfig":
        """The same where answers have a length: the one that is set, else `longest`, a task's own."""
        return replace(self, max_new_tokens=self.max_new_tokens or longest)


@dataclass(frozen=True)
class ExportConfig(Settings):
    """What export leaves beside our own form of the models."""

    hf: bool = True  # hf/: for transformers, vLLM and sentence-transformers
    dtype: Dtype = "float32"  # of hf/
    shard_gigabytes: PositiveFloat = 5.0  # of tensors in one file of hf/
    run_depth: NonNegativeInt = 100  # chunks per question in runs/, in TREC's form; 0: no runs
    lsr_scores: bool = False  # Eq. 4's scores of the training examples (data/artifacts/scores_file.py)
    measured: bool = True  # the model card has evaluate's table, for which evaluate runs first


@dataclass(frozen=True)
class ProfileConfig(Settings):
    """What to look at closely while it runs; it never changes a result."""

    steps: str = ""  # updates of a training loop to trace for XProf: 10:15 is those from 10 to 15, from 1

    @property
    def updates(self) -> tuple[int, int] | None:
        """The first and the last update to trace, counted from 1; None where none is."""
        if not self.steps:
            return None
        match = re.fullmatch(r"(\d+):(\d+)", self.steps)
        first, last = map(int, match.groups()) if match else (0, 0)
        if not 1 <= first <= last:
            raise ValueError(
                f"profile.steps: expected FIRST:LAST, counted from 1, got {self.steps!r}. "
                "Write for example 10:15."
            )
        return first, last


@dataclass(frozen=True)
class Experiment(Settings):
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
    seed: Seed = 0
    keep_checkpoints: bool = False  # of a stage that has finished, which needs them no longer

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.r_ft, RFtConfig) and isinstance(self.retrieve, RetrieveConfig):
            r_ft, retrieve = _settle_temperature(self.r_ft, self.retrieve)
            object.__setattr__(self, "r_ft", r_ft)
            object.__setattr__(self, "retrieve", retrieve)


def _settle_temperature(r_ft: RFtConfig, retrieve: RetrieveConfig) -> tuple[RFtConfig, RetrieveConfig]:
    """Put what `r_ft.temperature`, an old name, was given under its new name; both sections of an Experiment.

    Raises ValueError where the new name was given another value.
    """
    moved: MovedValue | None = vars(r_ft)["_temperature"]
    if moved is not None and moved.is_given:
        if retrieve.temperature not in (RetrieveConfig.temperature, moved.value, moved.in_experiment):
            raise ValueError(
                f"r_ft.temperature: expected one name of the setting, got {moved.value} and "
                f"retrieve.temperature={retrieve.temperature}. Leave the old name out."
            )
        retrieve = replace(retrieve, temperature=moved.value)
    settled = MovedValue(retrieve.temperature, retrieve.temperature)
    return replace(r_ft, _temperature=settled), retrieve
