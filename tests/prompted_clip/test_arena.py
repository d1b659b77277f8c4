"""Rows lent out of one tensor."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prompted_clip.arena import Arena

CPU = torch.device("cpu")


def arena(n_rows=10, width=3, device=CPU):
    return Arena(n_rows, width, torch.float32, device)


@given(st.lists(st.integers(-5, 5)))
def test_no_row_is_lent_twice_and_none_is_lost(changes):
    """Positive: take so many rows; negative: give back the oldest loan."""
    rows, loans = arena(), []
    for change in changes:
        if change < 0 and loans:
            rows.give_back(loans.pop(0))
        elif 0 <= change <= rows.n_free:
            loans.append(rows.take(change))
        lent = [int(row) for loan in loans for row in loan]
        assert sorted([*lent, *rows.free.tolist()]) == list(range(1, 11))
        assert rows.n_free == 10 - len(lent)


def test_more_rows_than_are_free_are_refused_and_nothing_is_lent():
    rows = arena()
    rows.take(8)
    with pytest.raises(ValueError, match="3 rows were asked for and 2 of 10 are free"):
        rows.take(3)
    assert rows.n_free == 2


def test_rows_are_read_as_they_were_written_in_any_order_and_shape():
    rows, content = arena(), torch.arange(12.0).reshape(4, 3)
    mine = rows.take(4)
    rows.write(mine, content)
    order = torch.tensor([[3, 0], [1, 1]])
    assert torch.equal(rows.read(torch.from_numpy(mine)[order]), content[order])


def test_row_0_is_zero_and_stays_it():
    rows = arena()
    rows.write(rows.take(10), torch.ones(10, 3))
    assert torch.equal(rows.read(torch.tensor([0, 1])), torch.tensor([[0.0] * 3, [1.0] * 3]))


@pytest.mark.gpu
def test_rows_on_the_gpu_are_read_as_they_were_written():
    rows, content = arena(device=torch.device("cuda")), torch.arange(12.0).reshape(4, 3)
    mine = rows.take(4)
    rows.write(mine, content.pin_memory())
    assert torch.equal(rows.read(torch.from_numpy(np.flip(mine).copy()).cuda()).cpu(), content.flip(0))
