"""TTSnap: drop candidates early by rewards that were taught to read noise (arXiv 2511.22242)."""

from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jaxtyping import Array

from experiments import generator_checks
from experiments.generator_figures import BUDGET, PROMPTS, REWARD, SAMPLES, TRUSTED
from experiments.image_studies import problem, report, searches
from experiments.studies import Study
from jaxreward.losses.noise_search import DISTILLATION
from jaxreward.networks.perceptron import Perceptron
from jaxreward.rewards import images as image_rewards
from jaxreward.search import accounting, pruning
from jaxreward.search.accounting import Costs
from jaxreward.search.pruning import Schedule
from jaxreward.tasks import digit_canvases as canvases
from jaxreward.training import check
from jaxreward.training.exits import ConfigError
from jaxreward.training.noise_aware import distill_levels


class Data(NamedTuple):
    """Trajectories of the sampler: `M` samples for each of `P` prompts.

    Attributes:
      prompts: `[P, 4]`.
      estimates: clean estimates `[T, P, M, 8, 16]`, pixels in [0, 1].
    """

    prompts: Array
    estimates: Array


def study(config: ml_collections.ConfigDict) -> Study:
    """The study of `configs/ttsnap.py`."""
    c = config.study
    return searches.make_study(c, _run, keys=7, iterations=4 * c.levels * c.steps)


def validate(config: ml_collections.ConfigDict) -> None:
    """Checks what `experiments.generator_checks` cannot know: what keys mean together.

    Raises:
      ConfigError: naming the key, the value and what is allowed.
    """
    searches.validate(config)
    c = config.study
    check.choice(config, "study.kind", DISTILLATION)
    check.in_range(config, "study.levels", 1, c.sampler_steps)
    check.in_range(config, "study.levels_shown", 1, c.sampler_steps - 1)
    with generator_checks.named("study.schedule"):
        pruning.check_schedule(Schedule(tuple(c.schedule), tuple(c.keep)), c.sampler_steps)
    budgets = tuple(c.budgets)
    if len(budgets) < 2 or any(a >= b for a, b in zip(budgets, budgets[1:])):
        raise ConfigError(f"config.study.budgets = {budgets}; allowed are at least two, ascending")
    prices = [_price(c, plan) for plan in (_plan(c), Schedule((), ()))]
    fewest = min(pruning.affordable(budgets[0], price) for price in prices)
    most = max(pruning.affordable(budgets[-1], price) for price in prices)
    if fewest < 1 or most > c.test_samples:
        raise ConfigError(
            f"config.study.budgets = {budgets} pay for {fewest} to {most} candidates at "
            f"{min(prices):g} to {max(prices):g} each; allowed are 1 to test_samples = "
            f"{c.test_samples}"
        )


def arms(c: ml_collections.ConfigDict) -> tuple[str, ...]:
    """Names of what is compared."""
    del c
    return ("best_of_n", *ARMS)


def _run(
    c: ml_collections.ConfigDict,
    banks: problem.Banks,
    keys: jax.Array,
    generator: problem.Generator,
    tick: Callable[[], None],
) -> dict[str, Any]:
    clean, score = _reward(keys[1], banks.reward, c)
    judge = problem.train_judge(keys[2], banks.judge, c.judge)
    train = _trajectories(keys[3], generator, c, c.train_prompts, c.train_samples)
    test = _trajectories(keys[4], generator, c, c.test_prompts, c.test_samples)
    rewards = jax.vmap(lambda images: _table(clean, score, images, test.prompts))
    final = _table(clean, score, test.estimates[-1], test.prompts)  # [P, M]
    right = _verdicts(judge, test.estimates[-1], test.prompts)
    learned = _distilled(keys[5], clean, score, train, c, tick)
    original = rewards(test.estimates)
    tables = {"original": original}
    for name, params in learned.items():
        own = jax.vmap(lambda p, images: _table(p, score, images, test.prompts))
        tables[name] = original.at[: c.levels].set(own(params, test.estimates[: c.levels]))
    found, shown = _compare(c, keys[6], tables, final, right), _samples(c, tables, final, test)
    return {name: {**own, **shown[name]} for name, own in found.items()}


