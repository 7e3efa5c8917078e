"""Principal components and their buckets beside scikit-learn's and NumPy's."""

import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.decomposition import PCA
from sklearn.preprocessing import KBinsDiscretizer

from jgen.prob.principal_components import RANGE, decode, encode, principal_components

LEVELS = 64


@pytest.fixture(scope="module")
def vectors():
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((6, 6)) * np.array([3.0, 2.0, 1.0, 0.5, 0.2, 0.05])[:, None]
    return (rng.standard_normal((4000, 6)) @ mixing + rng.standard_normal(6)).astype(np.float32)


def components_of(x, number):
    return principal_components(jnp.asarray(x.mean(axis=0)), jnp.asarray(x.T @ x / len(x)), number)


def test_components_are_those_of_scikit_learn(vectors):
    components, share = components_of(vectors, 4)
    theirs = PCA(4).fit(vectors)
    np.testing.assert_allclose(np.sum(components.basis * theirs.components_, axis=1) ** 2, 1.0, atol=1e-4)
    np.testing.assert_allclose(components.std, np.sqrt(theirs.explained_variance_ * (1 - 1 / 4000)), rtol=2e-3)
    np.testing.assert_allclose(components.mean, theirs.mean_, atol=1e-4)
    assert float(share) == pytest.approx(theirs.explained_variance_ratio_.sum(), abs=1e-4)
    largest = np.take_along_axis(components.basis, np.abs(components.basis).argmax(axis=1)[:, None], axis=1)
    assert np.all(largest > 0)


def test_codes_are_scikit_learns_buckets(vectors):
    """Of one width between -RANGE and RANGE standard deviations, which the first two rows of the fit reach."""
    components, _ = components_of(vectors, 3)
    y = (vectors.astype(np.float64) - np.asarray(components.mean)) @ np.asarray(components.basis, np.float64).T
    y = y / np.asarray(components.std)
    ends = np.array([[-RANGE] * 3, [RANGE] * 3])
    buckets = KBinsDiscretizer(LEVELS, encode="ordinal", strategy="uniform", subsample=None).fit(ends)
    inside = np.all(np.abs(y * LEVELS / (2 * RANGE) - np.round(y * LEVELS / (2 * RANGE))) > 1e-3, axis=1)
    assert inside.mean() > 0.9  # the others are so near an edge that rounding decides
    codes = np.asarray(encode(components, jnp.asarray(vectors), LEVELS))
    np.testing.assert_array_equal(codes[inside], buckets.transform(np.clip(y, -RANGE, RANGE))[inside])


def test_a_code_stands_for_the_middle_of_its_bucket(vectors):
    components, _ = components_of(vectors, 6)
    codes = encode(components, jnp.asarray(vectors), LEVELS)
    decoded = decode(components, codes, LEVELS)
    np.testing.assert_array_equal(encode(components, decoded, LEVELS), codes)
    error = (np.asarray(decoded) - vectors) @ np.asarray(components.basis).T / np.asarray(components.std)
    inside = (np.asarray(codes) > 0) & (np.asarray(codes) < LEVELS - 1)
    half = RANGE / LEVELS
    assert np.abs(error[inside]).max() <= half * 1.01
    assert np.mean(error[inside] ** 2) == pytest.approx(half**2 / 3, rel=0.05)  # uniform within a bucket


def test_what_lies_outside_is_in_the_last_buckets():
    components, _ = components_of(np.random.default_rng(1).standard_normal((500, 2)).astype(np.float32), 2)
    far = jnp.stack([components.mean + 9 * components.std[0] * s * components.basis[0] for s in (-1, 1)])
    assert np.asarray(encode(components, far, LEVELS))[:, 0].tolist() == [0, LEVELS - 1]
