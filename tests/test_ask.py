"""Asking many questions, or where the devices' memory is too small; what one shows is in test_train.py."""

import gzip
import json
from types import SimpleNamespace

import jax
import pytest

from radit_jax import ask
from radit_jax.lm import answering
from radit_jax.runtime.storage.top_level_folder import TopLevelFolder
from radit_jax.serving.system import AnsweringSystem


def test_ask_says_in_one_line_what_to_do_where_the_memory_is_too_small(
    exported, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 GiB.")

    monkeypatch.setattr(answering, "answer_questions", refuse)
    assert ask.main(["Who?", f"--export={exported}"]) == 1
    device = SimpleNamespace(memory_stats=lambda: {"bytes_limit": 100})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert ask.main(["Who?", f"--export={exported}"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" not in err
    decoding, loading = [line for line in err.splitlines() if "error: " in line]
    for line, fault in ((decoding, "allocate 9 GiB."), (loading, "the model takes 0.00 GiB of each device")):
        assert (
            "error: answering: expected a program that fits the devices' memory, " in line and fault in line
        )
        assert line.endswith("). Take more devices, or the CPU with JAX_PLATFORMS=cpu.")


@pytest.mark.parametrize("both", (False, True))
def test_the_base_query_encoder_is_asked_only_where_the_chunks_vectors_are_its_own(
    exported, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, both: bool
) -> None:
    read = TopLevelFolder.read_json
    monkeypatch.setattr(TopLevelFolder, "read_json", lambda *a: {**read(*a), "both_encoders": both})
    assert ask.main(["Who?", f"--export={exported}"]) == 0
    printed = capsys.readouterr().out
    assert "chunks after R-ft" in printed
    assert ("chunks before R-ft" in printed) is not both


def test_json_is_one_object_with_the_best_answer_first_and_nothing_else(
    exported, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    load = AnsweringSystem.load
    monkeypatch.setattr(AnsweringSystem, "load", lambda export: print("loading") or load(export))
    assert ask.main(["Who?", f"--export={exported}", "--json"]) == 0
    answered = json.loads(capsys.readouterr().out)
    assert list(answered) == ["question", "answer", "probability", "answers", "base_chunks", "chunks"]
    best = max(answered["answers"], key=lambda candidate: candidate["probability"])
    assert (answered["question"], answered["answer"]) == ("Who?", best["text"])
    assert answered["probability"] == best["probability"]
    assert {"p_R", "title", "text"} == set(answered["chunks"][0])
    assert sum(chunk["p_R"] for chunk in answered["chunks"]) == pytest.approx(1.0)


LONG = "Who " * 600 + "?"


def test_a_question_too_long_for_the_row_costs_no_other_its_answers(
    exported, tmp_path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "q.jsonl"
    file.write_text(
        "".join(json.dumps({"id": n, "question": q}) + "\n" for n, q in enumerate(("Who?", LONG)))
    )
    assert ask.main([f"--file={file}", f"--export={exported}"]) == 0
    printed = capsys.readouterr()
    answered, refused = map(json.loads, printed.out.splitlines())
    assert len(answered["chunks"]) == 2 and answered["answers"] and "error" not in answered
    assert refused["id"] == 1 and "answers" not in refused
    assert refused["error"].startswith("expected a question of at most ")
    assert "q.jsonl: 1 of 2 questions were too long" in printed.err
    file.write_text(json.dumps({"question": LONG}) + "\n")
    assert ask.main([f"--file={file}", f"--export={exported}"]) == 1
    assert "expected questions that fit, got none. expected a question of at" in capsys.readouterr().err
    assert ask.main([LONG, f"--export={exported}"]) == 1
    assert "error: ask: expected a question of at most " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "text", "lines"),
    [
        ("q.jsonl", '\ufeff{"question": "Who?", "x": 1}\n\n', [{"question": "Who?", "x": 1}]),
        ("q.json", '[{"question": "Who?"}, {"query": "How?"}]', [{"question": "Who?"}, {"query": "How?"}]),
        ("questions", '{"id": "7", "input": "Who?"}', [{"id": "7", "input": "Who?"}]),
        ("q.tsv", "Who?\t['me']\nHow?\t[]\n", [{"question": "Who?"}, {"question": "How?"}]),
        ("q.txt", "Who?\nHow?\n", [{"question": "Who?"}, {"question": "How?"}]),
    ],
)
def test_questions_come_in_any_form_and_need_no_answers(
    tmp_path, monkeypatch, capsys, name, text, lines
) -> None:
    (tmp_path / name).write_text(text)
    monkeypatch.setattr(ask, "ask", lambda export, questions: ({"asked": q} for q in questions))
    ask.answer_file(TopLevelFolder(tmp_path), str(tmp_path / name))
    asked = [next(iter(set(line.values()) & {"Who?", "How?"})) for line in lines]
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert printed == [{**line, "asked": q} for line, q in zip(lines, asked, strict=True)]
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(text.encode()))
    ask.answer_file(TopLevelFolder(tmp_path), str(tmp_path / f"{name}.gz"))
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == printed


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            '{"question": "Who?"}\n{"question": 3}',
            "line 2: expected field 'question' to be a string",
        ),
        (
            '{"question": "Who?"}\n{"text": "Who?"}',
            "line 2: expected a field question, query or input",
        ),
        ('{"question": "Who?"}\n{"question', "line 2: expected JSON"),
        ("\n", "expected questions, got none"),
    ],
)
def test_what_is_no_question_is_named_with_its_line(tmp_path, text, message) -> None:
    (tmp_path / "q.jsonl").write_text(text)
    with pytest.raises(ValueError, match=rf"q\.jsonl:? {message}"):
        ask.answer_file(TopLevelFolder(tmp_path), str(tmp_path / "q.jsonl"))
    with pytest.raises(ValueError, match="expected a file of questions, got no file"):
        ask.answer_file(TopLevelFolder(tmp_path), str(tmp_path / "absent.jsonl"))
