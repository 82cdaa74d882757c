"""What the commands of the command line do; `emdask.cli` parses their arguments."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask import classifiers, pickers, reconstructors
from emdask.checks import require
from emdask.console import (
    Stopwatch,
    bytes_text,
    count_text,
    follow_images,
    rate_text,
    say,
    say_table,
)
from emdask.denoisers import FAMILY, denoise, learn_denoiser
from emdask.io import (
    check_model_target,
    check_target,
    open_model,
    open_volume,
    save_model,
    save_stack,
)
from emdask.io.weights import open_weights
from emdask.jobs import IMAGES_SHOWN, PREVIEW_SUFFIXES, Source, Workers, check_picture_path, reopen
from emdask.kernels.ctf import apply_ctf
from emdask.method import (
    Classifier,
    Method,
    Picker,
    Record,
    about,
    find_method,
    learns,
    list_methods,
    resolve_method,
)
from emdask.stack import CORRECTED, optics_of, step_parameters, value_text
from emdask.variables import BY_NAME
from emdask.whiteners import learn_noise, unwhiten, whiten

MICROGRAPHS_SHOWN = 1
IMAGES_OF_NOISE = 4
EIGENIMAGES_SAID = 8
# Command to the family of its methods.
FAMILIES = {
    "denoise": FAMILY,
    "pick": pickers.FAMILY,
    "classify": classifiers.FAMILY,
    "reconstruct": reconstructors.FAMILY,
}


def show_info(source: Source, report: Path | None = None) -> None:
    """Print what a stack is, without reading more than its first images, or what else a file is.

    Parameters
    ----------
    source
        The files.
    report
        HTML page of a model, where asked for.
    """
    if source.is_model:
        show_model(source.paths[0], report)
        return
    remedy = "Make one with: emdask denoise IN OUT --method NAME --save-model MODEL.zarr"
    if source.is_weights:
        remedy = "Of a training emdask train-denoiser --report writes one."
    require(report is None, "--report", "shows what a method has learnt", source.paths[0], remedy)
    if source.is_weights:
        show_weights(source.paths[0])
        return
    if source.is_volume:
        known = open_volume(source.paths[0], pixel_size_A=source.pixel_size_A)
        say_table((), _volume_rows(known, source.paths[0]))
    else:
        known = source.open()
        say_table((), _shape_rows(known, source.paths))
        rows = _coordinate_rows(known)
        if rows:
            say()
            say_table(("known of each image", "unit", "values", "meaning"), rows)
    steps = known.attrs.get("provenance", ())
    if steps:
        say()
        say_table(("step", "parameters"), [_step_row(step) for step in steps])


def show_model(path: str, report: Path | None = None) -> None:
    """Print what a method has learnt.

    Parameters
    ----------
    path
        What `emdask.save_model` wrote.
    report
        HTML page of it, where asked for.
    """
    from emdask.model_report import (
        EIGENIMAGES,
        EIGENVALUES,
        edge_text,
        eigenimage_rows,
        holds_variances,
        variable_rows,
        write_model,
    )

    check_picture_path(report, (".html",))
    model = open_model(path)
    rows = _model_rows(model, path)
    say_table((), rows)
    say()
    say_table(*variable_rows(model))
    if holds_variances(model, EIGENIMAGES):
        say()
        say_table(*eigenimage_rows(model, EIGENIMAGES_SAID))
    if holds_variances(model, EIGENVALUES):
        say()
        say(f"{edge_text(model)}.")
    if report is not None:
        title = f"Model: {model.attrs['method']}"
        write_model(report, model, title=title, about=rows)
        say(f"report -> {report}")


def show_weights(path: str) -> None:
    """Print what the weights of a network are of, and how they were made.

    Parameters
    ----------
    path
        What `emdask.io.weights.save_weights` wrote.
    """
    weights = open_weights(path)
    n_numbers = sum(array.size for array in weights.arrays.values())
    types = ", ".join(sorted({str(array.dtype) for array in weights.arrays.values()}))
    told = dict(weights.about)
    rows = [
        ("file", path),
        ("size", f"{bytes_text(weights.n_bytes)}: {n_numbers:,} numbers, {types}"),
        ("network of", told.pop("method", "no method that it names")),
    ]
    curve = json.loads(told.pop("curve", "[]"))
    rows += sorted(told.items())
    say_table((), rows)
    if curve:
        say()
        header = tuple(name.replace("_", " ") for name in curve[0])
        say_table(header, [tuple(f"{value:.5g}" for value in row.values()) for row in curve])


def _model_rows(model: xr.Dataset, path: str) -> list[tuple[str, ...]]:
    """Name, value and meaning of what holds for all of a model."""
    method = model.attrs["method"]
    record = find_method(FAMILY, method) if method in list_methods(FAMILY) else None
    parameters = {} if record is None else {row[0]: row for row in _parameter_rows(record)}
    rows: list[tuple[str, ...]] = [
        ("file", path, ""),
        ("size", bytes_text(model.nbytes), ""),
        ("learnt by", method, "" if record is None else about(record)),
    ]
    for name, value in model.attrs.items():
        if name != "method":
            _, _, unit, meaning = parameters.get(name, (name, "", unit_of(str(name)), ""))
            # Words, as auto, have no unit.
            text = value if isinstance(value, str) else f"{value_text(value)} {unit}".rstrip()
            rows.append((str(name), text, meaning))
    return rows


def _shape_rows(stack: xr.DataArray, paths: Sequence[str]) -> list[tuple[str, str]]:
    n, h, w = stack.shape
    chunk = stack.chunks[0][0] if stack.chunks else n
    chunk_bytes = chunk * h * w * stack.dtype.itemsize
    rows = [
        ("file", ", ".join(paths)),
        ("images", f"{n:,} of {w} x {h} pixels (x, y), {stack.dtype}"),
        ("size", bytes_text(stack.nbytes)),
        ("chunks", f"{count_text(chunk)}, {bytes_text(chunk_bytes)} each"),
    ]
    return [*rows, *_attribute_rows(stack), ("noise", _noise_text(stack))]


def _attribute_rows(known: xr.DataArray) -> list[tuple[str, str]]:
    rows = []
    for name, value in known.attrs.items():
        if isinstance(value, Mapping):
            rows.append(
                (f"{name} tables", f"{', '.join(value)}; kept, and written with STAR files")
            )
        elif name != "provenance":
            rows.append((name, f"{value_text(value)} {unit_of(name)}".rstrip()))
    return rows


def unit_of(name: str) -> str:
    """Return the unit of an attribute, of the table of variables or of its own name; "" for none.

    Examples
    --------
    >>> unit_of("voltage_kV"), unit_of("resolution_A"), unit_of("box_px"), unit_of("band")
    ('kV', 'Å', 'px', '')
    """
    if name in BY_NAME:
        return BY_NAME[name].unit
    return {"A": "Å", "px": "px"}.get(name.rpartition("_")[2], "")


def _volume_rows(volume: xr.DataArray, path: str) -> list[tuple[str, str]]:
    values, n = volume.values, volume.shape[0]
    edge_A = n * volume.attrs["pixel_size_A"]
    low, high, total = float(values.min()), float(values.max()), values.sum(dtype=np.float64)
    mean, deviation = values.mean(dtype=np.float64), values.std(dtype=np.float64)
    return [
        ("file", path),
        ("volume", f"{n} x {n} x {n} voxels, {edge_A:g} Å on edge"),
        *_attribute_rows(volume),
        ("values", f"{low:.4g} to {high:.4g}, mean {mean:.4g}, standard deviation {deviation:.4g}"),
        ("sum", f"{total:.6g}"),
    ]


def _noise_text(stack: xr.DataArray) -> str:
    """Standard deviation of the noise of the first images, as far as it is white."""
    from emdask.kernels.noise import estimate_sigma

    first = stack[: IMAGES_OF_NOISE if stack.attrs.get("kind") == "particles" else 1]
    sigmas = estimate_sigma(first.values)
    which = "image" if len(sigmas) == 1 else f"{len(sigmas)} images"
    values = ", ".join(f"{sigma:.4g}" for sigma in sigmas)
    return f"sigma {values} grey levels (estimated in the first {which})"


def _coordinate_rows(stack: xr.DataArray) -> list[tuple[str, str, str, str]]:
    rows = []
    for name, coordinate in stack.coords.items():
        variable = BY_NAME.get(str(name))
        of_star = "column of the STAR file, kept as it is" if str(name).startswith("rln") else ""
        unit, meaning = (variable.unit, variable.meaning) if variable else ("", of_star)
        rows.append((str(name), unit, _range_text(coordinate.values), meaning))
    return rows


def _range_text(values: Any) -> str:
    if values.dtype.kind in "iuf":
        low, high = values.min(), values.max()
        return value_text(low) if low == high else f"{value_text(low)} to {value_text(high)}"
    different = np.unique(values.astype(str))
    return str(different[0]) if len(different) == 1 else f"{len(different):,} different"


def _step_row(step: Mapping[str, Any]) -> tuple[str, str]:
    pairs = (f"{name}={text}" for name, text in step_parameters(step).items())
    return str(step["step"]), ", ".join(pairs)


def show_methods(name: str | None = None) -> None:
    """Print the methods, or the parameters of one, from their records.

    Parameters
    ----------
    name
        Of one method; None for all.
    """
    if name is None:
        for number, (command, family) in enumerate(FAMILIES.items()):
            if number:
                say()
            records = {method: find_method(family, method) for method in list_methods(family)}
            rows = [(method, *_method_cells(record)) for method, record in records.items()]
            header = (f"emdask {command} --method", "runs on", "learns", "what it does")
            say_table(header, rows)
        say()
        say("emdask methods --method NAME shows the parameters of one.")
        return
    commands = [c for c, family in FAMILIES.items() if name in list_methods(family)] or ["denoise"]
    for number, command in enumerate(commands):
        if number:
            say()
        record = find_method(FAMILIES[command], name)
        say(about(record))
        say(f"Runs on {', '.join(_devices(record))}.")
        say()
        say_table(("parameter", "default", "unit", "meaning"), _parameter_rows(record))
        say()
        files = "PARTICLES --out OUT" if command == "classify" else "IN OUT"
        example = f"--method {name} --parameter VALUE, with - for _ in the name."
        say(f"emdask {command} {files} {example}")


def _method_cells(record: Record) -> tuple[str, str, str]:
    """Devices, whether it learns, and what it does."""
    learns_first = isinstance(record, Method) and record.learn is not None
    return ", ".join(_devices(record)), "yes" if learns_first else "", about(record)


def _devices(record: Record) -> Iterable[str]:
    if isinstance(record, Picker | Classifier):
        return record.score
    return record.apply if isinstance(record, Method) else record.insert


def _parameter_rows(method: Record) -> list[tuple[str, str, str, str]]:
    """Name, default, unit and meaning of each parameter."""
    return [
        (field.name, default_text(field), field.metadata.get("unit", ""), field.metadata["meaning"])
        for field in dataclasses.fields(method.params)
    ]


def default_text(field: dataclasses.Field[Any]) -> str:
    """Default of a parameter; a dash where the method chooses it."""
    return "-" if field.default is None else str(field.default)


def convert_files(
    source: Source, out: str, *, dtype: str | None, resume: bool, overwrite: bool
) -> None:
    """Copy a stack into another format.

    Parameters
    ----------
    source
        The files.
    out
        Target; its ending says the format.
    dtype
        Type of the pixels written; None keeps it.
    resume, overwrite
        As of `emdask.save_stack`.
    """
    stack = source.open()
    if dtype is not None:
        require(_is_real(dtype), "convert", "dtype must be a type of real numbers", dtype)
    check_target(stack, out, resume=resume, overwrite=overwrite, dtype=dtype)
    watch = Stopwatch()
    with follow_images("convert", stack.shape[0]) as on_progress:
        path = save_stack(
            stack, out, resume=resume, overwrite=overwrite, dtype=dtype, on_progress=on_progress
        )
    say(f"{count_text(stack.shape[0])} ({rate_text(stack.shape[0], watch.seconds)}) -> {path}")


def _is_real(dtype: str) -> bool:
    try:
        return np.dtype(dtype).kind in "iuf"
    except TypeError:
        return False


def denoise_files(
    source: Source,
    out: str,
    *,
    method: str,
    parameters: Mapping[str, Any],
    device: str | None,
    bad_pixels: str,
    workers: Workers,
    resume: bool,
    overwrite: bool,
    preview: Path | None,
    report: Path | None,
    whiten_noise: bool = False,
    model: Path | None = None,
    keep_model: Path | None = None,
) -> None:
    """Denoise a stack from files to files.

    Parameters
    ----------
    source
        The files.
    out
        Target; its ending says the format.
    method, parameters, device, bad_pixels
        As of `emdask.denoise`.
    workers
        Where the work runs.
    resume, overwrite
        As of `emdask.save_stack`.
    preview, report
        Picture and HTML page of the first images, where asked for.
    whiten_noise
        Whether the noise is made white first, and the result coloured again.
    model, keep_model
        What the method has learnt before, and where to keep what it learns now.
    """
    for path, suffixes in ((preview, PREVIEW_SUFFIXES), (report, (".html",))):
        check_picture_path(path, suffixes)
    if resume and keep_model is not None and keep_model.exists():
        # The interrupted run has learnt it.
        model, keep_model = keep_model, None
    _, record, params = resolve_method(FAMILY, method, parameters)
    if keep_model is not None:
        wanted = learns(record, params)
        rule = "does not go with --model" if wanted else f"{method} learns nothing from the stack"
        require(wanted and model is None, "--save-model", rule)
        rule = "must be another place than OUT"
        require(keep_model.absolute() != Path(out).absolute(), "--save-model", rule, out)
        check_model_target(keep_model, overwrite=overwrite)
    stack = source.open()
    plan = Plan(
        method=method,
        parameters=parameters,
        device=device,
        bad_pixels=bad_pixels,
        whiten_noise=whiten_noise,
        learns=learns(record, params),
        model=_open_model(record, model),
    )
    # Before workers start: a wrong parameter or target is to be told at once.
    check_target(plan.build(stack), out, resume=resume, overwrite=overwrite)
    corrects = record.corrects is not None and record.corrects(params)
    if corrects and not _is_ctf_settled(stack):
        say(f"No defocus is known of these images: their CTF stays.{_star_hint(source)}")
    with workers.connect(record.apply, device) as client:
        watch = Stopwatch()
        plan = plan.learn(stack)
        if keep_model is not None and plan.model is not None:
            save_model(plan.model, keep_model, overwrite=overwrite)
        clean = plan.build(stack)
        with follow_images(method, stack.shape[0], client.dashboard_link) as on_progress:
            path = save_stack(
                clean, out, resume=resume, overwrite=overwrite, on_progress=on_progress
            )
        seconds = watch.seconds
    n_images = stack.shape[0]
    say(f"{count_text(n_images)}, {method} ({rate_text(n_images, seconds)}) -> {path}")
    if preview is not None:
        save_preview(stack, clean, path, preview, f"{source.paths[0]}, {method}")
        say(f"picture -> {preview}")
    if report is not None:
        save_report(stack, clean, path, report, seconds, plan)
        say(f"report -> {report}")


def _open_model(record: Method, model: Path | None) -> Any:
    """Open a model; names of networks that ship, and weights, are for the method to open."""
    if model is None or record.load is not None:
        return None if model is None else str(model)
    return open_model(model)


def _is_ctf_settled(stack: xr.DataArray) -> bool:
    """Whether there is a defocus to correct the CTF by, or something has been done about it."""
    return "defocus_u_A" in stack.coords or stack.attrs.get("ctf_state") is not None


def _star_hint(source: Source) -> str:
    """Name the STAR file beside images that were opened without it."""
    path = Path(source.paths[0])
    star = path.with_suffix(".star")
    is_beside = len(source.paths) == 1 and path.suffix in (".mrc", ".mrcs") and star.is_file()
    return f" If {star} tells it, open that instead." if is_beside else ""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a stack is denoised, step by step.

    Parameters
    ----------
    method, parameters, device, bad_pixels
        As of `emdask.denoise`.
    whiten_noise
        Whether the noise is made white first, and the result coloured again.
    learns
        Whether the method needs a model.
    noise, model
        What was learnt, or a Delayed of it; None before.
    """

    method: str
    parameters: Mapping[str, Any]
    device: str | None
    bad_pixels: str
    whiten_noise: bool
    learns: bool
    noise: Any = None
    model: Any = None

    def learn(self, stack: xr.DataArray) -> Plan:
        """Read the stack once for the noise and once for the model, where they are needed."""
        plan = self
        if self.whiten_noise:
            say(f"Measuring the noise of {count_text(len(stack))} ...")
            noise = learn_noise(stack, bad_pixels=self.bad_pixels).compute()
            plan = dataclasses.replace(plan, noise=noise)
        if self.learns and self.model is None:
            say(f"{self.method} learns from {count_text(len(stack))} ...")
            given = plan.prepare(stack)
            options = {"bad_pixels": self.bad_pixels, **self.parameters}
            model = learn_denoiser(given, self.method, **options).compute()
            plan = dataclasses.replace(plan, model=model)
        return plan

    def prepare(self, stack: xr.DataArray) -> xr.DataArray:
        """Return what the method is given."""
        if not self.whiten_noise:
            return stack
        options: dict[str, Any] = {"device": self.device, "bad_pixels": self.bad_pixels}
        return whiten(stack, self.noise, **options)  # type: ignore[no-any-return]

    def build(self, stack: xr.DataArray) -> xr.DataArray:
        """Return the lazy result; what is not learnt yet is learnt within its graph."""
        plan = self
        if self.whiten_noise and self.noise is None:
            noise = learn_noise(stack, bad_pixels=self.bad_pixels)
            plan = dataclasses.replace(self, noise=noise)
        options = {"device": self.device, "bad_pixels": self.bad_pixels, **self.parameters}
        clean = denoise(plan.prepare(stack), self.method, model=self.model, **options)
        if self.whiten_noise:
            clean = unwhiten(clean, plan.noise, device=self.device)
        return clean  # type: ignore[no-any-return]


