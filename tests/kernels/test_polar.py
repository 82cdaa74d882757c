"""Matching of polar spectra: against Rice's likelihood, summed directly over Fourier terms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.special import ive, logsumexp

from emdask.backend import why_no_cuda
from emdask.kernels import polar
from emdask.kernels.ctf import Optics, apply_ctf
from emdask.kernels.polar import crop_volume, match_spectra, prepare_spectra
from emdask.kernels.projections import rotation_matrices
from emdask.kernels.slices import prepare_volume, project_volume
from emdask.phantoms import phantom

BOX, BAND, PIXEL_A = 32, 10, 3.0
# Edge of the padded images whose Fourier terms are compared.
FINE = 40
PARTICLES = [phantom(14, radius_A=30, width_A=(4.8, 6.0), seed=seed) for seed in range(6)]


def see(which: Any, turns_deg: Any, shifts_A: Any = (0.0, 0.0)) -> Any:
    """Views of the particles along z, turned from the x towards the y axis; not scaled."""
    shifts = np.broadcast_to(shifts_A, (len(which), 2))
    # RELION's psi turns the y axis towards x.
    return np.concatenate(
        [
            PARTICLES[i].project([[0, 0, -t]], shift_A=s, box_px=BOX, pixel_size_A=PIXEL_A)
            for i, t, s in zip(which, turns_deg, shifts, strict=True)
        ]
    )


# So that views have variance 1.
SCALE = see(range(6), [0.0] * 6).var(axis=(1, 2)).mean() ** -0.5
REFERENCES = SCALE * see(range(6), [0.0] * 6)


def make_bank(variance: float, sizes: tuple[int, ...] = (1,) * 6, **options: Any) -> Any:
    given = {"box_px": BOX, "band_px": BAND, "noise_power": np.full(BAND + 1, variance)}
    return prepare_spectra(options.pop("references", REFERENCES), sizes, **given, **options)


def draw(
    n: int, variance: float, rng: np.random.Generator, optics: Optics | None = None
) -> tuple[Any, Any, Any]:
    """Noisy images anywhere and anyhow turned; which particles they are, and their turns."""
    which, turns = np.arange(n) % 6, rng.uniform(0, 360, n)
    images = SCALE * see(which, turns, rng.uniform(-6, 6, (n, 2)))
    if optics is not None:
        images = apply_ctf(images, optics.ctfs((BOX, BOX), n))
    images += rng.normal(scale=variance**0.5, size=images.shape)
    return images.astype("f4"), which, turns


def draw_optics(n: int, rng: np.random.Generator) -> Optics:
    defoci = rng.uniform(8e3, 2e4, n)
    return Optics(pixel_size_A=PIXEL_A, defocus_u_A=defoci, defocus_v_A=defoci)


def exact_amplitudes(particle: Any, frequency: Any, turn_deg: float) -> Any:
    """Of the transform of a turned view, at frequencies (p, 2) in cycles a pixel."""
    k = frequency / PIXEL_A
    places = (particle.positions_A @ rotation_matrices([0, 0, -turn_deg]).T)[:, :2]
    blurs = np.exp(-2 * np.pi**2 * (k**2).sum(1)[:, None] * particle.widths_A**2)
    return SCALE * abs((np.exp(-2j * np.pi * k @ places.T) * blurs * particle.masses).sum(1))


def exact_likelihood(images: Any, variance: float, optics: Optics | None) -> Any:
    """Logarithms of Rice's densities over those of noise, summed; (n, particles, turns)."""
    y, x = np.indices((BOX, BOX)) - (BOX - 1) / 2
    levels = images[:, np.hypot(x, y) > BOX / 2].mean(1)
    y, x = np.meshgrid(np.fft.fftfreq(FINE), np.fft.rfftfreq(FINE), indexing="ij")
    compared = (np.hypot(x, y) <= BAND / BOX) & (np.hypot(x, y) > 0) & ~((x == 0) & (y < 0))
    frequency = np.column_stack([x[compared], y[compared]])
    unit = BOX * variance**0.5
    a = abs(np.fft.rfft2(images - levels[:, None, None], (FINE, FINE)))[:, compared] / unit
    c = np.ones_like(a) if optics is None else abs(optics.ctfs((FINE, FINE), len(a))[:, compared])
    found = np.empty((len(a), len(PARTICLES), 90))
    for i, particle in enumerate(PARTICLES):
        for j in range(90):
            s = exact_amplitudes(particle, frequency, 2 * j) / unit
            bent = 2 * a * c * s
            found[:, i, j] = (np.log(ive(0, bent)) + bent - (c * s) ** 2).sum(1)
    # As many independent terms as the images have.
    return found * (BOX / FINE) ** 2


