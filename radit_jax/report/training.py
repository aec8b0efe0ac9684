"""What a report shows of training: curves by step, where the time went, and what the labels could teach."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from markupsafe import Markup

from radit_jax.config import OptimizerConfig
from radit_jax.report import charts
from radit_jax.report.charts import NARROW, WIDE, Bar, Curve
from radit_jax.report.run_records import QuestionRecord, RunData, Series
from radit_jax.report.sections import Drawing
from radit_jax.text.verdict import signal_in_words

STAGE_TITLES = {
    "base": "The base models",
    "base/lm": "The base LM",
    "base/retriever": "The base retriever",
    "lm_ft": "LM-ft",
    "r_ft": "R-ft",
}
# Metric -> title, and whether it is a share. They are shown in this order, what is not named here last.
METRICS = {
    # What is trained for.
    "loss": ("Loss, nats", False),
    "dev_log_prob": ("log p of the development answers, nats a token", False),
    "mrr@10": ("MRR@10 on development questions", False),
    "answer_recall@1": ("Recall@1 on development questions", True),
    "answer_recall@10": ("Recall@10 on development questions", True),
    # What moves the parameters.
    "learning_rate": ("Learning rate", False),
    "grad_norm": ("Norm of the gradient", False),
    "saturated_queries": ("Queries with a saturated p_R", True),
    # How fast it goes.
    "tokens_per_second_per_device": ("Tokens a second and device", False),
    "mfu": ("MFU", True),
    "fill": ("Fill of the rows", True),
    "step_seconds": ("Seconds a step", False),
    "hbm_peak_gigabytes": ("Peak memory of a device, GB", False),
}
NOT_SHOWN = {
    "tokens",
    "answer_tokens",
    "attended",
    "answer_tokens_per_second_per_device",
    "data_wait_seconds",
}  # of a step, not a rate
FROM_ZERO = {"mfu", "fill", "learning_rate", "step_seconds", "hbm_peak_gigabytes"}
JUMPY = {"loss", "grad_norm", "saturated_queries", "tokens_per_second_per_device", "step_seconds"}
RATES = ("peak_lr", "end_lr", "decay_from")  # of an optimiser's settings
MANY_POINTS = 40  # from here on a metric of each step is drawn with its running mean

# Purposes of time, in the order and with the words of the chart; what is not named here is overhead.
PURPOSES = {"steps": "training steps", "data_wait": "waiting for data"}
PURPOSE_KEYS = [
    ("after block", "training steps"),
    ("ink block", "waiting for data"),
    ("before block", "start-up, compilation, validation, checkpoints"),
]

# Key of the signal -> title, format.
SHARE_FORM = "{:.1%}"
SIGNAL = {
    # The labels, and the retriever's distribution.
    "examples": ("Examples", "{:,}"),
    "effective_chunks": ("Effective number of chunks of p_LSR", "{:.2f}"),
    "flat_targets": ("Flat labels", SHARE_FORM),
    "one_hot_targets": ("One-hot labels", SHARE_FORM),
    "highest_p_R": ("Highest p_R, mean", "{:.3f}"),
    "saturated_queries": ("Queries with a saturated p_R", SHARE_FORM),
    "spearman": ("Rank correlation of p_R and p_LSR", "{:.3f}"),
    "gain_over_no_chunk": ("Gain of a chunk over none, nats a token", "{:.3f}"),
    # Which chunks are useful, and who puts them first.
    "gold_among_candidates": ("Gold chunk among the candidates", SHARE_FORM),
    "answer_among_candidates": ("Answer among the candidates", SHARE_FORM),
    "useful_lm_first": ("LM puts a useful chunk first", SHARE_FORM),
    "useful_retriever_first": ("Retriever puts a useful chunk first", SHARE_FORM),
    "mixed_examples": ("Examples with useful and useless chunks", "{:,}"),
    "mixed_lm_first": ("of these, LM puts a useful one first", SHARE_FORM),
    "mixed_retriever_first": ("of these, retriever puts a useful one first", SHARE_FORM),
    # What the language model read.
    "truncated_examples": ("Examples with a cut chunk", "{:,}"),
    "supervised_tokens": ("Answer tokens among those read", SHARE_FORM),
}


@dataclasses.dataclass(frozen=True)
class TrainingStage:
    """The charts of one stage that trains."""

    title: str
    words: str
    charts: Sequence[Drawing]


# ---- curves ----


def training_stages(run: RunData) -> list[TrainingStage]:
    """Each stage that trains, with a chart for each of its metrics."""
    by_stage: dict[str, list[Series]] = {}
    for series in run.series:
        by_stage.setdefault(series.stage, []).append(series)
    ends = {use.stage: use.ends for use in run.time_use}
    optimizers = {stage.name: _optimizer(stage.settings) for stage in run.stages}
    stages = []
    for stage, all_series in by_stage.items():
        # A call that ended before the last one was resumed.
        resumed = ends.get(stage, [])[:-1]
        words = ""
        if resumed:
            words = f"In {len(resumed) + 1} calls. A dotted line is where the next one resumed the training."
        rates = _learning_rate(stage, all_series, optimizers.get(stage))
        title = STAGE_TITLES.get(stage, stage)
        drawings = _metric_charts(title, [*all_series, *rates], resumed)
        stages.append(TrainingStage(title, words, drawings))
    return stages


def _optimizer(settings: Any) -> Mapping[str, Any] | None:
    """The optimiser's settings, wherever they are in a stage's."""
    if not isinstance(settings, Mapping):
        return None
    if settings.get("class") == "OptimizerConfig":
        return settings
    inner = map(_optimizer, settings.values())
    return next(filter(None, inner), None)


def _learning_rate(
    stage: str,
    all_series: Sequence[Series],
    optimizer: Mapping[str, Any] | None,
) -> list[Series]:
    """The learning rate at the steps that the stage has metrics of, by its schedule; none without one.

    Runs of 0.1 have not logged it. What a run has logged counts.
    """
    steps = next((series.steps for series in all_series if series.name == stage), [])
    is_logged = any("learning_rate" in series.values for series in all_series)
    if optimizer is None or is_logged or not steps:
        return []

    # Optax is slow to import, and --help does not need it.
    from radit_jax.method.optimizers import learning_rate

    # What the schedule depends on. A manifest has 0 for 0.0.
    counts: dict[str, Any] = {
        name: int(optimizer[name]) for name in ("steps", "warmup_steps") if name in optimizer
    }
    rates: dict[str, Any] = {name: float(optimizer[name]) for name in RATES if name in optimizer}
    decay = optimizer.get("decay", "linear")
    config = OptimizerConfig(**counts, **rates, decay=decay)
    schedule = learning_rate(config, config.peak_lr)
    # Metrics count updates from 1, the schedule those before.
    values = [float(schedule(step - 1)) for step in steps]
    no_times = [0.0] * len(steps)
    return [Series(stage, stage, steps, no_times, {"learning_rate": values})]


def _metric_charts(
    stage: str,
    all_series: Sequence[Series],
    resumed: Sequence[int],
) -> list[Drawing]:
    """A chart for each metric of a stage."""
    # A metric such as fill is of each step and of the lines of speed: the first that is met counts.
    by_metric: dict[str, Curve] = {}
    for series in all_series:
        for metric, values in series.values.items():
            curve = _curve(series.steps, values)
            if len(curve.x) > 1 and metric not in NOT_SHOWN:
                by_metric.setdefault(metric, curve)

    # A rate says what the seconds of a step say.
    if "tokens_per_second_per_device" in by_metric:
        by_metric.pop("step_seconds", None)

    # Known metrics in their order, then the others by name.
    known = [metric for metric in METRICS if metric in by_metric]
    others = sorted(by_metric.keys() - METRICS.keys())
    drawings = []
    for metric in (*known, *others):
        drawings.append(_metric_chart(stage, metric, by_metric[metric], resumed))
    return drawings


def _curve(
    steps: Sequence[int],
    values: Sequence[float | int | None],
) -> Curve:
    """The points of a metric that are there."""
    x, y = [], []
    for step, value in zip(steps, values, strict=True):
        if value is not None:
            x.append(step)
            y.append(value)
    return Curve(x, y)


def _metric_chart(
    stage: str,
    metric: str,
    curve: Curve,
    resumed: Sequence[int],
) -> Drawing:
    # A metric that another version has may have no title here.
    spaced = metric.replace("_", " ")
    title, is_share = METRICS.get(metric, (spaced, False))
    has_dots = len(curve.x) < MANY_POINTS // 2
    curves = [dataclasses.replace(curve, dots=has_dots)]

    # What jumps from step to step is drawn thin, and its running mean over it.
    if len(curve.x) >= MANY_POINTS and metric in JUMPY:
        thin = dataclasses.replace(curve, colour=charts.BEFORE, width=0.75)
        mean = dataclasses.replace(curve, y=running_mean(curve.y))
        curves = [thin, mean]
    label = f"{stage}: {title}, by step"
    from_zero = metric in FROM_ZERO
    svg = charts.line_chart(
        curves,
        label,
        marks=resumed,
        from_zero=from_zero,
        percent=is_share,
    )
    return Drawing(title, Markup(svg))


def running_mean(values: charts.Numbers) -> list[float]:
    """Each value's mean with its neighbours, a twentieth of all; fewer at both ends.

    >>> running_mean([float(value) for value in range(60)])[:2]  # over 0 and 1; over 0, 1 and 2
    [0.5, 1.0]
    """
    size = max(3, len(values) // 20)
    window = np.ones(size | 1)
    sums = np.convolve(values, window, mode="same")
    # At both ends a part of the window lies outside.
    counts = np.convolve(np.ones(len(values)), window, mode="same")
    return (sums / counts).tolist()


# ---- time ----


def time_charts(run: RunData) -> list[Drawing]:
    """Where the seconds of training went, a bar for each stage."""
    bars = []
    for use in run.time_use:
        parts = [use.seconds.get(purpose, 0.0) for purpose in PURPOSES]
        # The rest of all seconds is overhead.
        overhead = use.seconds.get("all", 0.0) - sum(parts)
        parts.append(max(0.0, overhead))
        title = STAGE_TITLES.get(use.stage, use.stage)
        bars.append(Bar(title, parts))
    if not bars:
        return []
    colours = (charts.AFTER, charts.INK, charts.BEFORE)
    title = "Seconds of training"
    narrow = charts.stacked_bars(bars, colours, title, NARROW)
    wide = charts.stacked_bars(bars, colours, title, WIDE)
    return [Drawing(title, Markup(narrow), Markup(wide), PURPOSE_KEYS)]


def time_table(run: RunData) -> dict[str, list[Any]]:
    """Head and rows of seconds by purpose, a row for each stage."""
    # Stages may have purposes that others have not.
    purposes: dict[str, None] = {"all": None, "steps": None}
    for use in run.time_use:
        purposes |= dict.fromkeys(use.seconds)
    rows = []
    for use in run.time_use:
        cells = [f"{use.seconds.get(purpose, 0.0):,.1f}" for purpose in purposes]
        title = STAGE_TITLES.get(use.stage, use.stage)
        rows.append([title, str(use.calls), *cells])
    names = [purpose.replace("_", " ") for purpose in purposes]
    return {"head": ["Stage", "Calls", *names], "rows": rows}


# ---- labels ----


def signal_sentences(run: RunData) -> list[str]:
    """What the labels can teach, in words: of the first round, and of the last where there are several."""
    # Older runs have fewer diagnostics than the sentences are of.
    rounds = [signal for signal in run.signal if "mixed_lm_first" in signal]
    if len(rounds) < 2:
        return [signal_in_words(signal) for signal in rounds]
    # What changed in between is in the table and the charts.
    first = signal_in_words(rounds[0])
    last = signal_in_words(rounds[-1])
    return [
        f"Round 1 of {len(rounds)}. {first}",
        f"Round {len(rounds)}. {last}",
    ]


def signal_table(run: RunData) -> dict[str, list[Any]]:
    """Head and rows of the labels' diagnostics: a column for each round, at most eight of them."""
    numbers = _some(range(len(run.signal)), 8)
    rows = []
    for key, (title, form) in SIGNAL.items():
        values = [run.signal[number].get(key) for number in numbers]
        cells = [_written(value, form) for value in values]
        # Older runs do not have all of them.
        if any(value is not None for value in values):
            rows.append([title, *cells])
    heads = [f"Round {number + 1}" for number in numbers] if len(run.signal) > 1 else ["Value"]
    return {"head": ["Diagnostic", *heads], "rows": rows}


