"""Arms x hyper-parameters x seeds of a comparison as one program.

A *run* is one (arm, hyper-parameters, seed). All runs share shapes, so sampling and
learning are mapped over every run and compiled once; only the reward chains differ
between arms, and each is vmapped over its own runs. Runs are ordered arm by arm, `M`
members each: run `r` is member `r % M` of arm `r // M`.

Runs with the same seed see the same prompts and draw from the same keys, so arms are
compared with common random numbers.
"""

import dataclasses
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxreward.pytree import pytree_dataclass
from jaxreward.training.step import LossFn, TrainState, make_update_step, sample_key
from jaxreward.transforms.base import RewardTransform
from jaxreward.types import Policy, Signal, Trajectories, make_signal

Hyper = dict[str, jax.Array]
"""Numeric knobs of runs by name; `[A, M]` for a population, scalars for one run."""


@pytree_dataclass
class PopulationState:
    """State of all runs.

    Attributes:
      runs: train states stacked `[A * M]`, without their chain state.
      chains: for each arm its chain state, stacked `[M]`.
    """

    runs: TrainState
    chains: tuple[Any, ...]


class Population(NamedTuple):
    """Pure functions over all runs; the caller jits them.

    Attributes:
      arms: names, in order.
      members: runs per arm, `M`.
      init: `(key, params) -> PopulationState`, every run starting from `params`.
      rollout: `(state, prompts) -> Trajectories` with leading axis `[A * M]`; `prompts` is
        a pytree with leading axes `[seeds, P]`.
      update: `(state, rewards, mask, trajectories, aux) -> (state, metrics)`, all with leading
        axis `[A * M]`; metrics are `{arm: {name: [M]}}`.
      seed_of_run: numpy int32 `[A * M]`, the index of each run's seed.
      per_seed: `(tree [seeds, ...]) -> tree [A * M, ...]`.
      each_run: `(function, *trees [A * M, ...])`, the function mapped over all runs.
    """

    arms: tuple[str, ...]
    members: int
    init: Callable[[jax.Array, Any], PopulationState]
    rollout: Callable[[PopulationState, Any], Trajectories]
    update: Callable[..., tuple[PopulationState, dict[str, dict[str, jax.Array]]]]
    seed_of_run: np.ndarray
    per_seed: Callable[[Any], Any]
    each_run: Callable[..., Any]


def make_population(
    policy: Policy,
    arms: dict[str, RewardTransform],
    make_loss: Callable[[Hyper], LossFn],
    make_optimizer: Callable[[Hyper], optax.GradientTransformation],
    hyper: Hyper,
    seed_index: np.ndarray,
    *,
    group_size: int,
    first_seed: int | jax.Array = 0,
    accumulate: int = 1,
    spike_factor: float = 0.0,
    updates: int = 1,
    runs_at_a_time: int = 0,
    mesh: jax.sharding.Mesh | None = None,
) -> Population:
    """Builds the population.

    Args:
      policy: the policy of every run.
      arms: reward chain by arm name; each sets `advantages`.
      make_loss: from one run's (traced) hyper-parameters to its loss.
      make_optimizer: likewise to its optimizer.
      hyper: arrays `[A, M]`.
      seed_index: int32 `[M]`, which seed each member has; selects its prompts.
      group_size: samples per prompt, static.
      first_seed: the seed of index 0; disjoint ranges keep tuning and reporting apart.
      accumulate: micro-batches per update.
      spike_factor: see `make_update_step`.
      updates: optimizer steps per rollout, all on the same advantages.
      runs_at_a_time: see `map_runs`.
      mesh: likewise.

    Raises:
      ValueError: `runs_at_a_time` < 0, `updates` < 1, or a mesh that does not divide the runs.
    """
    names, members = tuple(arms), int(seed_index.shape[0])
    _check(runs_at_a_time, mesh, len(names) * members, updates)
    flat_hyper = {name: value.reshape(-1) for name, value in hyper.items()}
    flat_seeds = np.tile(np.asarray(seed_index, np.int32), len(names))

    def learner(run_hyper: Hyper):
        loss, optimizer = make_loss(run_hyper), make_optimizer(run_hyper)
        options = dict(accumulate=accumulate, spike_factor=spike_factor)
        return make_update_step(loss, arms[names[0]], optimizer, **options)

    def init(key: jax.Array, params: Any) -> PopulationState:
        def one(run_hyper, seed):
            run_key = jax.random.fold_in(key, seed + first_seed)
            return dataclasses.replace(learner(run_hyper).init(run_key, params), chain_state=())

        runs = jax.vmap(one)(flat_hyper, jnp.asarray(flat_seeds))
        chains = tuple(_repeat(arms[name].init(), members) for name in names)
        return _place(PopulationState(runs, chains), mesh)

    def each_run(function: Callable[..., Any], *trees: Any) -> Any:
        return map_runs(function, trees, runs_at_a_time, mesh)

    def per_seed(tree: Any) -> Any:
        return jax.tree.map(lambda leaf: leaf[flat_seeds], tree)

    def rollout(state: PopulationState, prompts: Any) -> Trajectories:
        def one(run, own_prompts):
            return policy.sample(run.params, sample_key(run), own_prompts, group_size)

        return each_run(one, state.runs, per_seed(prompts))

    def update(state, rewards, mask, trajectories, aux):
        inputs = (rewards, mask, trajectories, aux)
        chains, signal, metrics = _credit_all(arms, state, inputs, members)
        learn = lambda knobs, run, own: _repeated(learner(knobs).learn, run, own, updates)
        trees = (flat_hyper, state.runs, signal)
        runs, learned = update_runs(learn, *trees, runs_at_a_time, mesh)
        for position, name in enumerate(names):
            own = _runs_of(position, members)
            metrics[name] = {**metrics[name], **{k: v[own] for k, v in learned.items()}}
        return _place(PopulationState(runs, chains), mesh), metrics

    return Population(names, members, init, rollout, update, flat_seeds, per_seed, each_run)


