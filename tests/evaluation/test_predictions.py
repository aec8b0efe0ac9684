"""The lines of `predictions.jsonl`, of which each process makes some."""

import numpy as np
from shares import in_three_shares
from small import CHUNKS, QUESTIONS

from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.evaluation.predictions import prediction_lines
from radit_jax.evaluation.systems import RetrievedChunks
from radit_jax.runtime.distributed import processes


def test_a_line_has_what_was_answered_on_what_evidence_whoever_makes_it(inputs, monkeypatch):
    questions = QUESTIONS["train"]
    results = [{"answers": [{"answer": f"a{number}", "probability": 0.5}]} for number in range(4)]
    closed = [{"answers": [{"answer": "none", "probability": 1.0}]}] * 4
    by_system = {"radit": results, "closed_book": closed}
    rows = np.array([[0, 1, 2], [1, 8, 0], [3, 0, 1], [5, 6, 7]])
    log_probs = np.log(np.array([[0.75, 0.25], [0.5, 0.5], [0.875, 0.125], [0.9, 0.1]], np.float32))
    retrieved = RetrievedChunks(rows, log_probs)

    def made():
        return prediction_lines(questions, by_system, retrieved, Chunks(inputs["corpus"]))

    lines = made()
    assert [line["id"] for line in lines] == [question.id for question in questions]
    assert lines[1]["answers"] == results[1]["answers"]
    assert lines[1]["systems"] == {"radit": "a1", "closed_book": "none"}
    # Chunks that no answer was mixed over are left out.
    assert [chunk["id"] for chunk in lines[2]["chunks"]] == [CHUNKS[3].id, CHUNKS[0].id]
    assert [chunk["p_R"] for chunk in lines[2]["chunks"]] == [0.875, 0.125]
    assert lines[0]["chunks"][1]["text"] == CHUNKS[1].text
    monkeypatch.setattr(processes, "in_shares", in_three_shares)
    assert made() == lines
