"""Denoisers are compared on images whose truth is known."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from scipy.ndimage import gaussian_filter

from emdask.comparisons import best_gaussian, compare, middle
from emdask.cost import why_no_peak
from emdask.errors import ParameterError, StackError
from emdask.io import save_stack
from emdask.kernels.noise import estimate_sigma
from emdask.method import Learn, Method, find_homes, parameter
from emdask.metrics import frc, mse, psnr, ssim
from emdask.stack import build_stack

SNRS = (0.5, 0.1)


@dataclass(frozen=True, kw_only=True)
class Blur:
    """Blurs, learns how often it was asked to, or fails, as its parameters say."""

    width_px: float = parameter(1.0, "standard deviation", "px")
    fault: str = parameter("", "what goes wrong")


def blur(images, params):
    if params.fault == "raise" or (params.fault == "unless loud" and images.std() < 1):
        raise RuntimeError("the blur is broken")
    blurred = gaussian_filter(images, (0, params.width_px, params.width_px)).astype("f4")
    return blurred * np.float32("nan") if params.fault == "nan" else blurred


@dataclass(frozen=True, kw_only=True)
class Recall(Blur):
    """Returns the mean of all images that it has learnt from."""


def add(images, ids, params, n_images=None):
    return images.sum(axis=0), len(images)


def combine(a, b):
    return a[0] + b[0], a[1] + b[1]


def finalize(sums, params):
    return xr.Dataset({"mean": (("y", "x"), sums[0] / sums[1])}, attrs={"method": "recall"})


def recall(images, params, model):
    return np.broadcast_to(model["mean"].values, images.shape).astype("f4")


METHODS = {
    "blur": Method(params=Blur, apply={"cpu": blur}),
    "recall": Method(
        params=Recall,
        apply={"cpu": recall},
        learn=Learn(chunk={"cpu": add}, combine=combine, finalize=finalize),
    ),
}


@pytest.fixture(autouse=True)
def methods(monkeypatch):
    """Two small methods beside those of the package."""
    homes = {**find_homes("emdask.denoisers"), **dict.fromkeys(METHODS)}
    monkeypatch.setattr("emdask.method.find_homes", lambda family: homes)
    for name, record in METHODS.items():
        module = ModuleType(f"emdask.denoisers.{name}")
        module.METHOD = record
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(record.params, "__module__", module.__name__)


@pytest.fixture(scope="module")
def clean() -> np.ndarray:
    """Three discs of different places and brightness."""
    y, x = np.mgrid[:32, :40]
    places = [(12, 14, 1.0), (18, 20, 2.0), (15, 25, 0.5)]
    return np.stack([a * (np.hypot(y - v, x - u) < 7) for v, u, a in places]).astype("f4")


def table_of(clean, *methods, **options):
    return compare(clean, snr=options.pop("snr", SNRS), methods=methods, **options)


def test_figures_are_those_of_the_metrics(clean):
    table = table_of(clean, "blur", n_images=2)
    assert table.sizes["image"] == 2
    assert table.denoiser.values.tolist() == ["noisy", "best gaussian", "blur"]
    rng = [np.random.default_rng([0, i]) for i in range(2)]
    noise = np.stack([r.standard_normal((32, 40), np.float32) for r in rng])
    truth = clean[:2]
    for level in SNRS:
        sigma = np.sqrt(truth.var(axis=(1, 2)).mean() / level)
        noisy = truth + sigma * noise
        for name, images in (("noisy", noisy), ("blur", blur(noisy, Blur()))):
            row = table.sel(denoiser=name, snr=level)
            np.testing.assert_allclose(row.mse, mse(images, truth), rtol=1e-5)
            np.testing.assert_allclose(row.psnr, psnr(images, truth), rtol=1e-5)
            np.testing.assert_allclose(row.ssim, ssim(images, truth), rtol=1e-4, atol=1e-6)
            tapered = frc(images, truth, taper=1.0)[1].mean(axis=0)
            np.testing.assert_allclose(row.frc, tapered, atol=1e-5)
            np.testing.assert_allclose(row.picture, images[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(table.clean_picture, truth[0])
    np.testing.assert_array_equal(table.frequency, frc(truth, truth)[0])


def test_noise_has_the_snr_and_follows_the_image(clean):
    big = np.kron(clean, np.ones((1, 5, 5), "f4"))
    table = table_of(big, snr=[0.25])
    variance = big.var(axis=(1, 2)).mean()
    np.testing.assert_allclose(variance / table.mse[0, 0], 0.25, rtol=0.03)
    stack = build_stack(da.from_array(clean[::-1]), {"image_id": [7, 0, 3]})
    other = table_of(stack, snr=[0.25])
    assert other.image_id.values.tolist() == [7, 0, 3]
    noise = [t.picture[0, 0] - t.clean_picture for t in (other, table_of(stack[1:], snr=[0.25]))]
    one, two = (np.random.default_rng([0, i]).standard_normal((32, 40), "f4") for i in (7, 0))
    for found, expected in zip(noise, (one, two), strict=True):
        assert np.corrcoef(found.values.ravel(), expected.ravel())[0, 1] > 0.9999


def test_cost_is_measured_and_parameters_are_told(clean):
    table = table_of(clean, "blur:width_px=2")
    row = table.sel(denoiser="blur:width_px=2")
    assert (row.seconds_per_image > 0).all()
    assert (row.peak_memory_MB.notnull() == (why_no_peak() is None)).all()
    assert row.parameters.values.tolist() == ["width_px = 2, fault = "] * 2
    assert (row.learning_seconds == 0).all()
    assert table.seconds_per_image.sel(denoiser="noisy").isnull().all()
    widths = [
        float(text.split("=")[1]) for text in table.parameters.sel(denoiser="best gaussian").values
    ]
    assert widths[0] < widths[1]


def test_of_several_values_the_best_is_kept_at_each_snr(clean):
    single = [f"blur:width_px={width}" for width in (0.5, 1.5, 4.0)]
    grid = "blur:width_px=0.5|1.5|4.0"
    table = table_of(clean, *single, grid, snr=[20, 0.05])
    mean = table.psnr.mean("image")
    np.testing.assert_array_equal(
        mean.sel(denoiser=grid), mean.sel(denoiser=single).max("denoiser")
    )
    kept = table.parameters.sel(denoiser=grid).values
    assert [text.split(",")[0] for text in kept] == ["width_px = 0.5", "width_px = 4.0"]


def test_a_method_that_learns_learns_from_all_noisy_images(clean):
    same = np.repeat(clean[:1], 40, axis=0)
    table = table_of(same, "recall", n_images=40, snr=[0.5])
    mean = table.mse.mean("image")
    gain = float(mean.sel(denoiser="noisy", snr=0.5) / mean.sel(denoiser="recall", snr=0.5))
    assert gain == pytest.approx(40, rel=0.2)
    assert float(table.learning_seconds.sel(denoiser="recall", snr=0.5)) > 0


def test_a_method_that_fails_says_why_and_does_not_sink_the_table(clean):
    broken = [f"blur:fault={fault}" for fault in ("raise", "nan", "unless loud")]
    table = table_of(clean, *broken, "blur", snr=[100, 0.01])
    why = table.why_not.sel(denoiser=[*broken, "blur"]).values.tolist()
    assert why == [
        ["the blur is broken"] * 2,
        ["returned NaN or infinite pixels"] * 2,
        ["the blur is broken", ""],
        ["", ""],
    ]
    failed = table.why_not != ""
    for name in ("psnr", "mse", "ssim", "frc", "picture", "seconds_per_image"):
        values = table[name].sel(denoiser=[*broken, "blur"])
        rest = [dim for dim in values.dims if dim not in ("denoiser", "snr")]
        assert (values.isnull().all(rest) == failed.sel(denoiser=values.denoiser)).all(), name


def test_steps_are_told_as_they_begin(clean):
    steps = []
    table_of(clean, "blur", n_images=1, on_progress=lambda *step: steps.append(step))
    assert [step[2:] for step in steps] == [(i, 6) for i in range(6)]
    assert steps[-1][:2] == ("blur", 0.1)


def test_files_arrays_stacks_and_simulated_images_are_taken(clean, tmp_path):
    stack = build_stack(da.from_array(clean), attrs={"pixel_size_A": 1.5, "kind": "particles"})
    path = save_stack(stack, tmp_path / "clean.mrcs")
    tables = [compare(given, snr=[0.3], methods=[]) for given in (path, str(path), stack, clean)]
    for table in tables:
        np.testing.assert_array_equal(table.psnr, tables[0].psnr)
    assert [t.attrs.get("pixel_size_A") for t in tables] == [1.5, 1.5, 1.5, None]
    assert [t.attrs["clean"] for t in tables[1:]] == [str(path), "DataArray", "ndarray"]
    simulated = compare("simulate", snr=[0.3], methods=[], n_images=2, seed=3)
    assert simulated.attrs["shape_px"] == [128, 128]
    assert simulated.attrs["pixel_size_A"] == 2.0
    assert simulated.sizes["image"] == 2


def test_methods_are_not_told_the_ctf_of_the_clean_images(clean):
    stack = build_stack(da.from_array(clean), {"defocus_u_A": [1e4] * 3})
    table = table_of(stack, "blur", snr=[0.3])
    assert (table.why_not == "").all()


@pytest.mark.parametrize("snr", [0.5, 1, np.float32(0.5), np.int64(1), np.array([0.5])])
def test_one_snr_is_a_number_of_any_type(clean, snr):
    table = table_of(clean, snr=snr)
    assert table.snr.values.tolist() == [float(np.squeeze(snr))]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"snr": []}, ParameterError, "at least one"),
        ({"snr": None}, ParameterError, "snr must be a number, or several; got None"),
        ({"snr": "0.4"}, ParameterError, "snr must be a number, or several; got '0.4'"),
        ({"snr": ["0.4"]}, ParameterError, "snr must be a number"),
        ({"snr": [0.1, -1]}, ParameterError, "snr must be a number"),
        ({"snr": [0.1, 0.1]}, ParameterError, "once"),
        ({"methods": ["blurr"]}, LookupError, "blur"),
        ({"methods": ["lowpass:cutoff_A=20"]}, StackError, "the pixel size of the stack"),
        ({"n_images": 0}, ParameterError, "n_images"),
        ({"data_range": -1}, ParameterError, "data_range must be a number above 0; got -1"),
        ({"clean": np.zeros((1, 16, 16))}, StackError, "not be constant"),
        ({"clean": np.eye(8)}, StackError, "at least 11 x 11"),
        ({"clean": np.eye(16) * np.nan}, StackError, "NaN"),
        ({"clean": "absent.mrcs"}, OSError, "absent.mrcs"),
    ],
)
def test_wrong_arguments_are_refused_at_once(clean, options, error, message):
    options = {"clean": clean, "methods": ["blur:fault=raise"]} | options
    with pytest.raises(error, match=message):
        compare(options.pop("clean"), **options)


def test_best_gaussian_beats_narrower_and_wider_ones(rng):
    y, x = np.mgrid[:64, :64]
    clean = np.exp(-((y - 30.0) ** 2 + (x - 33.0) ** 2) / 200)[None]
    noisy = clean + rng.normal(size=clean.shape)
    width_px, blurred = best_gaussian(noisy, clean)
    best = psnr(blurred, clean)
    for other in (width_px / 1.6, width_px * 1.6):
        assert psnr(gaussian_filter(noisy, (0, other, other)), clean) < best


def test_middle_is_cut_out():
    image = np.arange(42).reshape(6, 7)
    np.testing.assert_array_equal(middle(image, 2), image[2:4, 2:4])
    np.testing.assert_array_equal(middle(image, 9), image)


def test_noise_is_white_and_its_sigma_can_be_estimated(clean):
    table = table_of(np.kron(clean, np.ones((1, 4, 4), "f4")), snr=[0.2])
    noisy = table.picture.sel(denoiser="noisy", snr=0.2).values
    sigma = float(np.sqrt(table.mse.sel(denoiser="noisy").mean()))
    assert estimate_sigma(noisy[None])[0] == pytest.approx(sigma, rel=0.05)
