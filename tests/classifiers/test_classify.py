"""The verb `classify`, with a method small enough to check by eye."""

from __future__ import annotations

import pickle
import time
from dataclasses import dataclass, replace
from typing import Any

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from dask.base import tokenize
from distributed import Client, Scheduler, SpecCluster, Worker, get_worker

import emdask
from emdask import classifiers, lazy
from emdask.backend import array_namespace
from emdask.classifiers import FAMILY, estimate_shares, judge_images
from emdask.errors import DeviceError, ParameterError, StackError, UnknownMethodError
from emdask.kernels.ctf import Optics
from emdask.kernels.references import References
from emdask.method import Classifier, parameter
from emdask.stack import build_stack

BOX = 8


@dataclass(frozen=True, kw_only=True)
class Level:
    """Compares the mean grey level of an image with those of the references."""

    width: float = parameter(1.0, "deviation of the levels of a class")
    outside: float | None = parameter(None, "log-likelihood of what is none of the classes")
    dark: float = parameter(-100.0, "level below which an image is left out")
    poses: bool = parameter(False, "whether poses are told as well")
    pixel_size_A: float | None = parameter(None, "edge of a pixel", "Å")


READ: list[tuple[str, int]] = []


def _sums(
    images: np.ndarray,
    image_ids: np.ndarray,
    params: Level,
    n_images: int,
    *,
    optics: Optics | None,
) -> dict[str, Any]:
    READ.append(("sums", len(images)))
    known = optics is not None and optics.defocus_u_A
    defoci = np.broadcast_to(known, len(images)).tolist() if optics else []
    return {"n": len(images), "ids": image_ids.tolist(), "n_images": {n_images}, "defoci": defoci}


