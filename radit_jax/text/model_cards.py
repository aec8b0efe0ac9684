"""The cards of the exported models, one model each: what a hub's page needs, and how to use the model.

A card has the hub's metadata, a snippet that runs, the form of what the model reads, how it was trained, its
figures, and what it was made of. Paths of the machine that made it are left out.
"""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from radit_jax.text.card import Origin, built_with, licence_of, measured, origins_table
from radit_jax.text.prompts import PASSAGE_FORM, background, question_prompt

SITE = "arxiv.org/abs/2310.01352"
TASK = "question-answering"
SEARCH = "text-retrieval"
_SETTINGS_LEFT_OUT = ("class", "select_folder", "file")  # words of ours, and paths

# Each snippet has one line with the model's name, which a push replaces by its repository.
LM_USAGE = """
from transformers import AutoModelForCausalLM, AutoTokenizer

name = "{folder}"
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name)
{prompt}
output = model.generate(**inputs, max_new_tokens=16, do_sample=False)
answer = tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
print(answer.partition("\\n")[0].strip())
"""
PLAIN_PROMPT = """prompt = "{prompt}"
inputs = tokenizer(prompt, return_tensors="pt")"""
CHAT_PROMPT = """messages = [{{"role": "user", "content": "{prompt}"}}]
inputs = tokenizer.apply_chat_template(
    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"
)"""
RETRIEVER_USAGE = """
from sentence_transformers import SentenceTransformer

name = "{folder}"
model = SentenceTransformer(name)
chunks = [{{"title": "Emma", "text": "A novel by Jane Austen."}}]
passages = ["{form}".format(**chunk).strip() for chunk in chunks]
queries = model.encode_query(["Who wrote Emma?"])
documents = model.encode_document(passages)
print(queries @ documents.T)  # s(q, c)
"""
ADAPTER_USAGE = """
from peft import PeftModel
from transformers import AutoModelForCausalLM

name = "{folder}"
base = AutoModelForCausalLM.from_pretrained("{base}")
model = PeftModel.from_pretrained(base, name)
"""
PASSAGE = "Emma A novel by Jane Austen."


@dataclass(frozen=True)
class CardFacts:
    """What the cards say of a run."""

    origins: Sequence[Origin]  # of the models and data
    results: Mapping[str, Any] | None  # `results.json`; None if nothing was measured
    lm_settings: Mapping[str, Any]  # of LM-ft, as its manifest has them
    retriever_settings: Mapping[str, Any]  # of R-ft
    reads_chat: bool = False  # the language model's prompt is in its chat template


def lm_card(facts: CardFacts, folder: str) -> str:
    """The card of the tuned language model in `folder`, for transformers and vLLM."""
    # The prompt is shown as text, and written into the snippet.
    prompt = background(PASSAGE) + question_prompt("Who wrote Emma?")
    written = prompt.replace("\n", "\\n")
    # A chat's template is its tokeniser's.
    form = CHAT_PROMPT if facts.reads_chat else PLAIN_PROMPT
    prompt_code = form.format(prompt=written)
    reads = "A passage is Background before the question:\n\n" + _code(prompt, "text")
    if facts.reads_chat:
        reads += "\n\nThis text is the user's turn in the model's own chat template."
    return _card(
        title="RA-DIT language model",
        what="A language model that was tuned to answer from retrieved passages, and to ignore useless ones",
        metadata=_metadata(facts, "language model", "transformers", "text-generation", "radit-lm"),
        usage=LM_USAGE.format(folder=folder, prompt=prompt_code),
        reads=reads,
        settings=facts.lm_settings,
        facts=facts,
        figures=measured(facts.results) if facts.results else "",
    )


def retriever_card(facts: CardFacts, folder: str) -> str:
    """The card of the tuned dual encoder in `folder`, for sentence-transformers."""
    reads = (
        "A query is its text. A document is a passage with its title before it, which may be empty:\n\n"
        f"{_code(PASSAGE_FORM, 'text')}\n\n"
        "`encode_query` and `encode_document` are two encoders. `encode` is refused unless it is told which: "
        '`task="query", prompt_name="query"`, or `document` for both. In LangChain these are its '
        "`query_encode_kwargs` and `encode_kwargs`."
    )
    return _card(
        title="RA-DIT retriever",
        what="A dual encoder whose query encoder was tuned to find the passages that help a language model",
        metadata=_metadata(
            facts, "encoder", "sentence-transformers", "sentence-similarity", "radit-retriever"
        ),
        usage=RETRIEVER_USAGE.format(folder=folder, form=PASSAGE_FORM),
        reads=reads,
        settings=facts.retriever_settings,
        facts=facts,
        figures=_retrieval_table(facts.results),
    )


def adapter_card(facts: CardFacts, folder: str) -> str:
    """The card of LM-ft's adapters in `folder`, for PEFT."""
    # Adapters are of no use without the model that they were trained over.
    bases = _hub_ids(facts.origins, "language model")
    base = bases[0] if bases else "PATH/TO/THE/BASE/MODEL"
    return _card(
        title="RA-DIT adapters",
        what="LoRA adapters that tune a language model to answer from retrieved passages",
        metadata=_metadata(facts, "language model", "peft", "text-generation", "radit-lm-adapter"),
        usage=ADAPTER_USAGE.format(folder=folder, base=base),
        reads="Its prompts are those of the merged model.",
        settings=facts.lm_settings,
        facts=facts,
        figures=measured(facts.results) if facts.results else "",
    )


