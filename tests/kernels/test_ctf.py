"""The CTF against published figures and its own properties."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from emdask.kernels.ctf import Optics, apply_ctf, ctf_2d, electron_wavelength


@pytest.mark.parametrize(
    ("voltage_kV", "wavelength_A"), [(100, 0.0370), (200, 0.0251), (300, 0.0197)]
)
def test_wavelengths_of_the_textbooks(voltage_kV, wavelength_A):
    assert electron_wavelength(voltage_kV) == pytest.approx(wavelength_A, abs=5e-5)


def test_first_zero_without_aberration_and_amplitude_contrast():
    shape, pixel_A, defocus_A = (512, 512), 1.0, 15_000.0
    ctf = ctf_2d(
        shape,
        pixel_size_A=pixel_A,
        defocus_u_A=defocus_A,
        spherical_aberration_mm=0.0,
        amplitude_contrast=0.0,
    )
    zero = 1 / np.sqrt(electron_wavelength(300) * defocus_A)
    along_x = ctf[0]
    frequency = np.arange(along_x.size) / (512 * pixel_A)
    crossing = frequency[1:][np.signbit(along_x[1:]) != np.signbit(along_x[:-1])]
    assert crossing[crossing > 0.01][0] == pytest.approx(zero, abs=1.5 / 512)
    assert (along_x[1 : int(zero * 512) - 1] > 0).all()


def test_astigmatism_turns_the_defocus():
    options = {"pixel_size_A": 2.0, "defocus_u_A": 18_000.0, "defocus_v_A": 14_000.0}
    along_x = ctf_2d((64, 64), **options)
    np.testing.assert_allclose(
        along_x[0], ctf_2d((64, 64), pixel_size_A=2.0, defocus_u_A=18_000.0)[0]
    )
    np.testing.assert_allclose(
        along_x[:, 0], ctf_2d((64, 64), pixel_size_A=2.0, defocus_u_A=14_000.0)[:, 0]
    )
    turned = ctf_2d((64, 64), **options, astigmatism_deg=90.0)
    np.testing.assert_allclose(turned[0, :33], along_x[:33, 0], atol=1e-9)


def test_a_phase_plate_of_90_degrees_makes_a_cosine():
    bare = ctf_2d((16, 16), pixel_size_A=4.0, defocus_u_A=1e4, amplitude_contrast=0.0)
    plate = ctf_2d(
        (16, 16), pixel_size_A=4.0, defocus_u_A=1e4, amplitude_contrast=0.0, phase_shift_deg=90.0
    )
    np.testing.assert_allclose(bare**2 + plate**2, 1)


def test_one_ctf_an_image():
    defocus_A = np.array([1e4, 2e4])
    both = ctf_2d((8, 6), pixel_size_A=3.0, defocus_u_A=defocus_A)
    assert both.shape == (2, 8, 4)
    np.testing.assert_array_equal(both[1], ctf_2d((8, 6), pixel_size_A=3.0, defocus_u_A=2e4))


@pytest.mark.parametrize("shape", [(8, 8), (7, 9)])
def test_applying_multiplies_the_transform(shape, rng):
    image = rng.normal(size=shape)
    ctf = ctf_2d(shape, pixel_size_A=3.0, defocus_u_A=1e4)
    expected = np.fft.rfft2(image) * ctf
    np.testing.assert_allclose(np.fft.rfft2(apply_ctf(image, ctf)), expected, atol=1e-9)


def test_the_published_formula_point_by_point():
    optics = {
        "pixel_size_A": 1.7,
        "defocus_u_A": 21_000.0,
        "defocus_v_A": 17_500.0,
        "astigmatism_deg": 37.0,
        "phase_shift_deg": 25.0,
        "voltage_kV": 200.0,
        "spherical_aberration_mm": 1.4,
        "amplitude_contrast": 0.07,
        "b_factor_A2": 80.0,
    }
    h, w = 20, 24
    expected = np.empty((h, w // 2 + 1))
    wavelength = 12.2642598 / np.sqrt(200e3 * (1 + 9.7847549e-7 * 200e3))
    for iy, fy in enumerate(np.fft.fftfreq(h, 1.7)):
        for ix, fx in enumerate(np.fft.rfftfreq(w, 1.7)):
            g2 = fx * fx + fy * fy
            turned = 2 * (np.arctan2(fy, fx) - np.deg2rad(37.0))
            defocus = 0.5 * (21_000 + 17_500 + (21_000 - 17_500) * np.cos(turned))
            phase = np.pi * wavelength * g2 * (defocus - 0.5 * wavelength**2 * g2 * 1.4e7)
            phase += np.deg2rad(25.0) + np.arctan(0.07 / np.sqrt(1 - 0.07**2))
            expected[iy, ix] = np.sin(phase) * np.exp(-80.0 * g2 / 4)
    np.testing.assert_allclose(ctf_2d((h, w), **optics), expected, atol=1e-10)


def test_optics_of_many_images():
    optics = Optics(
        pixel_size_A=2.0,
        defocus_u_A=np.array([1e4, 2e4, 3e4]),
        defocus_v_A=np.array([1e4, 1.9e4, 2e4]),
        astigmatism_deg=np.array([0.0, 10.0, 50.0]),
        voltage_kV=np.array([300.0, 200.0, 300.0]),
        b_factor_A2=50.0,
    )
    together = optics.ctfs((10, 12), 3)
    assert together.dtype == np.float32
    for i, ctf in enumerate(together):
        np.testing.assert_allclose(ctf, optics.ctf((10, 12), i), atol=1e-6)
    same = Optics(pixel_size_A=2.0, defocus_u_A=1e4, defocus_v_A=1e4)
    assert same.ctfs((10, 12), 4).shape == (4, 10, 7)


def test_power_is_the_mean_square_over_circles() -> None:
    optics = Optics(
        pixel_size_A=1.7,
        defocus_u_A=np.array([18_000.0, 9_000.0]),
        defocus_v_A=np.array([15_000.0, 9_000.0]),
        phase_shift_deg=20.0,
        b_factor_A2=15.0,
    )
    power = optics.power(np.fft.rfftfreq(64))
    # To turn the axis of the astigmatism is to go round the circle.
    turned = [replace(optics, astigmatism_deg=angle) for angle in np.arange(0, 180, 0.5)]
    along_x = np.array([turn.ctfs((64, 64), 2)[:, 0] for turn in turned], np.float64)
    np.testing.assert_allclose(power, np.square(along_x).mean(axis=0), atol=1e-6)


def test_distinct_optics_give_each_image_its_own() -> None:
    defocus = np.array([2e4, 1e4, 2e4, 3e4])
    optics = Optics(pixel_size_A=2.0, defocus_u_A=defocus, defocus_v_A=defocus - 500)
    few, which = optics.distinct(4)
    assert few.defocus_u_A.tolist() == [1e4, 2e4, 3e4]
    np.testing.assert_array_equal(few.defocus_v_A[which], defocus - 500)
    # The angle of the astigmatism tells images apart only where there is some.
    few, which = replace(few, astigmatism_deg=np.arange(3.0), defocus_v_A=few.defocus_u_A)[
        np.array([0, 0, 1])
    ].distinct(3)
    assert which.tolist() == [0, 0, 1]
    turned = Optics(
        pixel_size_A=2.0, defocus_u_A=2e4, defocus_v_A=1e4, astigmatism_deg=np.arange(3.0)
    )
    assert turned.distinct(3)[1].tolist() == [0, 1, 2]
    assert turned.power(np.zeros(5)).shape == (3, 5)
    same, which = Optics(pixel_size_A=2.0, defocus_u_A=1e4, defocus_v_A=1e4).distinct(3)
    assert same.defocus_u_A == 1e4
    assert which.tolist() == [0, 0, 0]
