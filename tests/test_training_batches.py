"""Batches to train on: what they hold, and that they are the same again."""

from __future__ import annotations

from typing import Any

import dask.array as da
import numpy as np
import pytest

from emdask import training_batches
from emdask.backend import to_host
from emdask.errors import StackError
from emdask.kernels.batch import Batch
from emdask.lazy import read_images
from emdask.training_batches import Batches, Drawing, Part

SIDE = 16


def drawing(**changes: Any) -> Drawing:
    known = {
        "batch": 4,
        "crop_px": SIDE,
        "stride": 8,
        "validation": 0.2,
        "seed": 3,
        "snr": None,
        "coloured": 0.0,
        "either_contrast": False,
        "bad_pixels": "raise",
    }
    return Drawing(**(known | changes))


def noisy_stack(n: int = 30, shape: tuple[int, int] = (SIDE, SIDE), chunk: int = 5) -> da.Array:
    noise = np.random.default_rng(0).normal(size=(n, *shape))
    return da.from_array(noise.astype("f4"), chunks=(chunk, -1, -1))


def numbered(n: int = 30, chunk: int = 5) -> Part:
    """Images whose target is their own number, in units of noise that is estimated as about 1."""
    numbers = np.arange(n, dtype="f4")[:, None, None] * np.ones((1, SIDE, SIDE), "f4")
    target = da.from_array(numbers, chunks=(chunk, -1, -1))
    return Part(noisy=noisy_stack(n, chunk=chunk), target=target, target_is_clean=True)


def numbers_of(batches: Any, part: Part) -> list[int]:
    """Which images batches are of: the target is (number - mean) / sigma of the noisy image."""
    from emdask.kernels.unit_noise import to_unit_noise

    assert part.noisy is not None
    _, scales, means, _ = to_unit_noise(part.noisy.compute(), "auto")
    found = []
    for batch in batches:
        for image in batch.target:
            guesses = image.mean() * scales[:, 0, 0] + means[:, 0, 0]
            found.append(int(np.argmin(np.abs(guesses - np.arange(len(guesses))))))
    return found


def on_host(batches: Any) -> list[Batch]:
    return [Batch(to_host(batch.noisy), to_host(batch.target)) for batch in batches]


def assert_equal(found: list[Any], expected: list[Any]) -> None:
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.noisy, other.noisy)
        np.testing.assert_array_equal(one.target, other.target)


def test_each_image_comes_once_in_an_epoch() -> None:
    part = numbered()
    batches = Batches([part], drawing())
    trained = numbers_of(batches.epoch(0), part)
    held_out = numbers_of(batches.validation(), part)
    assert len(held_out) == 6
    assert sorted(trained + held_out) == list(range(30))
    assert trained != sorted(trained)


def test_epochs_differ_in_order_and_repeat_themselves() -> None:
    part = numbered()
    batches = Batches([part], drawing())
    assert_equal(list(batches.epoch(1)), list(Batches([part], drawing()).epoch(1)))
    assert numbers_of(batches.epoch(0), part) != numbers_of(batches.epoch(1), part)
    other = Batches([part], drawing(seed=4))
    assert numbers_of(other.epoch(0), part) != numbers_of(batches.epoch(0), part)


