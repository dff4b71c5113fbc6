"""Chains of methods that no paper put together, from the config to the advantages."""

import pathlib

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import compositions
from experiments import arms as arms_lib
from experiments import rlvr_config, transforms_table
from jaxreward.training.exits import ConfigError
from jaxreward.transforms import advantage, appeals, base, correction, noise, rates, refinement
from jaxreward.transforms import sources
from jaxreward.types import Trajectories, make_signal

PROMPTS, GROUP, STEPS = 6, 8, 4


def visit(key):
    """What the runner puts into a signal: answers right with chance 0.6, else one of three."""
    draws = jax.random.split(key, 4)
    reference = jnp.arange(PROMPTS, dtype=jnp.uint32) + jnp.uint32(100)
    right = jax.random.bernoulli(draws[0], 0.6, (PROMPTS, GROUP))
    wrong = jax.random.randint(draws[1], (PROMPTS, GROUP), 1, 4).astype(jnp.uint32)
    answer = jnp.where(right, reference[:, None], wrong)
    tokens = jnp.broadcast_to(answer[..., None], (PROMPTS, GROUP, STEPS)).astype(jnp.int32)
    mask = jnp.ones(tokens.shape, bool)
    trajectories = Trajectories(None, tokens, tokens, jnp.zeros(tokens.shape), mask)
    return make_signal(
        right,
        jax.random.bernoulli(draws[2], 0.9, right.shape),
        trajectories=trajectories,
        true_rewards=right.astype(jnp.float32),
        answer_id=answer,
        reference_id=reference,
        output_id=answer,
        output_form=jnp.zeros(answer.shape, jnp.int32),
        prompt_type=jnp.arange(PROMPTS, dtype=jnp.int32) % 3,
        pattern_reward=jnp.where(jax.random.bernoulli(draws[3], jnp.where(right, 0.5, 0.2)), 0.5, 0.0),
    )


@pytest.fixture(scope="module")
def chains():
    config = compositions.get_config()
    return arms_lib.build_arms(config, arms_lib.provided(config))


@pytest.fixture(scope="module")
def visits(chains):
    """Ten visits of every chain: inputs, advantages `[T, P, G]` by arm, under one jit."""
    keys = jax.random.split(jax.random.key(0), 10)

    def run(transform, keys, signals):
        def one(state, given):
            key, signal = given
            signal, state = transform.update(jax.random.fold_in(key, 1), signal, state)
            return state, (signal.advantages, signal.mask)

        return jax.lax.scan(one, transform.init(), (keys, signals))[1]

    @jax.jit
    def run_all(keys):
        signals = jax.vmap(visit)(keys)
        return signals, {name: run(chain, keys, signals) for name, chain in chains.items()}

    return jax.device_get(run_all(keys))


def test_config_is_valid():
    for variant in ("", "smoke"):
        rlvr_config.validate(compositions.get_config(variant))
    methods = [name for name in compositions.CHAINS if not name.startswith("noisy")]
    assert len(methods) >= 6


@pytest.mark.parametrize("name", compositions.CHAINS)
def test_chain_runs_and_ranks_right_above_wrong(visits, name):
    signals, results = visits
    advantages, mask = results[name]
    assert np.all(np.isfinite(advantages))
    np.testing.assert_array_equal(advantages[~mask], 0.0)
    truth = np.asarray(signals.aux["true_rewards"])
    right, wrong = advantages[mask & (truth > 0)], advantages[mask & (truth == 0)]
    error = np.sqrt(right.var() / right.size + wrong.var() / wrong.size)
    assert right.mean() - wrong.mean() > 3 * error


def test_refinement_and_appeals_each_bring_the_signal_closer_to_the_truth(visits):
    signals, results = visits
    truth = np.asarray(signals.aux["true_rewards"])

    def agreement(name):
        advantages, mask = results[name]
        advantages, own = advantages[5:], mask[5:]
        return np.corrcoef(advantages[own], truth[5:][own])[0, 1]

    assert agreement("appeals_forward_refinement") > agreement("noisy_labels")
    assert agreement("hacked_fixed") > agreement("noisy_hack")


def test_a_chain_that_needs_what_nobody_gives_is_refused():
    config = compositions.get_config()
    config.arms.hacked_fixed = ("hack", "appeals_fix", "backward", "rloo")
    with pytest.raises(ConfigError, match="hacked_fixed.*'appeals' reads 'aux/appealed'"):
        arms_lib.build_arms(config, arms_lib.provided(config))


@pytest.mark.parametrize(
    "stages, message",
    [
        (("backward", "forward", "direct"), "both correct the same channel"),
        (("backward", "z_score"), "cancels it"),
        (("rloo", "refine"), "changes rewards or their mask after"),
        (("rloo", "z_score"), "overwrites the advantages"),
    ],
)
def test_two_that_cancel_are_refused(stages, message):
    config = compositions.get_config()
    z_score = dict(fn="jaxreward.transforms.advantage:grpo")
    config.transforms.z_score = ml_collections.ConfigDict(z_score)
    config.arms.majority_appeals = ("flips", "known_rates") + stages
    with pytest.raises(ConfigError, match=message):
        arms_lib.build_arms(config, arms_lib.provided(config))


def test_the_order_of_a_chain_is_that_of_its_parts_by_hand():
    source = sources.constant(0.1, 0.2)
    parts = (
        refinement.label_noise("active", 0.5),
        noise.class_conditional(source),
        appeals.simulated_appeals(negative_share=0.5),
        rates.appeals(),
        correction.backward(),
        advantage.rloo(),
    )
    chain, key = base.chain(*parts), jax.random.key(3)
    given = jax.jit(visit)(jax.random.key(4))
    whole = jax.jit(lambda signal: chain.update(key, signal, chain.init())[0].advantages)

    @jax.jit
    def by_hand(signal):
        for position, part in enumerate(parts):
            signal, _ = part.update(jax.random.fold_in(key, position), signal, part.init())
        return signal.advantages

    np.testing.assert_array_equal(whole(given), by_hand(given))


def test_table_of_transforms_is_current_and_names_what_is_read():
    kept = transforms_table.OUT
    assert pathlib.Path(kept).read_text() == transforms_table.of_library() + "\n", (
        f"run python -m experiments.transforms_table --out={kept}"
    )
    arms = transforms_table.of_arms("configs/compositions.py")
    assert "### majority_appeals\n\nFrom the runner: `aux/answer_id`" in arms


def test_table_refuses_a_factory_without_an_example():
    def needs(colour) -> base.RewardTransform:
        return base.identity()

    with pytest.raises(ValueError, match="'colour'"):
        transforms_table.example("needs", needs)
