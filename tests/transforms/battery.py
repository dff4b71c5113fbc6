"""The table of every reward transform of the library, and the signals they are run on.

A new transform costs a line in `CASES`; `test_battery.py` fails while one is missing, and runs
each through the same tests, on one device, as `test_battery_devices.py` does on eight.
"""

import inspect
from typing import Any, Callable, Iterator, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxreward import channel as channels
from jaxreward.transforms import (
    advantage,
    aggregation,
    appeals,
    base,
    calibration,
    correction,
    credit,
    exact_correction,
    kl_penalty,
    learned_baseline,
    likelihood,
    majority,
    majority_guard,
    mixture,
    noise,
    prompt_statistics,
    rates,
    rates_calibrated,
    rates_em,
    rates_unverified,
    refinement,
    selection,
    sources,
)
from jaxreward.transforms.base import RewardTransform, Spec, chain
from jaxreward.types import Signal, Trajectories

GROUP, STEPS, PARTS = 4, 5, 2
"""Samples of a prompt, decisions of a trajectory, process steps of a trajectory."""

NUM_IDS = 11
"""Prompt ids are below this."""

BY_TYPE = sources.by_index("type", (0.05, 0.3), (0.1, 0.2))
BY_FEATURE = sources.by_index("feature", (0.0, 0.2), (0.3, 0.1), per="sample")


class Case(NamedTuple):
    """A line of the table.

    Attributes:
      make: the transform; it takes `axis_name` where the factory does.
      draws: whether what it does depends on the key.
      dense: whether it is run on process rewards `[P, G, S]`, outcomes `[P, G]` otherwise.
      returns: whether a missing reward still has the advantage of what follows it.
      local: metrics that are those of the prompts of a device, also with `axis_name`.
    """

    make: Callable[..., RewardTransform]
    draws: bool = False
    dense: bool = False
    returns: bool = False
    local: tuple[str, ...] = ()

    def build(self, axis_name: str | None = None) -> RewardTransform:
        """The transform, over a mapped axis where it takes one."""
        return self.make(axis_name=axis_name) if axis_name and self.takes_axis else self.make()

    @property
    def takes_axis(self) -> bool:
        """Whether the transform can be told of a mapped axis."""
        return "axis_name" in inspect.signature(self.make).parameters


def odd_type(signal: Signal) -> jax.Array:
    """Some prompts."""
    return signal.aux["type"] == 1


def hit(signal: Signal) -> jax.Array:
    """Some samples."""
    return signal.aux["hit"]


def three_levels() -> RewardTransform:
    """Sets the rates of a channel of three levels."""
    channel = channels.symmetric(0.1, 3)
    spec = Spec("three_levels", "rates", (), ("rates",))
    return base.stateless(lambda key, signal: signal.replace(rates=channel), spec)


def appeals_chain(axis_name=None) -> RewardTransform:
    """Noise, appeals against it, and the correction by what they say."""
    return chain(
        noise.class_conditional(BY_TYPE),
        appeals.simulated_appeals(negative_share=0.5, axis_name=axis_name),
        rates.appeals(axis_name=axis_name),
        correction.backward(),
        advantage.rloo(),
    )