@pytest.mark.parametrize("first", [1, 2, 5, 6])
def test_an_epoch_goes_on_anywhere(first: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also in the middle of a group of chunks, without drawing what comes before."""
    monkeypatch.setattr(training_batches, "BUFFER_BYTES", 30 * SIDE**2 * 4)
    batches = Batches([numbered()], drawing(batch=3))
    assert len(batches.groups) == 2
    whole = list(batches.epoch(2))
    assert len(whole) == batches.n_steps
    assert_equal(list(batches.epoch(2, first)), whole[first:])
    assert list(batches.epoch(2, batches.n_steps)) == []


def test_few_chunks_are_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the first batch comes, at most two groups of chunks have been read."""
    read: list[tuple[int, int]] = []

    def note(source: Any, start: int, stop: int) -> np.ndarray:
        read.append((start, stop))
        return np.random.default_rng(start).normal(size=(stop - start, SIDE, SIDE)).astype("f4")

    images = read_images(note, None, shape=(200, SIDE, SIDE), dtype="f4", chunk=10, name="note")
    monkeypatch.setattr(training_batches, "BUFFER_BYTES", 40 * SIDE**2 * 4)
    part = Part(noisy=images, target=None, target_is_clean=False)
    batches = Batches([part], drawing(validation=0))
    assert len(batches.groups) == 5
    stream = batches.epoch(0)
    next(stream)
    stream.close()
    assert 4 <= len(read) <= 8
    assert all(stop - start == 10 for start, stop in read)


def test_validation_reads_what_is_held_out_alone() -> None:
    read: list[tuple[int, int]] = []

    def note(source: Any, start: int, stop: int) -> np.ndarray:
        read.append((start, stop))
        return np.random.default_rng(start).normal(size=(stop - start, SIDE, SIDE)).astype("f4")

    images = read_images(note, None, shape=(200, SIDE, SIDE), dtype="f4", chunk=10, name="note")
    part = Part(noisy=images, target=None, target_is_clean=False)
    drawn = list(Batches([part], drawing(validation=0.05)).validation())
    assert sum(len(batch.noisy) for batch in drawn) == 10
    # Of a chunk with two of them the whole is read.
    assert sum(stop - start for start, stop in read) < 50


def test_pieces_and_targets_are_of_one_place() -> None:
    """However they are cut, turned and mirrored."""
    rng = np.random.default_rng(1)
    clean = rng.normal(size=(12, 40, 56)).astype("f4")
    noisy = clean * 3 + 0.01 * rng.normal(size=clean.shape).astype("f4")
    part = Part(
        noisy=da.from_array(noisy, chunks=(4, -1, -1)),
        target=da.from_array(clean * 3, chunks=(4, -1, -1)),
        target_is_clean=True,
    )
    batches = Batches([part], drawing(either_contrast=True))
    corners = set()
    for batch in batches.epoch(0):
        for given, target in zip(batch.noisy, batch.target, strict=True):
            assert np.corrcoef(given.ravel(), target.ravel())[0, 1] > 0.999
            corners.add(round(float(given[0, 0]), 3))
    # 40 x 56 px are nine pieces of 16 x 16.
    assert len(corners) > 0.9 * 9 * 10


def test_noisy_images_come_in_units_of_their_noise() -> None:
    rng = np.random.default_rng(1)
    noisy = 7 * rng.normal(size=(12, 64, 64)) + 100
    part = Part(noisy=da.from_array(noisy), target=None, target_is_clean=False)
    for batch in Batches([part], drawing(crop_px=64)).epoch(0):
        assert batch.target is None
        assert abs(batch.noisy.std() - 1) < 0.05
        assert abs(batch.noisy.mean()) < 0.05


@pytest.mark.parametrize("snr", [0.1, 1.0])
def test_noise_is_added_at_the_ratio_asked_for(snr: float, device: str) -> None:
    from scipy.ndimage import gaussian_filter

    rng = np.random.default_rng(1)
    clean = gaussian_filter(rng.normal(size=(40, 64, 64)), (0, 3, 3)) * 50 + 9
    part = Part(noisy=None, target=da.from_array(clean), target_is_clean=True)
    batches = Batches([part], drawing(crop_px=64, snr=(snr, snr)), device)
    drawn = on_host(batches.epoch(0))
    noise = np.concatenate([b.noisy - b.target for b in drawn])
    target = np.concatenate([b.target for b in drawn])
    assert abs(noise.std() - 1) < 0.03
    ratios = target.var(axis=(1, 2)) / noise.var(axis=(1, 2))
    np.testing.assert_allclose(ratios, snr, rtol=0.2)
    assert abs(ratios.mean() / snr - 1) < 0.03
    assert_equal(on_host(batches.epoch(0)), drawn)
    again = np.concatenate([b.noisy - b.target for b in on_host(batches.epoch(1))])
    assert abs(np.corrcoef(noise.ravel(), again.ravel())[0, 1]) < 0.02


def test_a_card_draws_the_same_pieces_and_goes_on_anywhere(
    card: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Many batches at once; only the noise is another than the host's."""
    monkeypatch.setattr(training_batches, "PIXELS_AT_ONCE", 3 * 4 * SIDE**2)
    clean = noisy_stack(n=40).cumsum(axis=1)
    part = Part(noisy=None, target=clean, target_is_clean=True)
    how = drawing(snr=(0.5, 2.0), coloured=0.5)
    there, here = (Batches([part], how, device) for device in (card, "cpu"))
    whole, expected = on_host(there.epoch(1)), list(here.epoch(1))
    assert len(whole) == len(expected) == 8
    for batch, other in zip(whole, expected, strict=True):
        for image, same in zip(batch.target, other.target, strict=True):
            assert np.corrcoef(image.ravel(), same.ravel())[0, 1] > 1 - 1e-5
        assert abs(np.corrcoef(batch.noisy.ravel(), other.noisy.ravel())[0, 1]) < 0.95
    for first in (1, 3, 5, 7):
        assert_equal(on_host(there.epoch(1, first)), whole[first:])
    assert list(there.epoch(1, 8)) == []


def test_noise_is_coloured_where_asked_for(device: str) -> None:
    clean = np.random.default_rng(1).normal(size=(60, 64, 64))
    part = Part(noisy=None, target=da.from_array(clean), target_is_clean=True)

    def neighbours(coloured: float) -> np.ndarray:
        how = drawing(crop_px=64, snr=(0.01, 0.01), coloured=coloured, validation=0)
        drawn = on_host(Batches([part], how, device).epoch(0))
        noise = np.concatenate([b.noisy - b.target for b in drawn])
        return (noise[:, 1:] * noise[:, :-1]).mean(axis=(1, 2))

    assert np.abs(neighbours(0.0)).max() < 0.1
    assert np.median(neighbours(1.0)) > 0.03
    share = (np.abs(neighbours(0.5)) > 0.05).mean()
    assert 0.2 < share < 0.8


def test_contrast_is_turned_for_half_of_the_pieces() -> None:
    clean = np.zeros((60, SIDE, SIDE), "f4")
    clean[:, 5:9, 5:9] = 1
    part = Part(noisy=None, target=da.from_array(clean), target_is_clean=True)

    def light(either: bool) -> float:
        how = drawing(snr=(1.0, 1.0), either_contrast=either, validation=0)
        target = np.concatenate([b.target for b in Batches([part], how).epoch(0)])
        return float((target.max(axis=(1, 2)) > -target.min(axis=(1, 2))).mean())

    assert light(False) == 1
    assert 0.25 < light(True) < 0.75


def test_of_few_images_the_lowest_rows_are_held_out() -> None:
    rows = np.arange(96, dtype="f4")[:, None] * np.ones((3, 96, 64), "f4")
    part = Part(noisy=noisy_stack(3, (96, 64)), target=da.from_array(rows), target_is_clean=False)
    batches = Batches([part], drawing(validation=0.25))
    mean = rows[0].mean()
    trained = np.concatenate([b.target for b in batches.epoch(0)]) + mean
    held_out = np.concatenate([b.target for b in batches.validation()]) + mean
    # Units are those of the noise, estimated as about 1: five rows of leeway.
    assert trained.max() < 72 + 5
    assert held_out.min() > 72 - 5
    assert len(trained) == 3 * round(72 * 64 / SIDE**2)


def test_processes_share_each_batch() -> None:
    part = numbered()
    whole = list(Batches([part], drawing()).epoch(0))
    of_ranks = [list(Batches([part], drawing(rank=r, n_ranks=2)).epoch(0)) for r in (0, 1)]
    for batch, first, second in zip(whole, *of_ranks, strict=True):
        np.testing.assert_array_equal(batch.noisy[::2], first.noisy)
        np.testing.assert_array_equal(batch.noisy[1::2], second.noisy)


def test_stacks_of_several_sizes() -> None:
    parts = [
        Part(noisy=noisy_stack(20, (side, side)), target=None, target_is_clean=False)
        for side in (16, 33, 48)
    ]
    batches = Batches(parts, drawing(crop_px=32))
    shapes = {batch.noisy.shape[1:] for batch in batches.epoch(0)}
    assert shapes == {(16, 16), (32, 32)}
    sizes = [batch.noisy.shape[1] for batch in batches.epoch(0)]
    assert sizes != sorted(sizes)


def test_a_bad_pixel_is_named_or_replaced() -> None:
    images = np.random.default_rng(0).normal(size=(30, SIDE, SIDE))
    images[17, 3, 3] = np.nan
    part = Part(noisy=da.from_array(images, chunks=(5, -1, -1)), target=None, target_is_clean=False)
    with pytest.raises(StackError, match="image 17 has 1 NaN"):
        list(Batches([part], drawing(validation=0)).epoch(0))
    for batch in Batches([part], drawing(validation=0, bad_pixels="replace")).epoch(0):
        assert np.isfinite(batch.noisy).all()


def test_too_small_and_too_few_are_refused() -> None:
    part = Part(noisy=noisy_stack(20, (7, 30)), target=None, target_is_clean=False)
    with pytest.raises(StackError, match=r"at least 8 x 8 pixels to train on; got \(20, 7, 30\)"):
        Batches([part], drawing())
    part = Part(noisy=noisy_stack(5, (8, 8)), target=None, target_is_clean=False)
    with pytest.raises(StackError, match=r"10 or more of them.*got \(5, 8, 8\).*validation=0"):
        Batches([part], drawing(crop_px=8))
    Batches([part], drawing(crop_px=8, validation=0))
