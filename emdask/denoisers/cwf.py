"""CWF: particles are Gaussian in a steerable basis, of mean and covariance learnt from all."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from math import prod
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

from emdask.backend import array_namespace, sum_batches
from emdask.blocks_cuda import batch_size
from emdask.checks import check_choice, check_number, check_sigma, require, sentence
from emdask.errors import StackError
from emdask.kernels.covariance import (
    ESTIMATORS,
    CoefficientSums,
    add_sums,
    estimate_covariance,
    sum_coefficients,
)
from emdask.kernels.ctf import Optics
from emdask.kernels.principal_components import (
    draw_components,
    leading,
    pad_rows,
    principal_components,
)
from emdask.kernels.steerable import SteerableBasis, combine, evaluate, steerable_basis
from emdask.kernels.steerable_images import expand_images
from emdask.kernels.steerable_wiener import filter_coefficients, scale_factors
from emdask.kernels.transforms import to_images
from emdask.kernels.whitening import corner_mask
from emdask.method import Learn, Method, parameter
from emdask.stack import CORRECTED, ctf_state, is_whitened

# Frequencies up to that of a box of so many pixels are worked on: tables of its basis take 63 MB,
# and time and memory grow with the fourth power.
LARGEST_BOX_PX = 128
LEAST_BOX_PX = 8
# Of radius times frequency: 2 π of it exceed the second root of J0.
LEAST_CELLS = 0.9
# Parameters that a model has and that play no part beside it.
SETTLED = ("shrinkage", "radius_px", "max_frequency")
N_EIGENIMAGES = 32
# Variance of corners in parts of that of the middle, as it seems by differences of neighbours.
LEAST_CORNERS = 0.2
# Images, and their pixels, that are worked on together on the processor.
BATCH, BATCH_PIXELS = 256, 1 << 22
LEVELS, SQUARES = "grey levels", "grey levels²"

Doubles = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Cwf:
    """Parameters of covariance Wiener filtering.

    Parameters
    ----------
    sigma
        Standard deviation of the white noise in grey levels, or "auto": that of the corners of the
        stack's images, the same in all of them, outside of the circle that touches the sides.
    ctf
        "correct" returns what the particles are like without the CTF of their images, "keep" with
        it. It plays no part where the stack knows no defocus.
    shrinkage
        How the covariance is freed of noise. "bayes": a prior of support and spectrum, fitted to
        the stack, and as much of the images' own covariance as their number is worth. "frobenius",
        "operator": eigenvalues shrunk for the least error in that norm, as in the paper.
    radius_px
        Of the disc, around the middle of the image, that holds the particle; "auto": half the box.
    max_frequency
        Of what is worked on, cycles a pixel; "auto": 0.5 (Nyquist) up to boxes of 128 px, and 64 /
        box above. What is finer is lost.

    Raises
    ------
    ParameterError
        If a parameter is out of range.

    Notes
    -----
    Bhamre, Zhang and Singer, "Denoising and covariance estimation of single particle cryo-EM
    images", Journal of Structural Biology 195 (2016) 72-81; eigenvalues: Donoho, Gavish and
    Johnstone, "Optimal shrinkage of eigenvalues in the spiked covariance model", Annals of
    Statistics 46 (2018) 1742-1778. Images are expanded in a steerable basis
    (`emdask.kernels.steerable`), in which particles at any angle and their mirror images have a
    covariance that is real and falls into a block for each angular order. One pass adds up what the
    blocks are solved for. Beyond the paper, the sums need no groups of CTFs: defocus may differ
    from image to image at no cost and without loss (`emdask.kernels.covariance`), and "bayes" is
    for few images and much noise (`emdask.kernels.prior_covariance`).

    Images are to be particles near the middle of square boxes, in white noise; make coloured noise
    white first (`emdask.whiten`, ``--whiten``). Astigmatism counts in full for phases, and for
    amplitudes by its mean over directions.

    A model is a dataset of ``mean (y, x)``; the leading ``eigenimages (component, y, x)``, of norm
    1, with ``eigenvalue`` (variance along it, grey levels²) and angular ``order`` (those above 0
    stand for their turn by 90 / k degrees as well); ``spectrum (order_k, radial)``, eigenvalues
    before they are freed of noise, and ``noise_edge (order_k)``, the largest that noise alone
    would give; and what the filter is made of: ``mean_coefficient``, ``variance``, ``vector``. Its
    attributes tell ``noise_variance``, ``background`` (mean of the corners), ``n_images`` and
    ``box_px``.

    Examples
    --------
    >>> Cwf(ctf="keep").shrinkage
    'bayes'
    >>> Cwf(shrinkage="none")
    Traceback (most recent call last):
    emdask.errors.ParameterError: cwf: shrinkage must be one of bayes, frobenius, operator; got ...
    """

    sigma: Literal["auto"] | float = parameter(
        "auto", "standard deviation of the noise; auto: that of the corners", "grey levels"
    )
    ctf: Literal["correct", "keep"] = parameter(
        "correct", "return particles freed of the CTF of their images, or with it"
    )
    shrinkage: Literal["bayes", "frobenius", "operator"] = parameter(
        "bayes", "prior fitted to the stack, or eigenvalues shrunk for the least error in a norm"
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
        check_choice("cwf", "shrinkage", self.shrinkage, tuple(ESTIMATORS))
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
        raise StackError(sentence("cwf", rule, (width, height), remedy * (height != width)))
    radius_px = width / 2 if params.radius_px == "auto" else params.radius_px
    check_number("cwf", "radius_px", radius_px, 2, width / 2)
    frequency = params.max_frequency
    if frequency == "auto":
        frequency = 0.5 * min(1, LARGEST_BOX_PX / width)
    check_number("cwf", "max_frequency", frequency, 2 / width, 0.5)
    rule = f"radius_px times max_frequency must be at least {LEAST_CELLS:g}, or no function fits in"
    require(radius_px * frequency >= LEAST_CELLS, "cwf", rule, radius_px * frequency)
    return replace(params, radius_px=radius_px, max_frequency=frequency)


def check_model(model: xr.Dataset, params: Cwf, stack: xr.DataArray, optics: Optics | None) -> None:
    """Refuse images that are not of the kind that a model was learnt from.

    Raises
    ------
    ParameterError
        If they have another kind of CTF or noise, or if parameters are given that the model has
        settled otherwise.
    """
    known = model.attrs
    for name in SETTLED:
        own, value = known[name], getattr(params, name)
        rule = f"{name} is settled by the model, {own!r}"
        require(value in (own, getattr(Cwf(), name)), "cwf", rule, value, "Leave it out.")
    has_ctf = optics is not None
    if ctf_state(stack) != CORRECTED:
        words = ("not known", "known")
        rule = f"the model was learnt from images whose CTF is {words[bool(known['with_ctf'])]}"
        require(has_ctf == bool(known["with_ctf"]), "cwf", rule, words[has_ctf])
    white = is_whitened(stack)
    rule = f"the model was learnt from images {'not ' * (not known['whitened'])}made white before"
    remedy = "Whiten these alike: whiten(), --whiten." if known["whitened"] else "Use unwhiten()."
    require(white == bool(known["whitened"]), "cwf", rule, remedy=remedy)


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
    with_ctf
        Whether their CTFs are known.
    n_images
        How many.
    background, square
        Sums over the images of the mean of their corners, and of the variance about it there.
    roughness
        Sum over the images of what the variance of white noise in their middle seems to be.
    """

    coefficients: CoefficientSums
    box_px: int
    with_ctf: bool
    n_images: int
    background: float
    square: float
    roughness: float


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
    basis = find_basis(box_px, asdict(params))
    coefficients = sum_batches(
        partial(_sum_batch, basis=basis),
        images,
        along={"optics": optics},
        combine=add_sums,
        device=device,
        n_images=_images_at_once(images.shape[1:], device),
        what=f"adding up images of {box_px} px",
    )
    corners = images[:, corner_mask(images.shape[1:])].astype(np.float64)
    background, square = corners.mean(axis=1), corners.var(axis=1, ddof=corners.shape[1] > 1)
    return StackSums(
        coefficients,
        box_px,
        optics is not None,
        len(images),
        background.sum(),
        square.sum(),
        _measure_roughness(images).sum(),
    )


