"""Building, checking and chunking a stack."""

from __future__ import annotations

from dataclasses import replace

import dask.array as da
import numpy as np
import pytest
import xarray as xr

from emdask.denoisers import denoise
from emdask.errors import ParameterError, StackError
from emdask.stack import add_provenance, as_stack, build_stack, choose_chunk, like_input, optics_of
from emdask.variables import BY_NAME, VARIABLES, table


def test_coordinates_get_dims_and_units() -> None:
    stack = build_stack(
        da.zeros((2, 4, 4)),
        {
            "rot_deg": np.zeros(2, "f4"),
            "rlnBeamTiltClass": [1, 2],
            "micrograph": ["a", "b"],
        },
        {"pixel_size_A": 1.1},
    )
    assert stack.rot_deg.dims == ("image",)
    assert stack.rot_deg.attrs == {"units": "deg"}
    assert stack.rot_deg.dtype == np.float64
    assert stack.rlnBeamTiltClass.dims == ("image",)
    assert stack[1].micrograph.item() == "b"


@pytest.mark.parametrize(
    ("coords", "message"),
    [
        ({"defocus_u_A": [1.0]}, r"defocus_u_A must have shape \(2,\); got \(1,\)"),
        ({"rot_deg": [[1.0], [2.0]]}, r"rot_deg must have shape \(2,\); got \(2, 1\)"),
    ],
)
def test_coordinates_of_another_length_are_refused(coords: dict, message: str) -> None:
    with pytest.raises(StackError, match=message):
        build_stack(da.zeros((2, 4, 4)), coords)


def test_images_have_three_dims() -> None:
    with pytest.raises(StackError, match="dims"):
        build_stack(da.zeros((4, 4)))


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros(5), "2 or 3 dims"),
        (np.zeros((2, 2, 2, 2)), "2 or 3 dims"),
        (np.zeros((2, 4, 4), complex), "real numbers"),
        (np.zeros((0, 4, 4)), "at least one pixel"),
        (xr.DataArray(np.zeros((2, 4, 4)), dims=("n", "y", "x")), "dims must be"),
        ([["a"]], "real numbers"),
    ],
)
def test_what_is_no_stack_is_refused(images: object, message: str) -> None:
    with pytest.raises(StackError, match=message):
        as_stack(images)


def test_the_form_that_came_in_goes_out() -> None:
    array = np.zeros((4, 6), "f4")
    assert like_input(as_stack(array), array).shape == (4, 6)
    stack = xr.DataArray(array, dims=("y", "x"), attrs={"pixel_size_A": 2.0})
    again = like_input(as_stack(stack), stack)
    assert again.dims == ("y", "x")
    assert again.attrs == stack.attrs


def test_one_image_of_a_stack_keeps_its_labels() -> None:
    stack = build_stack(da.zeros((3, 4, 4)), {"defocus_u_A": [1.0, 2.0, 3.0]})
    assert as_stack(stack[2]).defocus_u_A.values == [3.0]


@pytest.mark.parametrize(
    ("shape", "dtype", "expected"),
    [
        ((1, 4096, 4096), "f4", 1),  # a micrograph is larger than the smallest chunk
        ((20, 128, 128), "f4", 20),  # the whole stack is less than 2 MiB
        ((1_000, 128, 128), "f4", 32),  # 2 MiB
        ((250_000, 128, 128), "f4", 244),  # a 1024th of the stack
        ((10_000_000, 128, 128), "f4", 4096),  # 256 MiB
    ],
)
def test_automatic_chunks(shape: tuple[int, int, int], dtype: str, expected: int) -> None:
    assert choose_chunk(shape, dtype) == expected


@pytest.mark.parametrize("chunks", [0, -3, 2.5, "big", None])
def test_chunks_must_be_a_number_of_images(chunks: object) -> None:
    with pytest.raises(ParameterError, match="chunks must be"):
        choose_chunk((5, 4, 4), "f4", chunks)  # type: ignore[arg-type]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_optics_that_are_not_finite_are_refused(bad: float) -> None:
    attrs = {"pixel_size_A": 2, "voltage_kV": 300, "spherical_aberration_mm": 2.7}
    attrs |= {"amplitude_contrast": 0.1}
    coords = {"defocus_u_A": [1e4, bad, bad], "defocus_v_A": [1e4] * 3}
    stack = build_stack(da.zeros((3, 8, 8)), coords, attrs)
    rule = rf"stack: defocus_u_A of image 1 must be finite for the CTF; got {bad}\. Set it, "
    with pytest.raises(StackError, match=rule):
        optics_of(stack)
    with pytest.raises(StackError, match=rf"stack: voltage_kV must be finite .*; got {bad}"):
        optics_of(stack[:1].assign_attrs(voltage_kV=bad))


