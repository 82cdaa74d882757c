"""Invariant features: particles are told apart wherever they lie and however they are turned."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import xarray as xr

import emdask
from emdask.classifiers.acf import ACF, METHOD, Contours
from emdask.errors import ParameterError
from emdask.kernels.directions import angles_between
from emdask.phantoms import phantom
from emdask.references import open_references
from emdask.stack import optics_of
from tests.kernels.test_conformations import BOX, CTF, PIXEL_A, VIEW, make_volumes, mix, simulate

PARTICLES = [
    phantom(14, radius_A=30, width_A=(4.8, 6.0), seed=s).volume(BOX, 3.0) for s in range(3)
]
AROUND = {"view": VIEW.view_deg, "cone_deg": VIEW.cone_deg, "spacing_deg": 15.0}


def classify(made: Any, references: Any, chunk: int = 20, **options: Any) -> xr.Dataset:
    """As one thread does it."""
    stack = made.images.chunk(image=chunk) if isinstance(made, xr.Dataset) else made
    return emdask.classify(stack, references, "acf", **options).compute(scheduler="sync")


def draw_particles(n: int, snr: float, **options: Any) -> Any:
    """Three particles seen from anywhere."""
    return emdask.simulate(PARTICLES, n, snr=snr, shifts_A=9.0, seed=3, **options).compute()


@pytest.mark.parametrize("with_ctf", [False, True])
def test_particles_are_told_apart_from_all_sides(with_ctf: bool) -> None:
    made = draw_particles(90, 2.0, **({"ctf": CTF} if with_ctf else {}))
    found = classify(made, PARTICLES, spacing_deg=15.0)
    assert (found.class_id == made.class_id).mean() > 0.93
    assert found.kept.all()
    assert (found.posterior_none == 0).all()
    assert not {"rot_deg", "shift_x_A", "screen_score"} & set(found.data_vars)
    counts = np.bincount(made.class_id)[1:] / 90
    np.testing.assert_allclose(found.proportion, counts, atol=0.08)


def test_the_ctf_of_each_image_counts() -> None:
    made = draw_particles(120, 0.5, ctf=CTF)
    known = classify(made, PARTICLES, spacing_deg=15.0)
    names = [name for name in made.images.coords if name.startswith("defocus")]
    blind = classify(made.drop_vars(names), PARTICLES, spacing_deg=15.0)
    accuracies = [float((f.class_id == made.class_id).mean()) for f in (known, blind)]
    assert accuracies[0] > accuracies[1] + 0.05
    assert accuracies[0] > 0.7


def test_what_is_far_from_the_view_is_of_no_class() -> None:
    made, near = mix(30, 60, 3.0)
    found = classify(made, list(make_volumes()), **AROUND)
    far = angles_between(made.rotation_deg.values[:, :2], VIEW.view_deg) > 25
    assert found.kept[near].mean() > 0.8
    assert found.kept[far].mean() < 0.1
    np.testing.assert_array_equal(found.class_id > 0, found.kept)
    right = (found.class_id == made.class_id).values
    assert right[near & found.kept.values].mean() > 0.85
    assert float(found.proportion_none) == pytest.approx(2 / 3, abs=0.15)
    # They were compared with the classes, too.
    assert np.isfinite(found.log_likelihood).all()


def test_references_may_be_images() -> None:
    made, near = mix(30, 60, 3.0)
    cone = simulate(80, None, seed=8, shifts_A=0.0).clean
    sphere = simulate(200, None, poses="uniform", seed=9, shifts_A=0.0).clean
    images = np.concatenate([cone.values, sphere.values])
    names = ("class_id", "rot_deg", "tilt_deg", "psi_deg")
    coords = {n: ("image", np.concatenate([cone[n].values, sphere[n].values])) for n in names}
    given = xr.DataArray(images, coords, ("image", "y", "x"), attrs=made.images.attrs)
    found = classify(made, given, view=VIEW.view_deg)
    far = angles_between(made.rotation_deg.values[:, :2], VIEW.view_deg) > 25
    assert found.kept[near].mean() > 0.75
    assert found.kept[far].mean() < 0.15
    # Without a view, directions need not be known.
    bare = given.drop_vars(["rot_deg", "tilt_deg", "psi_deg"])
    found = classify(made, bare)
    assert found.kept.all()
    assert (found.class_id == made.class_id).values[near].mean() > 0.8


@pytest.mark.parametrize("view", [None, VIEW.view_deg])
def test_chunks_do_not_matter(view: Any) -> None:
    made, _ = mix(20, 20, 2.0, ctf=CTF)
    how = {"spacing_deg": 20.0, "view": view}
    tables = [classify(made, list(make_volumes()), chunk=chunk, **how) for chunk in (40, 13, 1)]
    for found in tables[1:]:
        np.testing.assert_array_equal(found.class_id, tables[0].class_id)
        for name in ("log_likelihood", "posterior", "proportion"):
            np.testing.assert_allclose(found[name], tables[0][name], rtol=1e-4, atol=2e-3)


def prepare(made: Any, references: Any, params: ACF) -> Any:
    stack = made.images
    n = len(stack)
    opened = open_references(references, stack, "classify")
    how = {"optics": optics_of(stack)}
    sums = METHOD.chunk["cpu"](stack.values, np.arange(n), params, n, **how)
    return pickle.loads(pickle.dumps(METHOD.prepare(sums, params, opened)))


@pytest.mark.parametrize("features", ["spectrum", "contour"])
def test_with_the_same_references_blocks_give_the_same_bits(features: str) -> None:
    made, _ = mix(10, 20, 6.0, ctf=CTF)
    params = ACF(features=features, view=VIEW.view_deg, spacing_deg=30.0, blur_px=1.5)
    model = prepare(made, list(make_volumes()), params)
    images, optics = made.images.values, optics_of(made.images)
    whole = METHOD.score["cpu"](images, params, model, optics=optics)
    assert whole.shape == (30, len(METHOD.columns(params, 2)))
    assert whole.dtype == np.float32
    for some in (slice(0, 1), slice(7, 25), slice(29, 30), slice(4, 4)):
        part = METHOD.score["cpu"](images[some], params, model, optics=optics[some])
        np.testing.assert_array_equal(part, whole[some])


# --- Contours -------------------------------------------------------------------------------------


def draw_shape(kind: int, turn_deg: float, shift_px: Any, box_px: int = 48) -> Any:
    """A disc, a bar or an angle of two bars, with soft edges."""
    y, x = np.mgrid[:box_px, :box_px] - float(box_px // 2)
    x, y = x - shift_px[0], y - shift_px[1]
    c, s = np.cos(np.deg2rad(turn_deg)), np.sin(np.deg2rad(turn_deg))
    x, y = c * x + s * y, c * y - s * x

    def soften(inside: Any) -> Any:
        return 1 / (1 + np.exp(-2 * inside))

    bar = soften(np.minimum(12 - abs(x), 4 - abs(y)))
    angle = [soften(np.minimum(10 - abs(a), 3.5 - abs(b + 6))) for a, b in ((x, y), (y, x))]
    shapes = [soften(9 - np.hypot(x, y)), bar, np.maximum(*angle)]
    return shapes[kind].astype("f4")


def draw_shapes(n: int, rng: np.random.Generator) -> tuple[Any, Any]:
    kinds = np.arange(n) % 3
    images = [
        draw_shape(kind, turn, shift)
        for kind, turn, shift in zip(
            kinds, rng.uniform(0, 360, n), rng.uniform(-3, 3, (n, 2)), strict=True
        )
    ]
    return np.stack(images), kinds


def make_shape_references(rng: np.random.Generator) -> xr.DataArray:
    images, kinds = draw_shapes(24, rng)
    coords = {"class_id": ("image", kinds + 1)}
    return xr.DataArray(images, coords, ("image", "y", "x"), attrs={"pixel_size_A": PIXEL_A})


def test_outlines_tell_shapes_apart(rng: np.random.Generator) -> None:
    references = make_shape_references(rng)
    images, kinds = draw_shapes(45, rng)
    images += rng.normal(scale=0.02, size=images.shape).astype("f4")
    found = classify(images, references, features="contour", blur_px=1.5)
    np.testing.assert_array_equal(found.class_id, kinds + 1)
    assert found.kept.all()
    # A nearest reference is no likelihood: the class is sure.
    assert set(np.unique(found.log_likelihood)) == {-np.inf, 0.0}
    assert (found.margin == np.inf).all()
    assert (found.confidence == 1).all()
    np.testing.assert_allclose(found.proportion, 1 / 3, atol=1e-6)


def test_images_without_an_outline_are_left_out(rng: np.random.Generator) -> None:
    images, _ = draw_shapes(6, rng)
    images[[1, 4]] = 0
    found = classify(images, make_shape_references(rng), features="contour", blur_px=1.5)
    assert found.kept.values.tolist() == [True, False, True, True, False, True]
    assert found.class_id.values.tolist() == [1, 0, 3, 1, 0, 3]
    assert float(found.proportion_none) == pytest.approx(2 / 6)
    assert (found.log_likelihood[[1, 4]] == -np.inf).all()


def test_outlines_of_volumes_tell_the_view(rng: np.random.Generator) -> None:
    """A rod seen along its axis, among views from the side; the opposite view looks the same."""
    z = np.linspace(-20, 20, 9)
    places = np.column_stack([0 * z, 0 * z, z])
    rod = emdask.phantoms.Phantom(
        positions_A=places, widths_A=np.full(9, 5.0), masses=np.ones(9)
    ).volume(BOX, 3.0)
    tilts = np.repeat([0.0, 5.0, 80.0, 100.0], 5)
    poses = np.column_stack([np.zeros(20), tilts, 360 * rng.random(20)])
    made = emdask.simulate(rod, 20, snr=200.0, poses=poses, seed=1).compute()
    how = {"view": (0.0, 0.0), "cone_deg": 25.0, "spacing_deg": 10.0, "blur_px": 0.5}
    found = classify(made, rod, features="contour", **how)
    assert (found.class_id[:10] == 1).mean() > 0.3
    assert (found.class_id[10:] == 0).all()
    assert found.log_likelihood.shape == (20, 1)
    model = prepare(made, rod, ACF(features="contour", **how))
    assert isinstance(model, Contours)
    assert model.n_groups == 2


def test_references_without_an_outline_are_refused() -> None:
    images = np.zeros((4, BOX, BOX), "f4")
    references = xr.DataArray(images, dims=("image", "y", "x"), attrs={"pixel_size_A": PIXEL_A})
    with pytest.raises(ParameterError, match="no reference has a closed outline"):
        classify(images, references, features="contour")


# --- Cards, and what is refused -------------------------------------------------------------------


def test_cards_say_the_same_of_spectra(card: str) -> None:
    made, _ = mix(10, 20, 2.0, ctf=CTF)
    expected, found = (
        classify(made, list(make_volumes()), device=each, **AROUND) for each in ("cpu", card)
    )
    np.testing.assert_array_equal(found.class_id, expected.class_id)
    np.testing.assert_allclose(found.log_likelihood, expected.log_likelihood, rtol=1e-3, atol=0.02)


def test_cards_say_the_same_of_outlines(card: str, rng: np.random.Generator) -> None:
    references = make_shape_references(rng)
    images, kinds = draw_shapes(9, rng)
    found = classify(images, references, features="contour", blur_px=1.5, device=card)
    np.testing.assert_array_equal(found.class_id, kinds + 1)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"features": "moments"}, "acf: features must be one of spectrum, contour"),
        ({"view": "north"}, "acf: view must be rot and tilt, two numbers.*got 'north'"),
        ({"cone_deg": 0.1}, "acf: cone_deg must be"),
        ({"spacing_deg": 90.0}, "acf: spacing_deg must be"),
        ({"blur_px": -1.0}, "acf: blur_px must be"),
    ],
)
def test_bad_parameters_are_refused_at_once(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ParameterError, match=match):
        emdask.classify(np.zeros((4, BOX, BOX), "f4"), list(make_volumes()), "acf", **options)


def test_a_view_of_reference_images_must_be_known() -> None:
    given = simulate(20, None, seed=8).clean
    stack = simulate(4, 1.0).images
    far = {"view": (220.0, 120.0)}
    with pytest.raises(ParameterError, match=r"acf: each class needs a reference image within 10"):
        emdask.classify(stack, given, "acf", **far)
    bare = given.drop_vars(["rot_deg", "tilt_deg", "psi_deg"])
    with pytest.raises(ParameterError, match="acf: reference images must have known directions"):
        emdask.classify(stack, bare, "acf", **far)
    with pytest.raises(ParameterError, match="there must be reference images of other views"):
        emdask.classify(stack, given, "acf", view=VIEW.view_deg, cone_deg=30.0)