def first_images(noisy: xr.DataArray, denoised_path: str | Path) -> tuple[Any, Any]:
    """Read the first images before and after: some particles, or one micrograph."""
    n = IMAGES_SHOWN if noisy.attrs.get("kind") == "particles" else MICROGRAPHS_SHOWN
    before = noisy[:n].values.astype(np.float32)
    return before, reopen(denoised_path)[:n].values.astype(np.float32)


def blur_denoised(
    noisy: xr.DataArray, denoised: xr.DataArray, after: npt.NDArray[Any]
) -> npt.NDArray[Any] | None:
    """Give the first denoised images their CTF again where it was corrected; None elsewhere.

    Parameters
    ----------
    noisy, denoised
        Stacks before and after; only what is known of them is read.
    after : array, shape (n, h, w)
        Pixels of the first images after.

    Returns
    -------
    float32 array, shape (n, h, w), or None
        What the images before are, but for the noise.
    """
    if denoised.attrs.get("ctf_state") != CORRECTED:
        return None
    optics = optics_of(noisy[: len(after)])
    if optics is None:
        return None
    ctfs = optics.ctfs(after.shape[1:], len(after))
    return np.asarray(apply_ctf(after, ctfs), np.float32)


def save_preview(
    noisy: xr.DataArray,
    denoised: xr.DataArray,
    denoised_path: str | Path,
    picture: Path,
    title: str,
) -> None:
    """Draw the first images before and after into a file."""
    from emdask.plots import draw_images, save_figure

    before, after = first_images(noisy, denoised_path)
    blurred = blur_denoised(noisy, denoised, after)
    residual = {"before - after": before - after}
    if blurred is not None:
        residual = {"before - CTF × after": before - blurred}
    pictures = {"before": before, "after": after, **residual}
    pixel_size_A = noisy.attrs.get("pixel_size_A")
    save_figure(draw_images(pictures, pixel_size_A=pixel_size_A, title=title), picture)