def less_mean(values: Any) -> Any:
    return values - values.mean(axis=1, keepdims=True)


def turn_gap(a: Any, b: Any) -> Any:
    """Difference of turns that repeat after half a turn, degrees."""
    return abs((np.asarray(a) - b + 90) % 180 - 90)


def on(device: str, array: Any) -> Any:
    if device == "cpu":
        return array
    import cupy

    return cupy.asarray(array)


def back(array: Any) -> Any:
    return array.get() if hasattr(array, "get") else array


@pytest.mark.parametrize("variance", [1.0, 10.0])
@pytest.mark.parametrize("with_ctf", [False, True])
def test_likelihoods_are_those_of_rice(
    with_ctf: bool, variance: float, rng: np.random.Generator
) -> None:
    optics = draw_optics(24, rng) if with_ctf else None
    images, which, _ = draw(24, variance, rng, optics)
    found = match_spectra(images, make_bank(variance, with_ctf=with_ctf), optics)
    exact = exact_likelihood(images, variance, optics)
    expected = less_mean(logsumexp(exact, axis=2) - np.log(exact.shape[2]))
    errors = less_mean(found.log_likelihood) - expected
    # Two products for each table: a few per cent.
    assert errors.std() < 0.03 * expected.std()
    rows = np.arange(24)
    turns = 2.0 * exact[rows, which].argmax(1)
    # Near ties may be turned.
    assert (turn_gap(found.turn_deg[rows, which], turns) <= 4).mean() > 0.9
    assert (found.best == np.arange(6)).all()


def test_particles_are_found_wherever_and_however_turned(rng: np.random.Generator) -> None:
    images, which, turns = draw(60, 0.5, rng)
    found = match_spectra(images, make_bank(0.5))
    np.testing.assert_array_equal(found.log_likelihood.argmax(1), which)
    assert turn_gap(found.turn_deg[np.arange(60), which], turns).max() < 6
    assert found.log_likelihood.dtype == found.turn_deg.dtype == np.float32


def test_shifts_change_nothing(rng: np.random.Generator) -> None:
    images, _, _ = draw(12, 1.0, rng)
    y, x = np.indices((BOX, BOX)) - BOX // 2
    # Noise and all, as long as nothing reaches the corners.
    images *= np.hypot(x, y) < 9
    found, moved = (
        match_spectra(each, make_bank(1.0)) for each in (images, np.roll(images, (5, -4), (1, 2)))
    )
    np.testing.assert_allclose(moved.log_likelihood, found.log_likelihood, rtol=1e-4, atol=1e-3)
    np.testing.assert_array_equal(moved.turn_deg, found.turn_deg)


def test_mirror_images_are_told_apart_where_there_are_references_of_both(
    rng: np.random.Generator,
) -> None:
    both = np.concatenate([REFERENCES, np.roll(REFERENCES[:, ::-1], 1, axis=1)])
    images, which, _ = draw(60, 1.0, rng)
    mirrored = rng.random(60) < 0.5
    images[mirrored] = np.roll(images[mirrored, ::-1], 1, axis=1)
    found = match_spectra(images, make_bank(1.0, (6, 6), references=both))
    np.testing.assert_array_equal(found.log_likelihood.argmax(1), mirrored)
    np.testing.assert_array_equal(found.best[np.arange(60), mirrored * 1], which + 6 * mirrored)


