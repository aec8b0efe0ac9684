"""Every task reads its official files; prompts, queries, answers and choices by hand."""

import json
import pathlib
from collections import Counter

import pytest

from radit_jax.data.eval_tasks.registry import EVAL_TASKS, KILT_DEVELOPMENT, find_task
from radit_jax.data.eval_tasks.task import METRICS, EvalExample, draw_shots, sample

LAMP = "Who tends the lamp?"
TASKS_PAGE = pathlib.Path(__file__).parents[3] / "docs" / "tasks.md"


def kilt(text, *answers, page="9", **more):
    outputs = [{"answer": answer, "provenance": [{"wikipedia_id": page}]} for answer in answers]
    return json.dumps({"id": "k1", "input": text, "output": outputs, **more})


def science(*texts, key="B"):
    choices = [{"text": text, "label": letter} for text, letter in zip(texts, "ABCD", strict=False)]
    return json.dumps(
        {"id": "s1", "question": {"stem": "What shines?", "choices": choices}, "answerKey": key}
    )


# name -> file, its text, and the first item's (prompt, query, answers, [prompt + scored of each choice])
CASES = {
    "nq": (
        "NQ-open.dev.jsonl",
        '{"question": "who tends the lamp", "answer": ["Mara", "Mara Holt"]}',
        ("Q: who tends the lamp\nA:", "who tends the lamp", ("Mara", "Mara Holt"), []),
    ),
    "trivia_qa": (
        "unfiltered-web-dev.json",
        json.dumps(
            {
                "Data": [
                    {
                        "QuestionId": "t1",
                        "Question": LAMP,
                        "Answer": {"Value": "Mara", "Aliases": ["M", "Mara"]},
                    }
                ]
            }
        ),
        (f"Q: {LAMP}\nA:", LAMP, ("Mara", "M"), []),
    ),
    "hotpotqa": (
        "hotpotqa-dev-kilt.jsonl",
        kilt(LAMP, "Mara"),
        (f"Q: {LAMP}\nA:", LAMP, ("Mara",), []),
    ),
    "fever": (
        "fever-dev-kilt.jsonl",
        kilt("Lamps are cold.", "REFUTES"),
        ("Is this statement true? Lamps are cold.\nA:", "Lamps are cold.", ("REFUTES",), []),
    ),
    "aida": (
        "aidayago2-dev-kilt.jsonl",
        kilt("In [START_ENT] Port Ash [END_ENT] it rained.", "Port Ash, Ohio"),
        (
            "In [START_ENT] Port Ash [END_ENT] it rained.\nOutput the Wikipedia page title of the entity "
            "mentioned between [START_ENT] and [END_ENT] in the given text\nA:",
            "Port Ash",
            ("Port Ash, Ohio",),
            [],
        ),
    ),
    "zsre": (
        "structured_zeroshot-dev-kilt.jsonl",
        kilt("Lamp [SEP] maker", "Mara", meta={"template_questions": ["Who made Lamp?", "Lamp's maker?"]}),
        ("Q: Who made Lamp?\nA:", "Who made Lamp?", ("Mara",), []),
    ),
    "trex": (
        "trex-dev-kilt.jsonl",
        kilt("Lamp [SEP] maker", "Mara", "Mara", "M"),
        ("Lamp [SEP] maker\nA:", "Lamp [SEP] maker", ("Mara", "M"), []),
    ),
    "wow": (
        "wow-dev-kilt.jsonl",
        kilt("I like lamps.\nSo do I.\nWhich?", "Oil lamps."),
        (
            "Q: I like lamps.\nA: So do I.\nQ: Which?\nA:",
            "I like lamps. So do I. Which?",
            ("Oil lamps.",),
            [],
        ),
    ),
    "eli5": ("eli5-dev-kilt.jsonl", kilt(LAMP, "Mara does."), (f"Q: {LAMP}\nA:", LAMP, ("Mara does.",), [])),
    "boolq": (
        "dev.jsonl",
        '{"question": "is it lit", "title": "Lamp", "answer": false, "passage": "Lamp -- It is dark."}',
        ("Lamp -- It is dark.\nQuestion: is it lit?\nAnswer:", "", ("no",), [" yes", " no"]),
    ),
    "hellaswag": (
        "hellaswag_val.jsonl",
        '{"ind": 1, "ctx": "A man lights a lamp. he", "endings": ["eats it.", "sits down."], "label": 1}',
        ("A man lights a lamp. he", "", ("sits down.",), [" eats it.", " sits down."]),
    ),
    "arc_easy": (
        "ARC-Easy-Test.jsonl",
        science("mud", "a lamp", "night"),
        ("Question: What shines?\nAnswer:", "", ("a lamp",), [" mud", " a lamp", " night"]),
    ),
    "arc_challenge": (
        "ARC-Challenge-Test.jsonl",
        science("mud", "a lamp"),
        ("Question: What shines?\nAnswer:", "", ("a lamp",), [" mud", " a lamp"]),
    ),
    "obqa": (
        "test.jsonl",
        science("mud", "a lamp"),
        ("What shines?", "", ("a lamp",), [" mud", " a lamp"]),
    ),
}