def _reward(key: jax.Array, bank: canvases.Bank, c: ml_collections.ConfigDict):
    """A recogniser's parameters, and `(params, images [B], prompts [B]) -> [B]`."""
    network = Perceptron(tuple(c.reader), image_rewards.CELL_LABELS)
    params = problem.recognizer_params(key, bank, network, c.recognizer)
    tempered = lambda params, cells: network.apply(params, cells) / c.temperature

    def score(params, images, prompts):
        def one(image, prompt):
            log_probs = image_rewards.cell_log_probs(tempered, params, image)
            allowed = canvases.allowed_pairs(prompt)
            smooth = image_rewards.smoothness(image)
            return image_rewards.composition(log_probs, allowed) + c.smoothness * smooth

        return jax.vmap(one)(images, prompts)

    return params, score


def _trajectories(key, generator, c: ml_collections.ConfigDict, prompts: int, samples: int) -> Data:
    keys = jax.random.split(key)
    drawn = canvases.draw_prompts(keys[0], prompts)
    noises = jax.random.normal(keys[1], (prompts * samples, *problem.SHAPE))
    each = jnp.repeat(drawn, samples, axis=0)
    options = dict(steps=c.sampler_steps, guidance=c.guidance)
    estimates = problem.estimates(generator, noises, each, **options)
    return Data(drawn, estimates.reshape(c.sampler_steps, prompts, samples, *problem.SHAPE))


def _table(params, score: Callable, images: Array, prompts: Array) -> Array:
    """Scores `[P, M]` of images `[P, M, 8, 16]`."""
    count, samples = images.shape[:2]
    flat = score(params, images.reshape(-1, *problem.SHAPE), jnp.repeat(prompts, samples, axis=0))
    return flat.reshape(count, samples)


def _verdicts(judge: Callable, images: Array, prompts: Array) -> Array:
    ask = lambda image, prompt: problem.ask(judge, image, prompt).right
    return jax.vmap(jax.vmap(ask, in_axes=(0, None)))(images, prompts)


def _distilled(key, clean, score: Callable, train: Data, c: ml_collections.ConfigDict, tick):
    """Noise-aware rewards by the curriculum and its ablations, parameters `[levels]`."""
    target = _table(clean, score, train.estimates[-1], train.prompts).reshape(-1)
    samples = train.estimates.shape[2]
    prompts = jnp.repeat(train.prompts, samples, axis=0)
    estimates = train.estimates[: c.levels].reshape(c.levels, -1, *problem.SHAPE)
    options = dict(batch=c.batch, learning_rate=c.learning_rate, kind=c.kind)

    def ticking(*given):
        tick()
        return score(*given)

    def learn(order):
        return distill_levels(
            key, clean, ticking, estimates, prompts, target, steps=c.steps, order=order, **options
        )

    mixed = distill_levels(
        key, clean, ticking, estimates.reshape(1, -1, *problem.SHAPE),
        jnp.tile(prompts, (c.levels, 1)), jnp.tile(target, c.levels),
        steps=c.steps * c.levels, order="none", **options,
    )
    spread = lambda leaf: jnp.broadcast_to(leaf, (c.levels, *leaf.shape[1:]))
    return {
        "curriculum": learn("descending"),
        "reversed": learn("ascending"),
        "apart": learn("none"),
        "mixed": jax.tree.map(spread, mixed),
    }


ARMS = {
    "ttsnap": "curriculum", "pruned_by_original": "original", "reversed_curriculum": "reversed",
    "no_curriculum": "apart", "one_for_all_levels": "mixed",
}  # fmt: skip
"""Arm of the search, and the rewards that prune in it."""


def _compare(c, key, tables: dict[str, Array], final: Array, right: Array) -> dict[str, Any]:
    """Curves of reward and judge against budget for every arm, at equal budget."""
    orders = jnp.stack(
        [jax.random.permutation(own, final.shape[1]) for own in jax.random.split(key, c.draws)]
    )
    every = jnp.stack([tables[name] for name in ARMS.values()])  # [A, T, P, M]
    plans = {
        "best_of_n": (Schedule((), ()), every[:1, :0]),
        "pruned": (_plan(c), every[:, jnp.asarray(c.schedule)]),
    }
    best, pruned = (_curves(c, *plan, final, right, orders) for plan in plans.values())
    own = {name: jax.tree.map(lambda leaf, i=i: leaf[i], pruned) for i, name in enumerate(ARMS)}
    found = {"best_of_n": jax.tree.map(lambda leaf: leaf[0], best), **own}
    base = best[REWARD][0]
    for name, arm in found.items():
        arm["relative_increase"] = pruning.relative_increase(c.budgets, arm[REWARD], base)
        arm |= _alignment(tables[ARMS.get(name, "original")], final, c)
    return found


