"""Shrinkage of the eigenvalues of sample covariances under white noise.

Donoho, Gavish and Johnstone, "Optimal shrinkage of eigenvalues in the spiked covariance model",
Annals of Statistics 46 (2018) 1742-1778. Of p coefficients and n samples noise alone spreads the
eigenvalues up to (1 + sqrt(p / n))², and a signal's eigenvectors come out turned by a known angle.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["shrink_frobenius", "shrink_operator"]

Doubles = npt.NDArray[np.float64]


def shrink_frobenius(values: Doubles, noise_variance: float, ratio: float) -> Doubles:
    """Return the signal's eigenvalues of least mean squared error of the covariance.

    Parameters
    ----------
    values : float64 array, shape (p,)
        Eigenvalues of the sample covariance, noise included.
    noise_variance
        Of each coefficient, 0 or more.
    ratio
        Coefficients over samples, p / n.

    Returns
    -------
    float64 array, shape (p,)
        0 or more, without the noise.

    Examples
    --------
    >>> shrink_frobenius(np.array([2.0, 10.0]), 1.0, 0.5).round(3)
    array([0.   , 7.913])
    """
    excess = _true_excess(values, noise_variance, ratio)
    # What is seen along a vector that noise turned: times the squared cosine of the angle.
    return np.divide(
        excess**2 - ratio * noise_variance**2,
        excess + ratio * noise_variance,
        out=np.zeros_like(excess),
        where=excess > 0,
    )


def shrink_operator(values: Doubles, noise_variance: float, ratio: float) -> Doubles:
    """Return the signal's eigenvalues of least error of the covariance in the operator norm.

    Those that noise raised are lowered to what they are of the true covariance.

    Parameters
    ----------
    values : float64 array, shape (p,)
        Eigenvalues of the sample covariance, noise included.
    noise_variance
        Of each coefficient, 0 or more.
    ratio
        Coefficients over samples, p / n.

    Returns
    -------
    float64 array, shape (p,)
        0 or more, without the noise.

    Examples
    --------
    >>> shrink_operator(np.array([2.0, 10.0]), 1.0, 0.5).round(3)
    array([0.   , 8.441])
    """
    return _true_excess(values, noise_variance, ratio)


def _true_excess(values: Doubles, noise_variance: float, ratio: float) -> Doubles:
    """Return the eigenvalues of the true covariance over the noise; 0 within the noise."""
    edge = noise_variance * (1 + np.sqrt(ratio)) ** 2
    middle = values + noise_variance * (1 - ratio)
    root = np.sqrt(np.maximum(middle**2 - 4 * values * noise_variance, 0.0))
    return np.where(values > edge, (middle + root) / 2 - noise_variance, 0.0)
