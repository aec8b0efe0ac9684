"""The settings of a run: a frozen dataclass per stage, gathered in an `Experiment`.

An experiment is a Python file under `experiments/` with a function `experiment()` that returns an
`Experiment`; a variant is `dataclasses.replace` of another. A number's type is its range (`ranges.py`).
Nothing here imports jax, so that the command line can say what would run without starting an accelerator.
"""

import os
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

    steps: NonNegativeInt  # updates of the parameters; 0: none, the model stays as it is
    peak_lr: NonNegativeFloat  # learning rate at the end of the warm-up
    end_lr: NonNegativeFloat = 0.0  # learning rate at the last step
    warmup_steps: NonNegativeInt = 0  # steps in which the rate rises from 0 to its peak
    decay: Literal["cosine", "linear"] = "linear"  # shape of the way from the peak to `end_lr`
    decay_from: Fraction = 0.0  # share of `steps` after which the rate decays; until then it holds its peak
    name: Literal["adamw", "muon"] = "adamw"  # AdamW for all parameters, or Muon for the layers' matrices
    adam_lr: NonNegativeFloat = 0.0  # muon only: the peak for embeddings, norms and heads, which Adam trains
    b1: FractionBelowOne = 0.9  # decay of the mean of gradients, Adam's β1
    b2: FractionBelowOne = 0.95  # decay of the mean of squared gradients, Adam's β2
    # share of a parameter that is taken off, times the rate, at each step
    weight_decay: NonNegativeFloat = 0.0
    clip_norm: PositiveFloat = 1.0  # gradients of a greater norm, over all parameters, are scaled to it


@dataclass(frozen=True)
class MeshConfig(Settings):
    """Sizes of the device mesh, and how its devices compute.

    −1 takes the devices that are left. Where both `fsdp` and `tensor` do, each stage's `fsdp` is the largest
    that divides its batch, and `tensor` is the rest. Over several TPU slices or nodes of GPUs, `replica` is
    what the slower network divides first, and then `fsdp`. Nothing here changes a result beyond rounding, so
    no fingerprint knows of it.
    """

    # groups of devices that each hold a whole copy of the parameters; -1: one a TPU slice or node of GPUs
    replica: MeshSize = 1
    fsdp: MeshSize = -1  # devices over which parameters and the batch are sharded; -1: those left
    tensor: MeshSize = -1  # devices that share the sums inside a layer; -1: those left
    # devices that share a copy of a language model that answers; -1: as few as have room for it
    answering_tensor: MeshSize = added(-1)
    # kernel for packed rows; auto: what the device has
    attention: Literal["auto", "xla", "splash", "cudnn"] = "auto"
    # what of an LM's layers is computed again for gradients, to save memory
    remat: Literal["none", "dots", "full"] = "none"


@dataclass(frozen=True)
class LmConfig(Settings):
    """The base language model: a checkpoint, or one trained from scratch on the corpus' own text."""

    # checkpoint in Hugging Face's form (runtime/pretrained/hub.py) or our export's; empty: none
    checkpoint: str = ""
    # form of what the model reads; chat: the checkpoint's own chat template
    prompt: Literal["plain", "chat"] = added("plain")
    model: DecoderConfig | None = None  # the network to be trained, or what the checkpoint has to be
    # start of training from scratch; mimetic: layers that already look up and copy
    init: Literal["normal", "mimetic"] = "normal"
    optimizer: OptimizerConfig | None = None  # optimiser of training from scratch
    batch_size: PositiveInt = 16  # rows in a batch of training from scratch
    sequence_length: TextLength = 256  # tokens in a row of training from scratch


