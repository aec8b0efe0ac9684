"""Every example of docs/api.md runs, in the order of the page."""

import json
import pathlib
import re
import shutil

import pytest

import radit_jax
from radit_jax.runtime.pretrained.model_io import save_model

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "api.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.MULTILINE | re.DOTALL)
FIGURE = {"value": 0.5, "low": 0.25, "high": 0.75}


@pytest.mark.filterwarnings("ignore")  # of LangChain, LlamaIndex and what they import
def test_the_examples_of_the_page_run_as_they_are(exported, lm, searcher, tmp_path, capsys):
    pytest.importorskip("langchain_core")
    pytest.importorskip("llama_index.core")
    save_model(tmp_path / "lm", lm)
    save_model(tmp_path / "encoder", searcher.encoder.model)
    run = tmp_path / "run"
    shutil.copytree(exported, run / "export")
    results = {"systems": {"radit": {"exact_match": FIGURE}}}
    (run / "results.json").write_text(json.dumps(results))
    names = {"LM": str(tmp_path / "lm"), "ENCODER": str(tmp_path / "encoder"), "RUN": str(run)}
    assert len(EXAMPLES) >= 8
    for example in EXAMPLES:
        exec(example, names)
    printed = capsys.readouterr().out
    assert str(FIGURE) in printed and "Tower" in printed
    # What was trained there has learnt, and what it started from is as it was.
    questions, found, answers = (names[name] for name in ("questions", "found", "answers"))
    sums = []
    for model in (lm, names["tuned_lm"]):
        scores = radit_jax.score_pairs(model, questions, found, answers, sequence_length=64)
        sums.append(scores.answer_log_probs.sum())
    assert sums[0] < sums[1]
    # Probabilities of Eq. 2 are ranked, and no more than one in all.
    candidates = radit_jax.answer(names["tuned_lm"], questions, found, max_new_tokens=4, sequence_length=64)
    for by_question in candidates:
        probabilities = [candidate.probability for candidate in by_question]
        assert probabilities == sorted(probabilities, reverse=True) and sum(probabilities) <= 1.001