def _sum_batch(images: Any, *, basis: SteerableBasis, optics: Optics | None) -> CoefficientSums:
    given = expand_images(images, basis, optics)
    return sum_coefficients(given.coefs, basis, given.power, given.which)


def _images_at_once(shape: tuple[int, int], device: str) -> int:
    return (
        batch_size(shape) if device == "cuda" else min(BATCH, max(1, BATCH_PIXELS // prod(shape)))
    )


def _measure_roughness(images: npt.NDArray[Any]) -> Doubles:
    """Return the variance of white noise that differences of neighbours in the middle tell of."""
    low, high = images.shape[-1] // 4, -(images.shape[-1] // 4)
    middle = images[:, low:high, low:high].astype(np.float32)
    differences = np.diff(np.diff(middle, axis=1), axis=2)
    return np.asarray(np.square(differences).mean(axis=(1, 2), dtype=np.float64) / 4)


def add_stack_sums(a: StackSums, b: StackSums) -> StackSums:
    """Add up the sums of two parts of a stack."""
    return StackSums(
        add_sums(a.coefficients, b.coefficients),
        a.box_px,
        a.with_ctf,
        a.n_images + b.n_images,
        a.background + b.background,
        a.square + b.square,
        a.roughness + b.roughness,
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
    noise_variance = _measure_noise(sums) if params.sigma == "auto" else params.sigma**2
    found = estimate_covariance(sums.coefficients, basis, noise_variance, params.shrinkage)
    variance, vectors = principal_components(found.blocks)
    order, rank = leading(variance, N_EIGENIMAGES)
    drawn = [(0, found.mean), *((k, vectors[k, :, i]) for k, i in zip(order, rank, strict=True))]
    mean, *eigenimages = draw_components(basis, drawn)
    edges = [own.noise_edge for own in found.spectra]
    sample = pad_rows([own.sample for own in found.spectra], np.nan)
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
            "with_ctf": sums.with_ctf,
            "n_images": sums.n_images,
            "background": float(background),
            "noise_variance": float(noise_variance),
        },
    )


def _measure_noise(sums: StackSums) -> float:
    """Return the variance in the corners, where there is noise as in the middle.

    Raises
    ------
    StackError
        If corners are nearly empty beside the middle.
    """
    corners, middle = sums.square / sums.n_images, sums.roughness / sums.n_images
    if corners < LEAST_CORNERS * middle:
        rule = "sigma is measured in the corners, but they are masked or hold hardly any noise"
        remedy = f"Pass sigma: {middle**0.5:.3g} or less, by the middle of the images."
        raise StackError(sentence("cwf", rule, remedy=remedy))
    return float(corners)


def _variable(dims: Any, values: Any, long_name: str, units: str = "1") -> xr.Variable:
    return xr.Variable(dims, np.asarray(values), {"long_name": long_name, "units": units})


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
    xp = array_namespace(images)
    sigma = params.sigma
    noise_variance = model.attrs["noise_variance"] if sigma == "auto" else sigma**2
    with _PREPARING:
        known = _prepare(_Identical(model), noise_variance)
    mean = xp.asarray(known.mean)
    result = xp.empty(images.shape, np.float32)
    batch = _images_at_once(images.shape[1:], "cpu" if xp is np else "cuda")
    for start in range(0, len(images), batch):
        some = slice(start, start + batch)
        given = expand_images(images[some], known.basis, optics and optics[some])
        weights = filter_coefficients(
            given.coefs, known.basis, given.power, given.which, known.profile
        )
        terms = evaluate(weights, known.basis) + mean
        if given.ctfs is not None and params.ctf == "keep":
            terms *= given.ctfs[xp.asarray(given.which)]
        result[some] = to_images(terms, images.shape[1:])
    result += np.float32(model.attrs["background"])
    return result


class _Filter(NamedTuple):
    """What a model is for a level of noise.

    Parameters
    ----------
    basis
        Of the components, as long as their deviation in units of the noise.
    profile : float64 array, shape (n_r,)
        The mean at the nodes of the basis.
    mean : complex64 array, shape (1, h, w // 2 + 1)
        Its half plane.
    """

    basis: SteerableBasis
    profile: Doubles
    mean: npt.NDArray[np.complex64]


@dataclass(frozen=True, eq=False)
class _Identical:
    """A model that is equal to itself alone, so that what is made of it can be kept beside it."""

    model: xr.Dataset

    def __hash__(self) -> int:
        return id(self.model)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Identical) and other.model is self.model


