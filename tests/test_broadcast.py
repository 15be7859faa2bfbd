"""Claims about an index that all samples of a batch share."""

import torch

from vidm.broadcast import distinct, shared


def test_a_shared_index_is_one_value_on_every_sample():
    index = shared(7, torch.zeros(3, 2, 5))
    assert index.tolist() == [7, 7, 7]
    assert index.dtype == torch.int64
    assert distinct(index).tolist() == [7]


def test_values_that_happen_to_be_equal_are_not_taken_for_shared():
    index = torch.tensor([7, 7, 7])
    assert distinct(index) is index


def test_a_batch_of_one_is_itself():
    assert distinct(torch.tensor([7])).tolist() == [7]
    assert distinct(shared(7, torch.zeros(1, 3))).tolist() == [7]