CASES = {
    # base
    "base.identity": Case(lambda: base.identity()),
    "base.stateless": Case(lambda: base.stateless(lambda key, s: s, Spec("same", "record"))),
    "base.chain": Case(
        lambda axis_name=None: chain(appeals_chain(axis_name), base.identity()),
        draws=True,
        local=("correction/floored", "advantage/dead_groups"),
    ),
    "base.chain/prompts": Case(
        lambda: chain(
            noise.drop(0.2),
            noise.symmetric(0.2),
            rates.known(BY_FEATURE),
            correction.corrected_group_normalization(),
        ),
        draws=True,
    ),
    "base.where": Case(
        lambda axis_name=None: base.where(
            advantage.group_relative(scale="batch_std", axis_name=axis_name),
            odd_type,
            reads=("aux/type",),
        )
    ),
    "base.where/samples": Case(
        lambda: base.where(noise.symmetric(0.5), hit, reads=("aux/hit",)), draws=True
    ),
    "base.record": Case(lambda: base.record("test/present", lambda s: s.mask.any())),
    "base.per_prompt": Case(
        lambda: base.per_prompt(rates.appeals_as_released(negative_share=0.5), NUM_IDS)
    ),
    "base.per_prompt/draws": Case(
        lambda: base.per_prompt(noise.symmetric(0.5), NUM_IDS), draws=True
    ),
    # noise
    "noise.group_flip": Case(
        lambda: noise.group_flip(0.5, answered="answer_id"), draws=True
    ),
    "noise.symmetric": Case(lambda: noise.symmetric(0.5), draws=True),
    "noise.class_conditional": Case(lambda: noise.class_conditional(BY_TYPE), draws=True),
    "noise.class_conditional/aux": Case(
        lambda: noise.class_conditional(sources.from_aux("rate", "rate", per="sample")), draws=True
    ),
    "noise.class_conditional/prompt": Case(
        lambda: noise.class_conditional(BY_TYPE, fixed_by="prompt")
    ),
    "noise.class_conditional/output": Case(
        lambda: noise.class_conditional(BY_TYPE, fixed_by="output", seed=1)
    ),
    "noise.class_conditional/dense": Case(
        lambda: noise.class_conditional(sources.constant(0.4, 0.5)), draws=True, dense=True
    ),
    "noise.levels": Case(
        lambda: noise.levels(channels.symmetric(0.6, 3), (0.0, 0.5, 1.0)), draws=True
    ),
    "noise.gaussian": Case(lambda: noise.gaussian(0.3), draws=True),
    "noise.hackable": Case(lambda: noise.hackable("hit")),
    "noise.random_reward": Case(lambda: noise.random_reward(), draws=True),
    "noise.inverted": Case(lambda: noise.inverted()),
    "noise.drop": Case(lambda: noise.drop(0.5), draws=True),
    "noise.use_true_rewards": Case(lambda: noise.use_true_rewards()),
    # majority
    "majority.majority_reward": Case(
        lambda axis_name=None: majority.majority_reward(min_share=0.4, axis_name=axis_name)
    ),
    "majority.label_reward": Case(
        lambda axis_name=None: majority.label_reward(leave_out="label_id", axis_name=axis_name)
    ),
    "majority.answered_reward": Case(lambda: majority.answered_reward()),
    # majority_guard
    "majority_guard.vote_history": Case(
        lambda: majority_guard.vote_history(num_prompts=NUM_IDS, window=2)
    ),
    "majority_guard.scale_by_flips": Case(
        lambda: majority_guard.scale_by_flips(num_prompts=NUM_IDS, window=2)
    ),
    "majority_guard.keep_minority": Case(lambda: majority_guard.keep_minority()),
    "majority_guard.pause_locked": Case(
        lambda axis_name=None: majority_guard.pause_locked(
            window=2, skip=0.8, axis_name=axis_name
        ),
        draws=True,
    ),
    # calibration
    "calibration.lift_low_rewards": Case(lambda: calibration.lift_low_rewards("rate")),
    "calibration.replace_reward": Case(
        lambda: calibration.replace_reward("rate", answered="answer_id")
    ),
    "calibration.warm_up": Case(lambda: calibration.warm_up("rate", steps=1)),
    "calibration.center_on_reference": Case(lambda: calibration.center_on_reference()),
    "calibration.peer_reward": Case(
        lambda axis_name=None: calibration.peer_reward(axis_name=axis_name), draws=True
    ),
    "calibration.blend": Case(lambda: calibration.blend("rate")),
    # aggregation
    "aggregation.aggregate_members": Case(
        lambda axis_name=None: aggregation.aggregate_members(
            "uncertainty_weighted", bound=0.5, axis_name=axis_name
        )
    ),
    "aggregation.aggregate_members/worst": Case(
        lambda: aggregation.aggregate_members(
            "worst_case",
            scale=aggregation.MemberScale(jnp.array([0.1, 0.0, -0.1]), jnp.array([1.0, 0.0, 2.0])),
        )
    ),
    "kl_penalty.kl_penalty": Case(
        lambda axis_name=None: kl_penalty.kl_penalty(
            0.3, controller=kl_penalty.KLController(0.5, 20.0), axis_name=axis_name
        )
    ),
    "calibration.subtract": Case(lambda: calibration.subtract("rate", weight=0.5)),
    # mixture
    "mixture.weighted_sum": Case(
        lambda: mixture.weighted_sum(
            (advantage.grpo(), chain(noise.drop(0.3), advantage.rloo())), (1.0, 0.5)
        ),
        draws=True,
    ),
    # likelihood
    "likelihood.reference_likelihood": Case(
        lambda: likelihood.reference_likelihood("mean_prob", debias=True)
    ),
    "likelihood.reference_likelihood/log": Case(
        lambda: likelihood.reference_likelihood("log_prob", own_gradient=True, invalid="missing")
    ),
    "likelihood.jepo_advantage": Case(lambda: likelihood.jepo_advantage()),
    "likelihood.nover_reward": Case(lambda: likelihood.nover_reward()),
    # selection
    "selection.spread_filter": Case(
        lambda axis_name=None: selection.spread_filter(
            record_from=1, start=2, axis_name=axis_name
        )
    ),
    # refinement
    "refinement.label_refinement": Case(
        lambda: refinement.label_refinement(num_prompts=NUM_IDS, start_visit=0, min_slope=-1.0)
    ),
    "refinement.label_noise": Case(lambda: refinement.label_noise("inactive", 0.6, seed=3)),
    # rates
    "rates.known": Case(
        lambda axis_name=None: rates.known(sources.constant(0.1, 0.2), axis_name=axis_name)
    ),
    "rates.known/feature": Case(
        lambda axis_name=None: rates.known(BY_FEATURE, axis_name=axis_name)
    ),
    "rates.appeals": Case(lambda axis_name=None: rates.appeals(axis_name=axis_name)),
    "rates.appeals/feature": Case(
        lambda axis_name=None: rates.appeals(
            by="feature", num=2, per="sample", rechecks_positives=True, axis_name=axis_name
        )
    ),
    "rates.appeals/fixes": Case(
        lambda axis_name=None: rates.appeals(fix_rewards=True, decay=0.9, axis_name=axis_name),
        dense=True,
    ),
    "rates.appeals_as_released": Case(
        lambda axis_name=None: rates.appeals_as_released(negative_share=0.5, axis_name=axis_name)
    ),
    "rates_calibrated.calibrated": Case(
        lambda axis_name=None: rates_calibrated.calibrated(10, 90, 20, 80, axis_name=axis_name)
    ),
    "rates_unverified.off_majority": Case(
        lambda axis_name=None: rates_unverified.off_majority(axis_name=axis_name)
    ),
    "rates_unverified.confident": Case(
        lambda axis_name=None: rates_unverified.confident("rate", axis_name=axis_name)
    ),
    "rates_em.disagreement": Case(
        lambda axis_name=None: rates_em.disagreement(
            verifiers=3, iterations=20, axis_name=axis_name
        )
    ),
    "appeals.simulated_appeals": Case(
        lambda axis_name=None: appeals.simulated_appeals(
            negative_share=0.5, judge_failure=0.2, axis_name=axis_name
        ),
        draws=True,
    ),
    "appeals.simulated_appeals/budget": Case(
        lambda axis_name=None: appeals.simulated_appeals(
            negative_share=0.8, positive_share=0.8, budget=4, axis_name=axis_name
        ),
        draws=True,
    ),
    # correction
    "correction.backward": Case(lambda axis_name=None: correction.backward(axis_name=axis_name)),
    "correction.backward/dense": Case(lambda: correction.backward(), dense=True),
    "correction.forward": Case(
        lambda axis_name=None: correction.forward(scale="determinant", axis_name=axis_name)
    ),
    "correction.backward_levels": Case(
        lambda axis_name=None: correction.backward_levels((0.0, 1.0), axis_name=axis_name)
    ),
    "correction.backward_levels/three": Case(
        lambda: chain(three_levels(), correction.backward_levels((0.0, 0.5, 1.0)))
    ),
    "correction.corrected_group_normalization": Case(
        lambda axis_name=None: correction.corrected_group_normalization(axis_name=axis_name)
    ),
    "correction.corrected_group_normalization/mean": Case(
        lambda: correction.corrected_group_normalization(scale="none", max_abs=1.0)
    ),
    "exact_correction.exact_group_correction": Case(
        lambda axis_name=None: exact_correction.exact_group_correction(
            advantage.grpo(), axis_name=axis_name
        )
    ),
    # advantage
    "advantage.group_relative": Case(
        lambda axis_name=None: advantage.group_relative(
            scale="running_std", baseline="leave_one_out", axis_name=axis_name
        )
    ),
    "advantage.group_relative/dense": Case(
        lambda: advantage.group_relative(scale="group_std", ddof=1, epsilon=1e-6), dense=True
    ),
    "advantage.grpo": Case(lambda axis_name=None: advantage.grpo(axis_name=axis_name)),
    "advantage.dr_grpo": Case(lambda axis_name=None: advantage.dr_grpo(axis_name=axis_name)),
    "advantage.rloo": Case(lambda axis_name=None: advantage.rloo(axis_name=axis_name)),
    "advantage.direct": Case(lambda axis_name=None: advantage.direct(axis_name=axis_name)),
    "advantage.batch_normalized": Case(
        lambda axis_name=None: advantage.batch_normalized(axis_name=axis_name)
    ),
    "advantage.pass_at_k": Case(
        lambda axis_name=None: advantage.pass_at_k(2, axis_name=axis_name)
    ),
    "advantage.audited": Case(
        lambda axis_name=None: advantage.audited(
            chain(correction.backward(), advantage.rloo(), provided=("rates",)),
            advantage.rloo(),
            axis_name=axis_name,
        ),
        local=("correction/floored", "advantage/dead_groups"),
    ),
    "prompt_statistics.prompt_statistics": Case(
        lambda: prompt_statistics.prompt_statistics(NUM_IDS, buffer=6, min_count=3)
    ),
    "learned_baseline.learned_baseline": Case(
        lambda axis_name=None: learned_baseline.learned_baseline(
            2, widths=(5,), learning_rate=1e-5, axis_name=axis_name
        )
    ),
    # credit
    "credit.broadcast": Case(lambda: credit.broadcast()),
    "credit.return_to_go": Case(
        lambda: credit.return_to_go(discount=0.5), dense=True, returns=True
    ),
    "credit.broadcast_steps": Case(lambda: credit.broadcast_steps(), dense=True),
}
"""`<module>.<factory>`, and after a slash which variant of it."""


