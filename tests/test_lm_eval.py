"""The adapter's three requests by plain forward passes, and lm-evaluation-harness itself on a local task."""

import copy
import json
import sys
from types import SimpleNamespace

import families
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from exact import assert_stored, model_in_float64
from small import CHUNKS, QUESTIONS

from radit_jax import lm_eval
from radit_jax.evaluation import harness_model
from radit_jax.evaluation.harness_model import Radit
from radit_jax.runtime.distributed import memory
from radit_jax.runtime.pretrained.tokenizers import Tokenizer
from radit_jax.text.prompts import background

pytestmark = pytest.mark.usefixtures("float64")
QUESTION, ANSWER = "Q: Who built Elm Tower?\nA:", " Ada Finch"
EXAMPLE = "Q: Who built Fen Tower?\nA: Bo Marsh"


def in_float64(radit):
    radit.model = model_in_float64(radit.model)
    return radit


@pytest.fixture(scope="module")
def closed(exported):
    return in_float64(Radit(str(exported), max_length=128, batch_size=4))


@pytest.fixture(scope="module")
def open_book(exported):
    return in_float64(Radit(str(exported), retrieval=True, max_length=128, batch_size=4))


def requests(*args):
    return [SimpleNamespace(args=one) for one in args]


forward = jax.jit(lambda module, params, tokens: module.apply({"params": params}, tokens), static_argnums=0)


def next_log_probs(lm, tokens):
    padded = np.zeros((1, 160), np.int32)
    padded[0, : len(tokens)] = tokens
    return np.asarray(jax.nn.log_softmax(forward(lm.module, lm.params, jnp.asarray(padded))[0], axis=-1))


def by_hand(lm, contexts, weights, answer):
    """Eq. 2 token by token: the answer's log-probability, and whether every token is the likeliest."""
    each = [next_log_probs(lm, [*context, *answer])[len(context) - 1 :] for context in contexts]
    posterior, total, greedy = np.array(weights), 0.0, True
    for place, token in enumerate(answer):
        mixed = posterior @ np.exp([own[place] for own in each])
        total, greedy = total + np.log(mixed[token]), greedy and int(mixed.argmax()) == token
        posterior = posterior * [np.exp(own[place][token]) for own in each] / mixed[token]
    return total, greedy


def ids(lm, *texts):
    return [lm.tokenizer.bos_id, *(token for text in texts for token in lm.tokenizer.encode(text))]


def test_without_retrieval_a_continuation_has_the_probability_behind_its_context(closed, lm64):
    asked = [(QUESTION, ANSWER), (f"{EXAMPLE}\n\n{QUESTION} ", "Ada Finch"), ("", "Ada Finch")]
    found = closed.loglikelihood(requests(*asked))
    contexts = [ids(lm64, QUESTION), ids(lm64, EXAMPLE, "\n\n", QUESTION), ids(lm64)]
    for (log_prob, greedy), context, answer in zip(
        found, contexts, (ANSWER, ANSWER, "Ada Finch"), strict=True
    ):
        expected = by_hand(lm64, [context], [1.0], lm64.tokenizer.encode(answer))
        assert_stored(log_prob, expected[0])
        assert greedy == expected[1]


def test_without_a_bos_a_text_follows_eos_as_in_the_harness(exported, lm64):
    hf = copy.deepcopy(lm64.tokenizer.hf)
    hf.bos_token = None
    radit = in_float64(Radit(str(exported), max_length=128))
    radit.model = radit.model._replace(tokenizer=Tokenizer(hf))
    answer = lm64.tokenizer.encode("Ada Finch")
    expected, _ = by_hand(lm64, [[lm64.tokenizer.eos_id]], [1.0], answer)
    assert_stored(radit.loglikelihood(requests(("", "Ada Finch")))[0][0], expected)
    assert_stored(radit.loglikelihood_rolling(requests(("Ada Finch",)))[0], expected)
    question = lm64.tokenizer.encode(QUESTION)
    [(log_prob, _)] = radit.loglikelihood(requests((QUESTION, ANSWER)))
    assert_stored(log_prob, by_hand(lm64, [question], [1.0], lm64.tokenizer.encode(ANSWER))[0])


