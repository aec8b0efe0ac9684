import dataclasses
import itertools
from collections import Counter, defaultdict

import pytest

from radit_jax.config import GeneratedWorld
from radit_jax.data.artifacts.corpus import CorpusData
from radit_jax.data.sources.generated_world import ENTITIES_PER_GROUP, generate_world
from radit_jax.data.sources.world_vocabulary import ENTITY_KINDS, FIRST_NAMES, LAST_NAMES

SMALL = GeneratedWorld(
    train_entities=60,
    dev_entities=20,
    test_entities=20,
    pretraining_entities=200,
    documents=600,
    encoder_groups=50,
)


@pytest.fixture(scope="module")
def data() -> CorpusData:
    return generate_world(SMALL, seed=7)


def all_questions(data: CorpusData) -> list:
    return list(itertools.chain(*data.questions.values()))


def test_the_same_seed_gives_the_same_world_and_another_seed_another(data: CorpusData) -> None:
    assert generate_world(SMALL, seed=7) == data
    other = generate_world(SMALL, seed=8)
    assert other.chunks != data.chunks and other.questions != data.questions


def test_sizes_are_those_asked_for(data: CorpusData) -> None:
    assert len(data.chunks) == 3 * 100
    assert {split: len(questions) for split, questions in data.questions.items()} == {
        "train": 60 * 6,
        "dev": 20 * 3,
        "test": 20 * 3,
    }
    assert (len(data.documents), len(data.encoder_groups)) == (600, 50)


def test_ids_are_unique(data: CorpusData) -> None:
    for ids in ([chunk.id for chunk in data.chunks], [question.id for question in all_questions(data)]):
        assert len(set(ids)) == len(ids)


def test_an_answer_is_in_its_gold_chunk_and_in_no_other_chunk_of_the_entity(data: CorpusData) -> None:
    for question in all_questions(data):
        (answer,) = question.answers
        holders = [c.id for c in data.chunks if c.title == question.group and answer in c.passage]
        assert tuple(holders) == question.gold_chunks
        assert question.group in question.question
        assert 1 <= len(answer.split()) <= 4


def test_splits_share_no_entity(data: CorpusData) -> None:
    entities = [{question.group for question in questions} for questions in data.questions.values()]
    assert sum(map(len, entities)) == len(set().union(*entities)) == 100


def test_names_have_namesakes_in_the_corpus(data: CorpusData) -> None:
    names = {chunk.title for chunk in data.chunks}
    words = [word for name in names for word in name.split()]
    assert len(set(words)) < len(words) * 2 / 3


def test_pretraining_text_is_on_other_entities_and_never_has_the_background_format(data: CorpusData) -> None:
    names = {chunk.title for chunk in data.chunks}
    queries_and_passages = [text for group in data.encoder_groups for pair in group for text in pair]
    for text in (*data.documents, *queries_and_passages):
        words = text.replace("?", "").replace("\n", " ").split()
        assert names.isdisjoint(" ".join(pair) for pair in itertools.pairwise(words))
        assert "Background" not in text


def test_asked_wordings_are_in_pretraining_text_without_a_passage_only(data: CorpusData) -> None:
    wordings = {
        w for kind in ENTITY_KINDS.values() for attribute in kind.values() for w in attribute.questions
    }
    faqs = {w for kind in ENTITY_KINDS.values() for attribute in kind.values() for w in attribute.faqs}
    assert wordings.isdisjoint(faqs)
    closed_book = [text for text in data.documents if text.startswith("Q: ")]
    others = [text for text in data.documents if not text.startswith("Q: ")]
    assert 50 < len(closed_book) < 150
    assert all("\n\n" not in text and "\nA: " in text for text in closed_book)
    assert all("\n\n" in text and "Q: " not in text for text in others)


def test_the_entities_of_a_group_share_a_word_of_their_names(data: CorpusData) -> None:
    for group in data.encoder_groups:
        names = [set(passage.split()[:2]) for _, passage in group]
        assert len(group) == ENTITIES_PER_GROUP
        assert len(set.intersection(*names)) >= 1
        assert len({tuple(sorted(name)) for name in names}) == ENTITIES_PER_GROUP


def test_guessing_an_answer_is_nearly_always_wrong() -> None:
    """Even the most frequent answer of every attribute is right in less than one question in twenty."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for question in generate_world(dataclasses.replace(SMALL, train_entities=1000), seed=7).questions[
        "train"
    ]:
        answers[question.id.rsplit("_", 1)[1]][question.answers[0]] += 1
    guesses = [counts.most_common(1)[0][1] / counts.total() for counts in answers.values()]
    assert len(guesses) == 18
    assert sum(guesses) / len(guesses) < 0.05


def test_passages_are_short_and_begin_with_the_name(data: CorpusData) -> None:
    lengths = [len(chunk.passage.split()) for chunk in data.chunks]
    assert min(lengths) >= 18 and max(lengths) <= 30
    assert all(chunk.title in chunk.text for chunk in data.chunks)


def test_more_entities_than_names_is_an_error() -> None:
    count = len(FIRST_NAMES) * len(LAST_NAMES)
    with pytest.raises(ValueError, match=f"data: expected at most {count} entities in all, .*Lower"):
        generate_world(dataclasses.replace(SMALL, pretraining_entities=count), seed=0)


def test_too_few_pretraining_entities_for_groups_is_an_error() -> None:
    with pytest.raises(
        ValueError, match=r"data\.pretraining_entities: expected 4 entities .*, got none among 2\. Raise it"
    ):
        generate_world(dataclasses.replace(SMALL, pretraining_entities=2), seed=0)