def load(tmp_path, name, files, split="official", **options):
    for file, text in files.items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text + "\n", encoding="utf-8")
    return EVAL_TASKS[name].load(tmp_path, split, **options)


@pytest.mark.parametrize("name", CASES)
def test_a_tasks_prompt_query_and_answers(tmp_path, name):
    file, text, (prompt, query, answers, scored) = CASES[name]
    (item,) = load(tmp_path, name, {file: text})
    assert (item.prompt, item.query, item.answers) == (prompt, query, answers)
    assert [(choice.prompt, choice.scored) for choice in item.choices] == [(prompt, s) for s in scored]
    if scored:
        assert item.choices[item.label].answer == answers[0]


def test_mmlu_reads_all_subjects_and_scores_the_letters(tmp_path):
    files = {
        "mmlu/test/lamps_test.csv": '"What burns, ""hot""?",oil,ash,mud,sand,A\nWhat is it?,1,2,3,4,D',
        "mmlu/test/high_tides_test.csv": "When?,now,later,never,always,B",
    }
    tides, lamps, other = load(tmp_path, "mmlu", files)
    assert lamps.prompt == 'Question: What burns, "hot"?\nA. oil\nB. ash\nC. mud\nD. sand\nA:'
    assert lamps.query == 'What burns, "hot"? oil ash mud sand'
    assert [choice.scored for choice in lamps.choices] == [" A", " B", " C", " D"]
    assert (tides.subject, lamps.subject, tides.label, other.label) == ("high_tides", "lamps", 1, 3)
    assert (tides.id, other.id) == ("high_tides_test:1", "lamps_test:2")


def test_piqa_and_siqa_have_their_labels_in_a_file_beside(tmp_path):
    piqa = {"valid.jsonl": '{"goal": "Light it", "sol1": "Strike ", "sol2": "Wait"}', "valid-labels.lst": "0"}
    (item,) = load(tmp_path / "p", "piqa", piqa)
    assert (item.prompt, item.answers) == ("Question: Light it\nAnswer:", ("Strike",))
    line = {"context": "Ed left.", "question": "Why?", "answerA": "late", "answerB": "ill", "answerC": "sad"}
    (item,) = load(tmp_path / "s", "siqa", {"dev.jsonl": json.dumps(line), "dev-labels.lst": "3"})
    assert (item.prompt, item.answers, item.label) == ("Ed left. Q: Why? A:", ("sad",), 2)


def test_winogrande_scores_the_same_words_behind_either_option(tmp_path):
    line = {
        "qID": "w1",
        "sentence": "Ed called Al because _ was ill.",
        "option1": "Ed",
        "option2": "Al",
        "answer": "1",
    }
    (item,) = load(tmp_path, "winogrande", {"dev.jsonl": json.dumps(line)})
    assert [(c.prompt, c.scored) for c in item.choices] == [
        ("Ed called Al because Ed", " was ill."),
        ("Ed called Al because Al", " was ill."),
    ]
    assert item.shot == ("Ed called Al because Ed", " was ill.")


