"""Laplacian of Gaussian: blobs of the given diameter; needs neither training nor templates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from emdask.kernels.laplacian import score_laplacian
from emdask.kernels.picking import ScoreMap
from emdask.method import Picker

STANDARD_PX = 16.0


@dataclass(frozen=True, kw_only=True)
class LoG:
    """The Laplacian of Gaussian has no parameters but the particle's diameter.

    Notes
    -----
    A score is the response in deviations of the map's own background, which is what its peaks leave
    (`emdask.kernels.laplacian.score_laplacian`). One threshold serves micrographs of any kind, but
    none is best for all: the best were 2.8 to 4.5 on simulated ribosomes of SNR 0.02 to 0.1 and 2.3
    on beta-galactosidase (EMPIAR-10017); 3.0 was chosen on these. Where particles are crowded, or
    hollow, they are much of the background, and a lower one is needed: on apoferritin
    (EMPIAR-10146) 1.2, and 3.0 finds next to nothing. Whatever is as large as a particle scores
    as one does.

    Examples
    --------
    >>> LoG()
    LoG()
    """


def score(image: Any, params: LoG, model: None) -> ScoreMap:
    """Score a micrograph; NumPy or CuPy.

    Parameters
    ----------
    image : float32 array, shape (h, w)
        Standard micrograph.
    params
        Parameters.
    model
        None.

    Returns
    -------
    ScoreMap
        A cell for each pixel.
    """
    return ScoreMap(score_laplacian(image, STANDARD_PX), 1.0, 0.0)


METHOD = Picker(
    params=LoG, score={"cpu": score, "cuda": score}, standard_px=STANDARD_PX, threshold=3.0
)
