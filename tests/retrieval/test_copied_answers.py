"""Which passages give an answer away."""

import random
import re
import string

import numpy as np
import pytest
from small import FACTS

from radit_jax.data.artifacts.chunk_writing import write_chunks
from radit_jax.data.artifacts.chunks import Chunks
from radit_jax.data.records import Chunk, Example
from radit_jax.retrieval import copied_answers
from radit_jax.retrieval.copied_answers import without_copies
from radit_jax.runtime.storage.workdir import Workdir

WORDS = [f"w{n}" for n in range(40)]
TEXT = " ".join(WORDS)


def chunks_of(tmp_path, *texts):
    folder = Workdir(tmp_path).folder("corpus", "c")
    write_chunks(folder, [Chunk(str(n), "", text) for n, text in enumerate(texts)])
    folder.finish()
    return Chunks(folder)


def test_candidates_with_the_sources_text_or_twelve_words_of_the_answer_make_room_for_others(tmp_path):
    chunks = chunks_of(
        tmp_path,
        TEXT,  # 0: the source
        TEXT.upper().replace(" ", ", "),  # 1: its text again
        "before " + " ".join(WORDS[25:37]) + " after",  # 2: twelve words of the answer
        "before " + " ".join(WORDS[25:36]) + " after " + WORDS[36],  # 3: eleven
        " ".join(WORDS[:20]),  # 4: the prompt's words are no answer
        *FACTS[:3],
    )
    example = Example("e", "q", " ".join(WORDS[:20]), " " + " ".join(WORDS[20:]), source_chunk="0")
    rows, scores = np.array([[1, 2, 3, 4, 5, 6]]), np.arange(6, 0, -1, dtype=np.float32)[None]
    kept, kept_scores, copies = without_copies([example], np.array([0]), rows, scores, chunks, 3)
    assert (kept.tolist(), kept_scores.tolist(), copies) == ([[3, 4, 5]], [[4, 3, 2]], 2)
    kept, _, _ = without_copies([example], np.array([0]), rows[:, :4], scores[:, :4], chunks, 3)
    assert kept.tolist() == [[3, 4, -1]]


def test_a_stop_is_noticed_while_candidates_are_read(tmp_path, monkeypatch):
    def stop(where):
        raise InterruptedError(where)

    monkeypatch.setattr(copied_answers.processes, "stop_if_asked", stop)
    example = Example("e", "q", "a", " b", source_chunk="0")
    rows, scores = np.array([[1]]), np.zeros((1, 1), np.float32)
    chunks = Chunks.__new__(Chunks)  # none is read
    with pytest.raises(InterruptedError):
        without_copies([example], np.array([0]), rows, scores, chunks, 1)


def test_in_scripts_without_spaces_twelve_characters_are_enough(tmp_path):
    answer = "富士山は日本で一番高い山である"
    chunks = chunks_of(tmp_path, "東京" + answer, "しかし" + answer + "という", "富士山は高い")
    example = Example("e", "q", "東京", answer, source_chunk="0")
    rows, scores = np.array([[1, 2]]), np.zeros((1, 2), np.float32)
    assert without_copies([example], np.array([0]), rows, scores, chunks, 1)[0].tolist() == [[2]]


def test_words_of_english_are_the_runs_of_letters_and_digits():
    draw = random.Random(0)
    for _ in range(500):
        text = "".join(draw.choices(string.printable + "éüçÉœ“”’–—€½…", k=60))
        runs = re.findall(r"[^\W_]+", text.casefold())
        assert copied_answers._joined(text) == f" {' '.join(runs)} "


@pytest.mark.parametrize(
    ("answer", "other_form"),
    [
        ("จุดเริ่มต้นของแม่น้ำสายนี้", "จุดเริ่มต้น ของแม่น้ำสายนี้"),  # no spaces, marks of vowels
        (" ".join(["दिल्ली", "नदी"] * 6), " ".join(["दिल्ली", "नदी"] * 6)),
        (" ".join(["café"] * 12), " ".join(["cafe\u0301"] * 12)),  # both normal forms
        ("ㄅㄆㄇㄈㄉㄊㄋㄌㄍㄎㄏㄐ", "ㄅㄆㄇㄈㄉㄊ ㄋㄌㄍㄎㄏㄐ"),
    ],
)
def test_a_copy_is_found_in_every_script_and_either_normal_form(answer, other_form):
    runs = copied_answers._shared_runs(answer)
    assert runs and any(run in copied_answers._joined(f"x {other_form}") for run in runs)
    assert not any(run in copied_answers._joined(other_form[:5]) for run in runs)