def test_boolqs_question_ends_with_one_question_mark(tmp_path):
    for asked in ("is it lit", "is it lit?", "is it lit ? "):
        line = {"question": asked, "passage": "Dark.", "answer": True}
        (item,) = load(tmp_path, "boolq", {"dev.jsonl": json.dumps(line)})
        assert item.prompt == "Dark.\nQuestion: is it lit?\nAnswer:"


def test_hellaswags_text_is_cleaned_as_lm_evaluation_harness_cleans_it(tmp_path):
    line = {
        "ctx_a": "How to hide [title] Find a bush. [step] Crouch  low.",
        "ctx_b": "then you",
        "ctx": "not read where its halves are",
        "endings": ["[substeps] Wait.", " Sing."],
        "label": "0",
    }
    (item,) = load(tmp_path, "hellaswag", {"hellaswag_val.jsonl": json.dumps(line)})
    assert item.prompt == "How to hide. Find a bush. Crouch low. Then you"
    assert [choice.answer for choice in item.choices] == [" Wait.", "Sing."]


def test_kilts_gold_answers_have_no_white_space_around_them(tmp_path):
    files = {"trex-dev-kilt.jsonl": kilt("Lamp [SEP] maker", " Mara", "Mara ", "M\n")}
    (item,) = load(tmp_path, "trex", files)
    assert (item.answers, item.target) == (("Mara", "M"), "Mara")


def test_obqas_table_is_read_where_there_are_no_lines(tmp_path):
    table = "ID\tQuestion Stem\tChoices\tComplete Question\tAnswer Key\n"
    table += "7-1\tLamps are\t(A) hot (B) cold and (wet) (C) blue (D) loud\tall\tB"
    (item,) = load(tmp_path, "obqa", {"test.tsv": table})
    assert [choice.answer for choice in item.choices] == ["hot", "cold and (wet)", "blue", "loud"]
    assert (item.prompt, item.label) == ("Lamps are", 1)


def test_fevers_original_file_is_read_without_the_claims_that_lack_evidence(tmp_path):
    lines = [
        {"id": 1, "label": "SUPPORTS", "claim": "Lamps shine.", "evidence": []},
        {"id": 2, "label": "NOT ENOUGH INFO", "claim": "Lamps sing."},
    ]
    counts = Counter()
    (item,) = load(tmp_path, "fever", {"paper_dev.jsonl": "\n".join(map(json.dumps, lines))}, counts=counts)
    assert (item.id, item.answers, item.target) == ("1", ("SUPPORTS",), "true")
    assert counts == {"read": 2, "skipped_not_enough_info": 1}


def test_hotpotqas_original_file_serves_where_kilts_is_absent(tmp_path):
    text = json.dumps([{"_id": "h1", "question": LAMP, "answer": "Mara", "supporting_facts": []}])
    (item,) = load(tmp_path, "hotpotqa", {"hotpot_dev_fullwiki_v1.json": text})
    assert (item.id, item.answers, item.pages) == ("h1", ("Mara",), ())


def test_a_kilt_line_without_an_answer_is_skipped_but_in_a_test_file_it_is_kept(tmp_path):
    counts = Counter()
    lines = kilt(LAMP, "Mara") + "\n" + kilt(LAMP)
    (item,) = load(tmp_path, "hotpotqa", {"hotpotqa-dev-kilt.jsonl": lines}, counts=counts)
    assert item.pages == (("9",),)
    assert counts == {"read": 2, "skipped_without_answer": 1}
    test = json.dumps({"id": "k2", "input": LAMP})
    files = {"hotpotqa-test_without_answers-kilt.jsonl": test}
    (item,) = load(tmp_path, "hotpotqa", files, split="hidden")
    assert (item.id, item.answers) == ("k2", ())


