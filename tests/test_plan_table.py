"""The table of plans in the docs is what the code says."""

import pytest

from tools import plan_table

WRITTEN = plan_table.PAGE.read_text().splitlines(keepends=True)


@pytest.mark.parametrize("target", plan_table.SHARE_TARGETS)
def test_a_hosts_share_in_the_docs_is_the_codes(target):
    assert plan_table.share_row(target) in WRITTEN


def test_a_plan_in_the_docs_is_the_codes():
    assert plan_table.row("7b", 37_000_000, "h100-64") in WRITTEN


@pytest.mark.slow
@pytest.mark.parametrize("model", plan_table.MODELS)
@pytest.mark.parametrize("chunks", plan_table.CHUNKS)
@pytest.mark.parametrize("target", plan_table.TARGETS)
def test_every_plan_in_the_docs_is_the_codes(model, chunks, target):
    assert plan_table.row(model, chunks, target) in WRITTEN
