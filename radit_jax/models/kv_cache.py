"""The keys and values of tokens that a decoder has read: what later tokens need of them."""

import functools
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
        return KvCache(
            keys=_put(self.keys, block.keys, slot, axis=3),
            values=_put(self.values, block.values, slot, axis=3),
            segment_ids=_put(self.segment_ids, block.segment_ids, slot, axis=1),
            continuation_ids=_put(self.continuation_ids, block.continuation_ids, slot, axis=1),
            positions=_put(self.positions, block.positions, slot, axis=1),
        )

    def mark(self, positions: Int[Array, "B T"], slot: Int[Array, ""] | int) -> "KvCache":
        """The same cache with the ids of a prompt's next tokens in the slots from `slot` on, without keys."""
        positions = positions.astype(self.positions.dtype)
        return self._replace(
            segment_ids=_put(self.segment_ids, jnp.ones_like(positions), slot, axis=1),
            continuation_ids=_put(self.continuation_ids, jnp.zeros_like(positions), slot, axis=1),
            positions=_put(self.positions, positions, slot, axis=1),
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


def _put(
    cached: Shaped[Array, "*cached"],
    new: Shaped[Array, "*new"],
    slot: Int[Array, ""] | int,
    axis: int,
) -> Shaped[Array, "*cached"]:
    """An array of a cache with `new` in the slots from `slot` on."""
    return jax.lax.dynamic_update_slice_in_dim(cached, new, slot, axis)


class CacheSlot(NamedTuple):
    """The keys and values of a cache, and where a layer writes those of the token of each row.

    A loop over the layers carries the cache along, so that it is written in place.
    """

    keys: Float[Array, "L B M S H"]
    values: Float[Array, "L B M S H"]
    slot: Int[Array, ""]
    layer: Int[Array, ""]

    def write(
        self,
        keys: Float[Array, "B M 1 H"],
        values: Float[Array, "B M 1 H"],
    ) -> "CacheSlot":
        """The cache with a token's keys and values in the layer's slot."""
        zero = jnp.zeros_like(self.layer)
        start = (self.layer, zero, zero, self.slot, zero)
        return self._replace(
            keys=jax.lax.dynamic_update_slice(self.keys, keys[None], start),
            values=jax.lax.dynamic_update_slice(self.values, values[None], start),
        )

    def of_layer(self) -> tuple[Float[Array, "B M S H"], Float[Array, "B M S H"]]:
        """The layer's keys and values."""
        take = functools.partial(jax.lax.dynamic_index_in_dim, index=self.layer, keepdims=False)
        return take(self.keys), take(self.values)


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
