"""Correct images for the CTF without denoising them: phase flipping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import xarray as xr

from emdask.backend import check_device
from emdask.checks import check_choice, sentence
from emdask.errors import StackError
from emdask.kernels.ctf import Optics
from emdask.kernels.phases import flip_phases
from emdask.lazy import BAD_PIXELS, map_images
from emdask.method import Method
from emdask.stack import PHASE_FLIPPED, add_provenance, as_stack, ctf_state, optics_of

NAME = "phase_flip"


def phase_flip(
    stack: xr.DataArray, *, device: str | None = None, bad_pixels: str = "raise"
) -> xr.DataArray:
    """Multiply images by the sign of their CTF, lazily.

    Contrast that the CTF has turned over is put right; how strong it is stays as it is, and so does
    the noise. Later steps that use the CTF know of it, and use its absolute value.

    Parameters
    ----------
    stack : xarray.DataArray of dims (image, y, x)
        Images as recorded, that know their defocus: coordinate ``defocus_u_A``, and what else the
        CTF depends on.
    device
        "auto", "cpu" or "cuda"; None takes the setting ``emdask.device``.
    bad_pixels
        "raise" or "replace", as of `emdask.denoise`.

    Returns
    -------
    xarray.DataArray
        Same dims, float32, lazy, with attribute ``ctf_state`` "phase_flipped"; STAR files that are
        written of it have RELION's flag ``rlnCtfDataArePhaseFlipped``.

    Raises
    ------
    ParameterError, StackError, DeviceError
        At once; StackError where no defocus is known, or something has been done about the CTF.

    Notes
    -----
    An image is taken to go on as itself beyond its borders: what the CTF has carried to or from
    beyond them comes back on the opposite side. RELION's refinement reads the flag of its own
    optimiser and not that of the images: run it on flipped images with ``--ctf_phase_flipped``.

    Examples
    --------
    >>> from emdask import phantom, simulate
    >>> particle = phantom(8, radius_A=20).volume(24, 3.0)
    >>> images = simulate(particle, 2, snr=1, ctf={"defocus_A": 15000}).images
    >>> phase_flip(images).attrs["ctf_state"]
    'phase_flipped'
    """
    device = check_device(device, NAME, FLIP.apply)
    check_choice(NAME, "bad_pixels", bad_pixels, BAD_PIXELS)
    source = as_stack(stack)
    images = map_images(
        source.data,
        FLIP,
        PhaseFlip(),
        name=NAME,
        device=device,
        optics=_known_optics(source),
        bad_pixels=bad_pixels,
    )
    attrs = add_provenance(source.attrs, NAME, {}) | {"ctf_state": PHASE_FLIPPED}
    return source.copy(deep=False, data=images).assign_attrs(attrs)


def _known_optics(stack: xr.DataArray) -> Optics:
    if state := ctf_state(stack):
        rule = "images must be as recorded, with nothing done about their CTF"
        raise StackError(sentence(NAME, rule, state))
    optics = optics_of(stack)
    if optics is None:
        rule = "needs a stack with the defocus of each image, coordinate defocus_u_A"
        remedy = "Open the .star file that has it, or assign it: stack.assign_coords(...)."
        raise StackError(sentence(NAME, rule, remedy=remedy))
    return optics


@dataclass(frozen=True, kw_only=True)
class PhaseFlip:
    """Parameters of `phase_flip`: none."""


def _flip(images: Any, params: PhaseFlip, *, optics: Optics) -> Any:
    return flip_phases(images, optics)


FLIP = Method(params=PhaseFlip, apply={"cpu": _flip, "cuda": _flip}, takes_optics=True)