def in_parts(table: dict[str, Any], size: int = 10) -> Iterator[dict[str, Any]]:
    """The table in several, whose programs compile in half the time of one of all."""
    names = list(table)
    for start in range(0, len(names), size):
        yield {name: table[name] for name in names[start : start + size]}


def make_signal(seed: int, prompts: int, dense: bool = False) -> Signal:
    """A signal with everything that any transform reads, some of the rewards missing.

    Every leaf has the leading axis `[P]`.
    """
    rng = np.random.default_rng(seed)
    shape = (prompts, GROUP) + ((PARTS,) if dense else ())
    mask = rng.random(shape) < 0.8
    true = rng.integers(0, 2, shape).astype(np.float32)
    wrong = rng.random(shape) < 0.25
    rewards = np.where(wrong, 1 - true, true)
    appealed = rng.random(shape) < 0.6
    ends = np.sort(rng.integers(-1, STEPS, (prompts, GROUP, PARTS)), axis=-1)
    aux = {
        "prompt_id": ((3 * np.arange(prompts) + 2) % NUM_IDS).astype(np.int32),
        "type": rng.integers(0, 2, prompts).astype(np.int32),
        "feature": rng.integers(0, 2, shape[:2]).astype(np.int32),
        "rate": rng.uniform(0.2, 0.5, shape[:2]).astype(np.float32),
        "output_id": rng.integers(0, 2**32, shape[:2], dtype=np.uint32),
        "answer_id": rng.integers(0, 3, shape[:2]).astype(np.uint32),
        "reference_id": rng.integers(0, 3, prompts).astype(np.uint32),
        "label_id": rng.integers(0, 3, prompts).astype(np.uint32),
        "hit": rng.random(shape[:2]) < 0.3,
        "vote_flip_rate": rng.integers(0, 2, prompts).astype(np.float32),
        "vote_share": rng.uniform(0.4, 1.0, prompts).astype(np.float32),
        "vote_visits": rng.integers(1, 9, prompts).astype(np.int32),
        "vote_competed": rng.random(prompts) < 0.6,
        "true_rewards": np.where(mask, true, np.nan).astype(np.float32),
        "appealed": appealed,
        "recheck": np.where(appealed, true, np.nan).astype(np.float32),
        "appeal_probability": np.full(shape, 0.6, np.float32),
        "verdicts": (rng.random((prompts, GROUP, 3)) < 0.6).astype(np.float32),
        "member_rewards": rng.normal(size=(prompts, GROUP, 3)).astype(np.float32),
        "reference_log_probs": -rng.random((prompts, GROUP, STEPS)).astype(np.float32),
        "step_ends": ends.astype(np.int32),
        "reference_rewards": np.where(
            rng.random((prompts, 2)) < 0.3, np.nan, rng.random((prompts, 2))
        ).astype(np.float32),
        "answer_log_probs": -rng.random((prompts, GROUP, STEPS)).astype(np.float32),
        "answer_reference_log_probs": -rng.random((prompts, GROUP, STEPS)).astype(np.float32),
        "answer_mask": np.broadcast_to(np.arange(STEPS) > 1, (prompts, GROUP, STEPS)),
        "answer_valid": (rng.random(shape[:2]) < 0.8).astype(np.float32),
        "answer_weights": np.zeros((prompts, GROUP, STEPS), np.float32),
        "baseline_features": rng.normal(size=(prompts, 2)).astype(np.float32),
        "base_log_probs": -rng.random((prompts, STEPS)).astype(np.float32),
        "base_mask": np.broadcast_to(np.arange(STEPS) > 2, (prompts, STEPS)),
    }
    return Signal(
        rewards=jnp.asarray(rewards, jnp.float32),
        mask=jnp.asarray(mask),
        advantages=jnp.asarray(np.where(mask, rng.normal(size=shape), 0), jnp.float32),
        weights=jnp.asarray(rng.uniform(0.5, 2, shape[:2]), jnp.float32),
        rates=channels.binary(rng.uniform(0, 0.3, prompts), rng.uniform(0, 0.3, prompts)),
        trajectories=_trajectories(rng, prompts),
        aux=jax.tree.map(jnp.asarray, aux),
    )


