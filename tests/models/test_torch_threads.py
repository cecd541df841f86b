from __future__ import annotations

import pytest
import torch

from pipeline.models.torch_threads import one_thread


def test_one_thread_holds_within_the_block_and_is_undone_when_it_fails() -> None:
    before = torch.get_num_threads()
    with pytest.raises(ZeroDivisionError), one_thread():
        assert torch.get_num_threads() == 1
        raise ZeroDivisionError
    assert torch.get_num_threads() == before