@dataclass(frozen=True)
class RetrieverConfig(Settings):
    """A dual encoder: two parameter trees of one BERT, from checkpoints or trained from scratch.

    From checkpoints it may be a decoder that is an encoder, too (`LastTokenConfig`).

    How vectors are made, and what stands before texts, a checkpoint's own files say; a setting says it where
    they do not, and one that says otherwise is refused. Where neither does it is [CLS]'s vector as it is.
    """

    # query encoder in Hugging Face's form (runtime/pretrained/hub.py); empty: from scratch
    checkpoint: str = ""
    chunk_checkpoint: str = ""  # chunk encoder; empty: it starts as the query encoder does
    num_layers: NonNegativeInt = 0  # keep the checkpoint's first layers only; 0: all
    pooling: Pooling | None = None  # how tokens' vectors become one; None: the checkpoint's way, or `model`'s
    normalize: bool | None = None  # vectors have length 1; None: as the checkpoint, or `model`, says
    # text before every query, such as "query: "; None: the checkpoint's, if it has one
    query_prompt: str | None = None
    # text before every chunk, such as "passage: "; None: the checkpoint's, if it has one
    chunk_prompt: str | None = None
    model: EncoderConfig | None = None  # the network to be trained, or what the checkpoints have to be
    optimizer: OptimizerConfig | None = None  # optimiser of training from scratch
    # groups of hard negatives in an InfoNCE batch of training from scratch
    groups_per_batch: PositiveInt = 16
    temperature: Temperature = 1.0  # temperature of the InfoNCE softmax of training from scratch
    query_length: TextLength = 64  # tokens of a query; a longer one is cut
    chunk_length: TextLength = 256  # tokens of a chunk, with its title; a longer one is cut


@dataclass(frozen=True)
class BaseConfig(Settings):
    """What RA-DIT starts from: the untuned language model and the untuned dual encoder."""

    lm: LmConfig  # the untuned language model
    retriever: RetrieverConfig  # the untuned dual encoder


@dataclass(frozen=True)
class EmbedConfig(Settings):
    """How the corpus' chunks become vectors."""

    batch_size: PositiveInt = 64  # chunks that are embedded at once; changes speed and memory only
    dtype: Dtype = "float32"  # type of numbers that the encoder computes in
    shard_size: PositiveInt = 4096  # chunks in a shard: what a killed run loses at most


@dataclass(frozen=True)
class IndexConfig(Settings):
    """What searches the chunks' vectors."""

    # exact search or ScaNN's tree; auto: the tree for large corpora only
    kind: Literal["auto", "exact", "scann"] = "auto"
    # least recall@10 of the tree against exact search, on held-out queries
    target_recall: PositiveFraction = 0.95
    shard_size: PositiveInt = 2_000_000  # chunks in a ScaNN tree: 6 GB of 768 numbers, and more in its build


@dataclass(frozen=True)
class RetrieveConfig(Settings):
    """What R-ft and Eq. 2 share of retrieval. Only `num_chunks` makes the stage `retrieve` run again."""

    num_chunks: PositiveInt = 10  # chunks of a query in R-ft, |C'| of Eq. 4 and 5
    # temperature of the softmax p_R in R-ft, answering and KILT's choice of a checkpoint
    temperature: Temperature = 1.0


@dataclass(frozen=True)
class LoraConfig(Settings):
    """LoRA (`models/lora.py`): adapters of a low rank learn, the network stays as it is."""

    rank: NonNegativeInt = 0  # rank of an adapter's two matrices; 0: no adapters, the network itself learns
    alpha: PositiveFloat = 16.0  # adapters are scaled by alpha / rank
    targets: tuple[str, ...] = PROJECTIONS  # projections that have an adapter, in every layer
    # QLoRA: type of the frozen kernels while adapters learn
    quantize: Literal["none", "int8", "int4"] = "none"


