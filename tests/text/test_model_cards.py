"""The card of each exported model has the metadata that the hub reads, and no path of this machine."""

import dataclasses

import pytest
import yaml
from huggingface_hub import ModelCard

from radit_jax.text.card import Origin
from radit_jax.text.model_cards import CardFacts, adapter_card, lm_card, retriever_card

FIGURE = {"value": 0.51239, "low": 0.25, "high": 0.75}
ABSENT = {"value": None, "low": None, "high": None}
RESULTS = {
    "num_questions": 9,
    "systems": {"base": {"exact_match": ABSENT}, "radit": {"exact_match": FIGURE, "f1": ABSENT}},
    "retrieval": {"base": {"mrr": FIGURE}, "r_ft": {"mrr": FIGURE}},
}
LLAMA = "meta-llama/Llama-3.2-1B"
FACTS = CardFacts(
    origins=[
        Origin("language model", LLAMA, "llama3.2", "its page", LLAMA),
        Origin("query encoder", "a/query@main", "own terms", "its README.md", "a/query"),
        Origin("chunk encoder", "/home/me/chunk", "mit"),
        Origin("data", "/home/me/wiki", ""),
    ],
    results=RESULTS,
    lm_settings={
        "lm_ft": {
            "class": "LmFtConfig",
            "optimizer": {"class": "OptimizerConfig", "peak_lr": 1e-5},
            "select_folder": "/home/me/kilt",
            "lora": {"targets": ["q_proj", "v_proj"]},
        },
        "seed": 3,
    },
    retriever_settings={"r_ft": {"tau": 0.1, "file": "/home/me/scores.jsonl"}, "temperature": 0.05},
)
CARDS = {lm_card: "hf/lm", retriever_card: "hf/retriever", adapter_card: "hf/lm_adapter"}


def metadata(card):
    return yaml.safe_load(card.split("---")[1])


def test_metadata_is_what_the_hub_reads():
    lm = metadata(lm_card(FACTS, "hf/lm"))
    assert lm["base_model"] == [LLAMA] and lm["license"] == "llama3.2"
    assert (lm["library_name"], lm["pipeline_tag"]) == ("transformers", "text-generation")
    (result,) = lm["model-index"][0]["results"]
    # The figure that no question has is left out.
    assert result["metrics"] == [{"type": "exact_match", "value": 0.5124, "name": "exact match (RA-DIT)"}]
    assert result["task"]["type"] == "question-answering"

    retriever = metadata(retriever_card(FACTS, "hf/retriever"))
    assert retriever["base_model"] == ["a/query"] and retriever["license_name"] == "own-terms"
    assert retriever["library_name"] == "sentence-transformers"
    (result,) = retriever["model-index"][0]["results"]
    assert result["task"]["type"] == "text-retrieval" and result["metrics"][0]["type"] == "mrr"

    adapter = metadata(adapter_card(FACTS, "hf/lm_adapter"))
    assert (adapter["library_name"], adapter["base_model_relation"]) == ("peft", "adapter")


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.__name__)
def test_a_card_is_of_one_model_and_names_no_path_of_this_machine(card):
    text = card(FACTS, CARDS[card])
    assert "/home/me" not in text and f'name = "{CARDS[card]}"' in text
    assert ModelCard(text).data.to_dict() == metadata(text)
    others = [f'"{folder}"' for folder in CARDS.values() if folder != CARDS[card]]
    assert not any(folder in text for folder in others)


def test_hyper_parameters_are_those_of_the_models_own_stage():
    text = lm_card(FACTS, "hf/lm")
    for row in ("lm_ft.optimizer.peak_lr | 1e-05", "lm_ft.lora.targets | q_proj, v_proj", "seed | 3"):
        assert f"| {row} |" in text
    assert "tau" not in text and "| r_ft.tau | 0.1 |" in retriever_card(FACTS, "hf/retriever")


def test_nothing_known_and_nothing_measured_is_said_so():
    scratch = [Origin("language model", "trained from scratch", "none")]
    facts = CardFacts(scratch, results=None, lm_settings={}, retriever_settings={})
    card = lm_card(facts, "hf/lm")
    data = metadata(card)
    assert "base_model" not in data and "model-index" not in data
    assert (data["license"], data["license_name"]) == ("other", "unknown")
    assert "Nothing was measured" in card and "Nothing was measured" in retriever_card(facts, "hf/retriever")


def test_a_chat_models_snippet_uses_its_template():
    chat = dataclasses.replace(FACTS, reads_chat=True)
    assert "apply_chat_template" in lm_card(chat, "hf/lm")
    assert "apply_chat_template" not in lm_card(FACTS, "hf/lm")
    compile(lm_card(chat, "hf/lm").split("```python")[1].split("```")[0], "card", "exec")


def test_tasks_have_a_figure_each():
    tasks = {"tasks": {"nq": RESULTS, "fever": RESULTS | {"systems": {}, "retrieval": {}}}}
    facts = dataclasses.replace(FACTS, results=tasks)
    results = metadata(lm_card(facts, "hf/lm"))["model-index"][0]["results"]
    assert [result["dataset"]["name"] for result in results] == ["nq"]
    assert "| nq (9 questions) | mrr |" in retriever_card(facts, "hf/retriever")
