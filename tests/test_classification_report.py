"""The page of a classification shows what was found, and how sure it is."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pytest
import xarray as xr
from PIL import Image

from emdask.class_agreement import build_known, compare_classes
from emdask.classification_plots import (
    draw_confusion,
    draw_embedding,
    draw_histograms,
    draw_proportions,
    usual_range,
)
from emdask.classification_report import (
    Classified,
    agreement_text,
    confusion_table,
    known_numbers,
    proportion_table,
    write_classification,
)
from emdask.embeddings import Sample, choose_sample, embed, read_sample
from emdask.io.classes_output import tabulate_proportions
from tests.fake_classes import fake_averages, fake_table, known_images

N_IMAGES = 90


@pytest.fixture(scope="module")
def stack() -> xr.DataArray:
    return known_images(N_IMAGES).compute().chunk(image=16)


def classify(stack: xr.DataArray, **changes: object) -> Classified:
    fields = {
        "stack": stack,
        "table": fake_table(stack, n_dropped=30, n_wrong=9),
        "method": "two_stage",
        "has_references": True,
        "seconds": 4.5,
        "known": build_known(stack.class_id.values, "<truth>.csv"),
    }
    return Classified(**fields | changes)


def write(folder: Path, classified: Classified) -> str:
    position = choose_sample(classified.stack.chunks[0], 24 * 24 * 4)
    images = read_sample(classified.stack, position)
    points, axis = embed(images.reshape(len(images), -1))
    path = write_classification(
        folder / "r.html",
        classified,
        averages=fake_averages(classified.stack, classified.table),
        sample=Sample(position, images, points, axis),
    )
    return path.read_text(encoding="utf-8")


def headings(page: str) -> list[str]:
    return re.findall(r"<h2>(.*?)</h2>", page)


def headline(page: str) -> dict[str, str]:
    return {what: value for value, what in re.findall(r"<li><b>(.*?)</b><span>(.*?)</span>", page)}


def pictures(page: str) -> dict[str, Image.Image]:
    found = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)"', page)
    return {name: Image.open(io.BytesIO(base64.b64decode(data))) for name, data in found}


@pytest.fixture(scope="module")
def usual(stack, tmp_path_factory) -> tuple[Classified, str]:
    classified = classify(stack)
    return classified, write(tmp_path_factory.mktemp("page"), classified)


def test_page_has_all_parts(usual):
    page = usual[1]
    assert headings(page) == [
        "Proportions",
        "Classes found and known",
        "Class averages",
        "How sure it is",
        "Images kept and left out",
        "Where images lie",
        "How it was made",
    ]
    assert page.count("<svg") == 5
    assert "&lt;truth&gt;.csv" in page
    assert "<truth>" not in page
    first = headline(page)
    assert first["of 90 images in one of 3 classes"] == "60"
    k = int(np.argmax(usual[0].table.proportion.values))
    share = 100 * float(usual[0].table.proportion[k])
    assert first[f"in the largest, class {k + 1}"] == f"{share:.1f} ± 2.0 %"
    # Nine of the sixty that were kept are wrong.
    assert first["of them in the class that is known"] == "85.0 %"
    assert first["wall time, 20 images a second"] == "4.5 s"
    assert "90 images of 24 x 24 pixels of 3 Å; 3 classes, a class for each reference." in page
    for step in ("simulate", "two_stage"):
        assert f"<td>{step}</td>" in page


def test_averages_are_those_given(usual, stack):
    classified, page = usual
    shown = pictures(page)
    averages = fake_averages(stack, classified.table)
    counts = np.bincount(classified.class_id)[1:]
    for k in (1, 2, 3):
        picture = np.asarray(shown[f"Class {k}"], float)
        # Five times as large, and grey levels rise with the mean.
        assert picture.shape == (120, 120)
        small = picture[::5, ::5].ravel()
        assert np.corrcoef(small, averages.values[k - 1].ravel())[0, 1] > 0.98
    assert all(f"{n} images</figcaption>" in page for n in counts)


def test_averages_of_some_of_the_images_say_so(tmp_path, stack):
    classified = classify(stack)
    averages = fake_averages(stack, classified.table).assign_coords(n_images=("class", [5, 0, 7]))
    sample = Sample(np.arange(5), read_sample(stack, np.arange(5)), np.eye(5)[:, :2], "a")
    path = write_classification(tmp_path / "r.html", classified, averages=averages, sample=sample)
    page = path.read_text("utf-8")
    counts = np.bincount(classified.class_id)
    assert f"<b>Class 1</b> 5 of {counts[1]} images</figcaption>" in page
    assert "<b>Class 2</b>" not in page
    assert f"<b>Class 3</b> 7 of {counts[3]} images</figcaption>" in page


def test_montages_are_of_the_ends_of_the_scores(usual):
    classified, page = usual
    page = page.replace("<wbr>", "")
    score = classified.table.screen_score.values
    kept = np.sort(score[classified.class_id > 0])[::-1]
    dropped = np.sort(score[classified.class_id == 0])[::-1]
    captions = dict(re.findall(r"<b>([^<]+)</b> (score of[^<]+)<", page))
    for what, some in (
        ("Kept, highest", kept[:12]),
        ("Kept, lowest", kept[-12:]),
        ("Screened out, highest", dropped[:12]),
        ("Screened out, lowest", dropped[-12:]),
    ):
        expected = f"score of the screening {some.max():.3g} to {some.min():.3g}"
        assert captions[what] == expected


def test_where_nothing_was_left_out_there_is_no_such_part(tmp_path, stack):
    table = fake_table(stack, poses=False)
    page = write(tmp_path, classify(stack, table=table, known=None, has_references=False))
    assert headings(page)[1:4] == ["Class averages", "How sure it is", "Images of the classes"]
    assert "classes, without references" in page
    assert "without references follow views sooner than conformations" in page
    assert page.count("<svg") == 3
    shown = set(pictures(page.replace("<wbr>", "")))
    assert {"Class 1, highest", "Class 1, lowest", "Class 3, highest"} <= shown
    assert not any(name.startswith(("Kept", "Screened")) for name in shown)


def test_images_that_pass_the_screening_may_be_in_no_class(tmp_path, stack):
    table = fake_table(stack, n_dropped=30)
    dropped = np.flatnonzero(table.class_id.values == 0)
    likely = table.log_likelihood.values.copy()
    likely[dropped[:20]] = -3.0
    table["log_likelihood"] = (("image", "class"), likely)
    page = write(tmp_path, classify(stack, table=table))
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in re.findall(r"<tr>(.*?)</tr>", page)]
    counts = {row[0]: row[1] for row in rows if len(row) == 4}
    expected = {"Kept": "60", "In no class": "20", "Screened out": "10"}
    assert expected.items() <= counts.items()
    shown = pictures(page.replace("<wbr>", ""))
    # Ten images are five and five, in two rows of four; twenty are ten and ten.
    assert shown["Screened out, lowest"].size == (4 * 26 - 2, 2 * 26 - 2)
    assert shown["In no class, highest"].size == (4 * 26 - 2, 3 * 26 - 2)


def test_method_that_is_always_sure_has_no_histogram(tmp_path, stack):
    table = fake_table(stack, poses=False)
    table["confidence"] = xr.ones_like(table.confidence)
    table["posterior_none"] = xr.zeros_like(table.posterior_none)
    table["margin"] = xr.full_like(table.margin, np.inf)
    page = write(tmp_path, classify(stack, table=table, has_references=False))
    assert "How sure it is" not in headings(page)
    assert "matched for the best" in page
    # Nor are there images that it is surest of.
    assert not [name for name in pictures(page) if name.endswith("est")]


def test_margins_that_are_infinite_are_left_out(tmp_path, stack):
    table = fake_table(stack)
    table["margin"] = xr.full_like(table.margin, np.inf)
    page = write(tmp_path, classify(stack, table=table))
    assert "posterior of the class assigned" in page
    assert "margin, median" not in page


def test_page_of_images_that_are_all_left_out(tmp_path, stack):
    table = fake_table(stack, n_dropped=1)
    table["class_id"] = xr.zeros_like(table.class_id)
    for name in ("proportion", "proportion_error", "proportion_low", "proportion_high"):
        table[name] = xr.full_like(table[name], np.nan)
    table["proportion_none"] = xr.ones_like(table.proportion_none)
    classified = classify(stack, table=table)
    page = write_empty(tmp_path, classified)
    assert headline(page)["of 90 images in one of 3 classes"] == "0"
    assert "No class has an image." in page
    assert proportion_table(classified.proportions)[1][0] == ("1", "0", "-", "-", "-")


def write_empty(folder: Path, classified: Classified) -> str:
    averages = xr.DataArray(
        np.zeros((3, 24, 24)),
        {"class": [1, 2, 3], "n_images": ("class", [0, 0, 0])},
        dims=("class", "y", "x"),
    )
    position = np.arange(5)
    sample = Sample(position, read_sample(classified.stack, position), np.zeros((5, 2)), "a")
    path = write_classification(folder / "r.html", classified, averages=averages, sample=sample)
    return path.read_text(encoding="utf-8")


def test_known_proportions_are_of_all_images(tmp_path, stack):
    """Those left out count: else the screening's losses would not show."""
    labels = np.repeat([1, 2, 3], [45, 30, 15])
    table = fake_table(stack)
    table["class_id"] = ("image", np.where(np.arange(90) < 40, 0, labels))
    classified = classify(stack, table=table, known=build_known(labels, "a"))
    from emdask.classification_report import _known_shares

    np.testing.assert_allclose(_known_shares(classified.agreement), [1 / 2, 1 / 3, 1 / 6])