def _repeated(learn, run: TrainState, signal: Signal, updates: int):
    """`updates` optimizer steps that count as one; the metrics are the last one's."""
    if updates == 1:
        return learn(run, signal)
    after, metrics = jax.lax.scan(lambda own, _: learn(own, signal), run, length=updates)
    after = dataclasses.replace(after, step=run.step + 1)
    return after, jax.tree.map(lambda leaf: leaf[-1], metrics)


def run_mesh(runs: int, *, even: bool = True) -> jax.sharding.Mesh:
    """The largest mesh of devices that divides the runs evenly, or that leaves none without one.

    Args:
      runs: of a population.
      even: a population's state needs the first; `map_runs` takes either.
    """
    devices = jax.devices()
    sizes = range(1, min(len(devices), runs) + 1)
    count = max(n for n in sizes if runs % n == 0 or not even)
    return jax.sharding.Mesh(np.array(devices[:count]), ("runs",))


def _check(
    runs_at_a_time: int, mesh: jax.sharding.Mesh | None, runs: int, updates: int
) -> None:
    if updates < 1:
        raise ValueError(f"updates = {updates}; allowed is >= 1")
    if runs_at_a_time < 0:
        raise ValueError(f"runs_at_a_time = {runs_at_a_time}; allowed is >= 1, or 0 for all")
    if mesh is not None and (len(mesh.axis_names) != 1 or runs % mesh.size):
        raise ValueError(
            f"mesh = {dict(mesh.shape)}; allowed is one axis whose size divides {runs} runs"
        )


def map_runs(function, trees, runs_at_a_time: int, mesh: jax.sharding.Mesh | None) -> Any:
    """`function` over the leading axis of `trees`: devices side by side, runs in turn.

    Args:
      function: `(*own)` of one run.
      trees: tuple of pytrees, one for each argument.
      runs_at_a_time: about how many runs of a device go side by side, the others waiting (the
        nearest number that divides them); 0 for all. Small policies on a CPU are fastest when
        a few fit its cache; it also bounds memory.
      mesh: of one axis, over which the runs are split; see `run_mesh`. None: one device. Where
        it does not divide them the last run is computed again to fill the last device.
    """
    count = jax.tree.leaves(trees)[0].shape[0]
    missing = -count % (1 if mesh is None else mesh.size)
    if missing:
        fill = lambda leaf: jnp.concatenate([leaf, jnp.repeat(leaf[-1:], missing, axis=0)])
        trees = jax.tree.map(fill, trees)
    found = _on_devices(lambda *own: _mapped(function, own, runs_at_a_time), trees, mesh)
    return jax.tree.map(lambda leaf: leaf[:count], found) if missing else found


def update_runs(function, hyper, runs, rest, runs_at_a_time: int, mesh) -> tuple[Any, Any]:
    """`function(hyper, run, rest) -> (run, output)` over all runs, as `map_runs`.

    Where runs go one at a time each is written where it was read, so that the state of all is
    held once if the caller donates it.
    """

    def local(hyper, runs, rest):
        count = jax.tree.leaves(runs)[0].shape[0]
        if count == 1 or _even_part(count, runs_at_a_time or count) > 1:
            return _mapped(function, (hyper, runs, rest), runs_at_a_time)

        def body(runs, item):
            index, own_hyper, own_rest = item
            take, put = jax.lax.dynamic_index_in_dim, jax.lax.dynamic_update_index_in_dim
            run = jax.tree.map(lambda leaf: take(leaf, index, keepdims=False), runs)
            run, output = function(own_hyper, run, own_rest)
            return jax.tree.map(lambda leaf, new: put(leaf, new, index, 0), runs, run), output

        return jax.lax.scan(body, runs, (jnp.arange(count), hyper, rest))

    return _on_devices(local, (hyper, runs, rest), mesh)


