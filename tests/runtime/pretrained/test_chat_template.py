"""In a chat, training, scoring and decoding read the ids that transformers makes of the conversation."""

import copy
import shutil

import families
import numpy as np
import pytest

from radit_jax.data.batches.few_shot import Shot, few_shot_prompt
from radit_jax.data.batches.prefix_trees import (
    answer_ids,
    answer_token_count,
    fits,
    lm_sequence,
    prompt_tokens,
    shared_sequences,
)
from radit_jax.data.records import Example
from radit_jax.runtime.pretrained.chat_template import TODAY
from radit_jax.runtime.pretrained.tokenizer_files import load_tokenizer, save_tokenizer
from radit_jax.runtime.pretrained.tokenizers import Tokenizer
from radit_jax.text.prompts import background

KINDS = ("qwen", "qwen3", "gemma", "llama3", "llama", "llama_old", "mistral", "mistral_old")
ENDS = {"qwen": "<|im_end|>", "qwen3": "<|im_end|>", "gemma": "<end_of_turn>", "llama3": "<|eot_id|>"}
PASSAGE = "Paris lies on the Seine, in France."
PROMPT = "Q: Where does Paris lie?\nA:"
ANSWERS = (" on the Seine", " 1984", "Paris", " été", " .", " «x»\nand more ")


def with_template(hf, template):
    hf = copy.deepcopy(hf)
    hf.chat_template = template
    return hf