def test_the_last_turn_of_a_dialogue_is_the_one_that_is_answered(tmp_path):
    (item,) = load(tmp_path, "wow", {"wow-dev-kilt.jsonl": kilt("Hello.\nWhich?", "Oil.")})
    assert item.prompt == "A: Hello.\nQ: Which?\nA:"


def test_a_shot_is_the_prompt_with_what_should_be_generated(tmp_path):
    (item,) = load(tmp_path, "fever", {"fever-dev-kilt.jsonl": kilt("Lamps are cold.", "REFUTES")})
    assert item.shot == ("Is this statement true? Lamps are cold.\nA:", " false")
    (item,) = load(tmp_path, "mmlu", {"mmlu/test/lamps_test.csv": "What?,oil,ash,mud,sand,C"})
    assert item.shot[1] == " C"


def test_shots_are_drawn_of_the_subject_in_their_order_and_the_same_for_a_seed():
    pool = [EvalExample(str(n), "", subject="xy"[n % 2]) for n in range(20)]
    drawn = draw_shots(pool, 5, seed=1)
    assert drawn == draw_shots(pool, 5, seed=1) != draw_shots(pool, 5, seed=2)
    assert [int(item.id) for item in drawn] == sorted(int(item.id) for item in drawn)
    assert {item.subject for item in draw_shots(pool, 10, seed=0, subject="y")} == {"y"}
    with pytest.raises(ValueError, match="draw_shots: expected 11 examples of y, got 10. Ask for fewer"):
        draw_shots(pool, 11, seed=0, subject="y")


def test_a_task_is_found_by_name_and_a_file_is_a_task_too(tmp_path):
    assert find_task("nq") is EVAL_TASKS["nq"]
    (tmp_path / "mine.jsonl").write_text(
        '{"query": "Who?", "response": "Mara"}\n{"query": "?", "response": ""}\n'
    )
    counts, mine = Counter(), find_task(str(tmp_path / "mine.jsonl"))
    (item,) = mine.load("elsewhere", counts=counts)
    assert (mine.name, item.prompt, item.query, item.answers) == ("mine", "Q: Who?\nA:", "Who?", ("Mara",))
    assert counts == {"read": 2, "skipped_without_answer": 1}
    with pytest.raises(
        ValueError, match="evaluate: expected a task, .*, got 'hotpot'. Did you mean 'hotpotqa'?"
    ):
        find_task("hotpot")
    with pytest.raises(ValueError, match="expected a task, mmlu, nq, .* or a file's path, got 'x'"):
        find_task("x")


def test_a_sample_keeps_the_order_and_grows_with_its_limit():
    items = [EvalExample(str(n), "") for n in range(30)]
    few, more = (sample(items, size, seed=0) for size in (5, 12))
    assert [int(i.id) for i in few] == sorted(int(i.id) for i in few)
    assert {i.id for i in few} < {i.id for i in more}
    assert sample(items, 100, seed=0) == items


def test_an_answer_is_scored_by_the_tasks_metric():
    yes = EvalExample("1", "", answers=("SUPPORTS",))
    assert [EVAL_TASKS["fever"].metric_value(yes, text) for text in ("True", "false", "")] == [1.0, 0.0, 0.0]
    emma = EvalExample("1", "", answers=("Emma",))
    assert EVAL_TASKS["zsre"].metric_value(emma, "emma") == 0.0
    assert EVAL_TASKS["nq"].metric_value(emma, "the emma.") == 1.0
    assert EVAL_TASKS["wow"].metric_value(emma, "emma lives") == pytest.approx(2 / 3)
    assert EVAL_TASKS["eli5"].metric_value(emma, "Emma lives") == pytest.approx(2 / 3)


