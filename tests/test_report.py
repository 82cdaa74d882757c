"""The report is one page that needs nothing else and escapes what it is told."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest

from emdask.report import (
    CROP_PX,
    MARK,
    Picture,
    PictureTable,
    Section,
    Table,
    claim_folder,
    draw_power,
    environment_rows,
    picture_images,
    write_report,
)

VOID = {"meta", "img", "br", "path", "use", "rect", "line", "wbr"}


class Balance(HTMLParser):
    """Every element that is opened is closed, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag, attrs):
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture
def page(tmp_path, rng) -> str:
    noisy = rng.normal(size=(3, 24, 24))
    section = Section(
        title="Particles",
        text="a & b",
        pictures=picture_images(noisy, noisy / 2, noisy / 3),
        table=Table(header=("what", "value"), rows=[("sigma", "<1>")]),
        drawing=draw_power(noisy, noisy / 2),
        command="emdask denoise 'a b'",
    )
    path = write_report(
        tmp_path / "r.html", title="<t>", text="", headline=[("1 dB", "x")], sections=[section]
    )
    return path.read_text(encoding="utf-8")


def test_page_is_self_contained(page):
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert all(s.startswith(("data:image/png;base64,", "#")) for s in sources)
    assert "<script" not in page
    assert "url(http" not in page


def test_page_is_balanced_and_escaped(page):
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    for text in ("<h1>&lt;t&gt;</h1>", "a &amp; b", "<td>&lt;1&gt;</td>", "&#x27;a b&#x27;"):
        assert text in page


def test_tables_of_figures_and_of_pictures(tmp_path):
    table = Table(
        header=("SNR", "0.1"),
        rows=[("a:b=1,c=2", "1"), ("d", "2")],
        title="T & U",
        note="n < m",
        is_figures=True,
        bold=[(1, 1)],
        soft=[0],
    )
    picture = Picture(png=b"png", name="a")
    pictures = PictureTable(header=("SNR", "0.1"), rows=[("a", [picture])])
    section = Section(title="s", tables=[table], picture_table=pictures, wide_drawing="<svg></svg>")
    path = write_report(tmp_path / "r.html", title="t", text="", headline=[], sections=[section])
    page = path.read_text(encoding="utf-8")
    parser = Balance()
    parser.feed(page)
    assert parser.open == []
    for text in (
        "<h3>T &amp; U</h3>",
        "n &lt; m",
        '<table class="figures">',
        '<tr class="soft"><td>a:<wbr>b=1,<wbr>c=2</td><td>1</td></tr>',
        "<td><b>2</b></td>",
        '<tr><th>a</th><td><img alt="a" src="data:image/png;base64,cG5n"></td></tr>',
        '<div class="scroll wide"><svg></svg></div>',
    ):
        assert text in page


def test_page_suits_phones_and_dark_rooms(page):
    assert 'name="viewport"' in page
    assert "prefers-color-scheme: dark" in page


def test_pictures_of_particles_and_of_micrographs(rng):
    small = rng.normal(size=(2, 16, 16))
    assert [p.name for p in picture_images(small, small, small)] == [
        "Noisy",
        "Denoised",
        "Clean",
        "Residual",
    ]
    large = rng.normal(size=(1, CROP_PX + 30, CROP_PX + 10))
    names = [p.name for p in picture_images(large, large / 2)]
    assert names == [
        "Noisy, whole",
        "Denoised, whole",
        "Residual, whole",
        "Noisy, middle",
        "Denoised, middle",
        "Residual, middle",
    ]


def test_residual_is_taken_with_the_ctf_where_it_was_corrected(rng):
    noisy, denoised, blurred = rng.normal(size=(3, 2, 16, 16))
    *_, residual = picture_images(noisy, denoised, blurred=blurred)
    assert residual.png == picture_images(noisy, blurred)[-1].png
    assert residual.caption.startswith("noisy − CTF × denoised: should look like noise")
    assert draw_power(noisy, denoised, blurred=blurred) != draw_power(noisy, denoised)


def test_environment_names_versions():
    rows = dict(environment_rows())
    assert rows["numpy"] == np.__version__
    assert int(rows["cores"]) >= 1


def test_a_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "particles.mrcs").write_bytes(b"precious")
    with pytest.raises(FileExistsError, match="no demo made"):
        claim_folder(tmp_path, "demo", "ours")
    with pytest.raises(FileExistsError, match="is a file"):
        claim_folder(tmp_path / "particles.mrcs", "demo", "ours")
    assert [path.name for path in tmp_path.iterdir()] == ["particles.mrcs"]


def test_a_new_folder_gets_the_mark_and_is_known_again(tmp_path):
    folder = tmp_path / "new" / "one"
    claim_folder(folder, "demo", "ours")
    (folder / "more.txt").write_text("of the run")
    claim_folder(folder, "demo", "ours")
    with pytest.raises(FileExistsError, match="no comparison made"):
        claim_folder(folder, "comparison", "theirs")
    assert (folder / MARK).read_text() == "ours"