def test_in_a_chat_a_context_is_what_the_user_says_and_a_text_alone_is_plain(exported, lm64):
    radit = in_float64(Radit(str(exported), max_length=128))
    tokenizer = families.in_chat(lm64.tokenizer)
    radit.model = radit.model._replace(tokenizer=tokenizer)
    context = f"{EXAMPLE}\n\n{QUESTION}"
    found = radit.loglikelihood(requests((context, ANSWER), ("", "Ada Finch")))
    asked = [{"role": "user", "content": context}]
    prompt = tokenizer.hf.apply_chat_template(asked, add_generation_prompt=True, return_dict=False)
    assert_stored(found[0][0], by_hand(lm64, [prompt], [1.0], lm64.tokenizer.encode(ANSWER))[0])
    alone, _ = by_hand(lm64, [ids(lm64)], [1.0], lm64.tokenizer.encode("Ada Finch"))
    assert_stored([found[1][0], *radit.loglikelihood_rolling(requests(("Ada Finch",)))], [alone, alone])


def retrieved(model, lm, question):
    """The contexts of a question's chunks and their weights."""
    rows, log_probs = model.library.searcher.retrieve([question], 2, 0.5)
    contexts = [ids(lm, background(CHUNKS[row].passage), question) for row in rows[0]]
    return contexts, np.exp(log_probs[0])


def test_with_retrieval_it_is_mixed_over_the_chunks_of_the_last_question(open_book, lm64):
    [(log_prob, greedy), (few, _)] = open_book.loglikelihood(
        requests((QUESTION, ANSWER), (f"{EXAMPLE}\n\n{QUESTION}", ANSWER))
    )
    contexts, weights = retrieved(open_book, lm64, QUESTION)
    answer = lm64.tokenizer.encode(ANSWER)
    expected, expected_greedy = by_hand(lm64, contexts, weights, answer)
    assert_stored(log_prob, expected)
    assert greedy == expected_greedy
    behind = [[context[0], *ids(lm64, EXAMPLE, "\n\n")[1:], *context[1:]] for context in contexts]
    assert_stored(few, by_hand(lm64, behind, weights, answer)[0])


def test_what_greedy_decoding_gives_is_said_to_be_greedy(open_book, lm64):
    contexts, weights = retrieved(open_book, lm64, QUESTION)
    answer = []
    while len(answer) < 3:
        each = [next_log_probs(lm64, [*c, *answer])[len(c) + len(answer) - 1] for c in contexts]
        seen = [by_hand(lm64, [c], [1.0], answer)[0] for c in contexts]
        answer.append(int((weights * np.exp(np.array(seen)) @ np.exp(each)).argmax()))
    asked = harness_model.ContinuationRequest(contexts, answer, np.log(weights).tolist())
    other = harness_model.ContinuationRequest(
        contexts, [*answer[:2], (answer[2] + 1) % 400], np.log(weights).tolist()
    )
    assert [greedy for _, greedy in open_book._score([asked, other])] == [True, False]


