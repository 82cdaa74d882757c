"""The demo's images: the noise and the SNR that they claim, and seeds that follow the image."""

from __future__ import annotations

import numpy as np
import pytest

from emdask.errors import ParameterError
from emdask.metrics import snr
from emdask.simulators.demo_images import demo_micrograph, demo_particles


def test_particles_have_the_snr_and_white_noise_of_variance_one():
    stack, clean = demo_particles(20, box_px=64, pixel_size_A=4.0, snr=0.1)
    assert float(np.mean(snr(stack.values, clean))) == pytest.approx(0.1, rel=0.03)
    assert (stack.values - clean).var() == pytest.approx(1, rel=0.03)
    assert {"rot_deg", "tilt_deg", "psi_deg", "shift_x_A", "defocus_u_A"} <= set(stack.coords)


def test_noise_and_poses_of_an_image_follow_its_id():
    few, few_clean = demo_particles(2, box_px=32, pixel_size_A=8.0, seed=3)
    many, many_clean = demo_particles(4, box_px=32, pixel_size_A=8.0, seed=3)
    np.testing.assert_array_equal(few.psi_deg, many.psi_deg[:2])
    noise, more_noise = few.values - few_clean, many.values - many_clean
    np.testing.assert_allclose(noise, more_noise[:2], atol=1e-5)
    assert not np.allclose(noise, (demo_particles(2, box_px=32, pixel_size_A=8.0)[0] - few_clean))


def test_micrograph_has_dark_particles_and_ice():
    stack, clean = demo_micrograph(512, seed=1)
    assert (stack.values - clean).var() == pytest.approx(1, rel=0.02)
    halves = clean[0, :, :256].mean(), clean[0, :, 256:].mean(), clean[0, :256].mean()
    assert np.ptp(halves) > 0.05
    bright, dark = clean[0] - np.median(clean), np.median(clean) - clean[0]
    assert dark.max() > bright.max()


@pytest.mark.parametrize("options", [{"n_images": 0}, {"snr": -1.0}])
def test_numbers_out_of_range_are_refused(options):
    with pytest.raises(ParameterError, match="demo: "):
        demo_particles(**options)
