"""Find the view of each image by the nearest reference: ``python examples/views.py [MAP]``.

Images of a particle at SNR 0.05, each with its own CTF, are compared with references after one
treatment or another. The references are clean projections without CTF, or other images of the
stack, whose views are known: as noisy, and treated as the rest. Without a map, a phantom is taken.

The nearest reference by the squared distance is rarely right unless the images are denoised: what
is subtracted must have the strength of what it is subtracted from. A normalised correlation with a
clean reference takes the noise away by itself, so that no treatment gains much. Where the
references are noisy too, much is gained, most if they alone are denoised: compared with the images
as recorded, times the CTF of each.
"""

from __future__ import annotations

import sys
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import xarray as xr

import emdask
from emdask.kernels.projections import rotation_matrices
from emdask.stack import optics_of

Array = npt.NDArray[Any]
SNR = 0.05
CTF = {"defocus_A": (10_000, 30_000)}
# By trial against the truth, about the best for the phantom.
CUTOFF_PX, DISC = 8, 0.65
REFERENCES_ALONE = "cwf of the references alone*"
HEAD = f"""
{"":28}     clean references    clean references    images as references
{"":28}     squared distance    correlation         correlation
{"":28}     correct     error     correct     error     correct     error   error²"""


class Sample(NamedTuple):
    """A stack in memory, with noise and CTF, and what is true of it.

    Parameters
    ----------
    images
        The first of them, as many as there are references, show the views of these.
    truth : float32 array, shape (n, h, w)
        The same without noise and CTF.
    directions : float64 array, shape (n, 3)
        From where each is seen.
    n_references
        How many.
    """

    images: xr.DataArray
    truth: Array
    directions: Array
    n_references: int


class Score(NamedTuple):
    """How many images, in percent, found the reference of the nearest view; mean angle to it."""

    correct: float
    error_deg: float


class Row(NamedTuple):
    """Of one treatment.

    Parameters
    ----------
    nearest
        By the clean reference at the least squared distance.
    clean_references, noisy_references
        By the reference of the highest normalised correlation.
    squared_error
        Of the images, relative to the truth.
    """

    nearest: Score | None
    clean_references: Score
    noisy_references: Score
    squared_error: float | None = None


def main(
    source: str = "",
    *,
    n_images: int = 800,
    n_directions: int = 80,
    n_turns: int = 15,
    bm3d: bool = True,
) -> dict[str, Row]:
    """Simulate, treat, compare; print and return a row for each treatment."""
    if source:
        volume = emdask.open_volume(source)
    else:
        volume = emdask.phantom(200, radius_A=58, width_A=(5, 8)).volume(64, 3.0)
    sample = simulate_sample(volume, n_images, spread_views(n_directions, n_turns))
    print(
        f"{n_images} images of {volume.shape[0]} pixels at SNR {SNR} are given the nearest of "
        f"{sample.n_references} references: {n_directions} directions, {n_turns} turns of each.\n"
        "Correct: that of the nearest direction. Error: mean angle between the directions.\n"
        "Error²: of the treated images, relative to what they are without noise and CTF."
    )
    rows = treat_and_judge(sample, bm3d=bm3d)
    print(HEAD, *(f"{name:28} {format_row(row)}".rstrip() for name, row in rows.items()), sep="\n")
    print("* On the left clean ones. They are multiplied by the CTF of each image as recorded.")
    return rows


def treat_and_judge(sample: Sample, *, bm3d: bool) -> dict[str, Row]:
    """Compare the images after each treatment."""
    stack = sample.images
    flipped = emdask.phase_flip(stack)
    smooth = emdask.denoise(flipped, "lowpass", cutoff_A=CUTOFF_PX * stack.attrs["pixel_size_A"])
    treated = {
        "as recorded": stack,
        "phase_flip": flipped,
        "phase_flip, lowpass, disc": smooth.copy(data=cut_disc(smooth.values)),
        **({"phase_flip, bm3d": emdask.denoise(flipped, "bm3d")} if bm3d else {}),
        "lowpass": emdask.denoise(stack, "lowpass"),
        "wiener": emdask.denoise(stack, "wiener"),
        "wiener of the stack": emdask.denoise(stack, "wiener", prior="stack"),
        "cwf": emdask.denoise(stack, "cwf").compute(),
        "without noise and CTF": stack.copy(data=sample.truth),
    }
    rows = {name: judge(images.values, sample) for name, images in treated.items()}
    denoised = sample._replace(truth=treated["cwf"].values)
    rows[REFERENCES_ALONE] = Row(None, match_with_ctf(sample), match_with_ctf(denoised))
    return rows


