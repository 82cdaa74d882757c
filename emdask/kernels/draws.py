"""Random numbers that belong to an image: the same in any chunk, in any order, on any machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3": Philox4x32-10.
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
N_ROUNDS = 10
WORD = np.uint64(0xFFFFFFFF)
HALF = np.uint64(32)


def uniform_draws(seed: int, image_ids: npt.ArrayLike, n_draws: int, *, stream: int) -> Array:
    """Draw numbers between 0 and 1 for each image, from its number alone.

    Parameters
    ----------
    seed
        0 to 2^64 - 1.
    image_ids : int array, shape (n,)
        Numbers of the images, from 0.
    n_draws
        Numbers an image; the first are the same however many there are.
    stream
        0 to 2^32 - 1: what is drawn. Streams are independent of each other.

    Returns
    -------
    float64 array, shape (n, n_draws)
        In [0, 1), multiples of 2^-53.

    Notes
    -----
    By the counter-based generator of Salmon et al. (2011, SC'11): a million images take a second.

    Examples
    --------
    >>> both = uniform_draws(7, [3, 4], 2, stream=0)
    >>> bool((both[1] == uniform_draws(7, [4], 3, stream=0)[0, :2]).all())
    True
    """
    ids = np.asarray(image_ids, np.int64).astype(np.uint64)[:, None]
    pairs = np.arange((n_draws + 1) // 2, dtype=np.uint64)[None, :]
    counter = (ids & WORD, ids >> HALF, pairs, np.uint64(stream))
    words = philox_words(counter, (seed & 0xFFFFFFFF, seed >> 32))
    draws = [_fraction(*words[:2]), _fraction(*words[2:])]
    return np.stack(draws, axis=-1).reshape(len(ids), 2 * pairs.size)[:, :n_draws]


def _fraction(high: Array, low: Array) -> Array:
    """Numbers in [0, 1) of 53 bits, made of two words of 32."""
    bits = (high << np.uint64(21)) | (low >> np.uint64(11))
    return np.asarray(bits * 2.0**-53)


def philox_words(counter: tuple[Any, ...], key: tuple[int, int]) -> list[Array]:
    """Return the four random words of 32 bits that belong to a counter and a key.

    Parameters
    ----------
    counter : four uint64 arrays that broadcast
        Words of 32 bits.
    key
        Two words of 32 bits.

    Returns
    -------
    list of four uint64 arrays

    Examples
    --------
    >>> zero = np.uint64(0)
    >>> [hex(int(word)) for word in philox_words((zero, zero, zero, zero), (0, 0))]
    ['0x6627e8d5', '0xe169c58d', '0xbc57ac4c', '0x9b00dbd8']
    """
    a, b, c, d = np.broadcast_arrays(*counter)
    first, second = (np.uint64(multiplier) for multiplier in MULTIPLIERS)
    for turn in range(N_ROUNDS):
        keys = [np.uint64((k + turn * w) & 0xFFFFFFFF) for k, w in zip(key, WEYL, strict=True)]
        left, right = a * first, c * second
        a, b = (right >> HALF) ^ b ^ keys[0], right & WORD
        c, d = (left >> HALF) ^ d ^ keys[1], left & WORD
    return [a, b, c, d]


def normal_images(seed: int, image_ids: npt.ArrayLike, shape: tuple[int, int]) -> Array:
    """Draw white Gaussian noise of variance 1 for each image, from its number alone.

    Parameters
    ----------
    seed
        At least 0.
    image_ids : int array, shape (n,)
        Numbers of the images, from 0.
    shape
        (h, w).

    Returns
    -------
    float32 array, shape (n, h, w)
        Image i is the first draw of ``numpy.random.default_rng([seed, i])``.

    Examples
    --------
    >>> normal_images(0, [5], (2, 2)).shape
    (1, 2, 2)
    """
    ids = [int(image_id) for image_id in np.asarray(image_ids)]
    noise = np.empty((len(ids), *shape), np.float32)
    for image_id, image in zip(ids, noise, strict=True):
        np.random.default_rng([seed, image_id]).standard_normal(dtype=np.float32, out=image)
    return noise
