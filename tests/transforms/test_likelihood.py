"""Likelihood rewards: the numbers of the papers' cards, gradients, masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.rewards.reasoning_patterns import repeats_itself
from jaxreward.transforms import advantage, base, calibration, likelihood, selection
from jaxreward.types import make_signal

# four reasonings of one prompt, three tokens of the reference answer
PROBS = jnp.asarray(
    [[[0.9, 0.8, 0.5], [0.2, 0.1, 0.4], [0.7, 0.9, 0.6], [0.05, 0.6, 0.3]]], jnp.float32
)
LOGS, INSIDE = jnp.log(PROBS), jnp.ones(PROBS.shape, bool)
ALL = jnp.ones((1, 4), bool)
KEY = jax.random.key(0)

answer_reward = jax.jit(likelihood.answer_reward, static_argnums=2)
jepo, nover = jax.jit(likelihood.jepo), jax.jit(likelihood.nover)


def signal(logs=LOGS, inside=INSIDE, valid=None, **aux):
    valid = jnp.ones(logs.shape[:2], jnp.float32) if valid is None else valid
    own = dict(answer_log_probs=logs, answer_mask=inside, answer_valid=valid, **aux)
    return make_signal(jnp.zeros(logs.shape[:2]), **own)


def run(transform, *given):
    """The last signal, in numpy."""
    state, update = transform.init(), jax.jit(transform.update)
    for signal in given:
        found, state = update(KEY, signal, state)
    return jax.tree.map(np.asarray, found)


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("prob", [0.36, 0.008, 0.378, 0.009]),
        ("log_prob", [-1.021651, -4.828314, -0.972861, -4.710531]),
        ("mean_prob", [0.733333, 0.233333, 0.733333, 0.316667]),
        ("mean_log_prob", [-0.340550, -1.609438, -0.324287, -1.570177]),
    ],
)
def test_rewards_of_the_card(kind, expected):
    found = np.asarray(answer_reward(LOGS, INSIDE, kind))
    np.testing.assert_allclose(found[0], expected, atol=2e-6)


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("prob", [0.228333, -0.241, 0.252333, -0.239667]),
        ("log_prob", [2.482251, -2.593299, 2.547304, -2.436255]),
        ("mean_prob", [0.305556, -0.361111, 0.305556, -0.25]),
    ],
)
def test_leave_one_out_advantages_of_the_card(kind, expected):
    chain = base.chain(likelihood.reference_likelihood(kind), advantage.rloo())
    np.testing.assert_allclose(run(chain, signal()).advantages[0], expected, atol=3e-6)


def test_one_surprising_token():
    for first, expected in (
        (0.01, dict(mean_prob=0.536667, geometric_mean=0.184691, prob=0.0063)),
        (0.05, dict(mean_prob=0.55, geometric_mean=0.315818, prob=0.0315)),
    ):
        logs = jnp.log(jnp.asarray([first, 0.7, 0.9], jnp.float32))
        for kind, value in expected.items():
            found = answer_reward(logs, jnp.ones(3, bool), kind)
            np.testing.assert_allclose(found, value, atol=1e-6)


def test_one_token_makes_the_kinds_agree_and_none_gives_0():
    logs = jnp.log(jnp.asarray([[0.3], [0.6]], jnp.float32))
    for kind in likelihood.KINDS:
        found = answer_reward(logs, jnp.ones(logs.shape, bool), kind)
        wanted = np.asarray(logs)[:, 0] if "log" in kind else [0.3, 0.6]
        np.testing.assert_allclose(found, wanted, rtol=1e-6)
        assert not np.any(answer_reward(logs, jnp.zeros(logs.shape, bool), kind))


def test_gap_of_long_answers():
    logs = jnp.asarray(np.log([[0.6] * 30, [0.3] * 30]), jnp.float32)
    inside = jnp.ones((2, 30), bool)
    scores = {kind: np.asarray(answer_reward(logs, inside, kind)) for kind in likelihood.KINDS}
    gap = {kind: better - worse for kind, (better, worse) in scores.items()}
    np.testing.assert_allclose(gap["prob"], 2.21e-7, rtol=2e-3)
    np.testing.assert_allclose(gap["mean_prob"], 0.3, rtol=1e-5)
    np.testing.assert_allclose(gap["log_prob"], 20.794415, rtol=1e-5)
    np.testing.assert_allclose(gap["mean_log_prob"], 0.693147, rtol=1e-5)


def test_jepo_of_the_card():
    scores = jnp.sum(LOGS, axis=-1)
    found = jax.tree.map(np.asarray, jepo(scores, ALL))
    np.testing.assert_allclose(found.rewards, [-1.667332], atol=2e-6)
    expected = [0.360150, -0.277030, 0.406790, -0.275690]
    np.testing.assert_allclose(found.advantages[0], expected, atol=3e-6)
    np.testing.assert_allclose(found.weights[0], [0.476821, 0.010596, 0.500662, 0.011921], atol=2e-6)
    assert np.mean(scores) <= found.rewards[0]  # Jensen


def test_jepo_of_two_and_of_answers_beyond_float32():
    scores = jnp.asarray([[-400.0, -410.0]], jnp.float32)
    found = jax.tree.map(np.asarray, jepo(scores, jnp.ones((1, 2), bool)))
    expected = found.rewards[:, None] - np.asarray(scores)[:, ::-1]
    np.testing.assert_allclose(found.advantages, expected, rtol=1e-5)
    alone = jepo(scores, jnp.asarray([[True, False]]))
    np.testing.assert_array_equal(alone.advantages, 0.0)
    np.testing.assert_array_equal(alone.weights, [[1.0, 0.0]])
    nobody = jepo(scores, jnp.zeros((1, 2), bool))
    assert not np.any(nobody.weights) and np.asarray(nobody.rewards)[0] == 0.0


def test_jepo_weights_are_its_gradient():
    scores = jnp.sum(LOGS, axis=-1)
    gradient = jax.jit(jax.grad(lambda own: likelihood.jepo(own, ALL).rewards[0]))(scores)
    np.testing.assert_allclose(gradient, jepo(scores, ALL).weights, rtol=1e-5)


def test_nover_of_the_card():
    lengths = jnp.asarray([[20, 50, 200, 80]], jnp.int32)
    found = jax.tree.map(np.asarray, nover(jnp.mean(LOGS, axis=-1), lengths, ALL))
    np.testing.assert_allclose(found.perplexity[0], [1.159512, 1.815418, 1.103225, 1.717490], atol=3e-6)
    np.testing.assert_allclose(found.reasoning[0], [0.75, 0.25, 1.0, 0.5])
    np.testing.assert_allclose(found.efficiency[0], [2 / 3, 0, 0, 0], atol=1e-6)


@pytest.mark.parametrize("kind", likelihood.KINDS)
def test_gradient_weights_are_the_card_formulas(kind):
    number, total = 3, np.sum(np.asarray(LOGS), -1, keepdims=True)
    ones = np.ones(LOGS.shape)
    expected = {
        "prob": np.exp(total) * ones,
        "mean_prob": np.asarray(PROBS) / number,
        "geometric_mean": np.exp(total / number) / number * ones,
        "log_prob": ones,
        "mean_log_prob": ones / number,
    }[kind]
    np.testing.assert_allclose(
        likelihood.gradient_weights(LOGS, INSIDE, kind), expected, rtol=1e-5
    )


def test_essence_probability_takes_the_mode_and_its_logarithm_the_frequencies():
    """Answers of two wordings with frequencies q: the optimum of each expected reward."""
    q = np.array([0.7, 0.3])
    grid = np.linspace(1e-6, 1 - 1e-6, 200_001)
    prob = q[0] * grid + q[1] * (1 - grid)
    log = q[0] * np.log(grid) + q[1] * np.log(1 - grid)
    assert grid[np.argmax(prob)] == grid[-1]
    best = grid[np.argmax(log)]
    np.testing.assert_allclose(best, 0.7, atol=1e-4)
    np.testing.assert_allclose(q @ [best, 1 - best], 0.58, atol=1e-4)
    np.testing.assert_allclose(np.exp(-log.max()), 1.842023, atol=1e-5)


def test_rlpr_reward_and_advantages_of_the_card():
    """r - r', clipped, blended with the format flag, normalised by the sample deviation."""
    logs = jnp.log(jnp.asarray([[[0.62], [0.35], [0.9], [0.15]]], jnp.float32))
    given = signal(
        logs, jnp.ones(logs.shape, bool),
        base_log_probs=jnp.log(jnp.asarray([[0.3]], jnp.float32)),
        base_mask=jnp.ones((1, 1), bool),
        format=jnp.asarray([[1, 1, 0, 1]], jnp.float32),
    )  # fmt: skip
    chain = base.chain(
        likelihood.reference_likelihood("mean_prob", debias=True),
        calibration.blend("format"),
        advantage.grpo(ddof=1, epsilon=1e-6),
    )
    found = run(chain, given)
    np.testing.assert_allclose(found.rewards[0], [0.388, 0.145, 0.54, 0.1], atol=1e-6)
    expected = [0.456592, -0.714405, 1.189068, -0.931256]
    np.testing.assert_allclose(found.advantages[0], expected, atol=1e-5)