def test_each_image_has_its_own_ctf(rng: np.random.Generator) -> None:
    optics = draw_optics(120, rng)
    images, which, _ = draw(120, 1.0, rng, optics)
    bank = make_bank(1.0, with_ctf=True)
    rows = np.arange(120)
    right, wrong = (
        match_spectra(images, bank, given).log_likelihood for given in (optics, optics[rows[::-1]])
    )
    blind = match_spectra(images, make_bank(1.0)).log_likelihood
    accuracies = [(found.argmax(1) == which).mean() for found in (right, wrong, blind)]
    assert accuracies[0] > 0.95
    assert accuracies[0] > max(accuracies[1:]) + 0.05
    # How far the right particle is ahead.
    margins = [less_mean(found)[rows, which].mean() for found in (right, wrong)]
    assert margins[0] > margins[1] + 1


def test_one_ctf_for_all_is_that_of_each(rng: np.random.Generator) -> None:
    same = Optics(pixel_size_A=PIXEL_A, defocus_u_A=1.2e4, defocus_v_A=1.2e4)
    each = Optics(pixel_size_A=PIXEL_A, defocus_u_A=np.full(7, 1.2e4), defocus_v_A=1.2e4)
    images, _, _ = draw(7, 1.0, rng, each)
    bank = make_bank(1.0, with_ctf=True)
    found = [match_spectra(images, bank, optics).log_likelihood for optics in (same, each)]
    np.testing.assert_array_equal(*found)


def test_the_spectrum_of_the_noise_counts(rng: np.random.Generator) -> None:
    """Strong noise of low frequencies is not mistaken for a signal where it is known."""
    power = 0.2 + 30 / (1 + (np.arange(BAND + 1) / 2) ** 4)
    images, which, _ = draw(120, 0.0, rng)
    # Cut out of a larger field, as of a micrograph: it does not go on at the other side.
    wide = 4 * BOX
    frequency = np.hypot(*np.ix_(np.fft.fftfreq(wide), np.fft.rfftfreq(wide)))
    amplitude = np.sqrt(np.interp(BOX * frequency, np.arange(BAND + 1), power))
    terms = np.fft.rfft2(rng.normal(size=(120, wide, wide))) * amplitude
    images += np.fft.irfft2(terms)[:, :BOX, :BOX].astype("f4")
    known = prepare_spectra(REFERENCES, (1,) * 6, box_px=BOX, band_px=BAND, noise_power=power)
    accuracies = [
        (match_spectra(images, bank).log_likelihood.argmax(1) == which).mean()
        for bank in (known, make_bank(0.2))
    ]
    assert accuracies[0] > 0.8
    assert accuracies[1] < 0.65


def test_groups_hold_all_their_references(rng: np.random.Generator) -> None:
    images, which, _ = draw(30, 1.0, rng)
    alone = match_spectra(images, make_bank(1.0))
    grouped = match_spectra(images, make_bank(1.0, (2, 4)))
    for group, members in enumerate((slice(0, 2), slice(2, 6))):
        own = alone.log_likelihood[:, members]
        expected = logsumexp(own, axis=1) - np.log(own.shape[1])
        np.testing.assert_allclose(grouped.log_likelihood[:, group], expected, rtol=1e-4, atol=2e-3)
    assert (grouped.best[which < 2, 0] == which[which < 2]).all()
    assert (grouped.best[which > 1, 1] == which[which > 1]).all()


def test_priors_are_of_references_in_their_group(rng: np.random.Generator) -> None:
    images, _, _ = draw(12, 1.0, rng)
    plain = match_spectra(images, make_bank(1.0))
    prior = np.array([0.0, -3.0, 0.0, 1.5, 0.0, -40.0])
    found = match_spectra(images, make_bank(1.0)._replace(log_prior=prior.astype("f4")))
    expected = plain.log_likelihood + prior
    np.testing.assert_allclose(found.log_likelihood, expected, rtol=1e-5, atol=2e-3)
    # What is out of the question is never the best.
    barred = np.where(np.arange(6) == 3, 0.0, -1e4)
    found = match_spectra(images, make_bank(1.0, (6,))._replace(log_prior=barred.astype("f4")))
    assert (found.best == 3).all()


