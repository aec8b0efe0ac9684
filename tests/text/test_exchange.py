from radit_jax.text.exchange import flag_embedding, trec_id, trec_qrels, trec_run


def test_a_run_has_six_fields_whatever_the_ids_are():
    lines = trec_run("what now?", ["a b", "100%", "c"], [2.5, 2.0, -0.125], "base").splitlines()
    assert [line.split() for line in lines] == [
        ["what%20now?", "Q0", "a%20b", "1", "2.5", "base"],
        ["what%20now?", "Q0", "100%25", "2", "2", "base"],
        ["what%20now?", "Q0", "c", "3", "-0.125", "base"],
    ]


def test_two_ids_never_become_one():
    assert len({trec_id(name) for name in ("a b", "a%20b", "a\tb", "ab")}) == 4


def test_scores_of_a_float32_are_told_apart():
    """Near 396, where DRAGON+ scores lie, float32's steps are 3e-5."""
    first, second = trec_run("q", "ab", [396.5625305175781, 396.5625], "x").splitlines()
    assert first.split()[4] != second.split()[4]


def test_a_question_without_gold_chunks_has_no_judgements():
    assert trec_qrels("q", []) == ""
    assert trec_qrels("q", ["a", "b"]) == "q 0 a 1\nq 0 b 1\n"


def test_the_teachers_first_choice_is_the_positive_and_the_rest_are_ranked_negatives():
    row = flag_embedding("who?", ["low", "high", "middle"], [-3.0, -1.0, -2.0])
    assert row == {
        "query": "who?",
        "pos": ["high"],
        "neg": ["middle", "low"],
        "pos_scores": [-1.0],
        "neg_scores": [-2.0, -3.0],
    }
