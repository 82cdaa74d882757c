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
    (`emdask.kernels.laplacian.score_laplacian`). The threshold, 3.0, was chosen on simulated
    ribosomes of SNR 0.02 to 0.1, where the best were 2.7 to 4.3, and on beta-galactosidase
    (EMPIAR-10017), where it was 2.3. No threshold is best for all: the more there are, the more
    particles are background to each other. On apoferritin (EMPIAR-10146), crowded and hollow, the
    best was 1.3, and 3.0 finds next to nothing. What is as large as a particle scores as one, such
    as small crystals of ice.

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
