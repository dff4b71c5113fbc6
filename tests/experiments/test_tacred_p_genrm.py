"""Studies of cleaning by neighbours and of personal rubrics: bad configs and their parts."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
import smokes

from experiments.reward_studies import p_genrm, tacred_noise


@pytest.mark.parametrize(
    "name, key, value",
    [
        ("tacred_noise", "study.missed", 1.5),
        ("tacred_noise", "study.folds", 1),
        ("tacred_noise", "study.rule", "some"),
        ("tacred_noise", "study.train", 1700),
        ("p_genrm", "study.flips", 1.0),
        ("p_genrm", "study.clusters", 500),
        ("p_genrm", "study.users", 5),
    ],
)
def test_bad_configs(name, key, value):
    smokes.refuses(name, key, value)


def test_the_noise_of_the_digits(key):
    gold = jax.random.randint(key, (20_000,), 0, tacred_noise.CLASSES, jnp.int32)
    labels = tacred_noise.corrupt(key, gold, 0.4, 0.1)
    positive = np.asarray(gold > 0)
    assert not np.any(np.asarray(labels)[~positive])
    # 4 standard errors of rates over some 16,700 positives
    assert np.mean(labels[positive] == 0) == pytest.approx(0.4, abs=0.016)
    swapped = (labels != gold) & (labels > 0)
    assert np.mean(swapped[positive]) == pytest.approx(0.06, abs=0.008)


def test_a_long_history_says_more_and_tight_clusters_are_alike(key):
    own = ml_collections.ConfigDict(dict(clusters=2, criteria=8, flips=0.1))
    centres = jnp.eye(8)[:2]

    def users(spread, history):
        setting = p_genrm.Setting(*map(jnp.float32, (spread, history, 0.5)))
        return p_genrm.draw_users(key, own, centres, setting, 300)

    agreement = lambda found: float(jnp.mean(jnp.sum(found.weights * found.estimate, axis=1)))
    short, long = agreement(users(0.3, 1)), agreement(users(0.3, 8))
    assert 0.1 < short < long - 0.2
    nearest = lambda found: float(jnp.mean(jnp.max(found.weights @ centres.T, axis=1)))
    assert nearest(users(0.0, 1)) == pytest.approx(1.0, abs=1e-5)
    assert nearest(users(2.0, 1)) < 0.8
