"""What the tests of checkpoints share."""

from __future__ import annotations

import pytest
from weights_fixtures import State, network


@pytest.fixture
def state() -> State:
    return network().state_dict()