def _trajectories(rng: np.random.Generator, prompts: int) -> Trajectories:
    shape = (prompts, GROUP, STEPS)
    lengths = rng.integers(1, STEPS + 1, shape[:2])
    tokens = jnp.asarray(rng.integers(0, 9, shape), jnp.int32)
    return Trajectories(
        prompts=tokens[:, 0],
        actions=tokens,
        outputs=tokens,
        log_probs=jnp.asarray(-rng.random(shape), jnp.float32),
        mask=jnp.asarray(np.arange(STEPS) < lengths[..., None]),
    )


def written(spec: Spec, after: Signal) -> dict[str, Any]:
    """What a transform has set, so that little else need come out of a compiled program."""
    names = [name for name in spec.writes if name not in ("metrics", "trajectories")]
    values = {n: after.aux[n[4:]] if n.startswith("aux/") else getattr(after, n) for n in names}
    return {**values, "metrics": after.metrics}


def visible(spec: Spec, after: Signal, state: Any) -> dict[str, Any]:
    """What a result means, in numpy: everything but what is stored where a reward is missing."""
    mask = np.asarray(after.mask)
    present = mask.reshape(mask.shape[:2] + (-1,)).any(axis=-1)
    fields = {
        "mask": mask,
        "rewards": np.where(mask, after.rewards, 0),
        "advantages": np.asarray(after.advantages),
        "weights": np.where(present, after.weights, 0),
        "rates": np.asarray(after.rates.matrix),
        "metrics": jax.tree.map(np.asarray, after.metrics),
        "state": jax.tree.map(np.asarray, state),
    }
    if fields["rates"].ndim == 4:
        fields["rates"] = np.where(present[..., None, None], fields["rates"], 0)
    written = [name[4:] for name in spec.writes if name.startswith("aux/")]
    return {**fields, "aux": {name: np.asarray(after.aux[name]) for name in written}}


def assert_same(actual: Any, expected: Any, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Trees of one structure, types and values; NaN equals NaN. 0 and 0 is bit for bit."""
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for (path, a), b in zip(jax.tree.leaves_with_path(actual), jax.tree.leaves(expected)):
        a, b, name = np.asarray(a), np.asarray(b), jax.tree_util.keystr(path)
        assert (a.dtype, a.shape) == (b.dtype, b.shape), name
        if not np.issubdtype(a.dtype, np.floating):
            np.testing.assert_array_equal(a, b, err_msg=name)
        else:
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol, err_msg=name)
