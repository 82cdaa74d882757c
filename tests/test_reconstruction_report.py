"""The page of a reconstruction shows what was found."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from emdask.phantoms import phantom
from emdask.plots import png_bytes
from emdask.reconstruction_report import Curve, resolution_table, write_reconstruction
from emdask.reconstructors import reconstruct
from emdask.simulators import simulate
from emdask.volume_plots import volume_pictures

FREQUENCY = np.array([0.05, 0.1, 0.15, 0.2])


def curve(values: list[float], **fields: object) -> Curve:
    return Curve(
        **{"name": "halves", "frequency_per_A": FREQUENCY, "correlation": np.array(values)} | fields
    )


def test_resolutions_are_interpolated_between_shells():
    falling = curve([1.0, 0.75, 0.25, 0.0])
    assert falling.resolution(0.5) == "8.00 Å"
    # 0.15 + 0.05 * 0.107 / 0.25 = 0.1714
    assert falling.resolution() == "5.83 Å"
    assert curve([1.0, 0.75, 0.5, 0.25], threshold=0.5).resolution() == "6.67 Å"
    assert curve([0.9, 0.8, 0.7, 0.6]).resolution() == "5.00 Å or finer"
    assert curve([0.1, 0.8, 0.7, 0.6]).resolution() == "none"
    header, rows = resolution_table([falling, curve([1, 1, 1, 1], name="truth")])
    assert header[1:] == ("at 0.143", "at 0.5")
    assert rows == [
        ("halves", "5.83 Å", "8.00 Å"),
        ("truth", "5.00 Å or finer", "5.00 Å or finer"),
    ]


@pytest.fixture(scope="module")
def made() -> tuple[xr.DataArray, xr.Dataset]:
    volume = phantom(8, radius_A=20, width_A=6.0, seed=1).volume(24, 3.0)
    ctf = {"defocus_A": (8_000, 12_000)}
    stack = simulate(volume, 60, snr=1.0, shifts_A=3.0, ctf=ctf).images
    return stack, reconstruct(stack).compute()


def write(tmp_path, made, **changes: object) -> str:
    stack, found = made
    one = Curve(name="half maps", frequency_per_A=found.frequency.values, correlation=found.fsc)
    truth = Curve(
        name="with <truth>.mrc",
        frequency_per_A=found.frequency.values,
        correlation=np.sqrt(np.clip(found.fsc.values, 0, 1)),
        threshold=0.5,
    )
    fields = {
        "found": found,
        "stack": stack,
        "curves": [one, truth],
        "seconds": 2.0,
        "symmetry": "C1",
        "mask": "There is no mask.",
    }
    path = write_reconstruction(tmp_path / "r.html", **fields | changes)
    return path.read_text(encoding="utf-8")


def test_page_has_the_pictures_of_the_map(tmp_path, made):
    page = write(tmp_path, made)
    pictures = volume_pictures(made[1].volume.values)
    found = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)"', page)
    assert [name for name, _ in found] == list(pictures)
    for name, data in found:
        shown = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
        expected = np.asarray(Image.open(io.BytesIO(png_bytes(pictures[name]))))
        np.testing.assert_array_equal(shown, expected)


def test_page_has_resolutions_views_and_history(tmp_path, made):
    page = write(tmp_path, made)
    stack, found = made
    resolution = f"{float(found.resolution_A[0]):.2f} Å"
    assert f"<b>{resolution}</b><span>resolution: half maps, FSC 0.143</span>" in page
    assert "with &lt;truth&gt;.mrc" in page
    assert "<truth>" not in page
    assert "60 images with known poses; a map of 24 x 24 x 24 voxels of 3 Å." in page
    tilts = f"{float(stack.tilt_deg.min()):.3g} to {float(stack.tilt_deg.max()):.3g}°"
    assert f"<td>{tilts}</td>" in page
    assert "0.8 to 1.2 µm" in page or re.search(r"<td>0\.8\d* to 1\.\d+ µm</td>", page)
    assert page.count("<svg") == 2
    for step in ("simulate", "direct_fourier"):
        assert f"<td>{step}</td>" in page
    assert "There is no mask." in page


def test_page_without_half_maps_or_reference_has_no_curves(tmp_path, made):
    page = write(tmp_path, made, curves=[])
    assert "Fourier shell correlation" not in page
    assert page.count("<svg") == 1
    assert "wall time, 30 images a second" in page
