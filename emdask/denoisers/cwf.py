"""CWF: particles are Gaussian in a steerable basis, of mean and covariance learnt from all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.backend import array_namespace, run_on, to_device
from emdask.blocks_cuda import working_bytes
from emdask.checks import check_choice, check_number, check_sigma, sentence
from emdask.errors import StackError
from emdask.kernels.covariance import (
    CoefficientSums,
    add_sums,
    estimate_covariance,
    sum_coefficients,
)
from emdask.kernels.ctf import Optics
from emdask.kernels.steerable import SteerableBasis, evaluate, steerable_basis
from emdask.kernels.steerable_images import expand_images
from emdask.kernels.steerable_wiener import filter_coefficients
from emdask.kernels.transforms import to_images
from emdask.kernels.whitening import corner_mask
from emdask.method import Learn, Method, parameter

# Frequencies up to that of a box of so many pixels are worked on: the basis of it takes 84 MB, and
# time and memory grow with the fourth power.
LARGEST_BOX_PX = 128
LEAST_BOX_PX = 8
N_EIGENIMAGES = 32
# Components of less variance than this part of the strongest one are nothing.
LEAST_VARIANCE = 1e-7
# Images that are worked on together.
BATCH = 256
LEVELS, SQUARES = "grey levels", "grey levels²"

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Cwf:
    """Parameters of covariance Wiener filtering.

    Parameters
    ----------
    sigma
        Standard deviation of the white noise in grey levels, or "auto": that of the corners of the
        stack's images.
    ctf
        "correct" returns what the particles are like without the CTF of their images, "keep" with
        it. It plays no part where the stack knows no defocus.
    shrinkage
        How eigenvalues are freed of noise: "frobenius" or "operator", by which norm of the error.
    radius_px
        Of the disc, around the middle of the image, that holds the particle; "auto": half the box.
    max_frequency
        Of what is worked on, cycles a pixel; "auto": 0.5 (Nyquist) up to boxes of 128 px, and 64 /
        box above. What is finer is lost.

    Raises
    ------
    ParameterError
        If a parameter is out of range.
    """

    sigma: Literal["auto"] | float = parameter(
        "auto", "standard deviation of the noise; auto: that of the corners", "grey levels"
    )
    ctf: Literal["correct", "keep"] = parameter(
        "correct", "return particles freed of the CTF of their images, or with it"
    )
    shrinkage: Literal["frobenius", "operator"] = parameter(
        "frobenius", "by which norm of the error eigenvalues are shrunk"
    )
    radius_px: Literal["auto"] | float = parameter(
        "auto", "of the disc that holds the particle; auto: half the box", "px"
    )
    max_frequency: Literal["auto"] | float = parameter(
        "auto", "of what is worked on; auto: Nyquist, or that of a box of 128 px", "cycles/px"
    )

    def __post_init__(self) -> None:
        check_sigma("cwf", self.sigma)
        check_choice("cwf", "ctf", self.ctf, ("correct", "keep"))
        check_choice("cwf", "shrinkage", self.shrinkage, ("frobenius", "operator"))
        if self.radius_px != "auto":
            check_number("cwf", "radius_px", self.radius_px, 2, 1e6)
        if self.max_frequency != "auto":
            check_number("cwf", "max_frequency", self.max_frequency, 0, 0.5)


def complete(params: Cwf, attrs: Mapping[str, Any], shape: tuple[int, ...]) -> Cwf:
    """Settle the basis for images of this size, and refuse what are no particles.

    Raises
    ------
    StackError
        If the images are micrographs, or are not square.
    """
    height, width = shape[-2:]
    remedy = "Extract the particles into boxes first."
    if attrs.get("kind") == "micrographs":
        raise StackError(sentence("cwf", "needs particle images, not micrographs", remedy=remedy))
    if height != width or width < LEAST_BOX_PX:
        rule = f"images must be square, of at least {LEAST_BOX_PX} x {LEAST_BOX_PX} pixels"
        raise StackError(sentence("cwf", rule, f"{width} x {height}", remedy))
    radius_px = width / 2 if params.radius_px == "auto" else params.radius_px
    check_number("cwf", "radius_px", radius_px, 2, width / 2)
    frequency = params.max_frequency
    if frequency == "auto":
        frequency = 0.5 * min(1, LARGEST_BOX_PX / width)
    check_number("cwf", "max_frequency", frequency, 2 / width, 0.5)
    return replace(params, radius_px=radius_px, max_frequency=frequency)


def find_basis(box_px: int, params: Mapping[str, Any]) -> SteerableBasis:
    """Return the basis of completed parameters, or of the attributes of a model."""
    return steerable_basis(box_px, radius_px=params["radius_px"], band=params["max_frequency"])


# --- Learning -------------------------------------------------------------------------------------


class StackSums(NamedTuple):
    """What is added up over the images of a stack.

    Parameters
    ----------
    coefficients
        Of the expansion.
    box_px
        Side of an image.
    n_images
        How many.
    background, square
        Sums over the images of the mean of their corners, and of the variance about it there.
    """

    coefficients: CoefficientSums
    box_px: int
    n_images: int
    background: float
    square: float


def sum_images(
    images: npt.NDArray[Any],
    image_ids: npt.NDArray[Any],
    params: Cwf,
    n_images: int = 1,
    *,
    optics: Optics | None = None,
    device: str = "cpu",
) -> StackSums:
    """Add up what mean and covariance are made of, on the processor or a card.

    Parameters
    ----------
    images
        Noisy images in grey levels, (n, h, h).
    image_ids, n_images
        Play no part.
    params
        Completed parameters.
    optics
        Of the images; None where they have no CTF.
    device
        "cpu" or "cuda".

    Returns
    -------
    StackSums
    """
    box_px = images.shape[-1]
    n_bytes = working_bytes((BATCH, box_px, box_px)) if device == "cuda" else 0
    basis = find_basis(box_px, asdict(params))
    what = f"adding up images of {box_px} px"
    return run_on(device, _add_up, images, basis, optics, device, n_bytes=n_bytes, what=what)


def _add_up(
    images: npt.NDArray[Any], basis: SteerableBasis, optics: Optics | None, device: str
) -> StackSums:
    """Work through a block batch by batch."""
    total: CoefficientSums | None = None
    for start in range(0, len(images), BATCH):
        some = slice(start, start + BATCH)
        there = to_device(images[some], device)
        given = expand_images(there, basis, optics and optics[some])
        sums = sum_coefficients(given.coefs, basis, given.power, given.which)
        total = sums if total is None else add_sums(total, sums)
    corners = images[:, corner_mask(images.shape[1:])].astype(np.float64)
    background, square = corners.mean(axis=1), corners.var(axis=1, ddof=corners.shape[1] > 1)
    assert total is not None
    return StackSums(total, basis.box_px, len(images), background.sum(), square.sum())


def add_stack_sums(a: StackSums, b: StackSums) -> StackSums:
    """Add up the sums of two parts of a stack."""
    return StackSums(
        add_sums(a.coefficients, b.coefficients),
        a.box_px,
        a.n_images + b.n_images,
        a.background + b.background,
        a.square + b.square,
    )


def finish(sums: StackSums, params: Cwf) -> xr.Dataset:
    """Make the model of the sums.

    Parameters
    ----------
    sums
        Of all images.
    params
        Completed parameters.

    Returns
    -------
    xarray.Dataset
        See `Cwf`.
    """
    basis = find_basis(sums.box_px, asdict(params))
    background = sums.background / sums.n_images
    measured = sums.square / sums.n_images
    noise_variance = measured if params.sigma == "auto" else params.sigma**2
    found = estimate_covariance(sums.coefficients, basis, noise_variance, params.shrinkage)
    variance, vectors = _principal_components(found.blocks)
    order, rank = _leading(variance)
    drawn = [(0, found.mean), *((k, vectors[k, :, i]) for k, i in zip(order, rank, strict=True))]
    mean, *eigenimages = _draw(basis, drawn)
    edges = [own.noise_edge for own in found.spectra]
    sample = _pad([own.sample for own in found.spectra], np.nan)
    drawn_as = ("component", "y", "x")
    return xr.Dataset(
        {
            "mean": _variable(drawn_as[1:], mean + np.float32(background), "mean image", LEVELS),
            "eigenimages": _variable(
                drawn_as, np.reshape(eigenimages, (-1, *mean.shape)), "eigenimages of norm 1"
            ),
            "eigenvalue": _variable("component", variance[order, rank], "variance along", SQUARES),
            "order": _variable("component", order, "angular order k"),
            "spectrum": _variable(
                ("order_k", "radial"), sample, "eigenvalues before they are freed of noise", SQUARES
            ),
            "noise_edge": _variable("order_k", edges, "largest eigenvalue of noise", SQUARES),
            "mean_coefficient": _variable("radial", found.mean, "mean, of order 0", LEVELS),
            "variance": _variable(
                ("order_k", "rank"), variance, "eigenvalues of the covariance", SQUARES
            ),
            "vector": _variable(
                ("order_k", "radial", "rank"), vectors, "eigenvectors of the covariance"
            ),
        },
        attrs={
            "box_px": sums.box_px,
            "n_images": sums.n_images,
            "background": float(background),
            "noise_variance": float(noise_variance),
        },
    )


def _variable(dims: Any, values: Any, long_name: str, units: str = "1") -> xr.Variable:
    return xr.Variable(dims, np.asarray(values), {"long_name": long_name, "units": units})


def _principal_components(blocks: Sequence[Doubles]) -> tuple[Doubles, Doubles]:
    """Return the eigenvalues (order, rank) and -vectors (order, radial, rank), descending.

    Where an order has fewer, and where all is nothing, they are 0.
    """
    pairs = [np.linalg.eigh(block) for block in blocks]
    variance = _pad([values[::-1] for values, _ in pairs])
    variance[variance < LEAST_VARIANCE * variance.max(initial=0)] = 0
    n_ranks = max(1, int((variance > 0).sum(axis=1).max(initial=0)))
    vectors = np.zeros((*variance.shape, n_ranks))
    for own, (_, columns) in zip(vectors, pairs, strict=True):
        own[: len(columns), : len(columns)] = columns[:, ::-1][:, :n_ranks]
    return variance[:, :n_ranks], vectors


def _pad(rows: Sequence[Doubles], filler: float = 0.0) -> Doubles:
    table = np.full((len(rows), max(map(len, rows))), filler)
    for target, row in zip(table, rows, strict=True):
        target[: len(row)] = row
    return table


def _leading(variance: Doubles) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.intp]]:
    """Return order and rank of the components of most variance, descending."""
    order, rank = np.unravel_index(np.argsort(-variance, axis=None), variance.shape)
    n_shown = min(N_EIGENIMAGES, int((variance > 0).sum()))
    return order[:n_shown], rank[:n_shown]


def _draw(basis: SteerableBasis, components: Sequence[tuple[int, Doubles]]) -> npt.NDArray[Any]:
    """Return images of coefficients of one order each, of the same norm."""
    coefs = np.zeros((len(components), len(basis.orders)), np.complex64)
    for own, (k, values) in zip(coefs, components, strict=True):
        place = basis.slices[k]
        own[place] = values[: place.stop - place.start] / np.sqrt(2 if k else 1)
    drawn: npt.NDArray[Any] = to_images(evaluate(coefs, basis), (basis.box_px, basis.box_px))
    return drawn


# --- Denoising ------------------------------------------------------------------------------------


def denoise(images: Any, params: Cwf, model: xr.Dataset, *, optics: Optics | None = None) -> Any:
    """Estimate each particle by its Wiener filter, on the processor or a card.

    Parameters
    ----------
    images
        Noisy images in grey levels, (n, h, h); NumPy or CuPy.
    params
        Parameters.
    model
        What `finish` returned.
    optics
        Of the images; None where they have no CTF.

    Returns
    -------
    (n, h, h) float32
    """
    xp, known = array_namespace(images), model.attrs
    basis = find_basis(known["box_px"], known)
    noise_variance = known["noise_variance"] if params.sigma == "auto" else params.sigma**2
    mean, factors = model["mean_coefficient"].values, _factors(model, basis)
    result = xp.empty(images.shape, np.float32)
    for start in range(0, len(images), BATCH):
        some = slice(start, start + BATCH)
        given = expand_images(images[some], basis, optics and optics[some])
        coefs = filter_coefficients(
            given.coefs,
            basis,
            given.power,
            given.which,
            mean=mean,
            factors=factors,
            noise_variance=noise_variance,
        )
        terms = evaluate(coefs, basis)
        if given.ctfs is not None and params.ctf == "keep":
            terms *= given.ctfs[xp.asarray(given.which)]
        result[some] = to_images(terms, images.shape[1:])
    result += np.float32(known["background"])
    return result


def _factors(model: xr.Dataset, basis: SteerableBasis) -> list[Doubles]:
    """Return F of each order's covariance F Fᵀ, without the columns that are nothing."""
    factors = []
    for place, variance, vectors in zip(
        basis.slices, model["variance"].values, model["vector"].values, strict=True
    ):
        kept = variance > 0
        factors.append(vectors[: place.stop - place.start, kept] * np.sqrt(variance[kept]))
    return factors


METHOD = Method(
    params=Cwf,
    apply={"cpu": denoise, "cuda": denoise},
    learn=Learn(
        chunk={"cpu": sum_images, "cuda": partial(sum_images, device="cuda")},
        combine=add_stack_sums,
        finalize=finish,
    ),
    complete=complete,
    takes_optics=True,
    corrects=lambda params: params.ctf == "correct",
)