# Threads wait for the one that prepares a model: each would make tables of its own.
_PREPARING = threading.Lock()


@lru_cache(maxsize=2)
def _prepare(identical: _Identical, noise_variance: float) -> _Filter:
    model = identical.model
    basis = find_basis(model.attrs["box_px"], model.attrs)
    mean = model["mean_coefficient"].values
    coefs = np.zeros((1, len(basis.orders)), np.complex64)
    coefs[:, basis.slices[0]] = mean
    factors = []
    for place, variance, vectors in zip(
        basis.slices, model["variance"].values, model["vector"].values, strict=True
    ):
        factors.append(vectors[: place.stop - place.start] * np.sqrt(variance))
    components = combine(basis, scale_factors(factors, noise_variance))
    return _Filter(components, basis.radial[0] @ mean, evaluate(coefs, basis))


def returns_corrected(params: Cwf) -> bool:
    """Whether a CTF that is known is undone."""
    return params.ctf == "correct"


METHOD = Method(
    params=Cwf,
    apply={"cpu": denoise, "cuda": denoise},
    learn=Learn(
        chunk={"cpu": sum_images, "cuda": partial(sum_images, device="cuda")},
        combine=add_stack_sums,
        finalize=finish,
        check=check_model,
    ),
    complete=complete,
    takes_optics=True,
    corrects=returns_corrected,
)
