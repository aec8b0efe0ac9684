"""A run as one HTML page that needs nothing else: styles, charts, questions and passages are in it.

jinja2 escapes every text of the run on its way into the page, and the questions enter the document as text
nodes. A content security policy names the one script that may run, by its hash, and allows no request.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

import radit_jax
from radit_jax.command_line import spelled
from radit_jax.report import answer_section, sections, training
from radit_jax.report.question_blocks import SIZES, QuestionBlocks, pack_questions
from radit_jax.report.rendering import environment, own_file, policy_for
from radit_jax.report.run_records import CATEGORIES, RunData
from radit_jax.text.results_table import LM_TITLES, SYSTEM_TITLES
from radit_jax.text.verdict import verdict

MAX_BYTES = 30_000_000  # of a page

# The filters of the browser of questions, in their order; the rest are names of CATEGORIES.
_FILTERS = {
    "all": ("All", "every question"),
    "gained": ("Gained", CATEGORIES["gained"]),
    "lost": ("Lost", CATEGORIES["lost"]),
    "wrong": ("Still wrong", CATEGORIES["wrong"]),
    "no-gold": ("Gold not retrieved", "R-ft retrieved no gold chunk, nor one that holds an answer"),
}
_SECTIONS = {
    "answers": "Answers",
    "retrieval": "Retrieval",
    "questions": "Questions",
    "labels": "The labels’ signal",
    "calibration": "Calibration",
    "lengths": "Answer length and cuts",
    "training": "Training",
    "settings": "Settings unlike the paper’s",
    "provenance": "Provenance",
    "licences": "Licences",
}


def render_page(run: RunData, max_bytes: int = MAX_BYTES) -> str:
    """The page of a run, of at most `max_bytes`, with a sample of the questions where all are too many."""
    # 1) All but the questions, to know how much room these have.
    template = environment().get_template("page.html")
    context = _context(run)
    without = template.render(
        context
        | _questions_context(
            run,
            QuestionBlocks([], []),
        )
    )

    # 2) The questions. Tags and headings around their blocks take a little, too.
    room = max_bytes - len(without.encode()) - 100_000
    packed = pack_questions(run, room)
    return template.render(context | _questions_context(run, packed))


def _context(run: RunData) -> dict[str, Any]:
    """What the templates show, but for the questions."""
    # 1) Our own style and script, the one that the policy lets run.
    script = own_file("browser.js")

    # 2) The verdict's first sentence is the title.
    headline, sentences = _verdict(run)
    return {
        "run": run,
        "policy": policy_for(script),
        "style": Markup(own_file("style.css")),
        "script": Markup(script),
        "headline": headline,
        "sentences": sentences,
        "facts": facts(run),
        "charts": _charts(run),
        "tables": _tables(run),
        "emphasised": {SYSTEM_TITLES["radit"], answer_section.gain_title("radit-base"), "Average"},
        "training": training.training_stages(run),
        "signal_words": training.signal_sentences(run),
        "provenance": _provenance(run),
        "version": radit_jax.__version__,
        "command": spelled(f"report --workdir={run.workdir}"),
    }


# ---- the head ----


def _verdict(run: RunData) -> tuple[str, str]:
    """The most important sentence, and the others."""
    if not run.results:
        return f"{run.experiment}: not evaluated yet", ""
    # In the form of `predictions.jsonl`, from which the verdict counts what got better and worse.
    lines = []
    for question in run.questions:
        if not question.task:
            answers = {name: system.text for name, system in question.systems.items()}
            lines.append({"gold": question.gold, "systems": answers})
    # A sample would count too few.
    counted = [] if run.is_sample else lines
    words = verdict(run.results, counted, _best_steps(run), _dev_mrr(run))
    first, dot, others = words.partition(". ")
    return (f"{first}." if dot else first), others


def _best_steps(run: RunData) -> dict[str, int]:
    """The step of the checkpoint that each training kept."""
    # Step 0 is the untuned model, which the verdict says first.
    steps = {}
    for stage in run.stages:
        if "best_step" in stage.facts:
            steps[stage.name] = stage.facts["best_step"]
    return steps


def _dev_mrr(run: RunData) -> float | None:
    """R-ft's MRR@10 on the development questions, of the checkpoint that it kept."""
    for stage in run.stages:
        if "dev_mrr@10" in stage.facts:
            return stage.facts["dev_mrr@10"]
    return None


def facts(run: RunData) -> list[str]:
    """What a reader asks next, in a few words each."""
    words = []
    if run.num_questions:
        words.append(f"{run.num_questions:,} test questions")
    words.append(_whole_time(run))
    words.append(_distinct([stage.device for stage in run.stages]))
    # A commit by the digits that git shows.
    commits = _distinct([(stage.commit or "")[:7] for stage in run.stages])
    if commits:
        words.append(f"commit {commits}")
    return [word for word in words if word]


def duration(seconds: float | int) -> str:
    """Seconds as a person says them.

    >>> duration(42.3), duration(150), duration(9000)
    ('42 s', '2.5 min', '2.5 h')
    """
    # One digit after the point is enough from minutes on.
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


# ---- sections ----