def _add(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    return {key: a[key] | b[key] if key == "n_images" else a[key] + b[key] for key in a}


def _prepare(sums: dict[str, Any], params: Level, references: References) -> dict[str, Any]:
    READ.append(("prepare", sums["n"]))
    assert sums["n_images"] == {sums["n"]}
    assert sums["ids"] == sorted(sums["ids"])
    if references.volumes is not None:
        levels = [float(volume.mean()) for volume in references.volumes]
    else:
        means, which = references.images.mean(axis=(1, 2)), references.class_index
        levels = [float(means[which == k].mean()) for k in range(references.n_classes)]
    return {"levels": np.array(levels), "defoci": sums["defoci"]}


def _columns(params: Level, n_classes: int) -> tuple[str, ...]:
    names = tuple(f"class_{k + 1}" for k in range(n_classes))
    names += ("none",) if params.outside is not None else ()
    names += ("kept", "screen_score")
    return names + (("psi_deg", "shift_x_A") if params.poses else ())


def _score(images: Any, params: Level, model: dict[str, Any], *, optics: Optics | None) -> Any:
    READ.append(("score", len(images)))
    xp = array_namespace(images)
    means = images.mean(axis=(1, 2), dtype="f8")
    rows = [-(((means - level) / params.width) ** 2) / 2 for level in model["levels"]]
    rows += [xp.full(len(images), params.outside)] if params.outside is not None else []
    rows += [means >= params.dark, means]
    if params.poses:
        defoci = optics.defocus_u_A if optics is not None else 0.0
        rows += [xp.broadcast_to(xp.asarray(defoci), len(images)), means * params.pixel_size_A]
    return xp.stack(rows, axis=1).astype("f4")


def _complete(params: Level, attrs: Any, shape: tuple[int, ...]) -> Level:
    assert shape[1:] == (BOX, BOX)
    return Level(**{**vars(params), "pixel_size_A": attrs["pixel_size_A"]})


def _check(params: Level, references: References) -> None:
    if references.n_classes > 3:
        raise ParameterError("level: knows three classes at most.")


METHOD = Classifier(
    params=Level,
    chunk={"cpu": _sums},
    combine=_add,
    prepare=_prepare,
    score={"cpu": _score, "cuda": _score},
    columns=_columns,
    complete=_complete,
    check=_check,
)


@dataclass(frozen=True, kw_only=True)
class Sign:
    """Finds two classes without references."""

    n_classes: int = parameter(2, "number of classes")


# Another file would hold it; the module of the record tells the method.
SIGN = Classifier(
    params=Sign,
    chunk={"cpu": lambda images, image_ids, params, n_images: 0},
    combine=lambda a, b: a + b,
    prepare=lambda sums, params, references: references,
    score={
        "cpu": lambda images, params, model: np.where(
            (images.mean(axis=(1, 2)) > 0)[:, None] == [[True, False]], 0, -np.inf
        )
    },
    columns=lambda params, n_classes: tuple(f"class_{k + 1}" for k in range(n_classes)),
    needs_references=False,
    takes_optics=False,
)


def cube(level: float) -> xr.DataArray:
    return emdask.volumes.build_volume(np.full((BOX, BOX, BOX), level), 2.0)


CUBES = [cube(1.0), cube(-1.0)]


def make_stack(levels: Any, chunk: int = 3, **attrs: Any) -> xr.DataArray:
    images = np.asarray(levels, "f4")[:, None, None] * np.ones((1, BOX, BOX), "f4")
    lazy_images = da.from_array(images, chunks=(chunk, -1, -1))
    return build_stack(
        lazy_images,
        {"image_id": 10 + np.arange(len(images))},
        {"pixel_size_A": 2.0, **attrs},
    )


@pytest.fixture(autouse=True)
def _nothing_read_yet() -> None:
    READ.clear()


@pytest.fixture
def levels(rng: np.random.Generator) -> np.ndarray:
    """Two classes that overlap, 60 to 40."""
    return np.where(rng.random(500) < 0.6, 1.0, -1.0) + rng.normal(size=500)


def test_the_table_is_what_bayes_says(levels: np.ndarray) -> None:
    found = emdask.classify(make_stack(levels), CUBES, Level()).compute()
    odds = np.exp(2 * levels) * float(found.proportion[0] / found.proportion[1])
    np.testing.assert_allclose(found.posterior[:, 0], odds / (1 + odds), atol=1e-5)
    np.testing.assert_array_equal(found.class_id, np.where(odds > 1, 1, 2))
    np.testing.assert_allclose(found.log_likelihood[:, 1], -((levels + 1) ** 2) / 2, atol=1e-5)
    np.testing.assert_allclose(found.margin, abs(2 * levels), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.confidence, found.posterior.max("class"))
    np.testing.assert_array_equal(found.image_id, 10 + np.arange(500))
    assert found.kept.all()
    assert float(found.posterior_none.max()) == 0
    assert found["class"].values.tolist() == [1, 2]
    assert float(found.proportion_none) == 0


def test_proportions_are_not_counts_and_say_how_sure_they_are(levels: np.ndarray) -> None:
    found = emdask.classify(make_stack(levels, chunk=100), CUBES, Level()).compute()
    assert abs(float(found.proportion[0]) - 0.6) < 2.5 * float(found.proportion_error[0])
    assert 0.02 < float(found.proportion_error[0]) < 0.05
    assert (found.proportion_low < found.proportion).all()
    assert (found.proportion < found.proportion_high).all()
    np.testing.assert_allclose(found.posterior.mean("image"), found.proportion, atol=1e-5)
    np.testing.assert_allclose(found.proportion.sum(), 1)


def test_none_of_these_is_a_class_without_a_number() -> None:
    levels = np.repeat([1.0, -1.0, 40.0], [6, 3, 3])
    stack = make_stack(levels)
    found = emdask.classify(stack, CUBES, Level(width=0.1, outside=-20.0)).compute()
    assert found.class_id.values.tolist() == [1] * 6 + [2] * 3 + [0] * 3
    np.testing.assert_array_equal(found.kept, found.class_id > 0)
    np.testing.assert_allclose(found.posterior_none, np.repeat([0, 1], [9, 3]), atol=1e-6)
    np.testing.assert_allclose(found.posterior.sum("class") + found.posterior_none, 1, atol=1e-6)
    np.testing.assert_allclose(found.proportion, [2 / 3, 1 / 3], atol=1e-6)
    assert float(found.proportion_none) == pytest.approx(0.25)
    # They are compared all the same.
    assert np.isfinite(found.log_likelihood).all()
    assert (found.confidence > 0.99).all()
    assert (found.margin[9:] > 1000).all()


def test_what_screening_removes_is_no_matter_of_classes() -> None:
    levels = np.repeat([1.0, -1.0, -50.0], [4, 4, 2])
    params = Level(dark=-9.0, poses=True, outside=-30.0)
    found = emdask.classify(make_stack(levels), CUBES, params).compute()
    assert found.kept.values.tolist() == [True] * 8 + [False] * 2
    assert found.class_id.values.tolist()[-2:] == [0, 0]
    assert (found.log_likelihood[-2:] == -np.inf).all()
    assert (found.posterior[-2:] == 0).all()
    assert (found.posterior_none[-2:] == 1).all()
    assert np.isnan(found.margin[-2:]).all()
    assert (found.confidence[-2:] == 1).all()
    np.testing.assert_array_equal(found.screen_score, levels)
    np.testing.assert_array_equal(np.isnan(found.shift_x_A), ~found.kept)
    np.testing.assert_array_equal(found.shift_x_A[:8], 2 * levels[:8])
    assert found.shift_x_A.attrs["units"] == "Å"
    # Two images are far from all classes, but were not asked.
    assert float(found.proportion_none) == pytest.approx(0.2, abs=1e-6)
    np.testing.assert_allclose(found.proportion, 0.5, atol=0.1)


def test_where_nothing_is_kept_nothing_is_known() -> None:
    found = emdask.classify(make_stack([1.0, 2.0]), CUBES, Level(dark=9.0)).compute()
    assert (found.class_id == 0).all()
    assert np.isnan(found.proportion).all()
    assert np.isnan(found.proportion_high).all()
    assert float(found.proportion_none) == 1


def test_shares_are_of_all_images_and_of_those_that_were_kept() -> None:
    rows = np.log(np.array([[9.0, 1e-9, 1e-9], [9, 1e-9, 1e-9], [1e-9, 9, 1e-9], [1e-9, 1e-9, 9]]))
    rows = np.column_stack([np.vstack([rows, rows[:1]]), [1, 1, 1, 1, 0]]).astype("f4")
    columns = ("class_1", "class_2", "none", "kept")
    shares = estimate_shares(rows, columns=columns)
    np.testing.assert_allclose(shares[0], [2 / 3, 1 / 3, 0.4], atol=1e-6)
    np.testing.assert_allclose(shares[4], [0.5, 0.25, 0.25], atol=1e-6)
    assert np.isnan(shares[1:4, 2]).all()
    judged = judge_images(rows, shares, columns=columns)
    assert judged[:, 5].tolist() == [1, 1, 2, 0, 0]


def test_one_class_has_all_and_no_margin() -> None:
    found = emdask.classify(make_stack([1.0, 0.5]), CUBES[0], Level()).compute()
    assert found.class_id.values.tolist() == [1, 1]
    assert np.isnan(found.margin).all()
    assert found.proportion.values.tolist() == [1.0]
    assert found.proportion_error.values.tolist() == [0.0]


def test_building_computes_nothing_and_tells_what_comes() -> None:
    stack = make_stack(np.linspace(-1, 1, 7)).compute()
    options = {"references": CUBES, "method": Level(poses=True, outside=-9.0)}

    def explode(block: np.ndarray) -> np.ndarray:
        raise AssertionError("was computed")

    images = da.from_array(stack.values, chunks=(2, -1, -1))
    poisoned = images.map_blocks(explode, dtype="f4", meta=np.empty((0, 0, 0), "f4"))
    built = emdask.classify(stack.copy(data=poisoned), **options)
    assert READ == []
    with pytest.raises(AssertionError, match="was computed"):
        built.compute()
    done = emdask.classify(stack, **options).compute()
    assert set(built.data_vars) == set(done.data_vars)
    for name, variable in built.data_vars.items():
        assert isinstance(variable.data, da.Array), name
        assert (variable.dims, variable.shape) == (done[name].dims, done[name].shape), name
        assert variable.dtype == done[name].dtype, name
    dtypes = {"class_id": "i8", "kept": "?", "posterior": "f4", "rot_deg": "f8", "proportion": "f8"}
    assert {name: done[name].dtype for name in dtypes if name in done} == {
        name: np.dtype(dtype) for name, dtype in dtypes.items() if name in done
    }
    assert done.psi_deg.dtype == np.float64
    assert built.attrs["method"] == "test_classify"
    assert (built.attrs["n_images"], built.attrs["pixel_size_A"]) == (7, 2.0)
    (step,) = built.attrs["provenance"]
    assert step["step"] == "test_classify"
    assert step["parameters"]["n_classes"] == 2
    assert step["parameters"]["width"] == 1.0


def test_the_table_is_the_same_for_any_chunks(
    levels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    params = Level(poses=True, outside=-9.0)
    expected = emdask.classify(make_stack(levels, chunk=500), CUBES, params).compute()
    monkeypatch.setattr(lazy, "ROWS_AT_ONCE", 64)
    for chunk in (7, 100):
        found = emdask.classify(make_stack(levels, chunk=chunk), CUBES, params)
        assert max(found.chunks["image"]) <= max(64, chunk)
        xr.testing.assert_identical(found.compute(), expected)


def test_images_are_read_twice_and_the_model_is_made_once() -> None:
    stack = make_stack(np.linspace(-1, 1, 9))
    emdask.classify(stack, CUBES, Level()).compute(scheduler="sync")
    steps = [step for step, _ in READ]
    assert steps == ["sums"] * 3 + ["prepare"] + ["score"] * 3


def test_the_same_call_is_the_same_graph() -> None:
    stack = make_stack([1.0, 2.0])
    tables = [emdask.classify(stack, CUBES, Level(width=w)) for w in (1.0, 1.0, 2.0)]
    tables.append(emdask.classify(stack, CUBES[::-1], Level()))
    names = [table.class_id.data.name for table in tables]
    assert names[0] == names[1]
    assert len(set(names)) == 3
    again = pickle.loads(pickle.dumps(tables[0]))
    xr.testing.assert_identical(again.compute(), tables[0].compute())


def test_optics_go_along_to_sums_and_scores() -> None:
    optics = {"voltage_kV": 300.0, "spherical_aberration_mm": 2.7, "amplitude_contrast": 0.1}
    defoci = np.linspace(1e4, 2e4, 7)
    stack = make_stack(np.ones(7), **optics).assign_coords(defocus_u_A=("image", defoci))
    found = emdask.classify(stack, CUBES, Level(poses=True)).compute()
    # The method tells the defocus in the place of an angle.
    np.testing.assert_allclose(found.psi_deg, defoci, rtol=1e-6)
    name, record, params = "test_classify", METHOD, Level(poses=True)
    opened = emdask.references.open_references(CUBES, stack, "classify")
    model = lazy.prepare_model(
        stack.data,
        np.arange(7),
        record,
        params,
        opened,
        name=name,
        device="cuda",
        optics=emdask.stack.optics_of(stack),
    )
    # Sums that no card can make are made on the host.
    assert model.compute()["defoci"] == defoci.tolist()


def test_references_may_be_images_or_paths(tmp_path: Any) -> None:
    stack = make_stack([1.0, -1.0, 1.0, -3.0])
    expected = emdask.classify(stack, CUBES, Level()).compute()
    paths = [emdask.save_volume(c, tmp_path / f"{i}.mrc") for i, c in enumerate(CUBES)]
    images = make_stack([0.5, -1.0, 1.5]).assign_coords(class_id=("image", [1, 2, 1]))
    for given in (paths, images, emdask.save_stack(images, tmp_path / "images.zarr")):
        found = emdask.classify(stack, given, Level()).compute()
        np.testing.assert_allclose(found.posterior, expected.posterior, atol=1e-6)


def test_plain_arrays_have_the_pixels_of_the_references() -> None:
    images = make_stack([1.0, -1.0]).values
    found = emdask.classify(images, CUBES, Level(poses=True)).compute()
    assert found.attrs["pixel_size_A"] == 2.0
    assert found.image_id.values.tolist() == [0, 1]
    np.testing.assert_array_equal(found.shift_x_A, [2.0, -2.0])
    with pytest.raises(StackError, match="a pixel size must be known, of the references or of"):
        emdask.classify(images, [c.values for c in CUBES], Level())


@pytest.fixture
def sign(monkeypatch: pytest.MonkeyPatch) -> Sign:
    monkeypatch.setitem(globals(), "METHOD", SIGN)
    return Sign()


def test_classes_may_be_found_without_references(sign: Sign) -> None:
    found = emdask.classify(make_stack([2.0, 1.0, -1.0]), method=sign).compute()
    assert found.class_id.values.tolist() == [1, 1, 2]
    assert found.log_likelihood.values.tolist() == [[0, -np.inf], [0, -np.inf], [-np.inf, 0]]
    assert (found.margin == np.inf).all()
    assert not {"rot_deg", "shift_x_A", "screen_score"} & set(found.data_vars)
    # Of images alone, no pixel size is needed.
    plain = emdask.classify(np.ones((2, BOX, BOX)), method=sign)
    assert "pixel_size_A" not in plain.attrs
    with pytest.raises(ParameterError, match="finds classes among the images and takes no ref"):
        emdask.classify(make_stack([1.0]), CUBES, sign)


def test_what_does_not_fit_is_refused_at_once() -> None:
    def refuse(error: type[Exception], match: str, stack: Any = None, **options: Any) -> None:
        stack = make_stack([1.0, 2.0]) if stack is None else stack
        with pytest.raises(error, match=match):
            emdask.classify(stack, **{"references": CUBES, "method": Level(), **options})
        assert READ == []

    refuse(StackError, r"must be square.*got \(8, 6\). Pad", make_stack([1.0])[:, :, :6])
    refuse(ParameterError, "references must be given", references=None)
    refuse(ParameterError, "knows three classes at most", references=[CUBES[0]] * 4)
    refuse(ParameterError, "bad_pixels must be one of", bad_pixels="ignore")
    refuse(ParameterError, "into the record", width=2.0)
    refuse(UnknownMethodError, "classifiers: no method of this name", method="two_stag")
    sizes = make_stack([1.0, 2.0]).assign_coords(pixel_size_A=("image", [2.0, 3.0]))
    refuse(StackError, "classify: images must have one pixel size", sizes)
    refuse(StackError, "not a dataset", xr.Dataset({"images": make_stack([1.0])}))
    bare = make_stack([1.0]).assign_coords(defocus_u_A=("image", [1e4]))
    refuse(StackError, "has defocus_u_A, but for the CTF voltage_kV", bare)


def test_bad_pixels_are_named_or_replaced() -> None:
    spoilt = make_stack([1.0, 1.0, -1.0, 1.0]).compute()
    spoilt[3, 0, 0] = np.nan
    lazy_stack = spoilt.chunk(image=2)
    with pytest.raises(StackError, match="image 3 has 1 NaN"):
        emdask.classify(lazy_stack, CUBES, Level()).compute()
    found = emdask.classify(lazy_stack, CUBES, Level(), bad_pixels="replace").compute()
    assert found.class_id.values.tolist() == [1, 1, 2, 1]


def test_a_device_that_is_named_never_falls_back(sign: Sign) -> None:
    with pytest.raises(DeviceError, match="runs on cpu; got 'cuda'"):
        emdask.classify(make_stack([1.0]), method=sign, device="cuda")


def test_cards_say_the_same(card: str, levels: np.ndarray) -> None:
    stack = make_stack(levels, chunk=100)
    with dask.config.set(scheduler="sync"):
        expected = emdask.classify(stack, CUBES, Level(poses=True)).compute()
        found = emdask.classify(stack, CUBES, Level(poses=True), device=card).compute()
    np.testing.assert_allclose(found.posterior, expected.posterior, atol=1e-6)
    np.testing.assert_array_equal(found.class_id, expected.class_id)


def _where(images: Any, params: Level, model: dict[str, Any], *, optics: Optics | None) -> Any:
    time.sleep(0.02)
    on_card = get_worker().name == "card"
    return array_namespace(images).full((len(images), 4), 2.0 if on_card else 1.0, "f4")


def test_what_needs_a_card_goes_to_it(cuda_on_host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cuda_on_host.strict = True
    monkeypatch.setitem(globals(), "METHOD", replace(METHOD, score={"cpu": _where, "cuda": _where}))
    workers = {
        name: {"cls": Worker, "options": {"nthreads": 2, "resources": own, "name": name}}
        for name, own in {"card": {"GPU": 2}, "plain": {}}.items()
    }
    options = {"dashboard": False, "dashboard_address": "127.0.0.1:0"}
    scheduler = {"cls": Scheduler, "options": options}
    stack = make_stack(np.ones(24), chunk=1)
    with SpecCluster(workers=workers, scheduler=scheduler) as cluster, Client(cluster):
        on_card = emdask.classify(stack, CUBES, Level(), device="cuda").compute()
        anywhere = emdask.classify(stack, CUBES, Level(), device="auto").compute()
    dask.config.config.pop("array_optimize", None)
    assert (on_card.screen_score == 2).all()
    assert set(np.unique(anywhere.screen_score)) == {1, 2}


def test_methods_of_the_family_have_plain_parameters() -> None:
    for name in emdask.method.list_methods(FAMILY):
        record = emdask.method.find_method(FAMILY, name)
        assert isinstance(record, Classifier)
        assert pickle.loads(pickle.dumps(record)).score.keys() == record.score.keys()
        params = record.params()
        assert pickle.loads(pickle.dumps(params)) == params
        assert tokenize(params) == tokenize(record.params())
        assert hasattr(params, "n_classes") is not record.needs_references
    assert classifiers.WHAT == "classify"
