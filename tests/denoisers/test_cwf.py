"""Covariance Wiener filtering: what it gains, that CTFs are exact, that the work can be shared."""

from __future__ import annotations

import json
import time
from functools import cache
from pathlib import Path
from typing import Any

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from distributed import LocalCluster

import emdask
from emdask.denoisers.cwf import METHOD, Cwf
from emdask.errors import ParameterError, StackError
from emdask.kernels.ctf import Optics
from emdask.kernels.steerable import combine
from emdask.stack import build_stack, optics_of

BOX_PX, PIXEL_SIZE_A = 32, 3.0
PROTEIN = emdask.phantom(40, radius_A=30.0, width_A=(3.0, 5.0), seed=3)
ROUND = {"defocus_A": (8e3, 1.6e4)}
ASTIGMATIC = ROUND | {"astigmatism_A": 4e3, "astigmatism_deg": (0, 180)}


@cache
def simulated(n_images: int, snr: float, ctf: str = "none") -> tuple[xr.DataArray, np.ndarray]:
    """Noisy images of a protein at random views, and its projections without CTF."""
    chosen: dict[str, Any] = {"none": None, "round": ROUND, "astigmatic": ASTIGMATIC}
    made = emdask.simulate(
        PROTEIN.volume(BOX_PX, PIXEL_SIZE_A), n_images, snr=snr, seed=5, ctf=chosen[ctf]
    )
    stack = made.images.compute()
    shape = {"box_px": BOX_PX, "pixel_size_A": PIXEL_SIZE_A}
    projections = PROTEIN.project(made.rotation_deg.values, **shape)
    with_ctf = through_ctf(projections, optics_of(stack))
    clean = made.clean.values
    return stack, projections * (clean * with_ctf).sum() / np.square(with_ctf).sum()


def through_ctf(images: np.ndarray, optics: Optics | None) -> np.ndarray:
    if optics is None:
        return images
    terms = np.fft.rfft2(images) * optics.ctfs(images.shape[1:], len(images))
    return np.fft.irfft2(terms, s=images.shape[1:])


def error(result: Any, clean: np.ndarray) -> float:
    """Sum of squared errors over the sum of squares of the truth."""
    return float(np.square(np.asarray(result) - clean).sum() / np.square(clean).sum())


# --- What it gains --------------------------------------------------------------------------------


def test_many_images_are_better_than_one() -> None:
    stack, clean = simulated(400, 0.1)
    errors = {
        method: error(emdask.denoise(stack.chunk(image=20), method)[:20], clean[:20])
        for method in ("cwf", "wiener", "bm3d")
    }
    assert errors["cwf"] < 0.6 * errors["bm3d"]
    assert errors["cwf"] < 0.6 * errors["wiener"]


def test_the_ctf_of_each_image_is_corrected() -> None:
    """No two defoci are the same."""
    stack, clean = simulated(400, 0.1, "round")
    corrected = emdask.denoise(stack, "cwf").compute()
    assert corrected.attrs["ctf_state"] == "corrected"
    assert error(corrected, clean) < 0.1
    # With the CTF of another image, of the mean defocus, or of the wrong sign it is not.
    defocus = stack.defocus_u_A.values
    for other in (np.roll(defocus, 1), np.full(400, defocus.mean())):
        wrong = stack.assign_coords(defocus_u_A=("image", other), defocus_v_A=("image", other))
        assert error(emdask.denoise(wrong, "cwf"), clean) > 1.05 * error(corrected, clean)
    assert error(emdask.denoise(-stack, "cwf"), clean) > 1


def test_astigmatism_loses_little() -> None:
    """The two defoci differ by 4000 Å, ten times what is usual."""
    stack, clean = simulated(400, 0.1, "astigmatic")
    middle = (stack.defocus_u_A + stack.defocus_v_A) / 2
    taken_for_round = stack.assign_coords(defocus_u_A=middle, defocus_v_A=middle)
    found, wrong = (error(emdask.denoise(s, "cwf"), clean) for s in (stack, taken_for_round))
    assert found < wrong
    stack, clean = simulated(400, 0.1, "round")
    assert found < error(emdask.denoise(stack, "cwf"), clean) + 0.004