def save_report(
    noisy: xr.DataArray,
    denoised: xr.DataArray,
    denoised_path: str | Path,
    page: Path,
    seconds: float,
    plan: Plan,
) -> None:
    """Write an HTML page of the first images before and after, as far as is known without truth.

    What was taken away is judged as white noise, after whitening where the noise is known.
    """
    from emdask.kernels.noise import estimate_sigma
    from emdask.kernels.whitening import whiten_images
    from emdask.metrics import low_frequency_ratio
    from emdask.model_report import model_sections
    from emdask.report import (
        Section,
        Table,
        draw_power,
        environment_text,
        picture_images,
        provenance_rows,
        write_report,
    )

    before, after = first_images(noisy, denoised_path)
    blurred = blur_denoised(noisy, denoised, after)
    residual = before - (after if blurred is None else blurred)
    sigma = float(estimate_sigma(before).mean())
    judged = residual
    if plan.noise is not None:
        judged = whiten_images(residual, plan.noise.frequency.values, plan.noise.power.values)
    ratio = float(low_frequency_ratio(judged).mean())
    which = "residual" if plan.noise is None else "whitened residual"
    low_frequencies = f"low-frequency power of the {which}, white noise = 1"
    # About the mean of each image: grey levels of an image may lie on a background of its own.
    deviation = float(np.sqrt(residual.var(axis=(-2, -1)).mean()))
    rows = [
        ("noise before, estimated sigma", f"{sigma:.4g}"),
        ("standard deviation of the residual", f"{deviation:.4g}"),
        (low_frequencies, f"{ratio:.3f}"),
    ]
    learnt = [
        section
        for model in (plan.noise, plan.model)
        if isinstance(model, xr.Dataset)
        for section in model_sections(model)
    ]
    n, h, w = noisy.shape
    some = f" {len(before)}" if len(before) > 1 else ""
    part = "" if len(before) == n else f"; pictures and figures are of the first{some}"
    write_report(
        page,
        title=f"Denoised with {plan.method}",
        text=f"{count_text(n)} of {w} x {h} pixels{part}.",
        headline=[
            (f"{seconds:.3g} s", "wall time"),
            (f"{n / seconds:.3g}", "images a second"),
            (f"{ratio:.2f}", low_frequencies),
        ],
        sections=[
            Section(
                title="Pictures",
                pictures=picture_images(before, after, blurred=blurred),
                n_columns=3,
            ),
            Section(
                title="Figures",
                table=Table(header=("", ""), rows=rows),
                drawing=draw_power(
                    before, after, None, noisy.attrs.get("pixel_size_A"), blurred=blurred
                ),
            ),
            *learnt,
            Section(
                title="How it was made",
                table=Table(header=("step", "parameters"), rows=provenance_rows(denoised.attrs)),
                text=environment_text(),
            ),
        ],
    )