def test_the_tasks_are_the_papers_with_their_metrics_rules_and_lengths():
    assert {n: (t.metric, t.scoring_rule, t.max_new_tokens) for n, t in EVAL_TASKS.items()} == {
        "mmlu": ("accuracy", "sum", 0),
        "nq": ("exact_match", "sum", 32),
        "trivia_qa": ("exact_match", "sum", 32),
        "hotpotqa": ("exact_match", "sum", 32),
        "fever": ("accuracy", "sum", 16),
        "aida": ("accuracy", "sum", 32),
        "zsre": ("accuracy", "sum", 32),
        "trex": ("accuracy", "sum", 32),
        "wow": ("f1", "nll_token", 64),
        "eli5": ("rouge_l", "nll_token", 256),
        "boolq": ("accuracy", "nll_compl", 0),
        "piqa": ("accuracy", "per_character", 0),
        "siqa": ("accuracy", "per_character", 0),
        "hellaswag": ("accuracy", "per_character", 0),
        "winogrande": ("accuracy", "per_character", 0),
        "arc_easy": ("accuracy", "per_character", 0),
        "arc_challenge": ("accuracy", "per_character", 0),
        "obqa": ("accuracy", "nll_compl", 0),
    }
    assert {task.metric for task in EVAL_TASKS.values()} <= set(METRICS)
    assert set(KILT_DEVELOPMENT) <= set(EVAL_TASKS)
    assert find_task("mine.jsonl").generates and not EVAL_TASKS["boolq"].generates


BAD = [
    (
        "zsre",
        "structured_zeroshot-dev-kilt.jsonl",
        kilt("Lamp [SEP] maker", "Mara"),
        "expected a list of questions in meta.template_questions, got null",
    ),
    (
        "aida",
        "aidayago2-dev-kilt.jsonl",
        kilt("Port Ash", "Port Ash"),
        r"expected a mention between \[START_ENT\] and \[END_ENT\]",
    ),
    (
        "fever",
        "fever-dev-kilt.jsonl",
        kilt("So.", "MAYBE"),
        "expected the answer SUPPORTS or REFUTES, got 'MAYBE'",
    ),
    ("hotpotqa", "hotpotqa-dev-kilt.jsonl", '{"id": "1", "output": []}', "line 1: .* got no field 'input'"),
    ("hotpotqa", "hotpotqa-dev-kilt.jsonl", kilt(LAMP), "expected a question of hotpotqa in all of it"),
    (
        "boolq",
        "dev.jsonl",
        '{"question": "a", "passage": "b", "answer": "no"}',
        "expected the answer true or false, got 'no'",
    ),
    (
        "piqa",
        "valid.jsonl",
        '{"goal": "a", "sol1": "b", "sol2": "c"}',
        "its labels next to it, in valid-labels.lst, got no",
    ),
    (
        "winogrande",
        "dev.jsonl",
        json.dumps(dict.fromkeys(("qID", "sentence", "option1", "option2", "answer"), "x")),
        "expected a _ with words after it in 'sentence', got 'x'",
    ),
    (
        "arc_easy",
        "ARC-Easy-Test.jsonl",
        science("mud", "lamp", key="C"),
        "expected the right answer to be A or B, got 'C'",
    ),
    (
        "arc_easy",
        "ARC-Easy-Test.jsonl",
        '{"id": "1", "answerKey": "A", "question": {}}',
        "expected the fields stem, choices, got no",
    ),
    ("mmlu", "test/lamps_test.csv", "What?,oil,ash,mud,sand,E", "to be choice 1 to 4, got choice 0"),
    ("mmlu", "test/lamps_test.csv", "What?,oil,ash,mud", "expected 6 columns .* got 4"),
    ("trivia_qa", "unfiltered-web-dev.json", "{}", "expected a list in 'Data', got null"),
    (
        "zsre",
        "structured_zeroshot-dev-kilt.jsonl",
        kilt("Lamp [SEP] maker", "Mara", meta=[1]),
        "line 1: expected a list of questions in meta.template_questions",
    ),
    (
        "arc_easy",
        "ARC-Easy-Test.jsonl",
        science(),
        "line 1: expected the right answer to be a choice, got 'B'",
    ),
    (
        "obqa",
        "test.jsonl",
        '{"id": "1", "answerKey": "A", "question": {"stem": "a", "choices": [{"text": 1, "label": "A"}]}}',
        "line 1: expected field 'text' to be a string, got 1",
    ),
    (
        "obqa",
        "test.jsonl",
        '{"id": "1", "answerKey": "A", "question": {"stem": "a", "choices": 7}}',
        "line 1: expected field 'choices' to be a list of objects, got 7",
    ),
    (
        "trivia_qa",
        "unfiltered-web-dev.json",
        '{"Data": [{"QuestionId": "1", "Question": "a", "Answer": {"Value": "b", "Aliases": 5}}]}',
        "item 1: expected field 'Aliases' to be a list of strings, got 5",
    ),
    ("boolq", "dev.jsonl", "[" * 100_000, "expected JSON of at most 100 levels"),
    ("wow", "wow-dev-kilt.jsonl", kilt("\ud800", "Mara"), "expected text that UTF-8 can write"),
    (
        "nq",
        "other.jsonl",
        "{}",
        r"nq: expected nq_open/NQ-open.dev.jsonl or kilt/nq-dev-kilt.jsonl in .*, got none. Download it",
    ),
]