def test_the_ctf_can_be_kept() -> None:
    stack, clean = simulated(400, 0.1, "round")
    model = emdask.learn_denoiser(stack, "cwf").compute()
    corrected = emdask.denoise(stack, "cwf", model=model).compute()
    kept = emdask.denoise(stack, "cwf", model=model, ctf="keep").compute()
    assert "ctf_state" not in kept.attrs
    background = model.attrs["background"]
    expected = through_ctf(corrected.values - background, optics_of(stack)) + background
    np.testing.assert_allclose(kept, expected, atol=1e-4)
    assert error(kept, through_ctf(clean, optics_of(stack))) < 0.3


def test_coloured_noise_is_made_white_first() -> None:
    made = emdask.simulate(
        PROTEIN.volume(BOX_PX, PIXEL_SIZE_A), 400, snr=0.1, seed=6, noise="coloured"
    )
    noise = emdask.learn_noise(made.images).compute()
    white = emdask.whiten(made.images, noise)
    plain = error(emdask.denoise(made.images, "cwf"), made.clean.values)
    whitened = error(emdask.unwhiten(emdask.denoise(white, "cwf"), noise), made.clean.values)
    assert whitened < plain


def test_reference_images(shared_data: Path) -> None:
    """70S ribosome at SNR 0.1: no worse than ASPIRE 0.14.3 on the same images."""
    bars = {"noctf": 0.2110, "ctf": 0.2208}
    for name, bar in bars.items():
        stack, clean = reference(shared_data / "cwf" / name)
        assert error(emdask.denoise(stack, "cwf"), clean) < bar


def reference(folder: Path) -> tuple[xr.DataArray, np.ndarray]:
    """Images of a folder of the reference data, with the CTF where they have one."""
    known = json.loads((folder / "params.json").read_text())
    noisy, clean = (np.load(folder / f"{name}.npy") for name in ("noisy", "clean"))
    attrs = {"pixel_size_A": known["pixel_size_A"], "kind": "particles"}
    if "ctf" not in known:
        return build_stack(da.from_array(noisy, chunks=(250, -1, -1)), attrs=attrs), clean
    ctf = known["ctf"]
    defocus = np.array(ctf["defocus_A"])[np.load(folder / "ctf_group.npy")]
    attrs |= {"voltage_kV": ctf["voltage_kV"], "spherical_aberration_mm": ctf["Cs_mm"]}
    attrs["amplitude_contrast"] = ctf["amplitude_contrast"]
    # Its CTF has the other sign.
    images = da.from_array(-noisy, chunks=(250, -1, -1))
    return build_stack(images, {"defocus_u_A": defocus}, attrs), clean


# --- Shared work ----------------------------------------------------------------------------------


@pytest.mark.parametrize("ctf", ["none", "round"])
def test_chunks_play_no_part(ctf: str) -> None:
    stack, clean = simulated(400, 0.1, ctf)
    whole = emdask.denoise(stack.chunk(image=400), "cwf").compute()
    for chunk in (7, 256, (200, 3, 197)):
        parts = emdask.denoise(stack.chunk(image=chunk), "cwf").compute()
        assert np.abs(parts - whole).max() < 1e-5 * clean.std()


def test_models_of_any_chunks_are_equal() -> None:
    stack, _ = simulated(400, 0.1, "round")
    whole, *others = (
        emdask.learn_denoiser(stack.chunk(image=chunk), "cwf").compute()
        for chunk in (400, 37, (200, 3, 197))
    )
    for other in others:
        for name in ("mean", "eigenvalue", "spectrum", "variance"):
            atol = 1e-5 * float(abs(whole[name]).max())
            np.testing.assert_allclose(other[name], whole[name], atol=atol)


def test_threads_share_what_a_model_is_prepared_to(monkeypatch: pytest.MonkeyPatch) -> None:
    stack, _ = simulated(400, 0.1)
    model = emdask.learn_denoiser(stack, "cwf").compute()
    made: list[int] = []

    def combine_slowly(*given: Any) -> Any:
        made.append(len(given))
        time.sleep(0.05)
        return combine(*given)

    monkeypatch.setattr("emdask.denoisers.cwf.combine", combine_slowly)
    emdask.denoise(stack.chunk(image=50), "cwf", model=model).compute(num_workers=4)
    assert len(made) == 1


