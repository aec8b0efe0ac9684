"""What a call takes of a chip: the compiler's figure, what else is resident, and the results that stay."""

import jax
import jax.numpy as jnp
import pytest

from radit_jax.planning.resources import Call, compiled_peak
from radit_jax.runtime.distributed.accelerators import GIB

PAGE = jax.ShapeDtypeStruct(
    (1024,), jnp.float32, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
)
DOUBLE = jax.jit(lambda x: 2 * x)


class Refused:
    """A function that no compiler takes."""

    def __init__(self, message):
        self.message = message

    def lower(self, *arguments):
        raise jax.errors.JaxRuntimeError(self.message)


def test_a_call_takes_its_arguments_and_results():
    assert compiled_peak([Call(DOUBLE, (PAGE,))]) == 4096 + 4096


def test_results_that_are_kept_and_what_else_is_resident_are_counted():
    assert (
        compiled_peak([Call(DOUBLE, (PAGE,), resident=(PAGE, PAGE), results=3)]) == 4096 + 3 * 4096 + 2 * 4096
    )


def test_a_result_that_is_written_over_its_argument_takes_nothing():
    overwrite = jax.jit(lambda x: 2 * x, donate_argnums=0)
    assert compiled_peak([Call(overwrite, (PAGE,))]) == 4096


def test_what_the_compiler_would_need_is_read_off_its_refusal():
    words = (
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 28.95G of 15.75G hbm. Exceeds hbm"
    )
    assert compiled_peak([Call(Refused(words), ())]) == 28.95 * GIB
    assert compiled_peak([Call(Refused("RESOURCE_EXHAUSTED: too much"), ())]) == float("inf")


def test_the_call_that_takes_the_most_decides():
    assert compiled_peak([Call(DOUBLE, (PAGE,)), Call(DOUBLE, (PAGE,), results=2)]) == 3 * 4096


def test_a_call_can_take_what_the_one_before_gave():
    first = Call(DOUBLE, (PAGE,))
    assert first.given == PAGE


def test_what_is_resident_during_a_refused_call_counts_and_no_other_is_tried_after_it():
    def calls():
        yield Call(
            Refused("RESOURCE_EXHAUSTED: temporaries (44.33G) exceeds available HBM"), (), resident=PAGE
        )
        raise AssertionError("there are no results to go on with")

    assert compiled_peak(calls()) == 44.33 * GIB + 4096


def test_another_error_of_the_compiler_is_not_taken_for_a_lack_of_memory():
    with pytest.raises(jax.errors.JaxRuntimeError, match="INTERNAL"):
        compiled_peak([Call(Refused("INTERNAL: a fault"), ())])
