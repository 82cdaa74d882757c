"""``emdask classify``: particle images to classes, proportions, and a page that shows them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from emdask.averages import NAME as AVERAGES
from emdask.averages import class_averages
from emdask.checks import require, sentence
from emdask.class_agreement import NOT_KNOWN, KnownClasses, build_known
from emdask.classification_report import (
    Classified,
    agreement_rows,
    agreement_text,
    confusion_table,
    proportion_table,
    write_classification,
)
from emdask.classifiers import FAMILY, classify
from emdask.console import Stopwatch, compute_and_follow, count_text, rate_text, say, say_table
from emdask.embeddings import (
    PCA,
    Sample,
    check_embedding,
    choose_sample,
    describe_images,
    embed,
    read_sample,
)
from emdask.errors import EmdaskError, EmdaskWarning, FormatError, StackError
from emdask.io.classes_output import (
    CSV,
    STAR,
    check_classes_target,
    list_image_names,
    save_classes,
    write_csv,
)
from emdask.io.files import check_file
from emdask.io.reading import find_paths
from emdask.io.star_text import parse_star
from emdask.jobs import Source, Workers, check_picture_path, parse_slice
from emdask.lazy import LARGE_GRAPH
from emdask.method import resolve_method
from emdask.stack import image_ids

TRUTH = "--truth"
CLASS_LABELS = ("class_id", "rlnClassNumber", "class", "conformation")
ID_LABELS = ("image_id", "rlnParticleId")
SEPARATORS = {".csv": ",", ".tsv": "\t"}
# A wider table of known and found classes is on the page alone.
WIDEST_TABLE = 12
# Fewer images in classes tell no proportions: of two classes alike, to 18 points.
FEW = 30
# Of proportions, as exactly as they are estimated.
DIGITS = 6


@dataclass(frozen=True, kw_only=True)
class Output:
    """Where classes go.

    Parameters
    ----------
    path
        As of `emdask.io.classes_output.save_classes`.
    all_images
        Whether a STAR file has the images in no class, too.
    proportions
        CSV file of proportions, where asked for.
    report
        HTML page, where asked for.
    overwrite
        Whether existing files give way.
    """

    path: str
    all_images: bool = False
    proportions: str | None = None
    report: Path | None = None
    overwrite: bool = False

    def check(self, inputs: Sequence[str]) -> None:
        """Refuse at once targets that could not be written, or that are the same.

        Raises
        ------
        ParameterError, FileExistsError, FileNotFoundError, PermissionError
        """
        check_classes_target(self.path, overwrite=self.overwrite, inputs=inputs)
        check_picture_path(self.report, (".html",))
        if self.proportions is not None:
            same = Path(self.proportions).absolute() == Path(self.path).absolute()
            require(not same, "--proportions", "must be another file than --out", self.proportions)
            options: dict[str, Any] = {"suffixes": (CSV,), "overwrite": self.overwrite}
            check_classes_target(self.proportions, **options, inputs=inputs)
        rule = "only a STAR file can leave images out; tables have all of them"
        is_star = Path(self.path).suffix.lower() == STAR
        require(is_star or not self.all_images, "--all", rule, self.path, "Leave out --all.")


def classify_files(
    source: Source,
    output: Output,
    *,
    references: Sequence[str],
    method: str,
    parameters: Mapping[str, Any],
    device: str | None,
    bad_pixels: str,
    workers: Workers,
    truth: str | None = None,
    embedding: str = PCA,
) -> None:
    """Classify particle images from files to files.

    Parameters
    ----------
    source
        The images.
    output
        Where classes, proportions and the page go.
    references
        Files of volumes, a class each, or one of reference images.
    method, parameters, device, bad_pixels
        As of `emdask.classify`.
    workers
        Where the work runs.
    truth
        File of known classes; None takes those that the images came with, where they have any.
    embedding
        How the page lays images out: "pca" or "umap".
    """
    check_embedding(embedding)
    inputs = [*find_paths(list(source.paths)), *references, *([truth] if truth else [])]
    name, record, _ = resolve_method(FAMILY, method, parameters)
    output.check(inputs)
    stack = source.open()
    names = list_names(source, output)
    known = open_known(truth, stack) if truth else own_classes(stack)
    options: dict[str, Any] = {"device": device, "bad_pixels": bad_pixels}
    # Before workers start: a wrong parameter or file is to be told at once.
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", EmdaskWarning)
        lazy = classify(stack, list(references) or None, method, **options, **parameters)
    for warning in caught:
        if issubclass(warning.category, EmdaskWarning):
            say(str(warning.message))
        else:
            warnings.warn_explicit(
                warning.message, warning.category, warning.filename, warning.lineno
            )
    with workers.connect(record.score, device) as client:
        watch = Stopwatch()
        table = compute_table(lazy, client, name, len(stack))
        classified = Classified(
            stack=stack,
            table=table,
            method=name,
            has_references=record.needs_references,
            seconds=watch.seconds,
            known=known,
        )
        write_tables(classified, output, names)
        if output.report is not None:
            say(f"report -> {write_page(classified, output.report, client, embedding, **options)}")


def list_names(source: Source, output: Output) -> list[str]:
    """Return where each image lies, where a STAR file is to name them."""
    if Path(output.path).suffix.lower() != STAR:
        return []
    images, folder = parse_slice(source.images), source.project_folder
    return list_image_names(source.paths, output.path, images=images, project_folder=folder)


def compute_table(lazy: xr.Dataset, client: Any, name: str, n_images: int) -> xr.Dataset:
    """Compute the classes on the workers; a bar shows on stderr how many images are done.

    Raises
    ------
    EmdaskError
        If workers died of it.
    """
    import dask
    from distributed import KilledWorker

    try:
        # Dask warns of graphs that hold volumes, with which images are compared: they go out once.
        with dask.config.set({"distributed.admin.large-graph-warning-threshold": LARGE_GRAPH}):
            # All tasks of the method have its name: those of both passes through the images.
            found: xr.Dataset = compute_and_follow(lazy, client, name, f"{name}-", n_images)
    except KilledWorker as error:
        rule = "the worker processes that took it up died, again and again: most often for memory"
        remedy = "Give each worker more memory or take fewer workers (--workers)."
        raise EmdaskError(sentence("classify", rule, remedy=remedy)) from error
    return found


def write_tables(classified: Classified, output: Output, names: Sequence[str]) -> None:
    """Write classes and proportions, and say them.

    Parameters
    ----------
    classified
        The classes.
    output
        Where to.
    names
        Where each image lies, for a STAR file.
    """
    n = len(classified.class_id)
    path = save_classes(
        classified.table,
        output.path,
        stack=classified.stack,
        names=names,
        all_images=output.all_images,
        overwrite=output.overwrite,
    )
    rate = rate_text(n, classified.seconds)
    say(f"{count_text(n)}, {classified.method} ({rate}) -> {path}")
    for line in describe_classes(classified, output):
        say(line)
    say()
    say_table(*proportion_table(classified.proportions))
    say()
    if (agreement := classified.agreement) is not None:
        say(agreement_text(agreement))
        say()
        header, rows = confusion_table(agreement)
        if len(header) <= WIDEST_TABLE:
            say_table(header, rows)
            say()
        say_table((), agreement_rows(agreement))
        say()
    if output.proportions is not None:
        say(f"proportions -> {write_csv(classified.proportions.round(DIGITS), output.proportions)}")


def describe_classes(classified: Classified, output: Output) -> Iterator[str]:
    """Say how many images are in classes, and what becomes of the others.

    Yields
    ------
    str
    """
    n_kept, n = classified.n_kept, len(classified.class_id)
    if n_kept == n:
        yield f"all of them are in one of {len(classified.names)} classes"
        return
    is_star = Path(output.path).suffix.lower() == STAR
    where = f"has all images; those have {CLASS_LABELS[is_star]} 0"
    if is_star and not output.all_images:
        where = "leaves those out; --all writes them as class 0"
    in_classes = f"{n_kept:,} are in one of {len(classified.names)} classes"
    yield f"{in_classes}, {n - n_kept:,} in none: {Path(output.path).name} {where}"
    if n_kept < FEW:
        yield f"Fewer than {FEW}: their proportions say little of the particles'."


def write_page(
    classified: Classified,
    report: Path,
    client: Any,
    embedding: str,
    *,
    device: str | None,
    bad_pixels: str,
) -> Path:
    """Look at averages and at some of the images, and write the page.

    Parameters
    ----------
    classified
        The classes.
    report
        Where to.
    client : distributed.Client
        Whose workers average.
    embedding
        As of `emdask.embeddings.embed`.
    device, bad_pixels
        As of `emdask.class_averages`.

    Returns
    -------
    pathlib.Path
    """
    stack = classified.stack
    lazy = class_averages(stack, classified.table, device=device, bad_pixels=bad_pixels)
    n_images = int(lazy.n_images.sum())
    averages = compute_and_follow(lazy, client, "averages", AVERAGES, n_images)
    image_bytes = 4 * stack.shape[1] * stack.shape[2]
    position = choose_sample(stack.chunks[0] if stack.chunks else [len(stack)], image_bytes)
    images = read_sample(stack, position)
    points, axis = embed(describe_images(images), embedding)
    sample = Sample(position, images, points, axis)
    return write_classification(report, classified, averages=averages, sample=sample)


# What is read beside the images


def parse_view(text: str | None) -> tuple[float, float] | None:
    """Turn "ROT,TILT" into two angles in degrees; None into None.

    Raises
    ------
    ParameterError
        If these are not two numbers.

    Examples
    --------
    >>> parse_view("-10,90"), parse_view(None)
    ((-10.0, 90.0), None)
    """
    if text is None:
        return None
    try:
        rot_deg, tilt_deg = (float(word) for word in text.split(","))
    except ValueError:
        rot_deg = tilt_deg = float("nan")
    rule = "must be ROT,TILT: two angles in degrees, as 0,90"
    require(bool(np.isfinite(rot_deg + tilt_deg)), "--view", rule, text)
    return rot_deg, tilt_deg


def own_classes(stack: xr.DataArray) -> KnownClasses | None:
    """Return the classes that images came with; None where they tell nothing apart."""
    if "class_id" not in stack.coords or len(np.unique(stack.class_id.values)) < 2:
        return None
    return build_known(stack.class_id.values, "those that the images came with")


def open_known(path: str, stack: xr.DataArray) -> KnownClasses:
    """Read the known classes of images.

    Parameters
    ----------
    path
        A STAR file with ``rlnClassNumber``, or ``.csv`` or ``.tsv`` with a column ``class_id``,
        ``class`` or ``conformation``: numbers or words. A row an image; or rows of some of them,
        where ``rlnParticleId`` or ``image_id`` says of which.
    stack : xarray.DataArray, dims (image, y, x)
        The images.

    Returns
    -------
    KnownClasses

    Raises
    ------
    FileNotFoundError, FormatError
        If there is no such file, or no such column.
    StackError
        If rows and images do not go together.
    """
    check_file(path)
    suffix = Path(path).suffix.lower()
    rule = "the name must end in .star, .csv or .tsv"
    require(suffix == STAR or suffix in SEPARATORS, f"{TRUTH} {path}", rule, suffix)
    columns = _read_star(path) if suffix == STAR else _read_text(path, SEPARATORS[suffix])
    labels = np.asarray(next(columns[name] for name in CLASS_LABELS if name in columns))
    number = next((np.asarray(columns[name]) for name in ID_LABELS if name in columns), None)
    if number is None:
        if len(labels) != len(stack):
            rule = f"must have a row for each of the {count_text(len(stack))}"
            remedy = f"Or say which they are, by a column {ID_LABELS[0]}."
            raise StackError(sentence(f"{TRUTH} {path}", rule, f"{len(labels):,} rows", remedy))
        return build_known(labels, path)
    return build_known(_arrange(path, labels, number, image_ids(stack)), path)


def _read_star(path: str) -> Mapping[str, Any]:
    tables = parse_star(Path(path).read_bytes(), path)
    found = [table for table in tables.values() if CLASS_LABELS[1] in table]
    if not found:
        rule = f"must have the label {CLASS_LABELS[1]}"
        raise FormatError(sentence(f"{TRUTH} {path}", rule))
    return found[0]


def _read_text(path: str, separator: str) -> Mapping[str, Any]:
    try:
        frame = pd.read_csv(path, sep=separator, skipinitialspace=True, keep_default_na=False)
    except (ValueError, UnicodeDecodeError) as error:
        rule = f"is no table: {str(error).strip().splitlines()[0]}"
        raise FormatError(sentence(f"{TRUTH} {path}", rule)) from error
    if not any(name in frame for name in CLASS_LABELS):
        rule = f"must have a column {' or '.join(CLASS_LABELS)}"
        raise FormatError(sentence(f"{TRUTH} {path}", rule, ", ".join(map(str, frame.columns))))
    return {str(name): frame[name].to_numpy() for name in frame}


def _arrange(path: str, labels: Any, number: Any, wanted: Any) -> Any:
    """Labels in the order of the images; -1, or no word, where there is none."""
    place = pd.Index(number)
    if place.has_duplicates:
        double = place[place.duplicated()][0]
        rule = "must have one row an image"
        raise StackError(sentence(f"{TRUTH} {path}", rule, f"several for image {double}"))
    rows = place.get_indexer(pd.Index(wanted))
    if (rows < 0).all():
        rule = "has none of these images"
        got = f"image_id {number[0]} ... where the images begin with {wanted[0]}"
        raise StackError(sentence(f"{TRUTH} {path}", rule, got))
    values = labels[rows]
    if values.dtype.kind in "iuf":
        return np.where(rows < 0, -1.0, values)
    return np.where(rows < 0, NOT_KNOWN[0], values.astype(str))