def test_confusion_puts_partners_on_the_diagonal():
    known = build_known(["a", "a", "b", "c", "none"], "x")
    agreement = compare_classes(known, [3, 3, 1, 0, 2], 3)
    header, rows = confusion_table(agreement)
    assert header == ("known", "3", "1", "2", "none")
    assert rows == [
        ("a", "2", "0", "0", "0"),
        ("b", "0", "1", "0", "0"),
        ("c", "0", "0", "0", "1"),
        ("none", "0", "0", "1", "0"),
    ]
    assert known_numbers(agreement) == [3, 1, 2]
    assert agreement_text(agreement).endswith(
        "a is taken for class 3, b for 1, c for 2: the best match."
    )


def test_proportions_are_in_percent():
    frame = tabulate_proportions(fake_table(known_images(20), n_dropped=5))
    header, rows = proportion_table(frame)
    assert header == ("class", "images", "proportion", "error", "95 % interval")
    assert rows[-1] == ("none", "5", "25.0 % of all", "", "")
    share = 100 * frame.proportion[0]
    assert rows[0][2:] == (f"{share:.1f} %", "± 2.0 %", f"{share - 4:.1f} to {share + 4:.1f} %")


# Pictures


def test_bars_have_intervals_and_known_marks():
    figure = draw_proportions(["1", "2"], [0.7, 0.3], [0.6, np.nan], [0.8, np.nan], [0.65, np.nan])
    axes = figure.axes[0]
    assert [bar.get_height() for bar in axes.patches] == [0.7, 0.3]
    segments = axes.collections[0].get_segments()
    np.testing.assert_allclose(segments[0][:, 1], [0.6, 0.8])
    np.testing.assert_allclose(segments[1][:, 1], [0.3, 0.3])
    assert axes.lines[-1].get_label() == "known"
    assert axes.get_ylim()[1] > 0.8


