import re
import string
import unicodedata
from collections import Counter

import numpy as np
import pytest

from radit_jax.text.metrics import (
    answer_spans,
    contains_answer,
    exact_match,
    f1,
    is_yes_no,
    normalize,
    question_key,
    recall_at_k,
    reciprocal_ranks,
    rouge_l,
    strict_accuracy,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The  Eiffel\tTower.", "eiffel tower"),
        ("U.S.A.", "usa"),
        ("An apple a day", "apple day"),
        ("theatre", "theatre"),
        ("", ""),
        ("  ", ""),
        ("A", "a"),
        ("?!", "?!"),
    ],
)
def test_normalisation_is_squads(text, expected):
    assert normalize(text) == expected


def test_exact_match_takes_the_best_gold_answer():
    assert exact_match("the Seine.", ["River Seine", "Seine"]) == 1.0
    assert exact_match("Seine river", ["River Seine", "Seine"]) == 0.0


def test_an_empty_prediction_scores_zero_even_against_an_empty_answer():
    for prediction in ("", " \n"):
        assert exact_match(prediction, ["", "Paris"]) == 0.0
        assert f1(prediction, ["", "Paris"]) == 0.0


def test_punctuation_and_articles_alone_do_not_match_each_other():
    assert exact_match(".", ["The"]) == 0.0
    assert exact_match("A", ["a"]) == 1.0
    assert exact_match("an", ["A"]) == 0.0


def test_f1_counts_repeated_words_once_per_occurrence():
    # prediction {new: 2, york: 1}, answer {new: 1, york: 1, city: 1}: 2 common, precision 2/3, recall 2/3.
    assert f1("new new york", ["New York City"]) == pytest.approx(2 / 3)
    # Best of: 1 common of 2 and 1 (F1 2/3); 2 common of 2 and 3 (F1 4/5).
    assert f1("New York", ["York", "New York City"]) == pytest.approx(4 / 5)
    assert f1("London", ["Paris"]) == 0.0


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("It began in 1970.", "1970", True),
        ("In the 1970s it began.", "1970", False),
        ("the catalogue", "cat", False),
        ("signed in Paris[3] by both", "Paris", True),
        ("the 1973–74 crisis", "1973", True),  # an en dash, which SQuAD's normalisation keeps
        ("born in New, York", "new york", True),
        ("new old york", "New York", False),
        ("president of the United States", "President of United States", True),
        ("president of United States", "President of the United States", False),
        ("nobody knew who sang", "The Who", False),
        ("a song by the Who", "The Who", True),
        ("any text with an article", "the", False),
        ("Café Müller", "CAFÉ", True),
        ("blood of type A", "A", False),
        ("anything", "", False),
    ],
)
def test_an_answer_is_contained_as_whole_words(text, answer, expected):
    assert contains_answer(text, [answer]) is expected


@pytest.mark.parametrize(
    ("text", "answer", "expected"),
    [
        ("北京是中国的首都", "北京", True),
        ("北京是中国的首都", "京北", False),
        ("在1970年开始", "1970", True),
        ("1970年代", "197", False),
        ("東京タワーは高い", "東京タワー", True),
        ("กรุงเทพเป็นเมืองหลวง", "กรุงเทพ", True),
        ("กิ่งไม้", "กิ", False),  # a tone mark belongs to its letter
        ("ນະຄອນຫຼວງວຽງຈັນ", "ວຽງຈັນ", True),
        ("ភ្នំពេញជារាជធានី", "ភ្នំពេញ", True),
        ("ရန်ကုန်မြို့", "ရန်ကုန်", True),
        ("दाल बनाई", "दिल", False),
        ("मेरा दिल है", "दिल", True),
        ("서울은 수도", "서울", False),  # Korean has spaces
        ("Zoé sang", unicodedata.normalize("NFD", "Zoé"), True),
        (unicodedata.normalize("NFD", "Zoé sang"), "Zoé", True),
        (unicodedata.normalize("NFD", "서울 시"), "서울", True),
    ],
)
def test_an_answer_is_found_in_the_words_of_other_languages(text, answer, expected):
    assert contains_answer(text, [answer]) is expected


def test_one_contained_answer_is_enough():
    assert contains_answer("the River Seine", ["Loire", "Seine"])
    assert not contains_answer("the River Seine", [])


def test_yes_no_questions_have_no_other_answer():
    assert is_yes_no(["Yes"])
    assert is_yes_no(["no.", "No"])
    assert not is_yes_no(["no", "never"])
    assert not is_yes_no(["Norway"])