def _written(value: float | int | None, form: str) -> str:
    """A figure in its form, with the signs that the page has; a dash where there is none."""
    if value is None:
        return "–"
    return form.format(value).replace("%", " %").replace("-", "−")


def _some(numbers: Sequence[int], most: int) -> list[int]:
    """At most `most` of the numbers, evenly spread, with the first and the last."""
    if len(numbers) <= most:
        return list(numbers)
    places = np.linspace(0, len(numbers) - 1, most).round()
    return [numbers[int(place)] for place in places]


def label_charts(run: RunData) -> list[Drawing]:
    """p_R against p_LSR before and after R-ft, and the labels over rounds where there are several."""
    drawings = []
    for retriever, title in (("base", "Before R-ft"), ("r_ft", "After R-ft")):
        curves = _by_label_rank(run.questions, retriever)
        if curves:
            name = f"{title}: mean probability by the LM's rank"
            svg = charts.line_chart(
                curves,
                name,
                height=200,
                from_zero=True,
                percent=True,
            )
            keys = [("ink", "p_LSR"), ("after", "p_R")]
            drawings.append(Drawing(name, Markup(svg), keys=keys))
    # Labels of new candidates may teach less than the first ones.
    if len(run.signal) > 1:
        for key in ("effective_chunks", "spearman"):
            title, _ = SIGNAL[key]
            drawings.append(_over_rounds(run.signal, key, f"{title}, by round"))
    return drawings