def test_cells_have_shares_of_their_row():
    figure = draw_confusion([[1, 3], [0, 0]], ["1", "2"], ["1", "2"])
    texts = [text.get_text() for text in figure.axes[0].texts]
    assert texts == ["25 %\n1", "75 %\n3", "0", "0"]
    many = draw_confusion(np.eye(30, dtype=int), list("x" * 30), list("y" * 30))
    assert not many.axes[0].texts


def test_range_leaves_out_what_is_far_from_all_others(rng):
    values = rng.normal(size=2000)
    low, high = usual_range([*values, -1e9, 1e9])
    assert -6 < low < values.min() + 1
    assert values.max() - 1 < high < 6
    assert usual_range([2.0, 2.0]) == (2.0, 3.0)
    figure = draw_histograms({"a": {"x": [*values, 1e9, np.inf]}}, {"x": "blue"})
    assert "and beyond" in figure.axes[0].get_xlabel()
    # Those beyond are in the outermost bar; what is no number is in none.
    assert sum(bar.get_height() for bar in figure.axes[0].patches) == 2001


def test_dots_have_the_colours_of_their_classes():
    points = np.arange(10.0).reshape(5, 2)
    figure = draw_embedding(points, {"a": ([1, 2, 0, 1, -1], {0: "none", 1: "x", 2: "y"})}, "c")
    axes = figure.axes[0]
    drawn = np.concatenate([dots.get_offsets() for dots in axes.collections])
    assert sorted(map(tuple, drawn.tolist())) == [(0, 1), (2, 3), (4, 5), (6, 7)]
    none, classes = axes.collections
    assert none.get_offsets().tolist() == [[4, 5]]
    colours = {
        tuple(place): tuple(colour)
        for place, colour in zip(
            classes.get_offsets().tolist(), classes.get_facecolors(), strict=True
        )
    }
    assert colours[0, 1] == colours[6, 7] != colours[2, 3]
    assert len(axes.get_legend().get_texts()) == 3
