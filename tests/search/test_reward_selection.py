import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.search import reward_selection as selection


correlations = jax.jit(selection.correlations, static_argnums=3)


def test_weights_of_the_card():
    rho = jnp.array([0.239852, 0.584583, 0.793128, 0.681622])
    weights = selection.category_weights(rho)
    np.testing.assert_allclose(weights, [0.417282, 1.017026, 1.379842, 1.185850], atol=2e-6)
    np.testing.assert_allclose(jnp.sum(weights), 4.0, rtol=1e-6)


def test_unknown_and_negative_correlations_weigh_nothing():
    rho = jnp.array([[0.5, jnp.nan, -0.3, 0.5], [jnp.nan, -0.1, 0.0, -0.2]])
    weights = selection.category_weights(rho)
    np.testing.assert_allclose(weights, [[2, 0, 0, 2], [1, 1, 1, 1]], rtol=1e-6)


def test_released_rows_have_mean_one():
    for row in selection.AS_RELEASED.values():
        assert sum(row) == pytest.approx(4.0, abs=0.0101)


def judged_scores():
    """Of 60 images by 3 rewards, and a judge who agrees in part with the first."""
    noise = np.random.default_rng(0).standard_normal((60, 4), np.float32)
    return noise[:, :3], noise[:, 0] + noise[:, 3]


def test_correlations_are_numpys():
    scores, judged = judged_scores()
    category = np.arange(60, dtype=np.int32) % 2
    found = correlations(scores, judged, category, 3)
    for c in range(2):
        own = category == c
        for m in range(3):
            expected = np.corrcoef(scores[own, m], judged[own])[0, 1]
            np.testing.assert_allclose(found[c, m], expected, atol=1e-5)
    assert np.all(np.isnan(found[2]))


def test_constant_scores_have_no_correlation():
    found = correlations(
        jnp.ones((4, 1)), jnp.arange(4.0), jnp.zeros(4, jnp.int32), 1
    )
    assert np.isnan(found[0, 0])


def test_a_missing_score_takes_no_part():
    """As on the card of CARINOX, where one reward has no scores for two of the categories."""
    holes, unjudged = judged_scores()
    category = np.arange(60, dtype=np.int32) % 3
    holes[category == 2, 1], holes[0, 2], unjudged[1] = np.nan, np.inf, np.nan
    found = np.asarray(correlations(holes, unjudged, category, 3))
    assert np.isnan(found[2, 1]) and np.sum(np.isnan(found)) == 1
    for c, m in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2), (2, 0), (2, 2)):
        own = (category == c) & np.isfinite(holes[:, m]) & np.isfinite(unjudged)
        expected = np.corrcoef(holes[own, m], unjudged[own])[0, 1]
        np.testing.assert_allclose(found[c, m], expected, atol=1e-5)
    weights = selection.category_weights(jnp.asarray(found))
    assert float(weights[2, 1]) == 0.0 and np.all(np.isfinite(weights))


def test_prompts_mix_categories():
    table = jnp.array([[2.0, 0.0], [0.5, 1.5]])
    mixed = selection.prompt_weights(jnp.array([[1.0, 0.0], [0.5, 0.5], [0.0, 0.0]]), table)
    np.testing.assert_allclose(mixed, [[2.0, 0.0], [1.25, 0.75], [1.0, 1.0]])
    unknown = selection.prompt_weights(jnp.zeros(2), table)
    np.testing.assert_array_equal(unknown, selection.AS_RELEASED["none"][:2])


def test_released_optimisation_does_not_read_the_table():
    """The trap of the card of CARINOX: weights of the command line, HPS, IR, DA and VQA."""
    table = jnp.asarray(list(selection.AS_RELEASED.values()))
    membership = jax.nn.one_hot(jnp.array([0, 7]), len(table))
    own = selection.prompt_weights(membership, table)
    np.testing.assert_allclose(own, [[0.40, 1.06, 1.41, 1.14], [1.02, 1.05, 1.00, 0.93]], rtol=1e-6)
    released = selection.prompt_weights(membership, table, as_released=True)
    np.testing.assert_array_equal(released, [[5.0, 5.0, 5.0, 1.0]] * 2)
    with pytest.raises(ValueError, match="2 rewards; allowed are 4"):
        selection.prompt_weights(membership, table[:, :2], as_released=True)


def test_strongest_ignores_the_unknown():
    rho = jnp.array([[0.2, 0.9, jnp.nan, jnp.nan], [0.4, 0.1, 0.6, jnp.nan]])
    np.testing.assert_array_equal(selection.strongest(rho, 2), [2, 1])
    with pytest.raises(ValueError, match="count = 5"):
        selection.strongest(rho, 5)