def test_a_text_longer_than_the_window_is_scored_in_windows_each_token_once(exported, lm64):
    text = " ".join(chunk.text for chunk in CHUNKS[:2])
    tokens = ids(lm64, text)
    narrow = in_float64(Radit(str(exported), max_length=16))
    expected = 0.0
    for place in range(1, len(tokens)):
        end = min(len(tokens), 1 + -(-place // 16) * 16)  # of the window in which the token is predicted
        context = tokens[max(0, end - 17) : place]
        expected += next_log_probs(lm64, context)[len(context) - 1, tokens[place]]
    [log_prob] = narrow.loglikelihood_rolling(requests((text,)))
    assert_stored(log_prob, expected)


def test_a_generated_answer_ends_before_what_the_task_says(closed, lm64):
    [whole] = closed.generate_until(requests((QUESTION, {"until": [], "max_gen_toks": 6})))
    tokens = []
    while len(tokens) < 6:
        token = int(
            next_log_probs(lm64, [*ids(lm64, QUESTION), *tokens])[
                len(ids(lm64, QUESTION)) + len(tokens) - 1
            ].argmax()
        )
        if token == lm64.tokenizer.eos_id:
            break
        tokens.append(token)
    assert whole == lm64.tokenizer.decode(tokens)
    end = whole[2:3]
    [cut] = closed.generate_until(requests((QUESTION, {"until": [end], "max_gen_toks": 6})))
    assert cut == whole.partition(end)[0]


def test_a_prompt_without_room_for_its_answer_is_named(closed):
    message = (
        r"at most 8 tokens, since max_length is 128, got .* in 'Q: Who built Elm Tower.*'\. Raise max_length"
    )
    with pytest.raises(ValueError, match=message):
        closed.generate_until(requests((QUESTION, {"until": [], "max_gen_toks": 120})))


def test_sampling_and_retrieval_without_an_export_are_refused(closed, inputs):
    with pytest.raises(ValueError, match="expected a task with greedy decoding, got sampling"):
        closed.generate_until(requests((QUESTION, {"do_sample": True})))
    folder = str(inputs["lm"].path / "lm")
    assert Radit(folder).library is None
    with pytest.raises(ValueError, match="expected a finished export to retrieve from, got"):
        Radit(folder, retrieval=True)


def test_without_the_harness_it_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    monkeypatch.setitem(sys.modules, "lm_eval.models", None)
    assert lm_eval.main() == 1
    assert "pip install 'radit_jax[lm_eval]'" in capsys.readouterr().err


YAML = """
task: {name}
dataset_path: json
dataset_kwargs: {{data_files: {{test: {file}}}}}
test_split: test
output_type: {kind}
doc_to_text: "Q: {{{{question}}}}\\nA:"
doc_to_target: "{target}"
{more}
"""


def test_a_lack_of_memory_is_one_error_that_says_what_to_set(exported, closed, monkeypatch):
    device = SimpleNamespace(platform="gpu", memory_stats=lambda: {"bytes_limit": 100})
    with monkeypatch.context() as patch:
        patch.setattr(memory.jax, "local_devices", lambda: [device])
        with pytest.raises(ValueError, match="^lm_eval: .*the model takes .*. Lower --batch_size or --model"):
            Radit(str(exported))

    def refuse(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 9 GiB.")

    monkeypatch.setattr(harness_model, "_log_likelihood", refuse)
    monkeypatch.setattr(harness_model, "answer_questions", refuse)
    options = {"until": ["\n"], "max_gen_toks": 4}
    for ask, args in (
        (closed.loglikelihood, (QUESTION, ANSWER)),
        (closed.loglikelihood_rolling, (ANSWER,)),
        (closed.generate_until, (QUESTION, options)),
    ):
        with pytest.raises(ValueError, match="^lm_eval: .*allocate 9 GiB.*. Lower --batch_size or"):
            ask(requests(args))


@pytest.mark.filterwarnings("ignore")
def test_lm_evaluation_harness_runs_local_tasks_with_and_without_retrieval(
    exported, open_book, tmp_path, monkeypatch
):
    lm_eval = pytest.importorskip("lm_eval")
    from lm_eval.tasks import TaskManager  # pyright: ignore[reportMissingImports]

    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    lm_eval.register()
    file = tmp_path / "towers.jsonl"
    lines = [
        {"question": q.question, "choices": ["Ada Finch", "Bo", q.answers[0]], "label": 2}
        for q in QUESTIONS["train"]
    ]
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    tasks = {
        "towers_choice": ("multiple_choice", "{{label}}", 'doc_to_choice: "{{choices}}"'),
        "towers_words": (
            "generate_until",
            "{{choices[2]}}",
            'generation_kwargs: {until: ["\\n"], max_gen_toks: 4}',
        ),
    }
    for name, (kind, target, more) in tasks.items():
        text = YAML.format(name=name, file=file, kind=kind, target=target, more=more)
        (tmp_path / f"{name}.yaml").write_text(text)
    manager = TaskManager(include_path=str(tmp_path), include_defaults=False)
    for retrieval in ("true", "false"):
        results = lm_eval.simple_evaluate(
            model="radit",
            model_args=f"path={exported},retrieval={retrieval},max_length=128",
            tasks=list(tasks),
            task_manager=manager,
            batch_size=4,
            log_samples=True,
            bootstrap_iters=0,
        )
        assert set(results["results"]) == set(tasks)
        sample = results["samples"]["towers_choice"][0]
        [first] = (open_book if retrieval == "true" else Radit(str(exported), max_length=128)).loglikelihood(
            requests((f"Q: {lines[0]['question']}\nA:", " Ada Finch"))
        )
        assert float(sample["filtered_resps"][0][0]) == pytest.approx(first[0], rel=1e-4)
