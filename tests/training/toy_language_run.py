"""A whole GRPO step of a tiny language model with a noise-corrected chain, on any mesh."""

import jax
import jax.numpy as jnp
import optax

from jaxreward.losses.policy import policy_objective
from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.policies.language import Layout, Prompts, language_policy
from jaxreward.training import sharding
from jaxreward.training.step import make_update_step, sample_key
from jaxreward.transforms import advantage, appeals, base, correction, noise, rates, sources
from jaxreward.types import make_signal

P, G, S, L, VOCABULARY = 16, 4, 7, 5, 24
CONFIG = TransformerConfig(
    vocab_size=VOCABULARY, width=32, layers=2, heads=4, kv_heads=2, intermediate=48,
    qkv_bias=True, remat=True, scan=True,
)  # fmt: skip
PROVIDED = ("trajectories", "aux/true_rewards", "aux/prompt_type")


def make_policy(layout=Layout()):
    """A policy with a stop token, so that lengths differ."""
    return language_policy(
        CONFIG, max_new_tokens=S, stop_tokens=(1,), pad_token=0, layout=layout
    )


def make_chain():
    """Noise by type of prompt, appeals, rates from them, the correction, an advantage."""
    channel = sources.by_index("prompt_type", [0.1, 0.3], [0.2, 0.3])
    estimator = rates.appeals(by="prompt_type", num=2, rechecks_positives=True, decay=0.9)
    return base.chain(
        noise.class_conditional(channel),
        appeals.simulated_appeals(negative_share=0.5, positive_share=0.5),
        estimator,
        correction.backward(),
        advantage.group_relative(baseline="leave_one_out", scale="none"),
        provided=PROVIDED,
    )


def make_prompts():
    """Prompts `[P, L]` of several lengths, the same everywhere."""
    tokens = jax.random.randint(jax.random.key(7), (P, L), 2, VOCABULARY, jnp.int32)
    return Prompts(tokens, 2 + jnp.arange(P, dtype=jnp.int32) % (L - 1))


def true_rewards(tokens):
    """1 where a response holds more even than odd tokens, float32 `[P, G]`."""
    even = jnp.sum(jnp.where(tokens > 1, 1 - 2 * (tokens % 2), 0), axis=-1)
    return (even > 0).astype(jnp.float32)


def make_step(policy, learning_rate, accumulate=1, mesh=None):
    """The update step; the ratio is to the trainer's own scores before the update.

    Without the entropy term the loss would be a sum of advantages that nearly cancel, of which
    no relative accuracy can be asked.
    """
    loss = policy_objective(
        policy, old="recomputed", normalize="token", entropy_coefficient=0.1
    )
    optimizer = optax.adam(learning_rate, b1=0.9, b2=0.99)
    return make_update_step(loss, make_chain(), optimizer, accumulate=accumulate, mesh=mesh)


def init(key):
    """The train state of a run."""
    policy_key, run_key = jax.random.split(key)
    return make_step(make_policy(), 0.0).init(run_key, make_policy().init(policy_key))


def roll_out(policy, state, prompts):
    """Trajectories, and the trainer's scores of them."""
    trajectories = policy.sample(state.params, sample_key(state), prompts, G)
    return trajectories, policy.log_prob(state.params, trajectories).log_probs


def learn(step, state, trajectories, old_log_probs, true):
    """The update from trajectories and their true rewards."""
    prompt_type = jnp.arange(P, dtype=jnp.int32) % 2
    signal = make_signal(
        true, trajectories=trajectories, true_rewards=true, prompt_type=prompt_type,
        old_log_probs=old_log_probs,
    )  # fmt: skip
    return step.update(state, signal)


def iteration(mesh, accumulate=1, copies=False):
    """`(state, prompts, learning_rate) -> (state, metrics)`, jitted for a mesh.

    As `copies`, each device differentiates the loss of its own prompts by itself.
    """
    policy = make_policy(sharding.language_layout(CONFIG, mesh))
    own = dict(policy=policy)
    if copies:
        own = dict(policy=make_policy(sharding.copy_layout(mesh)), mesh=mesh)

    def run(state, prompts, learning_rate):
        trajectories, scores = roll_out(policy, state, prompts)
        step = make_step(learning_rate=learning_rate, accumulate=accumulate, **own)
        true = true_rewards(trajectories.actions)
        state, metrics = learn(step, state, trajectories, scores, true)
        gap = jnp.where(trajectories.mask, scores - trajectories.log_probs, 0.0)
        metrics["sampler_gap"] = jnp.max(jnp.abs(gap))
        return state, {**metrics, "tokens": trajectories.actions, "rewards": true}

    rules = sharding.transformer_rules(CONFIG, mesh)
    shardings = sharding.state_shardings(jax.eval_shape(init, jax.random.key(0)), mesh, rules)
    return sharding.jit_step(run, shardings)


def start(mesh):
    """The initial state in its place, and the prompts in theirs."""
    rules = sharding.transformer_rules(CONFIG, mesh)
    state = sharding.sharded_init(init, mesh, rules, jax.random.key(0))
    return state, jax.device_put(make_prompts(), sharding.batch_sharding(mesh))