def _by_label_rank(questions: Sequence[QuestionRecord], retriever: str) -> list[Curve]:
    """The means of p_LSR and of p_R of the chunk that the language model ranks first, second and so on."""
    by_rank: list[tuple[list[float], list[float]]] = []
    for question in questions:
        # The chunk that helps the language model most is first.
        pairs = []
        for chunk in question.chunks.get(retriever, ()):
            if chunk.lsr_prob is not None and chunk.retrieval_prob is not None:
                pairs.append((chunk.lsr_prob, chunk.retrieval_prob))
        pairs.sort(key=lambda pair: -pair[0])
        for rank, (p_lsr, p_r) in enumerate(pairs):
            if rank == len(by_rank):
                by_rank.append(([], []))
            by_rank[rank][0].append(p_lsr)
            by_rank[rank][1].append(p_r)
    if len(by_rank) < 2:
        return []

    # Ranks are counted from 1.
    ranks = range(1, len(by_rank) + 1)
    lsr_means = [statistics.fmean(p_lsr) for p_lsr, _ in by_rank]
    r_means = [statistics.fmean(p_r) for _, p_r in by_rank]
    return [
        Curve(ranks, lsr_means, charts.INK, dots=True),
        Curve(ranks, r_means, charts.AFTER, dots=True),
    ]


def _over_rounds(
    signal: Sequence[Mapping[str, Any]],
    key: str,
    title: str,
) -> Drawing:
    numbers = list(range(1, len(signal) + 1))
    curve = _curve(numbers, [one.get(key) for one in signal])
    svg = charts.line_chart(
        [dataclasses.replace(curve, dots=len(signal) < MANY_POINTS)],
        title,
    )
    return Drawing(title, Markup(svg))
