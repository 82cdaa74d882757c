"""Random numbers of images: the published generator, uniform, and each image's own."""

import numpy as np
import pytest
from scipy import stats

from emdask.kernels.draws import normal_images, philox_words, uniform_draws


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        # Known answers of Random123, the authors' own library.
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF,) * 2,
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_words_are_those_of_philox(
    counter: tuple[int, ...], key: tuple[int, int], expected: tuple[int, ...]
) -> None:
    words = philox_words(tuple(np.uint64(word) for word in counter), key)
    assert [int(word) for word in words] == list(expected)


def test_draws_belong_to_the_image_and_not_to_its_place() -> None:
    ids = np.array([5, 2**33, 0, 17])
    draws = uniform_draws(3, ids, 5, stream=1)
    for image_id, row in zip(ids, draws, strict=True):
        assert np.array_equal(uniform_draws(3, [image_id], 5, stream=1)[0], row)
        assert np.array_equal(uniform_draws(3, [image_id], 2, stream=1)[0], row[:2])
    others = [uniform_draws(4, ids, 5, stream=1), uniform_draws(3, ids, 5, stream=2)]
    assert all((draws != other).all() for other in others)


def test_draws_are_uniform_and_uncorrelated() -> None:
    draws = uniform_draws(0, np.arange(20_000), 4, stream=0)
    assert draws.min() >= 0
    assert draws.max() < 1
    for column in draws.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-3
    # Of 20,000 pairs the correlation is 0 ± 0.007; neighbours in the stack count as well.
    correlation = np.corrcoef(np.concatenate([draws.T, np.roll(draws, 1, axis=0).T]))
    assert np.abs(correlation - np.eye(8)).max() < 0.03


def test_noise_belongs_to_the_image() -> None:
    noise = normal_images(2, [7, 9], (16, 20))
    assert noise.dtype == np.float32
    assert np.array_equal(noise[1], normal_images(2, [9], (16, 20))[0])
    expected = np.random.default_rng([2, 7]).standard_normal((16, 20), np.float32)
    assert np.array_equal(noise[0], expected)