@pytest.mark.parametrize(("name", "file", "text", "message"), BAD)
def test_a_line_of_another_form_is_one_clear_error(tmp_path, name, file, text, message):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, name, {file: text})


def test_labels_that_do_not_match_their_lines_and_unknown_splits_are_errors(tmp_path):
    piqa = {"valid.jsonl": '{"goal": "a", "sol1": "b", "sol2": "c"}', "valid-labels.lst": "0\n1"}
    with pytest.raises(
        ValueError, match="expected a number for each of the 1 lines of valid.jsonl, got 2 labels"
    ):
        load(tmp_path, "piqa", piqa)
    with pytest.raises(ValueError, match="expected a split train, dev, test or official, got 'hidden'"):
        EVAL_TASKS["piqa"].load(tmp_path, "hidden")


def test_kilts_dev_and_test_are_the_halves_of_its_dev_file(tmp_path):
    lines = [json.loads(kilt(f"Lamp {n}?", "Mara")) | {"id": f"k{n}"} for n in range(200)]
    files = {"trex-dev-kilt.jsonl": "\n".join(map(json.dumps, lines))}
    counts = Counter()
    dev, test, whole = (
        {item.id for item in load(tmp_path, "trex", files, split, counts=counts)}
        for split in ("dev", "test", "official")
    )
    assert dev | test == whole and not dev & test and len(whole) == 200
    assert 70 < len(dev) < 130 and "k0" in dev  # fixed by the hash of the id
    assert counts == {"read": 600, "in_another_split": 200}
    # a file cut short divides alike
    files = {"trex-dev-kilt.jsonl": "\n".join(map(json.dumps, lines[:100]))}
    assert {item.id for item in load(tmp_path, "trex", files, "dev")} == {i for i in dev if int(i[1:]) < 100}


def test_a_task_without_a_second_file_takes_its_dev_part_from_train(tmp_path):
    lines = [json.dumps({"question": f"who is {n // 2}", "answer": ["Mara"]}) for n in range(400)]
    files = {"NQ-open.train.jsonl": "\n".join(lines), "NQ-open.dev.jsonl": lines[0]}
    train, dev, test = ([i.query for i in load(tmp_path, "nq", files, s)] for s in ("train", "dev", "test"))
    assert len(train) + len(dev) == 400 and 10 < len(dev) < 80
    assert not set(train) & set(dev)  # a question that stands twice is on one side
    assert test == ["who is 0"]


def test_no_two_splits_of_a_task_share_questions():
    for task in EVAL_TASKS.values():
        parts = [task.splits[name] for name in ("train", "dev", "test")]
        shares = {}
        for part in parts:
            shares.setdefault(part.file, set()).add(part.share)
        for own in shares.values():
            assert own in ({"all"}, {"one half", "the other half"}, {"a tenth", "nine tenths"}), task.name
        assert set(task.splits) == {"train", "dev", "test", "official"} | (
            {"hidden"} if task.is_kilt else set()
        )
        assert {part.file for part in task.splits.values()} <= set(task.sources)


