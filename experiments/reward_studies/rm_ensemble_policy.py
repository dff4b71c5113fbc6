"""Policy gradient on an ensemble's aggregate, from the distribution of the training data.

The policy is a diagonal Gaussian over items that starts as the standard normal one, so its KL to
the start is known exactly. The chain is that of any policy of the library: aggregate of the
members, KL penalty in the reward, leave-one-out baseline.

Such a policy can go anywhere: without a penalty its gold reward falls without end, which says
nothing about aggregates. So every run is judged up to one KL, the same for all.
"""

import functools
from typing import Any, Callable

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from jaxreward.evaluation import best_of_n
from jaxreward.losses.policy import policy_objective
from jaxreward.training.step import make_update_step, sample_key
from jaxreward.transforms import advantage, aggregation, kl_penalty
from jaxreward.transforms.base import chain
from jaxreward.types import Policy, StepScores, Trajectories, make_signal

Score = Callable[[Array], Array]
"""`items [..., D] -> [..., K]` for members, `[...]` for the gold reward."""

Params = dict[str, Float[Array, "D"]]


def gaussian_policy(features: int) -> Policy:
    """One decision: an item from a diagonal Gaussian, which starts standard normal.

    Prompts are `[P]`, actions and outputs float32 `[P, G, features]`; every prompt has the same
    distribution. Parameters: `mean` and `log_std`.
    """

    def init(key: jax.Array) -> Params:
        del key
        return {"mean": jnp.zeros(features), "log_std": jnp.zeros(features)}

    def density(params: Params, x: Array) -> Array:
        mean, log_std = (params[name][None, None] for name in ("mean", "log_std"))
        each = -0.5 * jnp.square((x - mean) * jnp.exp(-log_std)) - log_std
        return jnp.sum(each - 0.5 * jnp.log(2.0 * jnp.pi), axis=-1, keepdims=True)

    def sample(params: Params, key: jax.Array, prompts: Array, group_size: int) -> Trajectories:
        noise = jax.random.normal(key, (prompts.shape[0], group_size, features))
        std = jnp.exp(params["log_std"])
        x = params["mean"][None, None] + std[None, None] * noise
        mask = jnp.ones(x.shape[:2] + (1,), bool)
        return Trajectories(prompts, x, x, density(params, x), mask)

    def log_prob(params: Params, trajectories: Trajectories) -> StepScores:
        log_probs = density(params, trajectories.actions)
        entropy = jnp.sum(params["log_std"]) + 0.5 * features * (1.0 + jnp.log(2.0 * jnp.pi))
        return StepScores(log_probs, jnp.broadcast_to(entropy, log_probs.shape))

    return Policy(init, sample, log_prob)


def kl_to_start(params: Params) -> Float[Array, ""]:
    """KL to the standard normal distribution, in nats."""
    variance = jnp.exp(2.0 * params["log_std"])
    each = variance + jnp.square(params["mean"]) - 1.0 - 2.0 * params["log_std"]
    return 0.5 * jnp.sum(each)


def optimize(key: jax.Array, score: Score, gold: Score, arm, study) -> dict[str, Array]:
    """What `best_of_n.up_to_kl` says for each KL coefficient, and curves, averaged over runs.

    `study.policy`: kl_coefficients, kl_budget, steps, group, learning_rate, window (steps that a
    point of a curve is the mean of). A single member is run once for each member.
    """
    settings = study.policy
    coefficients = jnp.array(settings.kl_coefficients, jnp.float32)
    if arm.members == 1:
        shared = lambda k: lambda x: jnp.take(score(x), k[None], axis=-1)
        run = lambda c, k: _run(key, shared(k), gold, c, arm, study)
    else:
        own = lambda x: score(x)[..., : arm.members]
        run = lambda c, k: _run(key, own, gold, c, arm, study)
    runs = jnp.arange(study.members if arm.members == 1 else 1)
    curves = jax.vmap(jax.vmap(run, (None, 0)), (0, None))(coefficients, runs)
    upto = functools.partial(best_of_n.up_to_kl, budget=settings.kl_budget)
    ends = jax.vmap(jax.vmap(upto))(curves["kl"], curves["gold"])._asdict()
    found = {}
    for i, coefficient in enumerate(settings.kl_coefficients):
        for metric, values in ends.items():
            found[f"policy_{coefficient:g}/{metric}"] = jnp.mean(values[i])
        for metric, values in curves.items():
            found[f"policy_{coefficient:g}/{metric}_curve"] = jnp.mean(values[i], axis=0)
    return found


def _run(key, score: Score, gold: Score, coefficient: Array, arm, study) -> dict[str, Any]:
    """One training: `{"gold", "proxy", "kl"}` by window."""
    settings, policy = study.policy, gaussian_policy(study.features)
    rewards = chain(
        aggregation.aggregate_members(
            arm.aggregate, weight=arm.policy_weight, ddof=arm.policy_ddof
        ),
        kl_penalty.kl_penalty(coefficient),
        advantage.rloo(),
    )
    loss = policy_objective(policy, objective="reinforce", normalize="constant", old="current")
    step = make_update_step(loss, rewards, optax.adam(settings.learning_rate))
    start = policy.init(key)

    def update(state, _):
        drawn = policy.sample(
            state.params, sample_key(state), jnp.zeros(1, jnp.int32), settings.group
        )
        scores = score(drawn.outputs)
        reference = policy.log_prob(start, drawn).log_probs
        signal = make_signal(
            jnp.zeros(scores.shape[:2]),
            trajectories=drawn,
            member_rewards=scores,
            reference_log_probs=reference,
        )
        proxy = aggregation.aggregate_scores(
            scores, arm.aggregate, weight=arm.policy_weight, ddof=arm.policy_ddof
        )
        seen = {
            "gold": jnp.mean(gold(drawn.outputs)),
            "proxy": jnp.mean(proxy),
            "kl": kl_to_start(state.params),
        }
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
            state, _ = step.update(state, signal)
        return state, seen

    _, seen = jax.lax.scan(update, step.init(key, start), None, length=settings.steps)
    window = lambda values: jnp.mean(values.reshape(-1, settings.window), axis=1)
    return jax.tree.map(window, seen)