def test_exact_match_and_f1_know_scripts_without_spaces():
    assert exact_match("北京。", ["北京"]) == 1.0
    assert exact_match("iPhone手机", ["iPhone 手机"]) == 1.0
    assert exact_match("北京", ["東京"]) == 0.0
    # Characters in common, twice, of all: 2 of 4 and 2; kana 3 of 3 and 5; Thai 3 of 3 and 4.
    assert f1("长江流域", ["长江"]) == pytest.approx(2 * 2 / 6)
    assert f1("タワー", ["東京タワー"]) == pytest.approx(2 * 3 / 8)
    assert f1("ดวง", ["ดวงใ"]) == pytest.approx(2 * 3 / 7)
    assert f1("iPhone手机", ["手机"]) == pytest.approx(2 * 2 / 5)


def test_both_normal_forms_and_combining_marks_score_alike():
    for text in ("Zoé", "à", "Việt Nam", "서울"):
        for form in ("NFC", "NFD"):
            assert exact_match(unicodedata.normalize(form, text), [text]) == 1.0
            assert f1(text, [unicodedata.normalize(form, text)]) == 1.0
    assert exact_match("a\u0331 b", ["b"]) == 0.0  # a letter under a mark is no article
    assert exact_match("दिल।", ["दिल"]) == 1.0


def test_a_question_is_known_by_its_letters_digits_and_signs():
    key = question_key("Who wrote “Emma” — and when?")
    for same in ("who wrote Emma and when", "Who wrote the Emma , and when ?", "WHO WROTE EMMA: and when?!"):
        assert question_key(same) == key
    for other in ("Who wrote Emma and where?", "Who wrote Emma and when? 2"):
        assert question_key(other) != key
    assert len({question_key(f"What is 3{sign}5?") for sign in ("+", "*", "/", ".", "")}) == 5
    assert question_key("Rs. 1,000 at 3.5%") == question_key("rs . 1000 at 3.5 %")
    assert question_key("北京 在哪里？") == question_key("北京在哪里")
    assert question_key("?") != question_key("!")


HITS = np.array([[False, True, False, True], [True, False, False, False], [False, False, False, False]])


def test_recall_counts_questions_with_a_hit_among_the_first_k():
    assert recall_at_k(HITS, 1).tolist() == [0.0, 1.0, 0.0]
    assert recall_at_k(HITS, 4).tolist() == [1.0, 1.0, 0.0]


def test_recall_deeper_than_the_ranking_is_an_error():
    with pytest.raises(ValueError, match="recall@5: expected a k of at most the chunks ranked, got 4 chunks"):
        recall_at_k(HITS, 5)


def test_a_reciprocal_rank_is_of_the_first_hit():
    assert reciprocal_ranks(HITS).tolist() == [0.5, 1.0, 0.0]


def test_strict_accuracy_only_strips():
    assert strict_accuracy(" Emma\n", ["Persuasion", "Emma"]) == 1.0
    assert strict_accuracy("Emma", ["Emma "]) == 1.0
    for prediction in ("emma", "Emma.", "the Emma", "", " "):
        assert strict_accuracy(prediction, ["Emma", "", " "]) == 0.0


def test_rouge_l_unites_the_common_subsequences_of_sentences():
    # Sentences "the cat sat", "a dog ran" against "a cat ran": subsequences {cat}, {a, ran}; the union is all
    # 3 gold words of 6 predicted: recall 1, precision 1/2.
    assert rouge_l("the cat sat. a dog ran", ["a cat ran"]) == pytest.approx(2 / 3)
    assert rouge_l("cat", ["dog", "a cat"]) == pytest.approx(2 / 3)  # the best gold answer
    for prediction in ("", " ", "...", "..", ". ."):
        assert rouge_l(prediction, ["cat.", ""]) == 0.0


# ---- against public scorers, on 1,000 generated pairs ----

VOCABULARY = (
    "a an the The cat cats Cat's dog's sat ran New York U.S. U.K. 1,970 1970s co-op (old) – the–cat café "
    "CAFÉ naïve Ltd. e.g. end. end.. Mr. what? no! “quoted” A.B.C ß İstanbul ﬁne under_score a-the \t \n"
)
WORDS = VOCABULARY.split(" ")


