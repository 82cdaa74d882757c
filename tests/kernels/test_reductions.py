"""Numbers of whole images are those of NumPy, whichever device adds rows up first."""

from __future__ import annotations

import numpy as np
import pytest

from emdask.backend import array_namespace, on_device
from emdask.kernels.reductions import mean_of_pixels, over_pixels, variance_of_pixels


@pytest.mark.parametrize("shape", [(3, 5, 7), (1, 1, 1), (2, 40, 3)])
def test_numbers_are_those_of_numpy(
    device: str, shape: tuple[int, ...], rng: np.random.Generator
) -> None:
    images = rng.normal(1000, size=shape).astype("f4")

    def reduce_all(there: object) -> object:
        xp = array_namespace(there)
        numbers = [over_pixels(name, there).astype("f8") for name in ("max", "min", "all")]
        numbers += [over_pixels("sum", there, "f8"), over_pixels("sum", there > 1000).astype("f8")]
        numbers += [mean_of_pixels(there), variance_of_pixels(there)]
        return xp.stack(numbers, axis=1)[:, None]

    expected = [
        [i.max(), i.min(), i.all(), i.sum(), (i > 1000).sum(), i.mean(), i.var()]
        for i in images.astype("f8")
    ]
    result = on_device(reduce_all, images, device=device)[:, 0]
    np.testing.assert_allclose(result, expected, rtol=1e-10, atol=1e-10)


def test_a_sum_of_many_large_numbers_keeps_its_digits() -> None:
    images = np.full((1, 1000, 1000), 16777217.0)
    assert over_pixels("sum", images, "f8")[0] == 16777217.0 * 10**6