def spread_views(n_directions: int, n_turns: int) -> Array:
    """Euler angles (n, 3): directions spread over the sphere, with in-plane turns of each."""
    steps = np.arange(n_directions)
    rot_deg = steps * 180 * (1 + 5**0.5) % 360
    tilt_deg = np.rad2deg(np.arccos(1 - (2 * steps + 1) / n_directions))
    psi_deg = np.arange(n_turns) * 360 / n_turns
    angles = np.broadcast_arrays(rot_deg[:, None], tilt_deg[:, None], psi_deg)
    return np.stack([angle.ravel() for angle in angles], axis=1)


def simulate_sample(volume: xr.DataArray, n_images: int, reference_views: Array) -> Sample:
    """Simulate images of the references' views, and as many as are asked for of any view."""
    rng = np.random.default_rng(0)
    rot_deg, psi_deg = rng.uniform(0, 360, (2, n_images))
    tilt_deg = np.rad2deg(np.arccos(rng.uniform(-1, 1, n_images)))
    poses = np.concatenate([reference_views, np.stack([rot_deg, tilt_deg, psi_deg], axis=1)])
    n = len(poses)
    noisy = emdask.simulate(volume, n, snr=SNR, poses=poses, ctf=CTF)
    # Without noise, grey levels are those of the volume.
    unscaled = emdask.simulate(volume, n, snr=None, poses=poses, ctf=CTF).clean
    truth = emdask.simulate(volume, n, snr=None, poses=poses).clean.values
    truth *= noisy.clean[0].values.std() / unscaled[0].values.std()
    directions = rotation_matrices(poses)[:, 2]
    return Sample(noisy.images.compute(), truth, directions, len(reference_views))


def judge(images: Array, sample: Sample) -> Row:
    """Compare treated images with clean references, and with those among them."""
    references = as_rows(sample.truth[: sample.n_references])
    products = as_rows(images[sample.n_references :]) @ references.T
    nearest = score_matches(2 * products - np.square(references).sum(axis=1), sample)
    asked = normalise(images[sample.n_references :])
    clean, noisy = (
        score_matches(asked @ normalise(references[: sample.n_references]).T, sample)
        for references in (sample.truth, images)
    )
    error = np.square(images - sample.truth).sum() / np.square(sample.truth).sum()
    return Row(nearest, clean, noisy, float(error))


def match_with_ctf(sample: Sample) -> Score:
    """Compare images as recorded with the truth of the references times the CTF of each image."""
    asked = sample.images[sample.n_references :]
    references = sample.truth[: sample.n_references]
    references = references - references.mean(axis=(1, 2), keepdims=True)
    n_px = asked.shape[-1]
    optics = optics_of(asked)
    assert optics is not None
    ctfs = optics.ctfs((n_px, n_px), len(asked))
    premultiplied = np.fft.irfft2(np.fft.rfft2(asked.values) * ctfs, s=(n_px, n_px))
    # All of a plane but its borders stands for its mirror image, too.
    twice = np.where(np.arange(n_px // 2 + 1) * 2 % n_px, 2, 1) / n_px**2
    power = twice * np.abs(np.fft.rfft2(references)) ** 2
    squared_norms = as_rows(np.square(ctfs)) @ as_rows(power).T
    products = as_rows(premultiplied) @ as_rows(references).T
    return score_matches(products / np.sqrt(squared_norms), sample)


def normalise(images: Array) -> Array:
    """Return images as rows of mean 0 and norm 1."""
    rows = as_rows(images) - as_rows(images).mean(axis=1, keepdims=True)
    return np.asarray(rows / np.linalg.norm(rows, axis=1, keepdims=True))


def as_rows(images: Array) -> Array:
    """Return each image as one row."""
    return images.reshape(len(images), -1)


def score_matches(likeness: Array, sample: Sample) -> Score:
    """Judge the references that are most alike; (n_images, n_references)."""
    nearest = likeness.argmax(axis=1)
    cosines = sample.directions[sample.n_references :] @ sample.directions[: sample.n_references].T
    found = cosines[np.arange(len(nearest)), nearest]
    correct = np.isclose(found, cosines.max(axis=1), rtol=0, atol=1e-9)
    error_deg = np.rad2deg(np.arccos(np.clip(found, -1, 1)))
    return Score(100 * float(correct.mean()), float(error_deg.mean()))


def cut_disc(images: Array) -> Array:
    """Set to 0 what lies outside a disc."""
    n_px = images.shape[-1]
    square = np.square(np.arange(n_px) - n_px // 2)
    return np.where(square[:, None] + square < (DISC * n_px / 2) ** 2, images, np.float32(0))


def format_row(row: Row) -> str:
    """Return the numbers of a row of the table."""
    scores = (row.nearest, row.clean_references, row.noisy_references)
    cells = [
        f"{score.correct:8.1f} % {score.error_deg:8.1f}°" if score else " " * 20 for score in scores
    ]
    return "".join(cells) + ("" if row.squared_error is None else f"{row.squared_error:9.3f}")


if __name__ == "__main__":
    main(*sys.argv[1:])
