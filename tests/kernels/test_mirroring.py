"""Lines that go on mirrored."""

import numpy as np
import pytest

from emdask.kernels.mirroring import mirror_places


@pytest.mark.parametrize("length", [1, 2, 5, 12])
def test_places_are_those_of_symmetric_padding(length: int) -> None:
    line = np.arange(length)
    padded = np.pad(line, 40, mode="symmetric")
    np.testing.assert_array_equal(mirror_places(np.arange(-40, length + 40), length), padded)