def test_the_docs_have_a_row_for_each_task():
    """To make them again: python tests/data/test_benchmarks.py."""
    assert [row for row in TASKS_PAGE.read_text().splitlines() if row.startswith("| `")] == task_rows()


def task_rows():
    rows = []
    for task in EVAL_TASKS.values():
        length = task.max_new_tokens or "chooses"
        splits = [split_cell(task, name) for name in ("train", "dev", "test", "official", "hidden")]
        cells = [f"`{task.name}`", task.metric, f"`{task.scoring_rule}`", str(length), *splits]
        rows.append(f"| {' | '.join(cells)} |")
    return rows


def split_cell(task, split):
    if split not in task.splits:
        return "–"
    part = task.splits[split]
    share = "" if part.share == "all" else f"{part.share} of "
    return share + " or ".join(f"`{source.path}`" for source in task.sources[part.file])


REAL = {  # name -> split, items, kept of read, the first gold answer
    "mmlu": ("dev", 1542, "A"),
    "nq": ("official", 3610, "14 December 1972 UTC"),
    "hotpotqa": ("official", 5, "yes"),
    "fever": ("official", 5, "SUPPORTS"),
    "zsre": ("official", 5, "3 February 1993"),
    "trex": ("official", 5, "heavy metal"),
    "wow": ("official", 5, None),
    "eli5": ("official", 5, None),
    "boolq": ("official", 3270, "no"),
    "piqa": ("official", 1838, None),
    "siqa": ("official", 2, "Find somewhere to go"),
    "hellaswag": ("official", 2, "starts pulling up roofing on a roof."),
    "winogrande": ("official", 2, "Dennis"),
    "arc_easy": ("dev", 2, "Record the details of the investigation."),
    "arc_challenge": ("dev", 2, "Record the details of the investigation."),
    "obqa": ("dev", 500, "Deep sea animals"),
}


@pytest.mark.parametrize("name", REAL)
def test_a_real_file_is_read_whole(shared_data, name):
    split, count, first = REAL[name]
    counts = Counter()
    items = EVAL_TASKS[name].load(shared_data / "raw", split, counts)
    assert len(items) == count == counts["read"]
    assert first is None or items[0].answers[0] == first
    assert all(item.prompt and item.answers for item in items)
    if not EVAL_TASKS[name].generates:
        assert all(item.choices[item.label].answer == item.answers[0] for item in items)


def test_mmlus_real_files_have_57_subjects_with_five_shots_each(shared_data):
    shots = Counter(item.subject for item in EVAL_TASKS["mmlu"].load(shared_data / "raw", "train"))
    questions = Counter(item.subject for item in EVAL_TASKS["mmlu"].load(shared_data / "raw", "dev"))
    assert len(shots) == 57 and set(shots.values()) == {5}
    assert set(questions) == set(shots)


def test_fevers_real_original_file_keeps_what_can_be_judged(shared_data, tmp_path):
    (tmp_path / "paper_dev.jsonl").symlink_to(shared_data / "raw" / "fever" / "paper_dev.jsonl")
    counts = Counter()
    items = EVAL_TASKS["fever"].load(tmp_path, "official", counts=counts)
    assert counts["read"] == 9999 == len(items) + counts["skipped_not_enough_info"]
    assert set(Counter(item.target for item in items)) == {"true", "false"}


def test_kilts_real_test_files_are_read_without_answers(shared_data):
    for name in ("hotpotqa", "fever", "zsre", "trex", "wow", "eli5"):
        items = EVAL_TASKS[name].load(shared_data / "raw", "hidden")
        assert len(items) == 5 and not any(item.answers for item in items)


if __name__ == "__main__":
    print("\n".join(task_rows()))