def test_rlpr_without_its_terms_is_mean_probability_under_grpo():
    given = signal(
        base_log_probs=jnp.full((1, 3), -jnp.inf), base_mask=jnp.ones((1, 3), bool),
        format=jnp.asarray([[0, 1, 0, 1]], jnp.float32),
    )  # fmt: skip
    whole = base.chain(
        likelihood.reference_likelihood("mean_prob", debias=True),
        calibration.blend("format", weight=0.0),
        selection.spread_filter(scale=0.0, record_from=1, start=2),
        advantage.grpo(ddof=1, epsilon=1e-6),
    )
    plain = base.chain(
        likelihood.reference_likelihood("mean_prob"), advantage.grpo(ddof=1, epsilon=1e-6)
    )
    np.testing.assert_allclose(run(whole, given).advantages, run(plain, given).advantages, rtol=1e-6)


def test_rlpr_invalid_responses_get_0_and_repeating_ones_lose_1():
    """r = 0 and f = 0 for what has no format; the penalty comes after the blend."""
    stretch = "a b c d e f g h i j "
    flags = repeats_itself(["a short answer", "no format", stretch * 10, stretch * 9])
    logs = jnp.log(jnp.asarray([[[0.62], [0.35], [0.9], [0.15]]], jnp.float32))
    given = signal(
        logs, jnp.ones(logs.shape, bool), jnp.asarray([[1.0, 0.0, 1.0, 1.0]]),
        base_log_probs=jnp.log(jnp.asarray([[0.3]], jnp.float32)),
        base_mask=jnp.ones((1, 1), bool),
        format=jnp.asarray([[1, 0, 1, 1]], jnp.float32), repeats=jnp.asarray(flags)[None],
    )  # fmt: skip
    chain = base.chain(
        likelihood.reference_likelihood("mean_prob", debias=True),
        calibration.blend("format"),
        calibration.subtract("repeats"),
    )
    np.testing.assert_allclose(run(chain, given).rewards[0], [0.388, 0.0, 0.64 - 1, 0.1], atol=1e-6)