def test_workers_play_no_part() -> None:
    stack, clean = simulated(400, 0.1, "round")
    lazy = emdask.denoise(stack.chunk(image=50), "cwf")
    alone = lazy.compute(scheduler="sync")
    for n_workers in (1, 2, 4):
        with (
            LocalCluster(
                n_workers=n_workers, threads_per_worker=1, dashboard_address=None
            ) as cluster,
            cluster.get_client(),
        ):
            shared = lazy.compute()
        assert np.abs(shared - alone).max() < 1e-5 * clean.std()


def test_learning_on_a_card(card: str) -> None:
    stack, _ = simulated(400, 0.1, "round")
    there, here = (
        emdask.learn_denoiser(stack.chunk(image=100), "cwf", device=device).compute()
        for device in (card, "cpu")
    )
    scale = float(here.eigenvalue.max())
    np.testing.assert_allclose(there.eigenvalue, here.eigenvalue, atol=1e-4 * scale)
    np.testing.assert_allclose(there["mean"], here["mean"], atol=1e-4 * float(here["mean"].max()))
    images = emdask.denoise(stack, "cwf", model=there, device=card).compute()
    expected = emdask.denoise(stack, "cwf", model=here, device="cpu").compute()
    np.testing.assert_allclose(images, expected, atol=1e-3)


# --- Models ---------------------------------------------------------------------------------------


def test_a_model_shows_what_it_knows() -> None:
    stack, clean = simulated(400, 0.1)
    model = emdask.learn_denoiser(stack, "cwf").compute()
    mean = model["mean"].values
    # Views are uniform, and so are turns: the mean is round, and that of the projections.
    np.testing.assert_allclose(mean[1:, 1:], mean[1:, 1:].T, atol=1e-3 * mean.max())
    assert np.corrcoef(mean.ravel(), clean.mean(axis=0).ravel())[0, 1] > 0.99
    eigenimages = model.eigenimages.values
    norms = np.square(eigenimages).sum(axis=(1, 2))
    np.testing.assert_allclose(norms, 1, atol=0.02)
    assert (np.diff(model.eigenvalue) <= 0).all()
    assert model.attrs["noise_variance"] == pytest.approx(1, rel=0.02)
    # The eigenvalue is the variance of the clean images along the eigenimage.
    along = ((clean - clean.mean(axis=0)) * eigenimages[0]).sum(axis=(1, 2))
    assert float(model.eigenvalue[0]) == pytest.approx(along.var(), rel=0.25)


def test_a_model_serves_another_stack(tmp_path: Path) -> None:
    stack, clean = simulated(400, 0.1, "round")
    model = emdask.learn_denoiser(stack[:300], "cwf").compute()
    path = emdask.save_model(model, tmp_path / "model.zarr")
    alone = emdask.denoise(stack[300:301], "cwf", model=path).compute()
    among = emdask.denoise(stack[300:], "cwf", model=path).compute()
    np.testing.assert_array_equal(alone, among[:1])
    assert error(among, clean[300:]) < 0.35


def test_a_changed_model_is_another() -> None:
    stack, _ = simulated(400, 0.1)
    model = emdask.learn_denoiser(stack, "cwf").compute()
    before = emdask.denoise(stack[:5], "cwf", model=model).compute()
    model["variance"][:] = 0
    after = emdask.denoise(stack[:5], "cwf", model=model).compute()
    assert np.ptp(after.values, axis=0).max() < 1e-5 < np.ptp(before.values, axis=0).max()


def test_masked_corners_are_not_taken_for_noise() -> None:
    stack, clean = simulated(400, 0.1)
    y, x = np.mgrid[:BOX_PX, :BOX_PX] - BOX_PX // 2
    masked = stack * (np.hypot(x, y) < 15)
    with pytest.raises(StackError, match=r"cwf: .* masked or hold hardly any noise. Pass sigma: 1"):
        emdask.denoise(masked, "cwf").compute()
    assert error(emdask.denoise(masked, "cwf", sigma=1.0), clean) < 0.2


