"""Wiener-Hunt and Richardson-Lucy: scikit-image by hand, the CTF, PSFs of every form, refusals."""

from __future__ import annotations

import json
import pickle
import sys
from typing import Any

import dask.array as da
import numpy as np
import pytest
import scipy.ndimage
import scipy.signal
from dask.base import tokenize
from skimage import restoration

import emdask
from emdask.backend import array_namespace, restoration_namespace
from emdask.denoisers.richardson_lucy import RichardsonLucy
from emdask.denoisers.unsupervised_wiener import UnsupervisedWiener
from emdask.denoisers.wiener import Wiener
from emdask.errors import MissingLibraryError, ParameterError
from emdask.kernels import deconvolution
from emdask.kernels.ctf import Optics
from emdask.kernels.psf import freeze_psf, gaussian_psf, transfer_function
from emdask.options import method_options
from emdask.simulators.demo_images import demo_particles

METHODS = ("wiener", "unsupervised_wiener", "richardson_lucy")
RECORDS = (Wiener, UnsupervisedWiener, RichardsonLucy)
LOPSIDED = np.array([[0.0, 0.1, 0.0], [0.1, 0.2, 0.4], [0.0, 0.0, 0.2]])


@pytest.fixture
def clean(rng: np.random.Generator) -> np.ndarray:
    """Two smooth images, (2, 60, 49)."""
    images = scipy.ndimage.gaussian_filter(rng.normal(size=(2, 60, 49)), (0, 3, 3), mode="mirror")
    return np.asarray(images / images.std(), np.float64)


def fitted_error(images: np.ndarray, truth: np.ndarray) -> float:
    """Mean squared error after the best scale and offset, image by image."""
    errors = []
    for image, true in zip(images.astype("f8"), truth, strict=True):
        columns = np.stack([image.ravel(), np.ones(image.size)], axis=1)
        factors, *_ = np.linalg.lstsq(columns, true.ravel(), rcond=None)
        errors.append(np.mean((columns @ factors - true.ravel()) ** 2))
    return float(np.mean(errors))


# --- Against scikit-image by hand -----------------------------------------------------------------


