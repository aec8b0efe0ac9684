"""A fictional world, generated from a seed: passages to retrieve from, questions on them, pre-training text.

Entities of three kinds have six attributes each. An entity's facts stand in three passages of two facts, in
random pairs, so that one passage only answers a question. A name is a first and a last word of two small
pools: many passages share a word of the name asked about, and a retriever has to tell them apart. Attribute
values are drawn from products of word pools, so that guessing without a passage is nearly always wrong.

The base models learn from *other* entities, which share words with the corpus but not one name. Their
documents ask questions in wordings of their own; the wordings that an experiment asks occur in them only
without any passage, and the `Background:` format never.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from radit_jax.config import GeneratedWorld
from radit_jax.data.artifacts.corpus import CorpusData
from radit_jax.data.records import Chunk, Question
from radit_jax.data.sources.world_vocabulary import (
    ENTITY_KINDS,
    ENTITY_QUERIES,
    FIRST_NAMES,
    LAST_NAMES,
    Attribute,
)

FACTS_PER_PASSAGE = 2
ENTITIES_PER_GROUP = 4


class Fact(NamedTuple):
    attribute: str
    value: str
    passage: int  # which of the entity's passages tells it


@dataclass(frozen=True)
class Entity:
    """An entity with its facts and the texts of the passages that tell them, two facts in each."""

    name: str
    kind: str
    facts: tuple[Fact, ...]
    texts: tuple[str, ...]

    def chunk(self, passage: int) -> Chunk:
        return Chunk(f"{self.name.lower().replace(' ', '_')}_{passage}", self.name, self.texts[passage])


def generate_world(config: GeneratedWorld, seed: int) -> CorpusData:
    """The world of `seed`: the same settings and seed give the same data on every machine."""
    rng = random.Random(f"radit_jax world {seed}")
    sizes = (config.train_entities, config.dev_entities, config.test_entities, config.pretraining_entities)
    entities = iter(_entities(rng, sum(sizes)))
    train, dev, test, others = (list(itertools.islice(entities, size)) for size in sizes)
    chunks = [entity.chunk(i) for entity in (*train, *dev, *test) for i in range(len(entity.texts))]
    rng.shuffle(chunks)
    return CorpusData(
        chunks=chunks,
        questions={
            "train": _questions(rng, train, config.train_questions_per_entity),
            "dev": _questions(rng, dev, config.test_questions_per_entity),
            "test": _questions(rng, test, config.test_questions_per_entity),
        },
        documents=[_document(rng, rng.choice(others)) for _ in range(config.documents)],
        encoder_groups=_groups(rng, others, config.encoder_groups, config.fact_queries),
    )


def _entities(rng: random.Random, count: int) -> list[Entity]:
    names = [f"{first} {last}" for first in FIRST_NAMES for last in LAST_NAMES]
    if count > len(names):
        raise ValueError(
            f"data: {count} entities in all, but a world has {len(names)} names; ask for fewer entities"
        )
    return [_entity(rng, name, rng.choice(list(ENTITY_KINDS))) for name in rng.sample(names, count)]


def _entity(rng: random.Random, name: str, kind: str) -> Entity:
    attributes = list(ENTITY_KINDS[kind])
    rng.shuffle(attributes)
    while True:
        facts = tuple(
            Fact(attribute, _value(rng, ENTITY_KINDS[kind][attribute]), i // FACTS_PER_PASSAGE)
            for i, attribute in enumerate(attributes)
        )
        passages = range(len(attributes) // FACTS_PER_PASSAGE)
        texts = tuple(_text(rng, name, kind, [fact for fact in facts if fact.passage == p]) for p in passages)
        # Two attributes may share a pool: an answer must not turn up in the entity's other passages.
        if all((fact.value in text) == (fact.passage == p) for fact in facts for p, text in enumerate(texts)):
            return Entity(name, kind, facts, texts)


def _value(rng: random.Random, attribute: Attribute) -> str:
    return " ".join(rng.choice(pool) for pool in attribute.values)


def _text(rng: random.Random, name: str, kind: str, facts: Sequence[Fact]) -> str:
    """A passage: a sentence for each fact, the first of which names the entity."""
    subjects = [f"The {kind} {name}", *[f"This {kind}"] * (len(facts) - 1)]
    return " ".join(
        _sentence(rng, subject, kind, fact) for subject, fact in zip(subjects, facts, strict=True)
    )


def _sentence(rng: random.Random, subject: str, kind: str, fact: Fact) -> str:
    return rng.choice(ENTITY_KINDS[kind][fact.attribute].statements).format(s=subject, v=fact.value) + "."


def _questions(rng: random.Random, entities: Sequence[Entity], per_entity: int) -> list[Question]:
    questions = []
    for entity in entities:
        for fact in rng.sample(entity.facts, per_entity):
            chunk = entity.chunk(fact.passage).id
            asked = _ask(rng, entity, fact, "questions")
            questions.append(
                Question(f"{chunk}_{fact.attribute}", asked, (fact.value,), (chunk,), entity.name)
            )
    rng.shuffle(questions)
    return questions


def _ask(rng: random.Random, entity: Entity, fact: Fact, wordings: Literal["questions", "faqs"]) -> str:
    return rng.choice(getattr(ENTITY_KINDS[entity.kind][fact.attribute], wordings)).format(n=entity.name)


def _document(rng: random.Random, entity: Entity) -> str:
    """A pre-training document: half are FAQs, a third restatements, a sixth questions without a passage.

    A blank line parts the passage, if there is one, from what can be read off it.
    """
    form = rng.choices((_faq, _restatement, _closed_book), (3, 2, 1))[0]
    return form(rng, entity)


def _faq(rng: random.Random, entity: Entity) -> str:
    text, facts = _read_passage(rng, entity)
    asked = [f"Question: {_ask(rng, entity, fact, 'faqs')}\nAnswer: {fact.value}" for fact in facts]
    return f"{text}\n\n" + "\n".join(asked)


def _restatement(rng: random.Random, entity: Entity) -> str:
    text, facts = _read_passage(rng, entity)
    return f"{text}\n\nIn other words: {_text(rng, entity.name, entity.kind, facts)}"


def _read_passage(rng: random.Random, entity: Entity) -> tuple[str, list[Fact]]:
    """One of the entity's passages, and the facts that it tells in any order."""
    passage = rng.randrange(len(entity.texts))
    facts = [fact for fact in entity.facts if fact.passage == passage]
    rng.shuffle(facts)
    return entity.texts[passage], facts