@accept_old_names("lm_ft")
@dataclass(frozen=True)
class LmFtConfig(Settings):
    """LM-ft, Eq. 3."""

    optimizer: OptimizerConfig  # optimiser and learning-rate schedule of LM-ft
    lora: LoraConfig = field(default_factory=LoraConfig)  # adapters that learn in place of the whole network
    batch_size: PositiveInt = 64  # rows in a batch, each packed with several examples
    accumulate_steps: PositiveInt = 1  # parts in which a batch is taken, to save memory; must divide it
    sequence_length: TextLength = 2048  # tokens in a row
    dtype: Dtype = "float32"  # type of numbers to compute in; parameters and optimiser are float32
    # the gradient of the logits is rounded to `dtype`, in which its products are then faster
    round_head_gradient: bool = added(False)
    chunks_per_example: PositiveInt = 3  # retrieved chunks of an example, each an instance of its own: k̃
    corpus_text_fraction: FractionBelowOne = 0.1  # share of instances that are plain text of the corpus
    # share of questions whose Background is a gold chunk, not retrieved
    gold_context_fraction: Fraction = 0.0
    retrieved_background: bool = True  # false: examples without a gold context have no Background
    # the dual encoder that retrieves for LM-ft; None: the base retriever
    retriever: RetrieverConfig | None = None
    force_gold: bool = False  # put a gold chunk among each example's chunks
    # what the kept checkpoint is best in: log p of the dev answers, or KILT's dev tasks
    select: Literal["dev_log_prob", "kilt_dev"] = "dev_log_prob"
    select_folder: str = ""  # kilt_dev: folder with KILT's development files
    select_questions: PositiveInt = 2500  # kilt_dev: questions of each of its six tasks, at most
    validate_every: NonNegativeInt = 100  # steps between validations; 0: at the start and the end only
    validate_examples: NonNegativeInt = added(0)  # examples of the dev part that validate, drawn; 0: all
    # steps between saved states, from which a killed run resumes; 0: the last only
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
    batch_size: PositiveInt = 16  # rows that are scored at once; changes speed and memory only
    sequence_length: TextLength = 512  # tokens in a row of Background, question and answers
    dtype: Dtype = "float32"  # type of numbers to compute in; log-probabilities are float32
    # (example, chunk) pairs in a shard, about: what a killed run loses at most
    shard_size: PositiveInt = 4096

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

    optimizer: OptimizerConfig  # optimiser and learning-rate schedule of R-ft
    batch_size: PositiveInt = 64  # queries in a batch, each with its chunks
    # p_LM(y|c∘x) in Eq. 4: exp of the mean log p of a token, the product, mean or sum of log p
    lm_score: LmScoreForm = "token_geomean"
    tau: Temperature = 0.01  # temperature τ of the softmax p_LSR in Eq. 4
    # divergence in Eq. 5: KL(p_R‖p_LSR), KL(p_LSR‖p_R), or their mean
    direction: Direction = "retrieval_to_lsr"
    # what p_R learns: the LM's p_LSR, or the posterior, p_R · p_LSR normalised
    target: Literal["lsr", "posterior"] = "lsr"
    # share of examples that are text of the corpus; the others are tasks
    corpus_text_fraction: Fraction = 0.95
    text_tokens: PositiveInt = 50  # tokens of a text example: a chunk's first are x, its last are y
    # examples of D_R, tasks and text; 0: all tasks, and text for its fraction
    num_examples: NonNegativeInt = 0
    train_chunk_encoder: bool = False  # both encoders learn; the corpus is embedded again for evaluation
    refresh_every: NonNegativeInt = 0  # steps between new candidates; 0: those of the base retriever stay
    validate_every: NonNegativeInt = 100  # steps between validations; 0: at the start and the end only
    # steps between saved states, from which a killed run resumes; 0: the last only
    checkpoint_every: NonNegativeInt = 100
    _temperature: InitVar[MovedValue | None] = None  # of the old name of `retrieve.temperature`

    def __post_init__(self, _temperature: MovedValue | None) -> None:
        super().__post_init__()
        object.__setattr__(self, "_temperature", _temperature)


OWN_ANSWERS = 16  # tokens of an answer to the corpus' own questions, which are short


