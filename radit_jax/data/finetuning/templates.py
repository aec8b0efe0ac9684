"""The templates of instruction tuning: from an `Item` to the `Example` that is trained on.

    dialogue            x: Q: {turn} A: {turn} Q: {turn} A:                          y: {turn}
    open_qa             x: {question}\\n{A: }                                         y: {answer}
    reading             the same under the gold context; a dialogue's earlier questions come before it
    summary             x: Summarize this article:\\n{A: } under the article           y: {summary}
    chain_of_thought    x: {question}\\n                                 y: {reasoning}\\n{A: }{answer}

The markers before question and answer are drawn per example. The paper trains on what the model has to
write, so a chain of thought is part of y: who asks has only x to give. Our choices are the line break before
its answer, the choices below a multiple-choice question, and the question's markers before CoQA's earlier
turns.
"""

from radit_jax.data.finetuning.datasets import Dataset, Mixture
from radit_jax.data.records import Example, Item, Question
from radit_jax.text.prompts import (
    Markers,
    answer_text,
    dialogue_prompt,
    draw_markers,
    marked_prompt,
    reasoned_answer,
    reasoning_prompt,
    summary_prompt,
    with_choices,
)


def item_example(item: Item, dataset: Dataset, mixture: Mixture, seed: int) -> Example:
    """(x, y) of an item in D_L or D_R.

    LM-ft learns the first answer. R-ft's labels come from the shortest one, by which a language model tells
    chunks apart best.
    """
    answer = item.answers[0] if mixture == "lm_ft" else min(item.answers, key=len)
    category = dataset.category_in(mixture)
    prompt, answer = _render(item, category, answer, draw_markers(seed, item.id))
    # Where the gold context is given, nothing is retrieved.
    background = item.context if category in ("reading", "summary") else None
    return Example(item.id, item.query, prompt, answer, background=background)


def item_question(item: Item, prompt: str) -> Question:
    """The item as a question, by whose answers chunks are judged, with its example's prompt."""
    return Question(item.id, item.query, item.answers, prompt=prompt)


def _render(item: Item, category: str, answer: str, markers: Markers) -> tuple[str, str]:
    """(prompt, answer) in the template of the category."""
    # Choices, where there are any, stand below the question.
    question = with_choices(item.question, item.choices)
    if category == "dialogue":
        return dialogue_prompt((*item.turns, item.question)), answer_text(answer)
    if category == "summary":
        return summary_prompt(markers), answer_text(answer)
    if category == "chain_of_thought":
        return reasoning_prompt(question, markers), reasoned_answer(item.reasoning, answer, markers)
    # A question in the open domain or on a context; CoQA's has turns before it.
    return marked_prompt(question, markers, item.turns), answer_text(answer)
