"""The page of picks has the micrographs, scores and particles that were picked."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import xarray as xr
from PIL import Image

from emdask.pick_report import (
    Picked,
    choose_micrographs,
    extract_boxes,
    group_scores,
    match_table,
    read_micrograph,
    summary_rows,
    write_picks_page,
)
from emdask.pickers import build_search, pick
from emdask.picks import NAMES as ALL_NAMES
from emdask.picks import build_picks
from emdask.stack import build_stack
from tests.fake_micrographs import (
    CENTRES,
    DIAMETER_PX,
    NAMES,
    PIXEL_SIZE_A,
    draw_micrograph,
    known_picks,
)

THRESHOLD = 4.0


def micrographs() -> xr.DataArray:
    images = np.stack([draw_micrograph(centres, i) for i, centres in enumerate(CENTRES)])
    attrs = {"kind": "micrographs", "pixel_size_A": PIXEL_SIZE_A}
    return build_stack(images, {"micrograph": list(NAMES)}, attrs)


def picked(picks: pd.DataFrame | None = None, **changed: object) -> Picked:
    stack = micrographs()
    if picks is None:
        options = {"diameter_px": DIAMETER_PX, "threshold": THRESHOLD}
        picks = pick(stack, "log", **options).compute()
    search = build_search(stack, "log", diameter_px=DIAMETER_PX, threshold=THRESHOLD)
    words = {
        "micrographs": stack,
        "picks": picks,
        "search": search,
        "parameters": {},
        "device": "cpu",
        "seconds": 1.5,
    }
    return Picked(**(words | changed))


def no_picks() -> pd.DataFrame:
    return build_picks({"micrograph": [], "x_px": [], "y_px": [], "score": []}, NAMES)


def write(tmp_path: Path, found: Picked) -> str:
    return write_picks_page(tmp_path / "a.html", found).read_text(encoding="utf-8")


def titles(page: str) -> list[str]:
    return re.findall("<h2>([^<]+)</h2>", page)


def pictures(page: str) -> dict[str, np.ndarray]:
    found = re.findall(r'<img alt="([^"]+)" src="data:image/png;base64,([^"]+)"', page)
    return {n: np.asarray(Image.open(io.BytesIO(base64.b64decode(data)))) for n, data in found}


def test_page_shows_micrographs_scores_particles_and_counts(tmp_path):
    found = picked(truth=known_picks())
    page = write(tmp_path, found)
    assert titles(page)[0] == "Picks and known particles"
    assert set(titles(page)[1:4]) == {"m1", "m2", "m3"}
    assert titles(page)[4:] == [
        "Scores",
        "The particles",
        "Picks of each micrograph",
        "How it was made",
    ]
    n = len(found.picks)
    assert f"<b>{n}</b><span>particles</span>" in page
    assert "3 micrographs of 200 x 160 pixels of 3 Å; a particle has a diameter of 20 px." in page
    told = "diameter_px = 20, threshold = 4, spacing = 0.5, border_px = 0, contrast = dark"
    assert f"method = log, {told}" in page
    # A circle each, and three pictures with a map each, a histogram, a curve and the counts.
    assert page.count("<svg") == 6


def test_mean_of_the_particles_is_light_in_the_middle(tmp_path):
    centres = [(x, y) for y in range(25, 140, 30) for x in range(25, 180, 30)]
    image = draw_micrograph(tuple(centres), 5)
    stack = build_stack(image[None], {"micrograph": ["m.mrc"]}, {"kind": "micrographs"})
    x_px, y_px = np.transpose(centres)
    score = np.linspace(9, 4, len(centres))
    columns = {"micrograph": "m.mrc", "x_px": x_px, "y_px": y_px, "score": score}
    found = picked(build_picks(pd.DataFrame(columns)), micrographs=stack)
    seen = pictures(write(tmp_path, found))
    assert {*seen} == {
        *("Best", "Median", "Worst"),
        *(f"Mean of the {name} third" for name in ("best", "middle", "worst")),
    }
    mean = seen["Mean of the best third"].astype(float)
    n = len(mean)
    middle, border = mean[3 * n // 8 : 5 * n // 8, 3 * n // 8 : 5 * n // 8], mean[: n // 8]
    assert middle.mean() > border.mean() + 80


def test_thumbnails_are_in_the_order_of_the_scores():
    known = known_picks().assign(score=[4.0, 9.0, 5.0, 8.0, 6.0, 7.0, 10.0, 4.5])
    best_first = known.sort_values("score", ascending=False)
    found = picked(known)
    images = extract_boxes(found, best_first, [2, 0])
    assert images.shape[0] == 8
    for i, (_, row) in enumerate(best_first.iterrows()):
        alone = extract_boxes(found, best_first.iloc[i : i + 1], [NAMES.index(row.micrograph)])
        np.testing.assert_array_equal(images[i], alone[0])


@pytest.mark.parametrize("truth", [None, known_picks()])
def test_nothing_picked_is_a_page_as_well(tmp_path, truth):
    page = write(tmp_path, picked(no_picks(), truth=truth))
    assert "<b>0</b><span>particles</span>" in page
    assert "of 3 micrographs without a particle" in page
    assert "The particles" not in titles(page)
    assert summary_rows(picked(no_picks()))[1] == ("particles", "0")


def test_bad_pixels_are_shown_as_the_median():
    found = picked()
    stack = found.micrographs.copy(data=found.micrographs.values.copy())
    stack[0, :9, :9] = np.nan
    image = read_micrograph(stack, 0).values[0]
    assert np.isfinite(image).all()
    assert image[0, 0] == np.median(stack.values[0][np.isfinite(stack.values[0])])
    bad = picked(found.picks, micrographs=stack)
    assert np.isfinite(extract_boxes(bad, found.picks[found.picks.x_px > 30][:3], [0])).all()


def test_micrographs_that_nobody_labelled_are_not_judged():
    truth = known_picks()
    truth = truth[truth.micrograph == "m3.mrc"]
    truth.attrs[ALL_NAMES] = ("m3.mrc",)
    alone = picked(truth=truth)
    for found in alone.matches.values():
        assert found.micrographs == ("m3.mrc",)
        assert len(found.truth) == 3
    header, rows = match_table(alone.matches)
    assert [row[0] for row in rows] == ["0.2 d", "0.5 d"]
    assert len(header) == len(rows[0])
    assert rows[1][2] == "1.000"


def test_no_picks_have_no_best_score():
    empty = build_picks({"micrograph": [], "x_px": [], "y_px": [], "score": []}, NAMES)
    alone = picked(empty, truth=known_picks())
    assert [row[1:] for row in match_table(alone.matches)[1]] == [
        ("-", "0.000", "0.000", "0.000", "0.000", "-")
    ] * 2


def test_many_micrographs_are_told_by_the_extremes(tmp_path):
    n = 50
    image = draw_micrograph(CENTRES[0], 0)
    names = [f"m{i:03d}.mrc" for i in range(n)]
    stack = build_stack(np.broadcast_to(image, (n, *image.shape)), {"micrograph": names}, {})
    rows = [(name, 90.0, 80.0, 5.0) for i, name in enumerate(names) for _ in range(i)]
    table = pd.DataFrame(rows, columns=["micrograph", "x_px", "y_px", "score"])
    page = write(tmp_path, picked(build_picks(table, names), micrographs=stack))
    assert "The 10 with the fewest and the 10 with the most." in page
    assert "<td>m000</td>" in page
    assert "<td>m049</td>" in page
    assert "<td>m025</td>" not in page
    assert titles(page)[:3] in (["m049", "m025", "m000"], ["m049", "m024", "m000"])


def test_shown_micrographs_reach_from_most_to_fewest():
    assert choose_micrographs([7]) == [0]
    assert choose_micrographs([0, 9]) == [1, 0]
    assert choose_micrographs([4, 4, 4, 4, 4])[0] == 0
    counts = np.array([5, 90, 10, 20, 0, 30, 40])
    assert counts[choose_micrographs(counts)].tolist() == [90, 20, 0]


@pytest.mark.parametrize("n", [1, 12, 13, 20, 500])
def test_groups_of_thumbnails_lie_within_the_particles(n):
    groups = group_scores(n)
    assert all(0 <= rows.start < rows.stop <= n for rows in groups.values())
    assert {*groups} == ({"All"} if n <= 12 else {"Best", "Median", "Worst"})