def _mapped(function, trees, runs_at_a_time: int) -> Any:
    count = jax.tree.leaves(trees)[0].shape[0]
    together = _even_part(count, runs_at_a_time or count)
    if together == count:
        return jax.vmap(function)(*trees)
    return jax.lax.map(lambda run: function(*run), trees, batch_size=together)


def _on_devices(local, trees, mesh: jax.sharding.Mesh | None) -> Any:
    """`local` on each device's share of the runs."""
    if mesh is None or mesh.size == 1:
        return local(*trees)
    spec = jax.sharding.PartitionSpec(mesh.axis_names[0])
    each = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma=False)
    return each(*trees)


def _even_part(count: int, wanted: int) -> int:
    """The divisor of `count` nearest to `wanted` in ratio: a remainder would compile twice."""
    divisors = [n for n in range(1, count + 1) if count % n == 0]
    return min(divisors, key=lambda n: max(n / wanted, wanted / n))


def _place(state: PopulationState, mesh: jax.sharding.Mesh | None) -> PopulationState:
    """Runs on their devices, chain states on all: the same before and after every step."""
    if mesh is None or mesh.size == 1:
        return state
    spec = jax.sharding.PartitionSpec
    split, whole = (
        jax.sharding.NamedSharding(mesh, s) for s in (spec(mesh.axis_names[0]), spec())
    )
    place = jax.lax.with_sharding_constraint
    return PopulationState(place(state.runs, split), place(state.chains, whole))


_LEARNED_FROM = (
    "prompt_id", "reference_log_probs", "old_log_probs", "spliced", "answer_weights"
)  # fmt: skip


def _runs_of(position: int, members: int) -> slice:
    """The runs of an arm."""
    return slice(position * members, (position + 1) * members)


def _credit_all(arms: dict[str, RewardTransform], state: PopulationState, inputs, members: int):
    """Each arm's chain over its own runs: new chain states, one joint signal, metrics by arm."""
    signals, chains, metrics = [], [], {}
    for position, (name, transform) in enumerate(arms.items()):
        step = make_update_step(_no_loss, transform, optax.identity())
        own = _runs_of(position, members)
        run, *fields = jax.tree.map(lambda leaf: leaf[own], (state.runs, *inputs))
        run = dataclasses.replace(run, chain_state=state.chains[position])
        run, signal, metrics[name] = jax.vmap(_credit(step))(run, *fields)
        chains.append(run.chain_state)
        signals.append(signal)
    joint = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *_same_rank(signals))
    return tuple(chains), joint, metrics


def _no_loss(params: Any, signal: Signal):
    raise TypeError("this update step only credits; its loss is never called")


def _credit(step) -> Callable[..., tuple[TrainState, Signal, dict[str, jax.Array]]]:
    """`credit` of an update step, from the parts of a signal to what is learned from."""

    def credit(run, rewards, mask, trajectories, aux):
        aux = dict(aux)
        prompt_id = aux.pop("prompt_id")
        signal = make_signal(
            rewards, mask, prompt_id=prompt_id, trajectories=trajectories, **aux
        )
        run, signal = step.credit(run, signal)
        return run, _learnable(signal), signal.metrics

    return credit


def _learnable(signal: Signal) -> Signal:
    """The part of a credited signal that a loss reads, alike for every arm."""
    weights = signal.weights
    if weights is None:
        weights = jnp.ones(signal.rewards.shape[:2], jnp.float32)
    kept = {k: v for k, v in signal.aux.items() if k in _LEARNED_FROM}
    return signal.replace(weights=weights, rates=None, metrics={}, aux=kept)


def _same_rank(signals: list[Signal]) -> list[Signal]:
    """Advantages of every arm as `[M, P, G, S]` if any arm's are dense."""
    if all(signal.advantages.ndim == 3 for signal in signals):
        return signals
    return [jax.vmap(_dense)(signal) for signal in signals]


def _dense(signal: Signal) -> Signal:
    """One run's signal with an advantage for every decision."""
    advantages = signal.advantages
    if advantages.ndim == 2:
        advantages = jnp.broadcast_to(advantages[..., None], signal.trajectories.mask.shape)
    return signal.replace(advantages=advantages)


def _repeat(tree: Any, times: int) -> Any:
    return jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (times,) + jnp.shape(leaf)), tree)



def skipped_in_a_row(state: PopulationState, arms: tuple[str, ...]) -> dict[str, jax.Array]:
    """By arm, the longest current run of skipped steps of any of its members, int32."""
    longest = state.runs.skipped_in_a_row.reshape(len(arms), -1).max(axis=1)
    return dict(zip(arms, longest))