@pytest.fixture
def mirrored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let borders be 30 px of plain mirror image."""
    monkeypatch.setattr(deconvolution, "_margins", lambda shape: [(30, 30)] * 2)
    plain = lambda image, before, after: np.pad(image, ((before, after), (0, 0)), "symmetric")  # noqa: E731
    monkeypatch.setattr(deconvolution, "_extend", plain)


def wide_unit(image: np.ndarray, sigma: float, margin: int) -> np.ndarray:
    return np.pad((image - image.mean()) / sigma, margin, mode="symmetric").astype("f4")


def with_mean_0(image: np.ndarray) -> np.ndarray:
    return np.asarray(image - image.mean())


def test_wiener_is_that_of_scikit_image(
    clean: np.ndarray, rng: np.random.Generator, mirrored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = clean + rng.normal(scale=0.4, size=clean.shape)
    monkeypatch.setattr("emdask.denoisers.wiener.best_balance", lambda spectrum: 2.0)
    result = emdask.denoise(noisy, "wiener", psf=LOPSIDED, sigma=0.4, strength=1.5).compute()
    for image, done in zip(noisy, result, strict=True):
        wide = wide_unit(image, 0.4, 30)
        restored = restoration.wiener(wide, LOPSIDED, 2.0 * 1.5**2, clip=False)
        expected = 0.4 * with_mean_0(restored[30:-30, 30:-30]) + image.mean()
        np.testing.assert_allclose(done, expected, atol=1e-5)


def test_unsupervised_wiener_samples_as_scikit_image(
    clean: np.ndarray, rng: np.random.Generator
) -> None:
    noisy = clean[0] + rng.normal(scale=0.4, size=clean[0].shape)
    params = UnsupervisedWiener(n_iterations=12, seed=3)
    wide = wide_unit(noisy, 0.4, 12).astype("f8")
    from emdask.denoisers.unsupervised_wiener import _sample_precisions

    point = np.ones((wide.shape[0], wide.shape[1] // 2 + 1), np.complex128)
    sampled = _sample_precisions(wide, point, params)
    _, chains = restoration.unsupervised_wiener(
        wide, point, user_params={"max_num_iter": 12, "burnin": 12}, clip=False, rng=3
    )
    assert sampled["noise"] == pytest.approx(np.mean(chains["noise"][7:]))
    assert sampled["prior"] == pytest.approx(np.mean(chains["prior"][7:]))


def test_richardson_lucy_is_that_of_scikit_image(
    clean: np.ndarray, rng: np.random.Generator, mirrored: None
) -> None:
    noisy = clean + rng.normal(scale=0.4, size=clean.shape)
    result = emdask.denoise(
        noisy, "richardson_lucy", psf=LOPSIDED, sigma=0.4, width_px=1.5, n_iterations=4
    ).compute()
    line = np.exp(-0.5 * (np.arange(-6, 7) / 1.5) ** 2)
    sieve = np.outer(line, line) / line.sum() ** 2
    for image, done in zip(noisy, result, strict=True):
        wide = wide_unit(image, 0.4, 30)
        raised = wide - wide.min() + 0.01
        kernel = scipy.signal.convolve2d(LOPSIDED, sieve)
        estimate = restoration.richardson_lucy(raised, kernel, num_iter=4, clip=False)
        smooth = with_mean_0(scipy.ndimage.gaussian_filter(estimate, 1.5)[30:-30, 30:-30])
        np.testing.assert_allclose(done, 0.4 * smooth + image.mean(), atol=1e-4)


@pytest.mark.parametrize("n", [1, 2, 20, 64, 79, 96, 128, 301])
def test_borders_go_on_without_a_step(n: int, rng: np.random.Generator) -> None:
    margins = deconvolution._margins((n, n))[0]
    assert min(margins) >= 32
    ramp = np.linspace(-0.5, 0.5, n)[:, None] * np.ones(3)
    wide = deconvolution._extend(ramp, *margins)
    np.testing.assert_array_equal(wide[margins[0] : margins[0] + n], ramp)
    around = np.concatenate([wide, wide])
    assert np.abs(np.diff(around, axis=0)).max() <= 4 / max(n - 1, 1)
    noise = deconvolution._extend(rng.normal(size=(n, 4000)), *margins)
    assert noise.std() == pytest.approx(1, rel=0.05)


# --- What they do ---------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_the_ctf_is_corrected(method: str) -> None:
    options: dict[str, Any] = {"n_images": 3, "box_px": 96, "snr": 0.2, "seed": 4}
    stack, _ = demo_particles(**options)
    _, density = demo_particles(ctf=False, **options)
    seen = fitted_error(stack.values, density)
    smoothed = fitted_error(emdask.denoise(stack, method, psf="none").values, density)
    corrected = fitted_error(emdask.denoise(stack, method).values, density)
    assert corrected < 0.3 * seen
    assert corrected < 0.5 * smoothed


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("amplitude_contrast", [0.0, 0.1])
def test_the_mean_is_kept(method: str, amplitude_contrast: float) -> None:
    stack, _ = demo_particles(n_images=2, box_px=64, seed=4)
    stack = stack.copy(data=stack.values + 3).assign_attrs(amplitude_contrast=amplitude_contrast)
    for parameters in ({}, {"psf": 1.5}):
        result = emdask.denoise(stack, method, **parameters).values
        np.testing.assert_allclose(result.mean((1, 2)), stack.values.mean((1, 2)), rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_gradients_are_not_amplified(method: str) -> None:
    stack, _ = demo_particles(n_images=2, box_px=64, seed=4)
    down, across = np.mgrid[-1:1:64j, -1:1:64j]
    slope = (5 * across - 2 * down + across * down).astype("f4")
    tilted = stack.copy(data=stack.values + slope)
    level, steep = (emdask.denoise(images, method).values for images in (stack, tilted))
    np.testing.assert_allclose(steep, level + slope, atol=0.02)
    assert level.std() < 3


@pytest.mark.parametrize("defocus_A", [-1e4, 1e4, 3e4])
@pytest.mark.parametrize("amplitude_contrast", [0.0, 0.07, 0.2])
def test_what_is_broad_is_amplified_tenfold_at_most(
    defocus_A: float, amplitude_contrast: float
) -> None:
    known = {"pixel_size_A": 2.0, "defocus_u_A": defocus_A, "defocus_v_A": defocus_A}
    optics = Optics(**known, amplitude_contrast=amplitude_contrast)
    ctf, limited = optics.ctf((200, 200), 0), transfer_function("auto", (200, 200), optics)
    assert limited is not None
    assert limited[0, 0] == 1
    first = int(np.argmax(np.abs(ctf[0]) > 0.9))
    assert first > 5
    assert np.abs(limited[0, :first]).min() >= 0.1
    same = np.abs(ctf) > 0.1
    same[0, 0] = False
    np.testing.assert_array_equal(limited[same], ctf[same])
    np.testing.assert_array_equal(limited[:, first:], ctf[:, first:])


def test_each_image_gets_its_own_ctf() -> None:
    stack, _ = demo_particles(n_images=4, box_px=48, seed=2)
    whole = emdask.denoise(stack, "wiener").values
    parts = emdask.denoise(stack.chunk({"image": (1, 3)}), "wiener").values
    np.testing.assert_array_equal(parts, whole)
    alone = emdask.denoise(stack[2:3], "wiener").values
    np.testing.assert_array_equal(alone[0], whole[2])


def test_the_ctf_on_both_devices(device: str) -> None:
    stack, _ = demo_particles(n_images=3, box_px=48, seed=2)
    for method in METHODS:
        results = [emdask.denoise(stack, method, device=where).values for where in ("cpu", device)]
        difference = np.abs(results[1] - results[0])
        assert np.median(difference) < 2e-4
        assert difference.max() < 0.1


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("psf", [2.0, LOPSIDED, np.ones((5, 5))])
def test_a_blur_is_undone(method: str, psf: Any, rng: np.random.Generator) -> None:
    sharp = scipy.ndimage.gaussian_filter(rng.normal(size=(1, 90, 90)), (0, 2, 2), mode="mirror")
    sharp /= sharp.std()
    kernel = gaussian_psf(2.0) if np.ndim(psf) == 0 else psf / psf.sum()
    blurred = scipy.ndimage.convolve(sharp, kernel[None], mode="mirror")
    noisy = blurred + rng.normal(scale=0.02, size=sharp.shape)
    parameters = {"n_iterations": 40} if method == "richardson_lucy" else {}
    result = emdask.denoise(noisy, method, psf=psf, **parameters).compute()
    assert np.mean((result - sharp) ** 2) < 0.5 * np.mean((noisy - sharp) ** 2)


@pytest.mark.parametrize("snr", [1.0, 0.05])
def test_the_smoothing_follows_the_noise(snr: float) -> None:
    stack, clean = demo_particles(n_images=3, box_px=96, snr=snr, ctf=False, seed=8)

    def error(**parameters: Any) -> float:
        result = emdask.denoise(stack, "wiener", **parameters).values
        return float(np.mean((result - clean) ** 2))

    own = error()
    assert own < 1.06 * min(error(strength=s) for s in (0.5, 0.7, 1.4, 2.0))
    assert own < (0.2 if snr == 1 else 0.05)


@pytest.mark.parametrize("method", METHODS)
def test_borders_do_not_wrap(method: str, rng: np.random.Generator) -> None:
    step = np.repeat([0.0, 4.0], 32) * np.ones((64, 1))
    noisy = step + rng.normal(scale=0.5, size=step.shape)
    result = emdask.denoise(noisy[None], method).compute()[0]
    assert abs(result[:, 0].mean()) < 0.4
    assert abs(result[:, -1].mean() - 4) < 0.4


@pytest.mark.parametrize("method", ["wiener", "richardson_lucy"])
@pytest.mark.parametrize("sigma", [1e2, 1e4, 1e30])
def test_of_too_much_noise_something_flat_is_left(
    method: str, sigma: float, clean: np.ndarray
) -> None:
    for parameters in ({}, {"psf": 3.0}, {"width_px": 0} if method == "richardson_lucy" else {}):
        images = np.concatenate([clean, np.full_like(clean[:1], 7)])
        result = emdask.denoise(images, method, sigma=sigma, **parameters).compute()
        assert (np.abs(result - images.mean((1, 2), keepdims=True)) < 2 * np.ptp(clean)).all()
        np.testing.assert_allclose(result[-1], 7, rtol=1e-6)


def test_seeds_are_of_the_image_alone(clean: np.ndarray, rng: np.random.Generator) -> None:
    noisy = clean + rng.normal(scale=0.4, size=clean.shape)
    first, again, other = (
        emdask.denoise(noisy, "unsupervised_wiener", seed=seed).compute() for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first, again)
    assert 0 < np.abs(first - other).max() < 0.1


def test_a_card_draws_what_the_host_draws(card: str) -> None:
    import cupy

    from emdask.kernels.draws_cuda import host_draws

    there, here = host_draws(5), np.random.default_rng(5)
    assert cupy.random.default_rng(there) is there
    for _ in range(2):
        np.testing.assert_array_equal(
            cupy.asnumpy(there.standard_normal((3, 4))), here.standard_normal((3, 4))
        )
        assert float(there.gamma(7.5, cupy.asarray(2.0))) == here.gamma(7.5, 2.0)


# --- PSFs -----------------------------------------------------------------------------------------


def test_a_transfer_function_is_the_spectrum_of_the_psf(rng: np.random.Generator) -> None:
    image = rng.normal(size=(24, 31))
    for psf in (LOPSIDED, rng.random((4, 6)), rng.random((60, 3))):
        frozen = np.asarray(freeze_psf("x", psf))
        transfer = transfer_function(freeze_psf("x", psf), image.shape)
        assert transfer is not None
        blurred = np.fft.irfft2(np.fft.rfft2(image) * transfer, image.shape)
        expected = np.zeros_like(image)
        for (i, j), value in np.ndenumerate(frozen):
            shift = (i - frozen.shape[0] // 2, j - frozen.shape[1] // 2)
            if -12 <= shift[0] < 12:
                expected += value * np.roll(image, shift, (0, 1))
        np.testing.assert_allclose(blurred, expected, atol=1e-12)


def test_a_gaussian_is_the_spectrum_of_its_samples() -> None:
    transfer = transfer_function(1.5, (40, 41))
    sampled = transfer_function(freeze_psf("x", gaussian_psf(1.5)), (40, 41))
    assert transfer is not None
    assert sampled is not None
    np.testing.assert_allclose(transfer, sampled, atol=1e-4)


@pytest.mark.parametrize("record", RECORDS)
def test_psfs_are_kept_as_plain_values(record: Any) -> None:
    forms = (LOPSIDED, LOPSIDED.tolist(), da.from_array(LOPSIDED).compute().astype("f4"))
    params = [record(psf=form) for form in forms]
    assert params[0] == params[1] == pickle.loads(pickle.dumps(params[0]))
    assert hash(params[0]) == hash(params[1])
    assert tokenize(params[0]) == tokenize(params[1])
    assert np.sum(params[2].psf) == pytest.approx(1)
    result = emdask.denoise(demo_particles(n_images=1, box_px=32)[0], params[0])
    steps = json.loads(json.dumps(result.attrs["provenance"]))
    np.testing.assert_allclose(steps[-1]["parameters"]["psf"], LOPSIDED)


def test_the_command_line_takes_words_and_numbers() -> None:
    option = method_options("emdask.denoisers", "wiener")["psf"]
    assert option.__metadata__[0].metavar == "float|auto|none"


@pytest.mark.parametrize("record", RECORDS)
@pytest.mark.parametrize(
    ("bad", "got"),
    [
        ("gauss", "'gauss'"),
        (-1.0, "-1.0"),
        (np.nan, "nan"),
        (True, "an array of shape"),
        (None, "an array of shape"),
        ({}, "'dict'"),
        ([[1, 2], [3]], "'list'"),
        (np.ones(3), r"an array of shape \(3,\)"),
        (np.zeros((3, 3)), "shape"),
        (np.ones((300, 3)), r"\(300, 3\)"),
        ([[1, np.inf]], "shape"),
    ],
)
def test_bad_psfs_are_named(record: Any, bad: Any, got: str) -> None:
    name = sys.modules[record.__module__].__name__.rpartition(".")[2]
    with pytest.raises(ParameterError, match=rf'^{name}: psf must be "auto", .*; got .*{got}'):
        record(psf=bad)


def test_bad_parameters_are_named() -> None:
    with pytest.raises(ParameterError, match="psf must not be negative anywhere; got -1"):
        RichardsonLucy(psf=[[3, -1]])
    assert Wiener(psf=[[3, -1]]).psf == ((1.5, -0.5),)
    with pytest.raises(ParameterError, match=r'width_px must be "auto" or a number .*; got .wide.'):
        RichardsonLucy(width_px="wide")  # type: ignore[arg-type]
    with pytest.raises(ParameterError, match=r"width_px must be a number in \[0, 32\]; got 40"):
        RichardsonLucy(width_px=40)
    with pytest.raises(ParameterError, match="n_iterations must be an integer"):
        RichardsonLucy(n_iterations=0)
    with pytest.raises(ParameterError, match="n_iterations must be an integer"):
        UnsupervisedWiener(n_iterations=2)
    with pytest.raises(ParameterError, match="seed must be an integer of at least 0"):
        UnsupervisedWiener(seed=-1)
    for strength in (-1, 0):
        with pytest.raises(ParameterError, match=r"strength must be a number in \[0.01, 100\]"):
            Wiener(strength=strength)


def test_what_a_card_lacks_is_told(cuda_on_host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_on_host.strict = True
    import cupy

    image = cupy.ones((8, 8))
    assert array_namespace(image) is cupy
    assert restoration_namespace(image).__name__ == "cucim.skimage.restoration"
    monkeypatch.setitem(sys.modules, "cucim.skimage.restoration", None)
    with pytest.raises(MissingLibraryError, match=r"cuCIM is needed .* pip install 'emdask\[cuda"):
        restoration_namespace(image)
    with pytest.raises(MissingLibraryError, match="cuCIM is needed on a card"):
        emdask.denoise(np.eye(16)[None], "wiener", device="cuda").compute()