def _curves(c, plan: Schedule, stages: Array, final: Array, right: Array, orders: Array):
    """What arms with scores `stages [A, J, P, M]` get by the same plan, metrics `[A, ...]`."""
    counts = [pruning.affordable(budget, _price(c, plan)) for budget in c.budgets]
    each = [_chosen(stages, final, right, orders[:, :n], plan.keep) for n in counts]
    rewards, rights = (jnp.stack(values, axis=1) for values in zip(*each))
    arms = stages.shape[0]
    budgets = jnp.broadcast_to(jnp.asarray(c.budgets, jnp.float32), rewards.shape)
    return {
        BUDGET: budgets, REWARD: rewards, TRUSTED: rights,
        "reward/most": rewards[:, -1], "judge/most": rights[:, -1],
        "spent/candidates": jnp.full(arms, counts[-1], jnp.float32),
        **{name: jnp.full(arms, count) for name, count in _counted(c, plan, counts[-1]).items()},
    }  # fmt: skip


def _plan(c: ml_collections.ConfigDict) -> Schedule:
    """When arms that prune do so."""
    return Schedule(tuple(c.schedule), tuple(c.keep))


def _price(c: ml_collections.ConfigDict, plan: Schedule) -> float:
    """Expected cost of a candidate to begin with."""
    return pruning.cost_per_candidate(plan, c.sampler_steps, c.denoise_cost, c.reward_cost)


def _counted(c: ml_collections.ConfigDict, plan: Schedule, count: int) -> dict[str, Any]:
    """The accountant's counts of a search over so many candidates.

    Their cost is that of the counts after rounding, which may leave the budget by a little.
    """
    steps = pruning.spent(count, plan, c.sampler_steps)
    calls = 1 if c.guidance == 1.0 else 2  # of the network in each step
    used = steps._replace(network_calls=steps.network_calls * calls)
    return accounting.as_metrics(used, Costs(c.denoise_cost / calls, 0.0, c.reward_cost))


def _chosen(stages, final, right, orders: Array, keep) -> tuple[Array, Array]:
    """Mean reward and verdict `[A]` of what is chosen, over prompts and draws of candidates."""

    def one(order, stages, final, right):
        found = pruning.prune_table(stages[:, order].T, final[order], keep)
        return found.score, right[order][found.winner]

    over_prompts = jax.vmap(one, in_axes=(None, 1, 0, 0))
    over_arms = jax.vmap(over_prompts, in_axes=(None, 0, None, None))
    score, verdict = jax.lax.map(lambda order: over_arms(order, stages, final, right), orders)
    return jnp.mean(score, axis=(0, 2)), jnp.mean(verdict, axis=(0, 2))


def _samples(c, tables: dict[str, Array], final: Array, test: Data) -> dict[str, dict[str, Array]]:
    """What every arm chooses for the first prompts at the largest budget, from the same candidates."""
    shown = {}
    for name in ("best_of_n", *ARMS):
        plan = Schedule((), ()) if name == "best_of_n" else _plan(c)
        count = pruning.affordable(c.budgets[-1], _price(c, plan))
        steps = jnp.asarray(plan.steps, jnp.int32)
        stages = tables[ARMS.get(name, "original")][steps, : report.SHOWN]
        choose = lambda own, last, keep=plan.keep: pruning.prune_table(own.T, last, keep).winner
        winner = jax.vmap(choose, in_axes=(1, 0))(
            stages[:, :, :count], final[: report.SHOWN, :count]
        )
        images = test.estimates[-1, jnp.arange(len(winner)), winner]
        shown[name] = {SAMPLES: images, PROMPTS: test.prompts[: report.SHOWN]}
    return shown


def _alignment(table: Array, final: Array, c: ml_collections.ConfigDict) -> dict[str, Array]:
    """Kendall's tau with the final reward at some levels, mean over prompts."""
    shown = table[jnp.asarray(c.levels_shown)]
    tau = jax.lax.map(lambda own: jnp.nanmean(jax.vmap(pruning.kendall)(own, final)), shown)
    return {f"kendall/{step}": tau[i] for i, step in enumerate(c.levels_shown)}