def _card(
    *,
    title: str,
    what: str,
    metadata: str,
    usage: str,
    reads: str,
    settings: Mapping[str, Any],
    facts: CardFacts,
    figures: str,
) -> str:
    """A card's metadata and sections as Markdown."""
    # Every setting of the model's own stage is a row.
    hyper_parameters = "\n".join(f"| {name} | {value} |" for name, value in _flat(settings))
    sections = [
        f"---\n{metadata}\n---",
        f"# {title}",
        f"{what}, by retrieval-augmented dual instruction tuning ([RA-DIT](https://{SITE})) with radit_jax.",
        *built_with(facts.origins),
        "## Use",
        _code(usage, "python"),
        "## What it reads",
        reads,
        "## How it was trained",
        f"| setting | value |\n| --- | --- |\n{hyper_parameters}",
        "## Measured",
        figures or "Nothing was measured before this export.",
        "## Made of",
        origins_table(facts.origins),
        "The strictest of these licences binds what was made of them.",
    ]
    return "\n\n".join(sections) + "\n"


def _code(text: str, language: str) -> str:
    return f"```{language}\n{text.strip()}\n```"


def _metadata(facts: CardFacts, role: str, library: str, pipeline: str, name: str) -> str:
    """The hub's metadata as YAML; `role` ends the roles of the origins that the model was made of."""
    from huggingface_hub import ModelCardData

    # The first origin with a licence of a name that the hub knows.
    licence, licence_name = licence_of([origin for origin in facts.origins if origin.role.endswith(role)])
    # What it was made from, and how good it is, for the hub's own pages.
    bases = _hub_ids(facts.origins, role)
    figures = list(_retrieval_figures(facts.results) if role == "encoder" else _answer_figures(facts.results))
    data = ModelCardData(
        license=licence,
        license_name=licence_name or None,
        library_name=library,
        pipeline_tag=pipeline,
        base_model=bases or None,
        base_model_relation="adapter" if library == "peft" else ("finetune" if bases else None),
        tags=["ra-dit", "retrieval-augmented-generation", "radit_jax"],
        model_name=name if figures else None,
        eval_results=figures or None,
    )
    return data.to_yaml()


def _hub_ids(origins: Sequence[Origin], role: str) -> list[str]:
    """The hub's ids of what a model was made of, each once."""
    # A dual encoder may be made of one model twice.
    ids = [origin.hub_id for origin in origins if origin.role.endswith(role) and origin.hub_id]
    return list(dict.fromkeys(ids))


def _tasks(results: Mapping[str, Any] | None) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Each task's name and results; the corpus' own questions are one task."""
    if results:
        yield from (results.get("tasks") or {"questions on the corpus": results}).items()


def _answer_figures(results: Mapping[str, Any] | None) -> Iterator[Any]:
    """RA-DIT's figures of each task for the hub's index."""
    for task, task_results in _tasks(results):
        # The other systems are in the table below the metadata.
        figures = task_results.get("systems", {}).get("radit", {})
        yield from _eval_results(TASK, task, figures, "RA-DIT")


def _retrieval_figures(results: Mapping[str, Any] | None) -> Iterator[Any]:
    for task, task_results in _tasks(results):
        figures = task_results.get("retrieval", {}).get("r_ft", {})
        yield from _eval_results(SEARCH, task, figures, "R-ft")


def _eval_results(kind: str, task: str, figures: Mapping[str, Any], system: str) -> Iterator[Any]:
    from huggingface_hub import EvalResult

    # The index has numbers alone; the table has their intervals.
    for metric, figure in figures.items():
        if not isinstance(figure, Mapping) or figure.get("value") is None:
            continue
        yield EvalResult(
            task_type=kind,
            dataset_type=re.sub(r"\W+", "-", task),
            dataset_name=task,
            metric_type=metric,
            metric_value=round(figure["value"], 4),
            metric_name=f"{metric.replace('_', ' ')} ({system})",
        )


def _retrieval_table(results: Mapping[str, Any] | None) -> str:
    """Both query encoders' figures with their intervals, a table per task."""
    # Tasks whose retrieval was not measured have no table.
    tables = []
    for task, task_results in _tasks(results):
        retrievers = task_results.get("retrieval") or {}
        if retrievers:
            named = {"num_questions": task_results.get("num_questions", "all"), "systems": retrievers}
            tables.append(measured({"tasks": {task: named}}))
    return "\n\n".join(tables)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each setting's dotted name and value, without paths and what is not set."""
    for name, value in settings.items():
        # A part of the settings has settings itself.
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif name not in _SETTINGS_LEFT_OUT and value not in (None, "", []) and not _is_path(value):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else value
            yield f"{prefix}{name}", shown


def _is_path(value: Any) -> bool:
    return isinstance(value, str) and os.sep in value


def card_for_repository(card: str, folder: str, repository: str) -> str:
    """A card of the model in `folder`, as the page of its repository shows it: the snippet loads that.

    >>> card_for_repository('- name: radit-lm\\nname = "hf/lm"', "hf/lm", "org/tuned-lm")
    '- name: tuned-lm\\nname = "org/tuned-lm"'
    """
    name = repository.rpartition("/")[2]
    card = card.replace(f'"{folder}"', f'"{repository}"')
    return re.sub(r"^- name: radit-[a-z-]+$", f"- name: {name}", card, count=1, flags=re.MULTILINE)
