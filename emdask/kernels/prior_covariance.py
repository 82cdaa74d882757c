"""Covariance of images in a steerable basis by empirical Bayes: for few images and much noise.

Shrinking the eigenvalues of a sample covariance takes any direction to be as likely as any other.
Images of particles are not so: density fluctuates within a soft support, its spectrum falls, and
projections at all angles mix so many of its components that the covariance C of an angular order
lies near what support and spectrum say. Three steps, from the sums of one pass alone:

1.  **Prior.** P = sum over b, f of s(b, f) u uᵀ: stationary fields of frequencies f, seen through
    discs of several radii b. The powers s >= 0 are few, shared by all orders, and fitted by maximum
    likelihood (variance components; MM algorithm: Zhou, Hu, Zhou and Lange, "MM algorithms for
    variance components models", J. Comput. Graph. Stat. 28 (2019) 350-361).
2.  **Estimate.** C = P^½ (1 + D) P^½, where the entries of D have variance 1 / `STRENGTH` before
    the images are seen. The best linear estimate of D (Bühlmann's credibility; Theil and
    Goldberger's mixed estimation) is generalised least squares with a ridge: exact with a CTF for
    each image, and solved by conjugate gradients whose condition the ridge bounds.
3.  **Neighbours.** Covariances of neighbouring orders are alike at the radial nodes, because
    projections of one volume share its components (Kam, J. Theor. Biol. 82 (1980) 15-39). So
    their estimates make up most of the prior of a second estimate.

Many images outweigh any prior: what remains is generalised least squares.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import special

from emdask.kernels.conjugate_gradients import solve_equations
from emdask.kernels.steerable import SteerableBasis, steerable_basis

__all__ = ["bayes_covariance", "fit_powers"]

Doubles = npt.NDArray[np.float64]

# As many samples as the prior counts for, where the signal stands above the noise. Of six maps the
# blocks lay as far from the prior as 5 to 100 would tell; few of a volume's components reach the
# lowest orders, and these lie further from it than others.
STRENGTH = 20.0
LOWEST_STRENGTHS = (15.0, 8.0, 12.0)
# Radii of the discs, in parts of that of the basis, and the width of their soft edges in pixels.
DISCS = (0.25, 0.375, 0.5, 0.625, 0.75, 0.875, 1.0)
EDGE_PX = 2.0
# One frequency in so many radial nodes: spectra of what is confined to the disc are no finer.
NODE_STEP = 3
PRIOR_STEPS = 24
# As many samples as a power must explain to be: those of few images at low SNR are chance.
LEAST_EVIDENCE = 0.5
# Samples that must tell of a power for half of that: where CTFs are 0 nothing speaks against it.
HALF_TOLD = 10.0
# Logarithm of the least power, in parts of what they begin with.
LEAST_LOG = -28.0
# Of the orders to which powers are fitted: all below a number, and about so many of the others.
# Fewer would do for 1000 images; at SNR 0.01 and 20 images each order is missed.
ALL_BELOW = 16
N_ABOVE = 35
# Of the prior of the second estimate: weights of neighbours by distance, and of the first prior.
NEIGHBOURS = {-2: 0.5, -1: 1.0, 1: 1.0, 2: 0.5}
FIRST_PART = 0.3
# Conjugate gradients: residual in parts of the right-hand side, and most steps.
TOLERANCE = 1e-4
MOST_STEPS = 200
# The least variance of a component of the prior that counts, in parts of the noise.
LEAST_SIGNAL = 3e-3
# The least noise, in parts of the mean power of a coefficient: matrices stay regular.
LEAST_NOISE = 1e-9
# The least eigenvalue of the mean of h hᵀ that counts, in parts of the largest.
LEAST_PART = 1e-7
LEAST_BESSEL = 1e-200


class _Order(NamedTuple):
    """What the images tell of one angular order.

    The mean over images of products of two filters is a sum between radial nodes, weighted by
    `pairs`, the mean of h hᵀ; or a sum of few filter matrices, each of one of its eigenvectors,
    `parts`.
    """

    sample: Doubles
    noise: Doubles
    radial: Doubles
    pairs: Doubles
    parts: Doubles
    n_samples: int
    variance: float
    strength: float
    filters: Doubles | None = None

    def filter(self, covariance: Doubles) -> Doubles:
        """Return mean(G C G) over the filters G of all images."""
        if self.filters is None:
            between = (self.radial @ covariance @ self.radial.T) * self.pairs
            return np.asarray(self.radial.T @ between @ self.radial)
        size = len(covariance)
        filtered = (self.filters.reshape(-1, size) @ covariance).reshape(-1, size, size)
        beside = np.ascontiguousarray(filtered.transpose(1, 0, 2)).reshape(size, -1)
        return np.asarray(beside @ self.filters.reshape(-1, size))

    def prepared(self) -> _Order:
        """Return it with filter matrices, if these are less work; to filter often."""
        n_nodes, size = self.radial.shape
        if not 0 < self.parts.shape[1] * size**2 <= n_nodes * (n_nodes + size):
            return self
        filters = (self.parts.T[:, None, :] * self.radial.T) @ self.radial
        return self._replace(filters=np.asarray(filters))

    def within(self, vectors: Doubles) -> _Order:
        """Return what is told of images in the span of orthonormal vectors: their coefficients."""
        return self._replace(
            sample=vectors.T @ self.sample @ vectors,
            noise=vectors.T @ self.noise @ vectors,
            radial=self.radial @ vectors,
        )

    def invert(self, covariance: Doubles) -> Doubles:
        """Return the inverse of what is expected of the sample, given the covariance."""
        return np.asarray(np.linalg.inv(self.filter(covariance) + self.noise), np.float64)


def bayes_covariance(
    samples: Sequence[Doubles],
    power: Doubles,
    power_pairs: Doubles,
    n_images: int,
    basis: SteerableBasis,
    noise_variance: float,
) -> list[Doubles]:
    """Estimate the covariance of images without CTF and noise, for any number of them.

    Parameters
    ----------
    samples
        For each order, float64 (n_q, n_q): mean over images of the real part of t tᴴ, where t are
        coefficients of images times their CTF, less their mean in order 0.
    power : float64 array, shape (n_r,)
        Mean of h, the squared CTF at the nodes of the basis.
    power_pairs : float64 array, shape (n_r, n_r)
        Mean of h hᵀ.
    n_images
        How many images; each is one sample of order 0, and two of any other.
    basis
        What they were expanded in.
    noise_variance
        Of a pixel, 0 or more.

    Returns
    -------
    list of float64 arrays
        For each order (n_q, n_q), symmetric, no eigenvalue below 0.

    Examples
    --------
    >>> from emdask.kernels.steerable import steerable_basis
    >>> basis = steerable_basis(16)
    >>> ones = np.ones(len(basis.nodes))
    >>> samples = [np.eye(radial.shape[1]) for radial in basis.radial]
    >>> blocks = bayes_covariance(samples, ones, np.outer(ones, ones), 1000, basis, 1.0)
    >>> float(np.abs(blocks[2]).max()) < 0.05
    True
    """
    if not power.any() or not (noise_variance > 0 or any(own.any() for own in samples)):
        return [np.zeros_like(own) for own in samples]
    orders = _gather(samples, power, power_pairs, n_images, basis, noise_variance)
    components = _make_components(basis)
    powers = fit_powers(orders, components)
    first = [(own * powers) @ own.T for own in components]
    blocks = [_update(order, prior) for order, prior in zip(orders, first, strict=True)]
    second = _mix(blocks, first, basis)
    return [_update(order, prior) for order, prior in zip(orders, second, strict=True)]


def _gather(
    samples: Sequence[Doubles],
    power: Doubles,
    power_pairs: Doubles,
    n_images: int,
    basis: SteerableBasis,
    noise_variance: float,
) -> list[_Order]:
    mean_power = sum(np.trace(own) for own in samples) / sum(len(own) for own in samples)
    variance = max(noise_variance, LEAST_NOISE * float(mean_power))
    values, vectors = np.linalg.eigh(power_pairs)
    parts = (vectors * np.sqrt(np.maximum(values, 0)))[:, values > LEAST_PART * values[-1]]
    orders = []
    for k, (sample, radial) in enumerate(zip(samples, basis.radial, strict=True)):
        noise = radial.T @ (power[:, None] * radial)
        noise += LEAST_NOISE * np.trace(noise) * np.eye(len(noise))
        n_samples = n_images * (1 if k == 0 else 2)
        strength = LOWEST_STRENGTHS[k] if k < len(LOWEST_STRENGTHS) else STRENGTH
        orders.append(
            _Order(
                sample, variance * noise, radial, power_pairs, parts, n_samples, variance, strength
            )
        )
    return orders


# --- The prior ------------------------------------------------------------------------------------


def fit_powers(orders: Sequence[_Order], components: Sequence[Doubles]) -> Doubles:
    """Return the power s of each component that is most likely, given all orders.

    Before the images are seen, its density falls as s^(-LEAST_EVIDENCE / 2), and
    less where images tell little of it.

    Parameters
    ----------
    orders
        What the images tell of each order.
    components
        For each order, float64 (n_q, m): what one unit of each power adds, u of u uᵀ.

    Returns
    -------
    float64 array, shape (m,)
        0 or more.

    Notes
    -----
    A step multiplies each power by found / expected: twice the MM step in its logarithm. At the
    maximum the logarithms then contract, because sum_j s_j (u_iᵀ F⁻¹ u_j)² = u_iᵀ F⁻¹ (F - noise)
    F⁻¹ u_i is less than what is expected, u_iᵀ F⁻¹ u_i. Nesterov's momentum, begun anew where it
    leads downhill, saves three steps of four.
    """
    step = max(1, math.ceil((len(orders) - ALL_BELOW) / N_ABOVE))
    used = [k for k in range(len(orders)) if k < ALL_BELOW or (k - ALL_BELOW) % step == 0]
    orders, components = [orders[k].prepared() for k in used], [components[k] for k in used]
    scale = max(float(np.trace(own.noise)) / max(1, len(own.noise)) for own in orders)
    logs = np.full(components[0].shape[1], math.log(scale / len(DISCS)))
    floor, ceiling = logs[0] + LEAST_LOG, logs[0] + 50
    ahead, momentum = logs, 1.0
    told = np.exp(logs) * _compare(orders, components, np.exp(logs))[1]
    evidence = LEAST_EVIDENCE * told / (told + HALF_TOLD)
    for _ in range(PRIOR_STEPS):
        found, expected = _compare(orders, components, np.exp(ahead))
        tiny = np.finfo(np.float64).tiny
        expected += evidence * np.exp(-ahead)
        ratio = np.log(np.maximum(found, tiny)) - np.log(np.maximum(expected, tiny))
        step = np.clip(ahead + ratio, floor, ceiling)
        if (np.exp(ahead) * (found - expected)) @ (step - logs) < 0:
            momentum = 1.0
        following = (1 + math.sqrt(1 + 4 * momentum**2)) / 2
        ahead = np.clip(step + (momentum - 1) / following * (step - logs), floor, ceiling)
        logs, momentum = step, following
    return np.asarray(np.exp(logs))


def _compare(
    orders: Sequence[_Order], components: Sequence[Doubles], powers: Doubles
) -> tuple[Doubles, Doubles]:
    """Return what is found of each component, and what its power lets expect."""
    found, expected = np.zeros_like(powers), np.zeros_like(powers)
    for order, own in zip(orders, components, strict=True):
        inverse = order.invert((own * powers) @ own.T)
        seen = order.filter(inverse @ order.sample @ inverse)
        found += order.n_samples * np.sum(own * (seen @ own), axis=0)
        expected += order.n_samples * np.sum(own * (order.filter(inverse) @ own), axis=0)
    return found, expected


def _make_components(basis: SteerableBasis) -> list[Doubles]:
    """Return of each order (n_q, n_discs * n_frequencies): u of unit power a pixel."""
    whole = steerable_basis(basis.box_px, radius_px=basis.radius_px, band=basis.band)
    # Functions of a basis are orthonormal at the nodes: products are what others are made of.
    return [
        (own[:-1].T @ functions[:-1]) @ components
        for own, functions, components in zip(
            basis.radial, whole.radial, _expand_components(whole), strict=True
        )
    ]


@functools.lru_cache(maxsize=4)
def _expand_components(basis: SteerableBasis) -> tuple[Doubles, ...]:
    """Expand the components of the prior in a whole basis.

    A field of one frequency is J_k(2 π f x) at the radius x; it is cut by a disc, and expanded.
    """
    at, weights = np.polynomial.legendre.leggauss(len(basis.nodes) - 1)
    at, weights = (at + 1) / 2, weights / 2
    edges = np.multiply.outer(DISCS, np.full(len(at), basis.radius_px))
    discs = np.clip((edges - at * basis.radius_px) / EDGE_PX + 0.5, 0, 1)
    roots = np.sqrt(at * weights)
    # Of functions at the nodes, those at the radii: a Hankel transform that keeps integrals.
    bound = 2 * np.pi * basis.band * basis.radius_px
    measure = bound * np.multiply.outer(roots, roots)
    chosen = slice(NODE_STEP // 2, None, NODE_STEP)
    components = []
    waves_of = _sample_bessel(len(basis.radial), bound * np.multiply.outer(at, at))
    for radial, values in zip(reversed(basis.radial), waves_of, strict=True):
        waves = values * measure
        inside = radial[:-1].T @ waves
        fields = waves[chosen].T * math.sqrt(NODE_STEP)
        components.append(np.concatenate([(inside * disc) @ fields for disc in discs], axis=1))
    return tuple(components[::-1])


def _sample_bessel(n_orders: int, at: Doubles) -> Iterator[Doubles]:
    """Yield J_k for k = n_orders - 1 down to 0, by the recurrence, which is stable downwards."""
    above = special.jv(n_orders + 1, at)
    values = special.jv(n_orders, at)
    for k in range(n_orders - 1, -1, -1):
        following = 2 * (k + 1) / at * values - above
        # Where numbers were too small for the recurrence to begin with.
        lost = np.abs(values) < LEAST_BESSEL
        following[lost] = special.jv(k, at[lost])
        above, values = values, following
        yield values


def _mix(
    blocks: Sequence[Doubles], first: Sequence[Doubles], basis: SteerableBasis
) -> list[Doubles]:
    """Return the means of neighbouring orders' blocks, with a part of the first prior.

    Order 0 is no neighbour: its mean was taken out.
    """
    mixed = []
    for k, prior in enumerate(first):
        near = {k + j: weight for j, weight in NEIGHBOURS.items() if 0 < k + j < len(blocks)}
        if near:
            total = sum(near.values())
            part = np.zeros_like(prior)
            for j, weight in near.items():
                across = basis.radial[k].T @ basis.radial[j]
                part += weight / total * (across @ blocks[j] @ across.T)
            prior = FIRST_PART * prior + (1 - FIRST_PART) * part
        mixed.append(prior)
    return mixed


# --- The estimate ---------------------------------------------------------------------------------


def _update(order: _Order, prior: Doubles) -> Doubles:
    """Return the covariance C = P^½ (1 + D) P^½ of one order."""
    values, vectors = np.linalg.eigh(prior)
    kept = values > LEAST_SIGNAL * order.variance
    if not kept.any():
        return np.zeros_like(prior)
    values, vectors = values[kept], vectors[:, kept]
    order = order.within(vectors).prepared()
    inverse = order.invert(np.diag(values))
    # In these coordinates filters alike in all images make the equations diagonal.
    typical = (np.sqrt(values)[:, None] * order.radial.T * order.parts[:, -1]) @ order.radial
    strengths, turn = np.linalg.eigh(typical @ inverse @ typical.T)
    root = np.sqrt(values)[:, None] * turn
    scaling = order.n_samples * np.multiply.outer(strengths, strengths) + order.strength

    def apply(deviation: Doubles) -> Doubles:
        told = inverse @ order.filter(root @ deviation @ root.T) @ inverse
        told = root.T @ order.filter(told) @ root
        return np.asarray(order.n_samples * told + order.strength * deviation)

    told = order.filter(inverse @ order.sample @ inverse - inverse)
    deviation = solve_equations(
        apply,
        order.n_samples * (root.T @ told @ root),
        lambda residual: residual / scaling,
        tolerance=TOLERANCE,
        most_steps=MOST_STEPS,
    )
    change = root @ deviation @ root.T
    # In plain coordinates: in those of P, what is cut off can weigh more than all that is known.
    values, turn = np.linalg.eigh(np.diag(values) + (change + change.T) / 2)
    vectors = vectors @ turn
    return np.asarray((vectors * np.maximum(values, 0)) @ vectors.T)