@pytest.mark.parametrize(
    ("name", "bad", "rule"),
    [
        *(("pixel_size_A", bad, "be more than 0") for bad in (0.0, -1.5)),
        *(("voltage_kV", bad, "be more than 0") for bad in (0.0, -300.0)),
        *(("amplitude_contrast", bad, r"lie in \[0, 1\]") for bad in (1.2, -0.1)),
    ],
)
def test_optics_that_are_not_possible_are_refused(name: str, bad: float, rule: str) -> None:
    stack = build_stack(da.zeros((3, 8, 8)), {"defocus_u_A": [1e4] * 3}, OPTICS)
    known = stack.attrs[name]
    with pytest.raises(StackError, match=rf"^stack: {name} must {rule} for the CTF; got {bad}\."):
        denoise(stack.assign_attrs({name: bad}), "wiener")
    of_each = stack.assign_coords({name: ("image", [known, bad, bad])})
    message = rf"^stack: {name} of image 1 must {rule} for the CTF; got {bad}\. Set it, or"
    with pytest.raises(StackError, match=message):
        denoise(of_each, "wiener")
    assert optics_of(of_each[:1]) is not None
    # Of no matter where no CTF is asked for.
    assert denoise(of_each, "gaussian").shape == stack.shape
    assert optics_of(of_each.assign_attrs(ctf_state="corrected")) is None


def test_optics_at_the_ends_of_what_is_possible_are_taken() -> None:
    stack = build_stack(da.zeros((3, 8, 8)), {"defocus_u_A": [1e4] * 3}, OPTICS)
    for contrast in (0.0, 1.0):
        ends = {"amplitude_contrast": contrast, "spherical_aberration_mm": 0.0}
        optics = optics_of(stack.assign_attrs(ends))
        assert optics is not None
        assert np.isfinite(optics.ctf((8, 8), 0)).all()


def test_provenance_is_appended_to_a_copy() -> None:
    first = add_provenance({"kind": "particles"}, "a", {"x": 1})
    second = add_provenance(first, "b", {})
    assert [p["step"] for p in second["provenance"]] == ["a", "b"]
    assert len(first["provenance"]) == 1


def test_the_table_is_sound() -> None:
    assert len(BY_NAME) == len(VARIABLES)
    labels = [label for v in VARIABLES for label in v.relion]
    assert len(labels) == len(set(labels))
    for v in VARIABLES:
        assert v.meaning
        assert f"``{v.name}``" in table()


OPTICS = {
    "pixel_size_A": 2.0,
    "voltage_kV": 300.0,
    "spherical_aberration_mm": 2.7,
    "amplitude_contrast": 0.1,
}


def flagged(flag: str, values: list) -> tuple[xr.DataArray, xr.DataArray]:
    """Two images with a flag of RELION, in the table of optics groups and in that of images."""
    coords = {"defocus_u_A": [1e4, 2e4], "optics_group": [3, 5]}
    groups = {"rlnOpticsGroup": [3, 4, 5], flag: [values[0], 1, values[1]]}
    of_groups = build_stack(da.zeros((2, 8, 8)), coords, OPTICS | {"relion": {"optics": groups}})
    return of_groups, build_stack(da.zeros((2, 8, 8)), coords | {flag: values}, OPTICS)


@pytest.mark.parametrize("values", [[0, 1], ["0", "1"], [0, 0], ["0", "0"]])
def test_images_that_are_multiplied_by_the_ctf_are_refused(values: list) -> None:
    flag = "rlnCtfDataAreCtfPremultiplied"
    message = f"^stack: images must not be corrected for the CTF already, but {flag} is 1. Open"
    for stack in flagged(flag, values):
        assert optics_of(stack[:1]) is not None
        if str(values[1]) == "0":
            assert optics_of(stack) is not None
            continue
        with pytest.raises(StackError, match=message):
            optics_of(stack)
        with pytest.raises(StackError, match=message):
            denoise(stack, "wiener")
        assert optics_of(stack.drop_vars("defocus_u_A")) is None


@pytest.mark.parametrize("values", [[1, 1], ["1", "1"], [1.0, 1.0], [0, 0], ["0", "0"]])
def test_the_ctf_of_phase_flipped_images_is_positive(values: list) -> None:
    for stack in flagged("rlnCtfDataArePhaseFlipped", values):
        optics = optics_of(stack)
        assert optics is not None
        assert optics.phase_flipped == (str(values[0]) != "0")
        plain = replace(optics, phase_flipped=False)
        assert plain.ctfs((32, 32), 2).min() < -0.5
        assert optics.phase_flipped == (optics.ctfs((32, 32), 2).min() >= 0)
        for which in range(2):
            ctf = optics.ctf((32, 32), which)
            np.testing.assert_array_equal(np.abs(ctf), np.abs(plain.ctf((32, 32), which)))
            np.testing.assert_array_equal(ctf.astype("f4"), optics.ctfs((32, 32), 2)[which])


def test_images_of_which_some_are_phase_flipped_are_refused() -> None:
    for stack in flagged("rlnCtfDataArePhaseFlipped", [0, 1]):
        for part, is_flipped in ((stack[:1], False), (stack[1:], True)):
            optics = optics_of(part)
            assert optics is not None
            assert optics.phase_flipped == is_flipped
        message = r"rlnCtfDataArePhaseFlipped must be the same for all .*; got '0 and 1'\. Select"
        with pytest.raises(StackError, match=message):
            optics_of(stack)


def test_the_attribute_says_what_was_done_about_the_ctf() -> None:
    stack = flagged("rlnCtfDataArePhaseFlipped", [0, 1])[0]
    assert optics_of(stack.assign_attrs(ctf_state="corrected")) is None
    flipped = optics_of(stack.assign_attrs(ctf_state="phase_flipped"))
    assert flipped is not None
    assert flipped.phase_flipped
    message = "attribute ctf_state must be 'corrected' or 'phase_flipped', .*; got 'flipped'"
    with pytest.raises(StackError, match=message):
        optics_of(stack.assign_attrs(ctf_state="flipped"))