def test_noise_that_is_given_is_taken() -> None:
    stack, _ = simulated(400, 0.1)
    model = emdask.learn_denoiser(stack, "cwf", sigma=1.5).compute()
    assert model.attrs["noise_variance"] == 2.25


# --- What it cannot do ----------------------------------------------------------------------------


def test_micrographs_and_other_sizes_are_refused() -> None:
    micrographs = build_stack(da.zeros((1, 64, 64)), attrs={"kind": "micrographs"})
    with pytest.raises(StackError, match="cwf: needs particle images, not micrographs"):
        emdask.denoise(micrographs, "cwf")
    stack, _ = simulated(400, 0.1)
    model = emdask.learn_denoiser(stack[:100], "cwf").compute()
    with pytest.raises(ParameterError, match="cwf: images must be of the model's size, 32 x 32"):
        emdask.denoise(stack[:, 4:28, 4:28], "cwf", model=model)


def test_a_model_serves_images_of_its_kind_alone() -> None:
    stack, _ = simulated(400, 0.1)
    model = emdask.learn_denoiser(stack[:100], "cwf").compute()
    others = [
        (stack.assign_attrs(pixel_size_A=4.0), "pixels must be as large as the model's, 3 Å"),
        (simulated(400, 0.1, "round")[0], "from images whose CTF is not known; got 'known'"),
        (emdask.whiten(stack), "from images not made white before. Use unwhiten"),
    ]
    for other, message in others:
        with pytest.raises(ParameterError, match=f"cwf: .*{message}"):
            emdask.denoise(other, "cwf", model=model)
    with pytest.raises(ParameterError, match="cwf: radius_px is settled by the model"):
        emdask.denoise(stack, "cwf", model=model, radius_px=12)
    emdask.denoise(stack, "cwf", model=model, radius_px=16)
    with_ctf, _ = simulated(400, 0.1, "round")
    model = emdask.learn_denoiser(with_ctf[:100], "cwf").compute()
    with pytest.raises(ParameterError, match="images whose CTF is known; got 'not known'"):
        emdask.denoise(stack, "cwf", model=model)


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"radius_px": 17}, "radius_px must be a number in \\[2, 16\\]"),
        ({"max_frequency": 0.7}, "max_frequency must be"),
        ({"radius_px": 2, "max_frequency": 0.1}, "radius_px times max_frequency must be at least"),
        ({"ctf": "flip"}, "ctf must be one of correct, keep"),
    ],
)
def test_parameters_out_of_range(parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=f"cwf: {message}"):
        emdask.denoise(np.zeros((2, 32, 32)), "cwf", **parameters)


def test_large_boxes_are_worked_on_at_128_px() -> None:
    completed = METHOD.complete(Cwf(), {}, (10, 256, 256))
    assert completed.max_frequency == 0.25
    images = np.random.default_rng(0).normal(size=(2, 160, 160)).astype("f4")
    result = emdask.denoise(images, "cwf").compute()
    spectrum = np.abs(np.fft.rfft2(result[0] - result[0].mean()))
    frequency = np.hypot(np.fft.fftfreq(160)[:, None], np.fft.rfftfreq(160))
    assert spectrum[frequency > 0.4].max() < 1e-3 * max(spectrum.max(), 1e-3)


@pytest.mark.parametrize("n_images", [1, 2])
def test_hardly_any_images(n_images: int) -> None:
    stack, clean = simulated(400, 0.1)
    few = emdask.denoise(stack[:n_images], "cwf").compute()
    assert np.isfinite(few).all()
    assert error(few, clean[:n_images]) < error(stack[:n_images], clean[:n_images]) / 4


def test_images_without_noise_come_back() -> None:
    _, clean = simulated(400, 0.1)
    result = emdask.denoise(clean[:50].astype("f4"), "cwf", sigma=1e-4).compute()
    assert error(result, clean[:50]) < 0.02


def test_noise_alone_leaves_nothing() -> None:
    noise = np.random.default_rng(0).normal(size=(400, 32, 32)).astype("f4")
    result = emdask.denoise(noise, "cwf").compute()
    assert float(np.square(result).mean()) < 0.02