def test_no_better_than_without_reasoning_is_a_dead_and_filtered_group():
    logs = jnp.log(jnp.asarray([[[0.2], [0.1], [0.3], [0.25]]], jnp.float32))
    given = signal(
        logs, jnp.ones(logs.shape, bool), base_mask=jnp.ones((1, 1), bool),
        base_log_probs=jnp.log(jnp.asarray([[0.3]], jnp.float32)),
    )  # fmt: skip
    chain = base.chain(
        likelihood.reference_likelihood("mean_prob", debias=True), advantage.grpo(ddof=1)
    )
    np.testing.assert_array_equal(run(chain, given).advantages, 0.0)
    filtered = base.chain(
        likelihood.reference_likelihood("mean_prob", debias=True),
        selection.spread_filter(record_from=1, start=2),
    )
    better = given.with_aux(answer_log_probs=logs + np.float32(np.log(2.0)))
    assert not np.any(run(filtered, better, given).mask)


def test_invalid_responses():
    valid = jnp.asarray([[1.0, 0.0, 1.0, 1.0]])
    zero = run(likelihood.reference_likelihood("mean_prob"), signal(valid=valid))
    assert zero.rewards[0, 1] == 0.0 and zero.mask[0, 1]
    missing = likelihood.reference_likelihood("log_prob", invalid="missing", own_gradient=True)
    found = run(base.chain(missing, advantage.rloo()), signal(valid=valid))
    assert not found.mask[0, 1] and found.advantages[0, 1] == 0.0
    assert not np.any(found.aux["answer_weights"][0, 1])
    three = signal(jnp.asarray(np.asarray(LOGS)[:, [0, 2, 3]]), INSIDE[:, :3])
    other = run(base.chain(missing, advantage.rloo()), three)
    np.testing.assert_allclose(found.advantages[0, [0, 2, 3]], other.advantages[0], rtol=1e-6)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="kind = 'sum'"):
        likelihood.reference_likelihood("sum")
    with pytest.raises(ValueError, match="debias"):
        likelihood.reference_likelihood("log_prob", debias=True)
    with pytest.raises(ValueError, match="invalid = 'zero' with kind = 'mean_log_prob'"):
        likelihood.reference_likelihood("mean_log_prob", invalid="zero")
    with pytest.raises(ValueError, match="weight = 2"):
        calibration.blend("format", weight=2)
    with pytest.raises(ValueError, match="start = 6"):
        selection.spread_filter(start=6)


# the adaptive filter