# The stand-in for a card multiplies by a BLAS of the CPU, for which this does not hold.
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
@pytest.mark.parametrize("with_ctf", [False, True])
def test_an_image_does_not_depend_on_those_beside_it(
    device: str, with_ctf: bool, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    if device == "cuda" and (reason := why_no_cuda()) is not None:
        pytest.skip(f"no card: {reason}")
    monkeypatch.setattr(polar, "IMAGES_AT_ONCE", {"numpy": 16, "cupy": 16})
    optics = draw_optics(37, rng) if with_ctf else None
    images, _, _ = draw(37, 1.0, rng, optics)
    bank = make_bank(1.0, (2, 4), with_ctf=with_ctf)

    def match(some: Any) -> list[Any]:
        found = match_spectra(on(device, images[some]), bank, optics and optics[some])
        return [back(each) for each in found]

    whole = match(np.arange(37))
    for some in ([0], [36], [15, 16], np.arange(37)[::-1], np.arange(5, 30)):
        for part, expected in zip(match(np.array(some)), whole, strict=True):
            np.testing.assert_array_equal(part, expected[some])


@pytest.mark.parametrize("with_ctf", [False, True])
def test_cards_say_the_same(card: str, with_ctf: bool, rng: np.random.Generator) -> None:
    optics = draw_optics(20, rng) if with_ctf else None
    images, _, _ = draw(20, 1.0, rng, optics)
    bank = make_bank(1.0, (2, 4), with_ctf=with_ctf)
    expected = match_spectra(images, bank, optics)
    found = match_spectra(on(card, images), bank, optics)
    assert all(hasattr(each, "get") for each in found)
    np.testing.assert_allclose(
        back(found.log_likelihood), expected.log_likelihood, rtol=1e-5, atol=5e-3
    )
    same = back(found.best) == expected.best
    # Near ties may be turned by rounding.
    assert same.mean() > 0.95
    assert turn_gap(back(found.turn_deg), expected.turn_deg)[same].max() < 4.1
    assert [each.dtype for each in found] == [each.dtype for each in expected]


def test_no_images_match_nothing(device: str) -> None:
    found = match_spectra(on(device, np.empty((0, BOX, BOX), "f4")), make_bank(1.0, (2, 4)))
    assert [each.shape for each in found] == [(0, 2)] * 3
    assert [each.dtype for each in found] == ["f4", "i8", "f4"]


def test_other_types_of_pixels_are_as_good(rng: np.random.Generator) -> None:
    images = np.rint(20 * draw(6, 1.0, rng)[0])
    bank = make_bank(400.0, references=20 * REFERENCES)
    found = [match_spectra(images.astype(t), bank).log_likelihood for t in ("f4", "f8", "i2")]
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.parametrize(("box_px", "small_px"), [(32, 32), (32, 20), (33, 20)])
def test_a_coarser_volume_has_the_same_low_frequencies(box_px: int, small_px: int) -> None:
    volume = PARTICLES[0].volume(box_px, PIXEL_A).values
    small = crop_volume(volume, small_px)
    assert (small.shape, small.dtype) == ((small_px,) * 3, np.float32)
    matrix = rotation_matrices([[30.0, 50.0, 70.0]])
    fine, coarse = (
        np.fft.fft2(np.fft.ifftshift(project_volume(prepare_volume(each), matrix)[0]))
        for each in (volume, small)
    )
    places = np.arange(-8, 9)
    low = [each[np.ix_(places, places)] for each in (fine, coarse)]
    np.testing.assert_allclose(low[1], low[0], atol=2e-3 * abs(low[0]).max())


def test_coarser_references_match_as_well(rng: np.random.Generator) -> None:
    small = np.stack(
        [
            project_volume(
                prepare_volume(crop_volume(p.volume(BOX, PIXEL_A).values, 24)), np.eye(3)[None]
            )[0]
            for p in PARTICLES
        ]
    )
    images, _, _ = draw(30, 1.0, rng)
    found, expected = (
        less_mean(match_spectra(images, make_bank(1.0, references=each)).log_likelihood)
        for each in (SCALE * small, REFERENCES)
    )
    assert (found - expected).std() < 0.02 * expected.std()
