"""The parameters of BM3D and what they do."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy.ndimage import gaussian_filter

import emdask
from emdask.denoisers.bm3d import BM3D, METHOD, adapt_profile, choose_profiles
from emdask.errors import ParameterError
from emdask.kernels import bm3d_cpu
from emdask.kernels.bm3d_plan import FAST, HIGH_NOISE, NORMAL
from emdask.kernels.noise import estimate_sigma

Floats = npt.NDArray[np.float32]


def particles(snr: float, n: int = 4, size: int = 96) -> tuple[Floats, Floats]:
    """Smooth density within a disc: clean, and with noise."""
    rng = np.random.default_rng(3)
    y, x = np.mgrid[:size, :size] - size / 2
    inside = gaussian_filter((np.hypot(y, x) < size / 3).astype(float), 2)
    clean = inside * gaussian_filter(rng.normal(size=(n, size, size)) + 0.5, (0, 2.5, 2.5))
    sigma = np.sqrt(clean.var() / snr)
    noisy = clean + sigma * rng.normal(size=clean.shape)
    return clean.astype(np.float32), noisy.astype(np.float32)


def error(result: Any, clean: Floats) -> float:
    return float(np.mean((result - clean) ** 2))


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"sigma": -1}, 'sigma must be "auto" or a number of at least 0; got -1'),
        ({"sigma": float("nan")}, "sigma must be"),
        ({"sigma": "high"}, "got 'high'"),
        ({"sigma": True}, "got True"),
        ({"profile": "best"}, "profile must be one of auto, normal, fast, high_noise"),
        ({"window_px": 40}, "window_px must be odd; got 40"),
        ({"window_px": 1}, "window_px must be an integer in"),
        ({"group_size": 12}, "group_size must be one of 1, 2, 4, 8, 16, 32, 64; got 12"),
        ({"threshold": -0.5}, "threshold must be a number in"),
        ({"n_scales": 0}, "n_scales must be an integer in"),
    ],
)
def test_parameters_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        BM3D(**parameters)


def test_given_parameters_replace_those_of_the_profile() -> None:
    params = BM3D(window_px=21, group_size=8, threshold=3.0, n_scales=2)
    profile = adapt_profile(NORMAL, params)
    assert profile == NORMAL._replace(
        window_px=21, hard_group=8, wiener_group=8, threshold=3.0, n_scales=2
    )
    assert adapt_profile(FAST, BM3D()) == FAST


def test_auto_judges_each_image_by_its_snr() -> None:
    images = np.concatenate([particles(0.1)[1], particles(3.0)[1]])
    sigmas = estimate_sigma(images)
    chosen = choose_profiles(images, sigmas, "auto")
    assert chosen["high_noise"].tolist() == [0, 1, 2, 3]
    assert chosen["normal"].tolist() == [4, 5, 6, 7]
    result = METHOD.apply["cpu"](images, BM3D())
    np.testing.assert_array_equal(result[:4], bm3d_cpu.denoise(images[:4], sigmas[:4], HIGH_NOISE))
    np.testing.assert_array_equal(result[4:], bm3d_cpu.denoise(images[4:], sigmas[4:], NORMAL))


def test_estimated_sigma_serves_as_well_as_the_true_one() -> None:
    clean, noisy = particles(0.2)
    sigma = float(np.sqrt(clean.var() / 0.2))
    known = error(emdask.denoise(noisy, "bm3d", sigma=sigma).compute(), clean)
    estimated = error(emdask.denoise(noisy, "bm3d").compute(), clean)
    assert estimated < 1.05 * known


@pytest.mark.parametrize("snr", [0.1, 0.05])
def test_beats_the_best_gaussian_and_high_noise_beats_normal(snr: float) -> None:
    clean, noisy = particles(snr)
    blurs = [gaussian_filter(noisy, (0, w, w)) for w in np.arange(1, 8, 0.5)]
    gaussian = min(error(blur, clean) for blur in blurs)
    normal = error(emdask.denoise(noisy, "bm3d", profile="normal").compute(), clean)
    high_noise = error(emdask.denoise(noisy, "bm3d").compute(), clean)
    assert high_noise < 0.9 * gaussian
    assert high_noise < normal


def test_fast_is_near_normal() -> None:
    clean, noisy = particles(2.0)
    normal = error(emdask.denoise(noisy, "bm3d", profile="normal").compute(), clean)
    fast = error(emdask.denoise(noisy, "bm3d", profile="fast").compute(), clean)
    assert fast < 1.3 * normal


def test_says_once_that_it_compiles(tmp_path: Path) -> None:
    code = (
        "import logging, sys, numpy as np; logging.basicConfig(level='INFO', stream=sys.stdout);"
        "from emdask.kernels.bm3d_cpu import denoise; x = np.eye(16, dtype='f4')[None];"
        "denoise(x, [1.0]); denoise(x, [1.0])"
    )
    for expected in (1, 0):
        run = subprocess.run(
            [sys.executable, "-c", code],
            env={"NUMBA_CACHE_DIR": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        )
        assert run.stdout.count("bm3d: compiling") == expected, run.stdout


def test_is_silent_where_the_code_is_known(caplog: pytest.LogCaptureFixture) -> None:
    image = np.eye(16, dtype=np.float32)[None]
    bm3d_cpu.denoise(image, np.ones(1))
    caplog.clear()
    with caplog.at_level(logging.INFO, "emdask"):
        bm3d_cpu.denoise(image, np.ones(1))
    assert not caplog.records