def spread_of(*stds):
    """A signal whose groups of two have these sample deviations."""
    half = np.asarray(stds) / 2**0.5
    return make_signal(np.stack([half, -half], axis=1))


def test_threshold_of_the_card():
    transform = selection.spread_filter()
    state, update = transform.init(), jax.jit(transform.update)
    for mean in [0.9] * 5 + [0.2, 0.16, 0.14, 0.12, 0.1]:
        found, state = update(KEY, spread_of(mean, mean), state)
        assert np.all(found.mask), "nothing is filtered before step 11"
    found, state = update(KEY, spread_of(0.08, 0.08), state)
    np.testing.assert_allclose(found.metrics["selection/threshold"], 0.072, rtol=1e-5)
    found, state = update(KEY, spread_of(0.07, 0.09), state)
    np.testing.assert_allclose(found.metrics["selection/threshold"], 0.07168, rtol=1e-5)
    np.testing.assert_array_equal(found.mask, [[False, False], [True, True]])
    np.testing.assert_allclose(found.metrics["selection/kept"], 0.5)


def test_steps_without_rewards_leave_the_threshold_alone():
    nothing = make_signal(np.full((1, 2), np.nan))
    transform = selection.spread_filter(scale=1.0, decay=0.5, record_from=1, start=4)
    state, update = transform.init(), jax.jit(transform.update)
    for signal in (spread_of(0.2), nothing, spread_of(0.4), nothing):
        found, state = update(KEY, signal, state)
    np.testing.assert_allclose(found.metrics["selection/threshold"], 0.3, rtol=1e-5)
    for signal in (nothing, spread_of(0.5)):
        found, state = update(KEY, signal, state)
        np.testing.assert_allclose(found.metrics["selection/threshold"], 0.3, rtol=1e-5)
    found, _ = update(KEY, spread_of(0.5), state)
    np.testing.assert_allclose(found.metrics["selection/threshold"], 0.4, rtol=1e-5)


def test_at_the_threshold_is_kept_and_scale_0_keeps_all():
    transform = selection.spread_filter(scale=1.0, record_from=1, start=2)
    exact = run(transform, spread_of(0.5, 0.5), spread_of(0.5, 0.25))
    np.testing.assert_array_equal(exact.mask[:, 0], [True, False])
    free = selection.spread_filter(scale=0.0, record_from=1, start=2)
    assert np.all(run(free, spread_of(0.5, 0.5), spread_of(0.5, 0.0)).mask)


def test_all_prompts_feed_the_average_also_those_left_out():
    transform = selection.spread_filter(scale=1.0, decay=0.0, record_from=1, start=2)
    steps = spread_of(1.0, 1.0), spread_of(0.2, 1.8), spread_of(1.1, 0.9)
    np.testing.assert_array_equal(run(transform, *steps[:2]).mask[:, 0], [False, True])
    found = run(transform, *steps)
    np.testing.assert_allclose(found.metrics["selection/threshold"], 1.0, rtol=1e-5)


def reward_quality(kind, length, pairs=4000):
    """AUC of a reduction in telling right reasoning from wrong; see the paper's ablation of it.

    Half of the references begin with a surprising token whatever the reasoning; wrong reasoning
    spoils a quarter of the later ones.
    """
    rng = np.random.default_rng(length)
    probs = rng.beta(9, 1.5, (pairs, 2, length))
    odd = np.broadcast_to(rng.random((pairs, 1)) < 0.5, (pairs, 2))
    probs[odd, 0] = 10 ** rng.uniform(-4, -1, odd.sum())
    for row in probs[:, 1]:
        spoilt = 1 + rng.choice(length - 1, max(1, length // 4), replace=False)
        row[spoilt] = rng.uniform(0.005, 0.3, len(spoilt))
    logs = jnp.asarray(np.log(probs), jnp.float32)
    scores = np.asarray(answer_reward(logs, jnp.ones(logs.shape, bool), kind))
    right, wrong = np.sort(scores[:, 0]), np.sort(scores[:, 1])
    below = np.searchsorted(wrong, right, "left") + np.searchsorted(wrong, right, "right")
    return below.mean() / (2 * pairs)


@pytest.mark.parametrize("length, mean, product", [(3, 0.818, 0.702), (8, 0.981, 0.782),
                                                   (20, 1.0, 0.984)])  # fmt: skip
def test_the_mean_tells_right_from_wrong_better_than_the_product(length, mean, product):
    found = reward_quality("mean_prob", length), reward_quality("prob", length)
    # standard error of an AUC from 4000 pairs: below .006; the card's figures have one too
    np.testing.assert_allclose(found, (mean, product), atol=4 * 0.006 * 2**0.5)
    assert found[0] > found[1]