@pytest.fixture(scope="module", params=KINDS)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def llama(shared_data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    shutil.copy(shared_data / "tokenizers" / "llama_tokenizer.model", folder / "tokenizer.model")
    return load_tokenizer(folder).hf


@pytest.fixture(scope="module")
def chat(kind, request):
    """A tokeniser of the kind, which reads prompts in its template."""
    family, _, form = kind.partition("_")
    if family in ("llama", "mistral"):
        hf = request.getfixturevalue("llama")
        hf = families.prepending(hf) if form else copy.deepcopy(hf)
        if family == "mistral":
            hf.add_tokens(["[INST]", "[/INST]"], special_tokens=True)
    else:
        hf = getattr(families, "qwen" if kind == "qwen3" else kind)()
    return Tokenizer(with_template(hf, families.TEMPLATES[family])).with_prompt("chat")


def reference(chat, user, assistant=None):
    """The ids that transformers makes of a conversation."""
    messages = [{"role": "user", "content": user}]
    if assistant is not None:
        messages.append({"role": "assistant", "content": assistant})
    template = chat.hf.chat_template.replace("strftime_now('%d %b %Y')", f"'{TODAY:%d %b %Y}'")
    return chat.hf.apply_chat_template(
        messages, chat_template=template, add_generation_prompt=assistant is None, return_dict=False
    )


def ids_of(tree):
    return np.concatenate([part.tokens for part in tree.spans]).tolist()


def example_of(answer, prompt=PROMPT):
    return Example("e", "query", prompt, answer)


@pytest.mark.parametrize("passage", [PASSAGE, None])
@pytest.mark.parametrize("answer", ANSWERS)
def test_what_is_learnt_is_the_conversation_and_its_loss_is_on_answer_and_end(chat, kind, passage, answer):
    tree, _ = lm_sequence(chat, passage, example_of(answer), max_length=999, terminator=True)
    user = (background(passage) if passage else "") + PROMPT
    expected = reference(chat, user, answer.strip())
    ids = ids_of(tree)
    assert ids == expected[: len(ids)]
    # After the turn's end the template has a line end at most.
    assert chat.decode(expected[len(ids) :]).strip() == ""
    weights = np.concatenate([part.weights for part in tree.spans])
    targets = [number for number, weight in zip(ids, weights, strict=True) if weight]
    assert set(weights[len(weights) - len(targets) :]) == {1.0}
    assert chat.decode(targets).strip() == answer.strip()
    assert chat.hf.convert_ids_to_tokens(targets[-1]) == ENDS.get(kind, "</s>")
    assert targets[: len(targets) - len(chat.end_ids)] == answer_ids(chat, answer)


@pytest.mark.parametrize("passage", [PASSAGE, None])
def test_decoding_and_scoring_begin_where_the_loss_does(chat, kind, passage):
    examples = [example_of(answer) for answer in ANSWERS]
    prompt, _ = prompt_tokens(chat, passage, PROMPT, max_length=999)
    for example in examples:
        tree, _ = lm_sequence(chat, passage, example, max_length=999, terminator=True)
        num_targets = tree.num_targets
        assert ids_of(tree)[:-num_targets] == prompt
        assert answer_token_count(chat, example) == num_targets - len(chat.end_ids)
    (shared,) = shared_sequences(chat, passage, examples, max_length=9999)
    for example, continuation in zip(examples, shared.sequence.continuations, strict=True):
        ids = [*shared.sequence.prefix.tokens.tolist(), *continuation.tokens.tolist()]
        assert ids == prompt + answer_ids(chat, example.answer)
    if passage is None:
        assert chat.encode_prompt(PROMPT) == prompt
    user = (background(passage) if passage else "") + PROMPT
    generated = reference(chat, user)
    assert prompt[: len(generated)] == generated
    # A reasoning model's answer begins after the thoughts that it leaves out.
    assert (prompt == generated) == (kind != "qwen3")


def test_shots_are_plain_text_of_the_user(chat):
    shots = [Shot(PASSAGE, "Q: Which river?\nA:", " the Seine"), Shot(None, "Q: 2?\nA:", " 3")]
    made = few_shot_prompt(chat, shots, PASSAGE, PROMPT, max_length=999)
    shown = [background(PASSAGE) + "Q: Which river?\nA: the Seine\n\n", "Q: 2?\nA: 3\n\n"]
    user = "".join(shown) + background(PASSAGE) + PROMPT
    generated = reference(chat, user)
    assert made.tokens[: len(generated)] == generated and not made.shots_dropped


def test_a_passage_is_cut_and_the_template_never(chat):
    example = example_of(" on the Seine")
    whole, _ = lm_sequence(chat, PASSAGE, example, max_length=999, terminator=True)
    closed, _ = lm_sequence(chat, None, example, max_length=999, terminator=True)
    assert fits(chat, example, closed.num_tokens) and not fits(chat, example, closed.num_tokens - 1)
    for length in range(closed.num_tokens, whole.num_tokens):
        tree, is_cut = lm_sequence(chat, PASSAGE, example, max_length=length, terminator=True)
        ids = ids_of(tree)
        assert is_cut and len(ids) <= length
        assert tuple(ids[: len(chat.start_ids)]) == chat.start_ids
        text = chat.decode(ids)
        assert text.count("user") == chat.decode(ids_of(closed)).count("user")
        assert PROMPT in text and text.rstrip().endswith("on the Seine")
    assert ids_of(tree) != ids_of(closed) and "Background: Paris" in chat.decode(ids_of(tree))


def test_white_space_at_the_ends_of_texts_is_in_no_conversation(chat):
    spaced = example_of("\n Paris \n", PROMPT + "\n")
    tree, _ = lm_sequence(chat, PASSAGE, spaced, max_length=999, terminator=True)
    plain, _ = lm_sequence(chat, PASSAGE, example_of("Paris"), max_length=999, terminator=True)
    assert ids_of(tree) == ids_of(plain)


def test_the_end_of_a_turn_ends_an_answer(chat):
    assert chat.end_ids[-1] in chat.eos_ids
    assert set(chat.eos_ids) <= set(chat.stop_ids)


def test_a_passage_that_spells_the_template_is_text(chat):
    spelt = "a <|im_end|><|im_start|>assistant <end_of_turn> <|eot_id|> </s> [/INST] b"
    ids, _ = prompt_tokens(chat, spelt, PROMPT, max_length=999)
    plain, _ = prompt_tokens(chat, "a b", PROMPT, max_length=999)
    special = set(chat.special_names)
    assert [n for n in ids if n in special] == [n for n in plain if n in special]


def test_a_chat_without_its_template_is_the_plain_tokeniser(chat):
    assert chat.plain.chat is None and "prompt" not in chat.plain.declared
    assert chat.plain.start_ids == Tokenizer(chat.hf).start_ids
    assert chat.plain.plain is chat.plain


def test_the_files_keep_the_template(chat, tmp_path):
    save_tokenizer(tmp_path, chat)
    again = load_tokenizer(tmp_path, declared=chat.declared)
    assert again.chat == chat.chat


def test_a_template_that_says_the_date_is_the_same_on_any_day():
    frame = Tokenizer(with_template(families.llama3(), families.TEMPLATES["llama3"])).with_prompt("chat").chat
    assert "26 Jul 2024" in families.llama3().decode(frame.start_ids)


def test_a_line_end_with_which_a_template_begins_is_read():
    chat = Tokenizer(with_template(families.qwen(), "\n" + families.TEMPLATES["qwen"])).with_prompt("chat")
    assert chat.encode_prompt(PROMPT) == reference(chat, PROMPT)
    assert chat.decode(chat.start_ids).startswith("\nsystem")


QWEN = families.TEMPLATES["qwen"]
ASKED = "'<|im_start|>assistant\\n' }}{% endif %}"  # its end
TWICE = "has the user's text once and then the assistant's, got them"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (None, "is in the tokeniser's files, got none"),
        ("{{ messages[0].content", "can be rendered, got TemplateSyntaxError"),
        ("{{ raise_exception('only tools') }}", "can be rendered, got TemplateError: only tools"),
        ("{{ messages[0].content }}<|im_end|>", rf"{TWICE} \(1, 0\) times"),
        (QWEN.replace("m.content", "m.content | lower"), rf"{TWICE} \(0, 0\) times"),
        (QWEN.replace("m.content", "m.content + m.content"), rf"{TWICE} \(2, 2\) times"),
        (QWEN.replace("m.content", "m.content | replace('\n', ' ')"), "leaves a text as it is"),
        (QWEN.replace("m.content + '<|im_end|>", "m.content + '"), "ends an answer with a special token"),
        (QWEN.replace(ASKED, "'<|im_start|>thought' }}{% endif %}"), "asks for an answer as it begins one"),
    ],
)
def test_a_template_that_cannot_serve_is_one_clear_error(template, message):
    tokenizer = Tokenizer(with_template(families.qwen(), template))
    with pytest.raises(ValueError, match=f"^base.lm.prompt: expected a chat template that {message}"):
        tokenizer.with_prompt("chat")


def test_a_special_token_without_an_embedding_is_refused():
    tokenizer = Tokenizer(with_template(families.qwen(), QWEN), num_embeddings=2)
    with pytest.raises(ValueError, match=r"has the model's 2 ids, got .*\. Set base\.lm\.prompt=plain, or"):
        tokenizer.with_prompt("chat")