def _charts(run: RunData) -> dict[str, list[sections.Drawing]]:
    """The charts of each section."""
    return {
        "answers": answer_section.answer_charts(run.results),
        "retrieval": sections.retrieval_charts(run),
        "labels": training.label_charts(run),
        "calibration": sections.calibration_charts(run),
        "lengths": sections.length_charts(run),
        "time": training.time_charts(run),
    }


def _tables(run: RunData) -> dict[str, Any]:
    """The tables of each section."""
    # What stages cut or left out, and settings, are a row each.
    counts = []
    for name, count in run.counts.items():
        title = name.replace("_", " ")
        counts.append([title, f"{count:,}"])
    settings = []
    for one in run.differences:
        settings.append([one.name, str(one.value), str(one.paper)])
    return {
        "answers": answer_section.answer_tables(run.results),
        "retrieval": sections.retrieval_tables(run.results),
        "signal": training.signal_table(run),
        "calibration": {
            "head": ["System", "Mean distance, points", "Answers"],
            "rows": sections.calibration_rows(run),
        },
        "counts": counts,
        "time": training.time_table(run),
        "settings": settings,
        "stages": _stage_table(run),
        "licences": sections.licence_rows(run),
    }


def _provenance(run: RunData) -> list[tuple[str, str]]:
    """Names and values of what the whole run has."""
    # Stages may be of several commits and machines, where some were made again.
    commits: list[str | None] = []
    devices: list[str | None] = []
    versions: list[str | None] = []
    num_bytes = 0
    for stage in run.stages:
        commits.append(stage.commit)
        devices.append(stage.device)
        versions += [f"{name} {version}" for name, version in stage.versions.items()]
        num_bytes += stage.num_bytes
    pairs = [
        ("Experiment", run.experiment),
        ("Workdir", run.workdir),
        ("Commit", _distinct(commits)),
        ("Versions", _distinct(versions)),
        ("Device", _distinct(devices)),
        ("Time", _whole_time(run)),
        ("Files of the stages", _megabytes(num_bytes)),
    ]
    return [pair for pair in pairs if pair[1]]


def _distinct(values: Sequence[str | None]) -> str:
    """Each of the values once, in their order, without those that are not known."""
    known = [value for value in values if value]
    return ", ".join(dict.fromkeys(known))


def _whole_time(run: RunData) -> str:
    """How long all stages took together; "" where one does not say it."""
    seconds = [stage.seconds for stage in run.stages if stage.seconds is not None]
    # A sum of some would look like the whole.
    return duration(sum(seconds)) if len(seconds) == len(run.stages) else ""


def _megabytes(num_bytes: int) -> str:
    return f"{num_bytes / 1e6:,.1f} MB"


def _stage_table(run: RunData) -> dict[str, Any]:
    """Head and rows of the stages, in their order."""
    rows = []
    for stage in run.stages:
        # Older manifests have no times, and a copy without git no commit.
        seconds = "" if stage.seconds is None else duration(stage.seconds)
        commit = (stage.commit or "")[:7]
        size = _megabytes(stage.num_bytes)
        rows.append([stage.name, stage.fingerprint, commit, seconds, size])
    head = ["Stage", "Fingerprint", "Commit", "Time", "Files"]
    return {"head": head, "rows": rows}


def _questions_context(run: RunData, packed: QuestionBlocks) -> dict[str, Any]:
    """What the templates show of the questions, and which sections the page has."""
    # 1) Each filter with the number of its questions, of those that are in the page.
    shown = packed.questions
    counts = Counter(question.category for question in shown)
    counts["all"] = len(shown)
    counts["no-gold"] = sum(question.gold_retrieved is False for question in shown)
    filters = []
    for name, (title, meaning) in _FILTERS.items():
        words = {"title": title, "meaning": meaning, "count": counts[name]}
        filters.append((name, words))

    # 2) What the script has to know.
    tasks = list(dict.fromkeys(question.task for question in shown))
    about = {
        "sizes": SIZES,
        "categories": CATEGORIES,
        "systems": SYSTEM_TITLES,
        "lms": LM_TITLES,
    }
    num_asked = max(run.num_questions, len(run.questions))
    return {
        "blocks": packed.blocks,
        "about_blocks": about,
        "filters": filters,
        "tasks": tasks,
        "num_shown": len(shown),
        "num_asked": num_asked,
        "run_is_sample": len(shown) < num_asked,
        "max_megabytes": MAX_BYTES // 1_000_000,
        "before_title": SYSTEM_TITLES["base"],
        "sections": _sections(run, packed),
    }


def _sections(run: RunData, packed: QuestionBlocks) -> Sequence[tuple[str, str]]:
    """Ids and titles of the sections that this run has something for."""
    # An older or unfinished run has fewer.
    filled = {
        "answers": answer_section.has_answers(run.results),
        "retrieval": bool(run.recall or "retrieval" in run.results),
        "questions": bool(packed.blocks),
        "labels": bool(run.signal),
        "calibration": bool(run.calibration),
        "lengths": bool(run.lengths or run.counts),
        "training": bool(run.series),
        "settings": bool(run.differences),
        "provenance": True,
        "licences": bool(run.licences),
    }
    return [(name, title) for name, title in _SECTIONS.items() if filled[name]]
