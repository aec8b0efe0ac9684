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
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
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
    """What a passage tells of an entity: one attribute's value."""

    attribute: str
    value: str
    passage: int  # which of the entity's passages tells it


@dataclass(frozen=True)
class Entity:
    """An entity with its facts and the texts of the passages that tell them, two facts in each."""

    name: str  # "Abrin Ashdown"
    kind: str  # a key of `ENTITY_KINDS`
    facts: tuple[Fact, ...]
    texts: tuple[str, ...]  # by passage

    def chunk(self, passage: int) -> Chunk:
        """One of the entity's passages, under its name."""
        chunk_id = f"{self.name.lower().replace(' ', '_')}_{passage}"
        return Chunk(chunk_id, self.name, self.texts[passage])


def generate_world(config: GeneratedWorld, seed: int) -> CorpusData:
    """The world of `seed`: the same settings and seed give the same data on every machine."""
    rng = Random(f"radit_jax world {seed}")
    # 1) Entities, each in one part.
    sizes = (
        config.train_entities,
        config.dev_entities,
        config.test_entities,
        config.pretraining_entities,
    )
    entities = iter(_entities(rng, sum(sizes)))
    train, dev, test, others = (list(itertools.islice(entities, size)) for size in sizes)
    # 2) The corpus: what is told of those that are asked about.
    chunks: list[Chunk] = []
    for entity in (*train, *dev, *test):
        chunks += [entity.chunk(passage) for passage in range(len(entity.texts))]
    rng.shuffle(chunks)
    # 3) Questions, then pre-training text: all draw from one generator, so their order matters.
    questions = {
        "train": _questions(rng, train, config.train_questions_per_entity),
        "dev": _questions(rng, dev, config.test_questions_per_entity),
        "test": _questions(rng, test, config.test_questions_per_entity),
    }
    documents = [_document(rng, rng.choice(others)) for _ in range(config.documents)]
    groups = _groups(rng, others, config.encoder_groups, config.fact_queries)
    return CorpusData(chunks, questions, documents, groups)


# ---- entities and what is told of them ----


def _entities(rng: Random, count: int) -> list[Entity]:
    """`count` entities with names of their own, each of a random kind."""
    names = [f"{first} {last}" for first, last in itertools.product(FIRST_NAMES, LAST_NAMES)]
    if count > len(names):
        raise ValueError(
            f"data: expected at most {len(names)} entities in all, one for each name, got {count}. Lower the "
            "numbers of entities."
        )
    kinds = list(ENTITY_KINDS)
    return [_entity(rng, name, rng.choice(kinds)) for name in rng.sample(names, count)]


