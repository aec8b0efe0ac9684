"""The keys and values of tokens that a decoder has read: what later tokens need of them."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, Shaped


class KvCache(NamedTuple):
    """Keys (already rotated) and values of S slots in every layer, and which tokens may see them.

    Segment 0 marks a slot that is unwritten or padding, which no token sees. Prompts of different lengths can
    therefore lie in one cache, padded on either side, and every row is written at the same slots.
    """

    keys: Float[Array, "L B M S H"]  # M heads of width H, each in one piece, as products read them
    values: Float[Array, "L B M S H"]
    segment_ids: Int[Array, "B S"]  # 0: seen by no token
    continuation_ids: Int[Array, "B S"]  # 0: seen by every continuation
    positions: Int[Array, "B S"]  # in the whole sequence: a local layer sees a window of them

    def write(self, block: "KvCache", slot: Int[Array, ""] | int) -> "KvCache":
        """The same cache with `block` in the slots from `slot` on."""

        # The axis of slots is 3 in keys and values, after layers, rows and heads, and 1 in the ids.
        def put(
            cached: Shaped[Array, "*cached"],
            new: Shaped[Array, "*new"],
            axis: int,
        ) -> Shaped[Array, "*cached"]:
            return jax.lax.dynamic_update_slice_in_dim(cached, new, slot, axis)

        return KvCache(
            keys=put(self.keys, block.keys, axis=3),
            values=put(self.values, block.values, axis=3),
            segment_ids=put(self.segment_ids, block.segment_ids, axis=1),
            continuation_ids=put(self.continuation_ids, block.continuation_ids, axis=1),
            positions=put(self.positions, block.positions, axis=1),
        )

    def take(self, rows: Int[Array, "W r"]) -> "KvCache":
        """The cache of the rows that `take_rows` selects."""
        # The axis of rows is 1 in keys and values, after the layers, and 0 in the ids.
        return KvCache(
            keys=take_rows(self.keys, rows, axis=1),
            values=take_rows(self.values, rows, axis=1),
            segment_ids=take_rows(self.segment_ids, rows),
            continuation_ids=take_rows(self.continuation_ids, rows),
            positions=take_rows(self.positions, rows),
        )

    def grow(self, num_slots: int) -> "KvCache":
        """The same cache with `num_slots` more slots, unwritten, at its end."""

        def pad(
            array: Shaped[Array, "..."],
            axis: int,
        ) -> Shaped[Array, "..."]:
            # Zeros: segment 0 makes them unseen.
            widths = [(0, 0)] * array.ndim
            widths[axis] = (0, num_slots)
            return jnp.pad(array, widths)

        return KvCache(
            keys=pad(self.keys, axis=3),
            values=pad(self.values, axis=3),
            segment_ids=pad(self.segment_ids, axis=1),
            continuation_ids=pad(self.continuation_ids, axis=1),
            positions=pad(self.positions, axis=1),
        )


def take_rows(
    array: Shaped[Array, "..."],
    rows: Int[Array, "W r"],
    axis: int = 0,
) -> Shaped[Array, "..."]:
    """W · r rows of an array that consists of W equal parts along `axis`: of part w the rows `rows[w]`.

    A row stays in its part. If a row could be taken from anywhere, a mesh that spreads the rows over W groups
    of devices would first bring all rows to every device.

    >>> take_rows(jnp.array([3, 4, 5, 6]), jnp.array([[1, 1], [0, 1]])).tolist()
    [4, 4, 5, 6]
    """
    # Cut the axis into its W parts, select in each by itself, and join what is selected.
    before = array.shape[:axis]
    after = array.shape[axis + 1 :]
    num_parts, _ = rows.shape
    parts = array.reshape(*before, num_parts, -1, *after)

    def select(
        part: Shaped[Array, "..."],
        numbers: Int[Array, " r"],
    ) -> Shaped[Array, "..."]:
        # The axes before that of the rows, such as the layers, stay whole.
        index = (slice(None),) * axis + (numbers,)
        return part[index]

    select_by_part = jax.vmap(select, in_axes=(axis, 0), out_axes=axis)
    selected = select_by_part(parts, rows)
    return selected.reshape(*before, rows.size, *after)