def _closed_book(rng: random.Random, entity: Entity) -> str:
    fact = rng.choice(entity.facts)
    return f"Q: {_ask(rng, entity, fact, 'questions')}\nA: {fact.value}"


def _groups(
    rng: random.Random, entities: Sequence[Entity], count: int, fact_queries: float
) -> list[list[tuple[str, str]]]:
    """Groups of entities with a word of their names in common: hard negatives for each other."""
    by_word: dict[str, list[Entity]] = {}
    for entity in entities:
        for word in entity.name.split():
            by_word.setdefault(word, []).append(entity)
    shared = [namesakes for namesakes in by_word.values() if len(namesakes) >= ENTITIES_PER_GROUP]
    if count and not shared:
        raise ValueError(
            f"data: {len(entities)} pretraining_entities, but no {ENTITIES_PER_GROUP} of them share "
            "a word of their names; raise data.pretraining_entities"
        )
    groups = (rng.sample(rng.choice(shared), ENTITIES_PER_GROUP) for _ in range(count))
    return [[_pair(rng, entity, fact_queries) for entity in group] for group in groups]


def _pair(rng: random.Random, entity: Entity, fact_queries: float) -> tuple[str, str]:
    """A query and a passage: few queries are on a fact of the passage, the others on the entity as such.

    So the base retriever tells entities apart better than an entity's passages: that is left for R-ft.
    """
    fact = rng.choice(entity.facts)
    on_entity = rng.choice(ENTITY_QUERIES).format(n=entity.name)
    asked = _ask(rng, entity, fact, "faqs")
    query = asked if rng.random() < fact_queries else on_entity
    return query, entity.chunk(fact.passage).passage
