"""A model shows what it holds, whichever method it is of."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from emdask.model_plots import EIGENIMAGES_SHOWN, eigenimage_limits
from emdask.model_report import (
    edge_text,
    eigenimage_rows,
    model_sections,
    variable_rows,
    write_model,
)
from emdask.plots import png_bytes
from tests.fake_models import covariance_model, dictionary_model, power_model


def pictures_of(page: str) -> list[tuple[str, np.ndarray]]:
    found = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)"', page)
    return [(name, decode(base64.b64decode(data))) for name, data in found]


def decode(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)))


def write(tmp_path, model: xr.Dataset) -> str:
    about = [("learnt by", "fake", "a <method>")]
    path = write_model(tmp_path / "m.html", model, title="Model: fake", about=about)
    return path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("model", "titles"),
    [
        (covariance_model(), ["mean and eigenimages", "eigenvalues"]),
        (dictionary_model(), ["atoms"]),
        (power_model(), ["power spectra"]),
        (covariance_model().drop_vars("noise_edge"), ["mean and eigenimages"]),
        (covariance_model().drop_vars("order"), ["eigenvalues"]),
        (covariance_model().assign_attrs(noise_variance=0.0), []),
        (dictionary_model().isel(scale=0), []),
        (xr.Dataset(), []),
    ],
)
def test_sections_are_those_of_what_is_there(model, titles):
    assert [s.title for s in model_sections(model)] == [f"What was learnt: {t}" for t in titles]


def test_page_has_mean_and_leading_eigenimages_with_order_and_eigenvalue(tmp_path):
    model = covariance_model()
    page = write(tmp_path, model)
    names, shown = zip(*pictures_of(page), strict=True)
    assert names == ("mean", *(f"{30 - i} × noise" for i in range(EIGENIMAGES_SHOWN)))
    np.testing.assert_array_equal(shown[0], decode(png_bytes(model["mean"].values)))
    for picture, image in zip(shown[1:], model.eigenimages.values, strict=False):
        np.testing.assert_array_equal(picture, decode(png_bytes(image, eigenimage_limits(image))))
    for i in range(3):
        assert f"<b>{30 - i} × noise</b> k = {i}</figcaption>" in page
    assert "2 of 5 eigenvalues are above the edge of the noise" in page
    assert "shrinkage by bayes does not use the edge" in page
    assert page.count("<svg") == 1
    assert ">eigenvalue / noise variance<" in page
    assert "<td>y 16, x 16</td>" in page
    assert "a &lt;method&gt;" in page
    assert "<h1>Model: fake</h1>" in page


def test_page_has_the_atoms_of_each_scale(tmp_path):
    names = [name for name, _ in pictures_of(write(tmp_path, dictionary_model()))]
    assert names == ["scale 1: 10 atoms of 4 × 4 px", "scale 2: 7 atoms of 4 × 4 px"]


def test_page_has_power_spectra(tmp_path):
    page = write(tmp_path, power_model())
    assert page.count("<svg") == 1
    assert ">signal power<" in page


def test_rows_say_units_and_meaning():
    model = power_model()
    model["noise_power"].attrs |= {"units": "grey levels²", "long_name": "of the corners"}
    model["none"] = ("ring", np.full(3, np.nan))
    model["many"] = ("ring", np.array([12345, 3, 5]))
    model["many"].attrs["units"] = "1"
    model["word"] = ("ring", np.array(["a", "b", "c"]))
    header, rows = variable_rows(model)
    assert header == ("variable", "dims", "values", "meaning")
    assert rows == [
        ("frequency", "ring 3", "0 to 0.5", ""),
        ("many", "ring 3", "3 to 12,345", ""),
        ("noise_power", "ring 3", "1 to 1.5 grey levels²", "of the corners"),
        ("none", "ring 3", "none", ""),
        ("signal_power", "ring 3", "0 to 8", ""),
        ("word", "ring 3", "", ""),
    ]


def test_rows_of_the_leading_eigenimages():
    header, rows = eigenimage_rows(covariance_model(), 3)
    assert header == ("eigenimage", "angular order k", "eigenvalue / noise variance")
    assert rows == [("1", "0", "30"), ("2", "1", "29"), ("3", "2", "28")]
    assert len(eigenimage_rows(covariance_model(n_components=2), 3)[1]) == 2


def test_a_model_of_noise_alone_has_nothing_above_the_edge():
    model = covariance_model()
    model["noise_edge"] = 10 * model["noise_edge"]
    assert edge_text(model) == "0 of 5 eigenvalues are above the edge of the noise"
    assert model_sections(model.isel(component=slice(0)))[0].pictures[0].name == "mean"