@dataclass(frozen=True)
class EvaluateConfig(Settings):
    """What the trained models are asked, and how they answer."""

    # questions to ask; tune on dev; docs/tasks.md says what the others are
    split: Literal["test", "dev", "official", "hidden"] = "test"
    chunks_per_answer: PositiveInt = 10  # chunks of a question, k of Eq. 2
    # how chunks' answers become one, over whole answers, tokens, or in one prompt
    ensemble: Literal["answer", "token", "concatenate"] = "answer"
    # tokens of an answer; 0: each task's own, and OWN_ANSWERS of the corpus' own
    max_new_tokens: NonNegativeInt = 0
    sequence_length: TextLength = 512  # tokens of Background, prompt and answer; a longer Background is cut
    # prompts at once, each one chunk and the question; changes speed and memory only
    prompts_per_batch: PositiveInt = 160
    # rows of packed answers that are scored at once; changes speed and memory only
    batch_size: PositiveInt = 16
    dtype: Dtype = "float32"  # type of numbers to compute in, and of what is kept of prompts
    bootstrap_samples: PositiveInt = 2000  # samples of the bootstrap for 95 % intervals
    # names (data/eval_tasks/registry.py) or files; none: the corpus' own questions
    tasks: tuple[str, ...] = ()
    tasks_folder: str = ""  # folder with the tasks' official files
    kilt_titles: str = ""  # a table of titles and KILT's page ids, for a corpus whose ids are others
    questions_per_task: NonNegativeInt = 0  # questions drawn from each task; 0: all
    answers: bool = added(True)  # false: the retrievers alone are measured, without a language model
    # questions of the corpus' own that are answered, drawn; 0: all. Retrieval takes all
    answered_questions: NonNegativeInt = added(0)
    shots: NonNegativeInt = 0  # examples in the prompt, each task's own; of the corpus see `shot_questions`
    # questions of the corpus' own that the base LM is asked after shots, too
    shot_questions: PositiveInt = added(300)
    shot_backgrounds: bool = True  # each shot has its own top chunk before it
    name: str = added("")  # folder in results/ that keeps these results; empty: made of tasks and split

    @property
    def results_name(self) -> str:
        """The folder in results/: `corpus-test`, `nq+fever-dev`, or the name that was given."""
        if self.name:
            return self.name
        tasks = [os.path.splitext(os.path.basename(task))[0] for task in self.tasks]
        return f"{'+'.join(tasks) or 'corpus'}-{self.split}"

    def answering(self, longest: int = OWN_ANSWERS) -> "EvaluateConfig":
        """The same where answers have a length: the one that is set, else `longest`, a task's own."""
        return replace(self, max_new_tokens=self.max_new_tokens or longest)


@dataclass(frozen=True)
class ExportConfig(Settings):
    """What export leaves beside our own form of the models."""

    hf: bool = True  # write hf/, for transformers, vLLM and sentence-transformers
    dtype: Dtype = "float32"  # type of numbers in hf/
    shard_gigabytes: PositiveFloat = 5.0  # size of one file of hf/ at most, in GB of tensors
    run_depth: NonNegativeInt = 100  # chunks per question in runs/, in TREC's form; 0: no runs
    lsr_scores: bool = False  # write Eq. 4's scores of the training examples (data/artifacts/scores_file.py)
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

    name: str  # name of the run and its folder, which only the experiment's file sets
    data: GeneratedWorld | Folder | Instructions  # where chunks and questions come from: one of three sources
    base: BaseConfig  # the models that RA-DIT starts from
    lm_ft: LmFtConfig  # fine-tuning of the language model, Eq. 3
    r_ft: RFtConfig  # fine-tuning of the query encoder, Eq. 4 and 5
    embed: EmbedConfig = field(default_factory=EmbedConfig)  # vectors of the corpus' chunks
    index: IndexConfig = field(default_factory=IndexConfig)  # what searches the vectors
    # what R-ft and answering share of retrieval
    retrieve: RetrieveConfig = field(default_factory=RetrieveConfig)
    score: ScoreConfig = field(default_factory=ScoreConfig)  # scores of the labels, p_LM of Eq. 4
    # questions for the trained models, and how they answer
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)  # what the run leaves for others
    # sizes of the device mesh; changes no result beyond rounding
    mesh: MeshConfig = field(default_factory=MeshConfig)
    # what to trace while it runs; changes no result
    profile: ProfileConfig = field(default_factory=ProfileConfig)
    seed: Seed = 0  # start of every random draw; runs with one seed are the same
    keep_checkpoints: bool = False  # keep a finished stage's training checkpoints, which it needs no longer

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