def generated_pairs(count):
    rng = np.random.default_rng(0)

    def text():
        return " ".join(rng.choice(WORDS, size=rng.integers(0, 12)))

    for _ in range(count):
        answers = [text() or "cat" for _ in range(rng.integers(1, 4))]
        prediction = text()
        if rng.random() < 0.4:  # near an answer
            words = answers[0].split(" ")
            prediction = " ".join(words[: rng.integers(1, len(words) + 1)])
        if rng.random() < 0.2:
            prediction = rng.choice([prediction.upper(), prediction.title(), f" {prediction}. "])
        yield str(prediction), answers


def squad_words(text):
    """The published normalisation, step by step: lower case, no punctuation, no articles, split."""
    text = "".join(character for character in text.lower() if character not in set(string.punctuation))
    return re.sub(r"\b(a|an|the)\b", " ", text, flags=re.UNICODE).split()


def squad_f1(prediction, answer):
    predicted, wanted = squad_words(prediction), squad_words(answer)
    shared = sum((Counter(predicted) & Counter(wanted)).values())
    if not shared:
        return 0
    precision, recall = shared / len(predicted), shared / len(wanted)
    return 2 * precision * recall / (precision + recall)


def test_exact_match_and_f1_are_squads_on_generated_pairs():
    """But where nothing is left of the prediction, which SQuAD lets match an answer that vanishes too."""
    pairs = [pair for pair in generated_pairs(1100) if squad_words(pair[0])][:1000]
    assert len(pairs) == 1000
    for prediction, answers in pairs:
        squad = max(float(squad_words(prediction) == squad_words(answer)) for answer in answers)
        assert exact_match(prediction, answers) == squad
        assert f1(prediction, answers) == pytest.approx(
            max(squad_f1(prediction, a) for a in answers), abs=1e-12
        )
    scores = [f1(*pair) for pair in pairs]
    assert 0.2 < np.mean(scores) < 0.8 and 0.05 < np.mean([exact_match(*pair) for pair in pairs]) < 0.9


def test_text_of_scripts_with_spaces_and_without_marks_is_normalised_as_by_squad():
    """Letters, digits and signs of many scripts, drawn at random, but no marks."""
    blocks = [range(0x20, 0x250), range(0x370, 0x530), range(0x5D0, 0x5EB), range(0x621, 0x64B)]
    blocks += [range(0x10D0, 0x10FB), range(0x2010, 0x2050), range(0x20A0, 0x20C0), range(0xAC00, 0xAD00)]
    letters = [chr(code) for block in blocks for code in block]
    letters = [one for one in letters if one.isprintable() and unicodedata.category(one)[0] not in "MC"]
    letters = [
        one for one in letters if unicodedata.is_normalized("NFC", one) and "\u0307" not in one.lower()
    ]
    rng = np.random.default_rng(0)
    for _ in range(2000):
        drawn = rng.choice([*letters, *("a", "the", "an", " ", " ", ".", "x") * 60], size=rng.integers(1, 25))
        wanted = squad_words(text := "".join(drawn))
        assert normalize(text).split() == (wanted or text.lower().split()), text


def test_rouge_l_is_the_rouge_packages_on_generated_pairs():
    rouge = pytest.importorskip("rouge").Rouge(metrics=["rouge-l"])

    def kilt(prediction, answer):
        try:
            return rouge.get_scores(prediction, answer, avg=True)["rouge-l"]["f"]
        except ValueError:  # nothing but full stops, which KILT scores 0
            return 0.0

    different = 0
    for prediction, answers in generated_pairs(1000):
        expected = max(kilt(prediction, answer) for answer in answers) if prediction.strip() else 0.0
        assert rouge_l(prediction, answers) == pytest.approx(expected, abs=1e-12), (prediction, answers)
        different += 0 < expected < 0.999
    assert different > 300


@pytest.mark.parametrize(
    ("text", "answers", "marked"),
    [
        ("The Franco-Prussian war[2] began.", ["Prussian War"], ["Prussian war"]),
        ("Nobody knew who the Who were.", ["The Who"], ["the Who"]),
        ("Head of the Navy, head of a navy", ["head of navy"], ["Head of the Navy", "head of a navy"]),
        ("北京是中国的首都", ["北京"], ["北京"]),
        ("Cafe\u0301 de Flore", ["Café"], ["Cafe\u0301"]),
        ("the 1970s", ["1970"], []),
        ("a b a b a", ["b a"], ["b a", "b a"]),
        ("anything", ["the"], []),
    ],
)
def test_an_answer_is_marked_exactly_where_a_text_holds_it(text, answers, marked):
    spans = answer_spans(text, answers)
    assert [text[start:end] for start, end in spans] == marked
    assert bool(spans) == contains_answer(text, answers)
