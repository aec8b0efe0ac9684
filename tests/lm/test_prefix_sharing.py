import re

import numpy as np
import pytest
from uncached import ENDS, MODULE, sharp_params

from radit_jax.config import MeshConfig
from radit_jax.lm import prefix_sharing
from radit_jax.lm.prefix_sharing import (
    ONE_DEVICE,
    DevicePlacement,
    Prompt,
    build_prefill_batch,
    group_by_shared_chunks,
    prefill_batches,
    split_shared_prefixes,
)
from radit_jax.lm.scoring import NO_CHUNK
from radit_jax.method.generation import (
    gather_answers,
    init_decode,
    prefill_shared,
)
from radit_jax.runtime.distributed.mesh import (
    batch_placer,
    data_parallel_size,
    gather,
    make_mesh,
    put_params,
    row_layout,
)

pytestmark = pytest.mark.usefixtures("float64")


@pytest.fixture(scope="module")
def params():
    return sharp_params()


@pytest.fixture
def short_prefixes(monkeypatch):
    """Prompts as short as those of these tests share what they begin with."""
    monkeypatch.setattr(prefix_sharing, "MAX_WHOLE_PROMPT", 0)


def on_eight_devices(params):
    """The network with its rows pinned, parameters and placement, on a mesh of eight."""
    mesh = make_mesh(MeshConfig(fsdp=4, tensor=2))
    laid = put_params(params, mesh)
    return (
        MODULE.clone(layout=row_layout(mesh)),
        laid,
        DevicePlacement(batch_placer(laid), gather, data_parallel_size(mesh)),
    )


def test_what_is_read_stays_with_its_rows_when_prefixes_are_shared_and_answers_dropped(params):
    """A gather of any row from anywhere would bring every prompt's keys and values to every device."""
    module, laid, placement = on_eight_devices(params)
    prompts = [[n // 4] * 80 + [3, n % 4] for n in range(16)]  # four share a prefix, and a device
    reading = build_prefill_batch(split_shared_prefixes(prompts), placement)
    assert len(reading.prefixes.lengths) == 4
    np.testing.assert_array_equal(reading.prefix_of, np.zeros((4, 4)))
    prefilled = prefill_shared(module, laid, *reading)
    own = {shard.data.shape[1] for shard in prefilled.cache.keys.addressable_shards}
    assert own == {4}
    state = init_decode(prefilled, np.zeros((16, 1)), max_new_tokens=4, stops=ENDS)
    kept = gather_answers(state, np.zeros((4, 1), np.int32))
    np.testing.assert_array_equal(kept.tokens, state.tokens[::4])
    read = prefill_shared.lower(module, laid, *reading).compile().as_text()
    keep = gather_answers.lower(state, np.zeros((4, 1), np.int32)).compile().as_text()
    assert "f64[2,4,1,128," in read  # two layers, four prompts, one head, 96 slots and 32
    assert not re.search(r"\[(2,)?16,1,\d+,\d+\]", read) and "all-gather" not in keep


def test_a_beginning_of_less_than_half_is_read_with_each_prompt():
    beginning = [1] * 40
    for own, prefixes in ((41, 6), (40, 1)):
        prompts = [beginning + [n] * own for n in range(2, 8)]
        cut = split_shared_prefixes(prompts)
        assert len({prompt.prefix for prompt in cut}) == prefixes
    assert {prompt.prefix for prompt in cut} == {tuple(beginning)}


def test_short_prompts_are_read_whole_in_one_width_whether_they_share_or_not():
    shapes = set()
    for shared, own in ((60, 4), (60, 1), (0, 3), (40, 10)):
        prompts = [[1] * shared + [n] * own for n in range(2, 10)]
        for _, batch in prefill_batches(prompts, 8, ONE_DEVICE):
            shapes.add((batch.prefixes.tokens.shape, batch.suffixes.tokens.shape))
    assert shapes == {((1, 0), (8, 64))}
    [(numbers, batch)] = prefill_batches([[1] * 60 + [n] * 5 for n in range(8)], 8, ONE_DEVICE)
    assert sorted(numbers) == list(range(8)) and batch.prefixes.lengths.tolist() == [60]


def test_whole_prompts_are_read_with_those_of_their_length():
    lengths = [50, 3, 64, 7, 30, 2, 60, 5]
    prompts = [[number] * length for number, length in enumerate(lengths)]
    batches = list(prefill_batches(prompts, 4, ONE_DEVICE))
    assert [numbers for numbers, _ in batches] == [[5, 1, 7, 3], [4, 0, 6, 2]]


def test_equal_prompts_keep_a_token_each(short_prefixes):
    assert split_shared_prefixes([[3, 4, 5]] * 2) == [((3, 4), (5,))] * 2


@pytest.mark.parametrize("seed", range(20))
def test_cut_prompts_are_whole_and_a_shared_prefix_is_at_least_half_of_each(seed, short_prefixes):
    rng = np.random.default_rng(seed)
    texts = [rng.integers(0, 2, rng.integers(1, 60)).tolist() for _ in range(12)]
    texts += [texts[0] + [1], texts[1] + [0, 1], texts[1]]
    cut = split_shared_prefixes(texts)
    prefixes = [prompt.prefix for prompt in cut]
    for text, prompt in zip(texts, cut, strict=True):
        assert list(prompt.prefix + prompt.suffix) == text
        assert prompt.suffix
        alone = prefixes.count(prompt.prefix) == 1
        assert 2 * len(prompt.prefix) >= len(text) or len(prompt.suffix) <= prefix_sharing.SUFFIX_SLOTS
        assert not alone or len(prompt.suffix) == min(len(text), prefix_sharing.SUFFIX_SLOTS)


def test_prefixes_come_in_few_numbers_and_a_batch_without_any_reads_suffixes_only():
    shapes = set()
    for distinct in range(33):
        prefixes = [(1 + number % distinct,) * 40 if distinct else () for number in range(32)]
        reading = build_prefill_batch([Prompt(prefix, (5,)) for prefix in prefixes], ONE_DEVICE)
        shapes.add(reading.prefixes.tokens.shape)
    assert shapes == {(4, 0), (4, 64), (8, 64), (16, 64), (24, 64), (32, 64)}


def test_neighbours_are_all_questions_and_share_more_chunks_than_the_order_they_came_in():
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 40, (200, 1)) * 6 + rng.permuted(np.tile(np.arange(8), (200, 1)), axis=1)[:, :4]
    order = group_by_shared_chunks(rows, 8)
    assert sorted(order) == list(range(200))

    def distinct(order):
        return sum(len(np.unique(rows[order[start : start + 8]])) for start in range(0, 200, 8))

    assert distinct(order) < 0.7 * distinct(np.arange(200))


def test_questions_that_share_no_chunk_keep_their_order():
    rows = np.array([[0, NO_CHUNK], [1, NO_CHUNK], [2, NO_CHUNK], [NO_CHUNK, NO_CHUNK]])
    assert group_by_shared_chunks(rows, 2) == [0, 1, 2, 3]
