from radit_jax.text.prompts import answer_text, background, question_prompt


def test_the_templates_make_the_papers_input():
    text = background("Emma A novel.") + question_prompt("Who wrote Emma?") + answer_text("Jane Austen")
    assert text == "Background: Emma A novel.\n\nQ: Who wrote Emma?\nA: Jane Austen"