def _entity(rng: Random, name: str, kind: str) -> Entity:
    """An entity whose attributes are in random pairs, each pair told by one passage."""
    attributes = list(ENTITY_KINDS[kind])
    rng.shuffle(attributes)
    num_passages = len(attributes) // FACTS_PER_PASSAGE
    while True:
        facts: list[Fact] = []
        for place, attribute in enumerate(attributes):
            value = _value(rng, ENTITY_KINDS[kind][attribute])
            facts.append(Fact(attribute, value, place // FACTS_PER_PASSAGE))
        texts: list[str] = []
        for passage in range(num_passages):
            told = [fact for fact in facts if fact.passage == passage]
            texts.append(_text(rng, name, kind, told))
        # Two attributes may share a pool. Then an entity is drawn again, until each passage holds the values
        # of its own facts alone.
        if all(_is_told_once(fact, texts) for fact in facts):
            return Entity(name, kind, tuple(facts), tuple(texts))


def _is_told_once(fact: Fact, texts: Sequence[str]) -> bool:
    """Whether the fact's passage holds its value, and no other passage does."""
    holders = [passage for passage, text in enumerate(texts) if fact.value in text]
    return holders == [fact.passage]


def _value(rng: Random, attribute: Attribute) -> str:
    return " ".join(rng.choice(pool) for pool in attribute.values)


def _text(rng: Random, name: str, kind: str, facts: Sequence[Fact]) -> str:
    """A passage: a sentence for each fact, the first of which names the entity."""
    sentences = []
    subject = f"The {kind} {name}"
    for fact in facts:
        sentences.append(_sentence(rng, subject, kind, fact))
        subject = f"This {kind}"
    return " ".join(sentences)


def _sentence(rng: Random, subject: str, kind: str, fact: Fact) -> str:
    statement = rng.choice(ENTITY_KINDS[kind][fact.attribute].statements)
    return statement.format(s=subject, v=fact.value) + "."


# ---- questions, and pre-training text ----


def _questions(rng: Random, entities: Sequence[Entity], per_entity: int) -> list[Question]:
    """`per_entity` questions on each entity, on different facts, in a random order."""
    questions = []
    for entity in entities:
        for fact in rng.sample(entity.facts, per_entity):
            chunk = entity.chunk(fact.passage)
            question = Question(
                id=f"{chunk.id}_{fact.attribute}",
                question=_ask(rng, entity, fact, "questions"),
                answers=(fact.value,),
                gold_chunks=(chunk.id,),
                group=entity.name,
            )
            questions.append(question)
    rng.shuffle(questions)
    return questions


def _ask(rng: Random, entity: Entity, fact: Fact, wordings: Literal["questions", "faqs"]) -> str:
    """A question on a fact, in an experiment's wordings or in those of pre-training text."""
    attribute = ENTITY_KINDS[entity.kind][fact.attribute]
    wording = rng.choice(getattr(attribute, wordings))
    return wording.format(n=entity.name)


def _document(rng: Random, entity: Entity) -> str:
    """A pre-training document: half are FAQs, a third restatements, a sixth questions without a passage.

    A blank line stands between the passage, if there is one, and what can be read off it.
    """
    (form,) = rng.choices((_faq, _restatement, _closed_book), (3, 2, 1))
    return form(rng, entity)


def _faq(rng: Random, entity: Entity) -> str:
    # A passage, and a question with its answer on each fact in it.
    text, facts = _read_passage(rng, entity)
    lines = []
    for fact in facts:
        lines.append(f"Question: {_ask(rng, entity, fact, 'faqs')}")
        lines.append(f"Answer: {fact.value}")
    return f"{text}\n\n" + "\n".join(lines)


def _restatement(rng: Random, entity: Entity) -> str:
    # A passage, and its facts in statements that are drawn again.
    text, facts = _read_passage(rng, entity)
    return f"{text}\n\nIn other words: {_text(rng, entity.name, entity.kind, facts)}"


def _read_passage(rng: Random, entity: Entity) -> tuple[str, list[Fact]]:
    """One of the entity's passages, and the facts that it tells in any order."""
    passage = rng.randrange(len(entity.texts))
    facts = [fact for fact in entity.facts if fact.passage == passage]
    rng.shuffle(facts)
    return entity.texts[passage], facts


def _closed_book(rng: Random, entity: Entity) -> str:
    # The only text with an experiment's wordings, and it has no passage to read the answer off.
    fact = rng.choice(entity.facts)
    return f"Q: {_ask(rng, entity, fact, 'questions')}\nA: {fact.value}"


def _groups(
    rng: Random, entities: Sequence[Entity], count: int, fact_queries: float
) -> list[list[tuple[str, str]]]:
    """Groups of entities with a word of their names in common: hard negatives for each other."""
    # Entities by each word of their names; of a word that too few share no group can be drawn.
    by_word: dict[str, list[Entity]] = {}
    for entity in entities:
        for word in entity.name.split():
            by_word.setdefault(word, []).append(entity)
    shared = [namesakes for namesakes in by_word.values() if len(namesakes) >= ENTITIES_PER_GROUP]
    if count and not shared:
        raise ValueError(
            f"data.pretraining_entities: expected {ENTITIES_PER_GROUP} entities that share a word of their "
            f"names, got none among {len(entities)}. Raise it."
        )
    groups: list[list[tuple[str, str]]] = []
    for _ in range(count):
        namesakes = rng.sample(rng.choice(shared), ENTITIES_PER_GROUP)
        groups.append([_pair(rng, entity, fact_queries) for entity in namesakes])
    return groups


def _pair(rng: Random, entity: Entity, fact_queries: float) -> tuple[str, str]:
    """A query and a passage: few queries are on a fact of the passage, the others on the entity as such.

    So the base retriever tells entities apart better than an entity's passages: that is left for R-ft.
    """
    fact = rng.choice(entity.facts)
    on_entity = rng.choice(ENTITY_QUERIES).format(n=entity.name)
    on_fact = _ask(rng, entity, fact, "faqs")
    query = on_fact if rng.random() < fact_queries else on_entity
    return query, entity.chunk(fact.passage).passage
