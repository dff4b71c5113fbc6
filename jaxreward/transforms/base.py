"""The reward transform, how transforms chain, and the combinators around them.

A transform is a tuple of two pure functions and a declaration:

    init:   ()                    -> state
    update: (key, signal, state)  -> (signal, state)

`update` is safe under `jit`, `vmap`, `scan`, `shard_map` and `pmap`. The declaration says
which fields of the signal it reads and writes and what it does to the reward, so that
`chain` can refuse, when it is built, a chain that cannot work or that does nothing.
"""

from typing import Any, Callable, NamedTuple, Sequence

import jax
import jax.numpy as jnp

from jaxreward.channel import Channel
from jaxreward.types import Signal

ALWAYS = ("rewards", "mask", "aux/prompt_id")
"""Signal fields that are there before the chain starts."""

_MAPS = ("none", "shift", "affine", "nonlinear", "replaced")

_VARY = ("never", "step", "prompt", "sample")


class Spec(NamedTuple):
    """What a transform declares.

    Attributes:
      name: how errors and metrics call it.
      role: its family: noise, rates, correction, calibration, aggregation, selection,
        advantage, credit or record.
      reads: signal fields it needs, `aux/<name>` for side information.
      writes: signal fields it sets.
      reward_map: what it does to the rewards of a group. "none"; "shift", adds a constant
        that is the same for all samples of a prompt; "affine", also scales by a positive
        one; "replaced", what they were no longer matters; "nonlinear", anything else.
      invariant_to: for a transform that sets advantages, the largest map of a group's
        rewards that leaves the advantages as they were: "none", "shift" or "affine". Each
        group may have a map of its own.
      ignores_common: likewise, how far one affine map must reach to leave them as they were:
        "step", all rewards of a step; "run", all of a run; "none", none does for that.
      rates_vary: for a transform that writes rates, "never" if they are one pair all the time,
        "step" if one for all rewards of a step, "prompt" if constant within a group, "sample"
        if not. With rates that vary by sample no correction is affine.
      partial: whether it applies to some prompts or samples only.
      parts: what a chain consists of, first to last.
    """

    name: str
    role: str
    reads: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    reward_map: str = "none"
    invariant_to: str = "none"
    ignores_common: str = "none"
    rates_vary: str = "prompt"
    partial: bool = False
    parts: tuple["Spec", ...] = ()


class RewardTransform(NamedTuple):
    """A pure function on signals with explicit state. See the module docstring."""

    init: Callable[[], Any]
    update: Callable[[jax.Array, Signal, Any], tuple[Signal, Any]]
    spec: Spec


class InertCorrectionError(ValueError):
    """A correction or calibration that the advantage estimator after it cancels exactly."""


def stateless(update: Callable[[jax.Array, Signal], Signal], spec: Spec) -> RewardTransform:
    """A transform without state from `(key, signal) -> signal`."""
    return RewardTransform(
        init=lambda: (), update=lambda key, signal, state: (update(key, signal), state), spec=spec
    )


def keep_true_rewards(signal: Signal) -> Signal:
    """The signal with its rewards as `aux["true_rewards"]`, NaN where missing, unless set."""
    if "true_rewards" in signal.aux:
        return signal
    return signal.with_aux(true_rewards=jnp.where(signal.mask, signal.rewards, jnp.nan))


def identity() -> RewardTransform:
    """The transform that does nothing."""
    return stateless(lambda key, signal: signal, Spec("identity", "record"))


def chain(
    *transforms: RewardTransform,
    provided: Sequence[str] | None = None,
    on_inert: str = "error",
) -> RewardTransform:
    """Composes transforms, first to last.

    Each transform gets its own key, `fold_in(key, position)`. The parts of a chain in a chain
    are checked as if they stood in the outer one, unless it was built with on_inert="allow".

    Args:
      *transforms: at least one.
      provided: the fields beside `rewards`, `mask` and `aux/prompt_id` that the caller puts
        into the signal. None lets every `aux/...` and `trajectories` be provided; a field
        that only a transform can set (`rates`, `advantages`, `weights`) must be set by one.
      on_inert: "error" refuses a correction or calibration that the advantage estimator cancels;
        "allow" builds it (for the control arm that shows it).

    Raises:
      ValueError: a transform reads what nobody provides, rewards or their mask change after
        the advantages are set, advantages are set twice, two corrections follow one channel,
        corrected rewards are replaced before anything has read them.
      InertCorrectionError: a correction would have no effect.
    """
    if not transforms:
        raise ValueError("chain needs at least one transform")
    if on_inert not in ("error", "allow"):
        raise ValueError(f"on_inert = {on_inert!r}; allowed are 'error' and 'allow'")
    specs = [transform.spec for transform in transforms]
    reads = _check_reads(specs, provided)
    parts = tuple(part for spec in specs for part in spec.parts or (spec,))
    _check_order(parts)
    if on_inert == "error":
        _check_inert(parts)

    def init():
        return tuple(transform.init() for transform in transforms)

    def update(key, signal, state):
        if len(state) != len(transforms):
            raise ValueError(f"state has {len(state)} entries for {len(transforms)} transforms")
        new_state = []
        for position, (transform, own) in enumerate(zip(transforms, state)):
            signal, own = transform.update(jax.random.fold_in(key, position), signal, own)
            new_state.append(own)
        return signal, tuple(new_state)

    spec = _joined_spec(specs, reads)
    spec = spec._replace(parts=parts if on_inert == "error" else ())
    return RewardTransform(init, update, spec)


def _check_reads(specs: Sequence[Spec], provided: Sequence[str] | None) -> tuple[str, ...]:
    """The fields that the chain needs from outside; raises if one cannot be had."""
    have, outside = set(ALWAYS), []
    for spec in specs:
        for field in spec.reads:
            if field in have or field in outside:
                continue
            open_field = field.startswith("aux/") or field == "trajectories"
            if field in provided if provided is not None else open_field:
                outside.append(field)
                continue
            known = sorted(have | set(provided or ()))
            raise ValueError(
                f"transform {spec.name!r} reads {field!r}, which nothing before it sets; "
                f"set so far: {', '.join(known)}"
            )
        have.update(spec.writes)
    return tuple(outside)


def _check_order(specs: Sequence[Spec]) -> None:
    advantages_by = correction_by = mended_by = None
    for spec in specs:
        if spec.reward_map == "replaced" and mended_by:
            raise ValueError(
                f"{spec.name!r} replaces the rewards that {mended_by!r} corrected, so that has no "
                "effect; put it before"
            )
        if spec.role == "noise":
            correction_by = None
        if advantages_by and (spec.reward_map != "none" or "mask" in spec.writes):
            raise ValueError(
                f"transform {spec.name!r} changes rewards or their mask after {advantages_by!r} "
                "has turned them into advantages, so it has no effect; put it before"
            )
        if spec.role == "correction":
            if correction_by and not spec.partial:
                raise ValueError(
                    f"{correction_by!r} and {spec.name!r} both correct the same channel; keep one"
                )
            correction_by = spec.name
            mended_by = spec.name if "rewards" in spec.writes else mended_by
        if "advantages" in spec.writes:
            mended_by = None
            if advantages_by and "advantages" not in spec.reads and not spec.partial:
                raise ValueError(
                    f"{spec.name!r} overwrites the advantages that {advantages_by!r} set; keep one"
                )
            advantages_by = spec.name


def _check_inert(specs: Sequence[Spec]) -> None:
    """Refuses a correction that later normalisation, of groups or batches, undoes exactly."""
    rates_vary, corrections = "prompt", []
    for spec in specs:
        if "rates" in spec.writes:
            rates_vary = spec.rates_vary
        for name, reward_map, vary in corrections:
            if _cancels(spec, reward_map, vary):
                raise InertCorrectionError(
                    f"{name!r} is {'a shift' if reward_map == 'shift' else 'affine'} within a "
                    f"group and {spec.name!r} cancels it: the advantages equal the uncorrected "
                    "ones. Correct after the normalisation (corrected_group_normalization), or "
                    "use a baseline that keeps it, or pass on_inert='allow'"
                )
        mends = spec.role in ("correction", "calibration")
        if mends and spec.reward_map in ("shift", "affine"):
            vary = rates_vary if "rates" in spec.reads else "prompt"
            corrections.append((spec.name, spec.reward_map, vary))
        elif spec.reward_map in ("nonlinear", "replaced"):
            corrections.clear()


def _cancels(spec: Spec, reward_map: str, vary: str) -> bool:
    """Whether the advantages of `spec` do not see a map that varies by so much."""
    place = _VARY.index(vary)
    by_group = place <= _VARY.index("prompt")
    if by_group and _MAPS.index(reward_map) <= _MAPS.index(spec.invariant_to):
        return True
    widest = {"none": -1, "run": _VARY.index("never"), "step": _VARY.index("step")}
    return place <= widest[spec.ignores_common]


def _joined_spec(specs: Sequence[Spec], reads: tuple[str, ...]) -> Spec:
    writes = tuple(dict.fromkeys(field for spec in specs for field in spec.writes))
    reward_map = max((spec.reward_map for spec in specs), key=_MAPS.index)
    rates_vary = next((s.rates_vary for s in reversed(specs) if "rates" in s.writes), "prompt")
    roles = {spec.role for spec in specs}
    return Spec(
        name="chain(" + ", ".join(spec.name for spec in specs) + ")",
        role=roles.pop() if len(roles) == 1 else "chain",
        reads=reads,
        writes=writes,
        reward_map=reward_map,
        rates_vary=rates_vary,
        **_joined_invariance(specs),
    )


def _joined_invariance(specs: Sequence[Spec]) -> dict[str, str]:
    """That of what sets the advantages; none where the reward is bent before."""
    for spec in specs:
        if "advantages" in spec.writes:
            return dict(invariant_to=spec.invariant_to, ignores_common=spec.ignores_common)
        if spec.reward_map in ("nonlinear", "replaced"):
            break
    return {}


def least_invariance(specs: Sequence[Spec]) -> dict[str, str]:
    """Fields of the spec of advantages that are made of those of several."""
    reach = ("none", "run", "step")
    return dict(
        invariant_to=min((spec.invariant_to for spec in specs), key=_MAPS.index),
        ignores_common=min((_common(spec) for spec in specs), key=reach.index),
    )


def _common(spec: Spec) -> str:
    """What ignores a map by group ignores one for all."""
    return "step" if spec.invariant_to == "affine" else spec.ignores_common


def where(
    transform: RewardTransform,
    select: Callable[[Signal], jax.Array],
    name: str = "",
    *,
    reads: Sequence[str] = (),
) -> RewardTransform:
    """Applies a transform only to some prompts or samples.

    Args:
      transform: what to apply. It sees the whole signal with the unselected rewards masked
        as missing, so its statistics are those of the selected ones.
      select: `(signal) -> bool [P] or [P, G]`, True where the transform applies.
      name: name in errors; default `where(<transform>)`.
      reads: signal fields that `select` needs, so that `chain` can check them.

    Returns:
      A transform that leaves rewards, mask, advantages and weights of everything unselected
      as they were; rates, metrics and aux are the transform's, but for the true rewards,
      which are kept of all.
    """

    def update(key, signal, state):
        if "aux/true_rewards" in transform.spec.writes:
            signal = keep_true_rewards(signal)
        chosen = select(signal)
        inside = signal.replace(mask=signal.mask & _like(chosen, signal.mask))
        after, state = transform.update(key, inside, state)
        return after.replace(**_merged(chosen, after, signal)), state

    spec = transform.spec
    maps = "nonlinear" if spec.reward_map != "none" else "none"
    spec = spec._replace(
        name=name or f"where({spec.name})",
        reads=tuple(dict.fromkeys(spec.reads + tuple(reads))),
        reward_map=maps,
        invariant_to="none",
        ignores_common="none",
        partial=True,
        parts=(),
    )
    return RewardTransform(transform.init, update, spec)


def _merged(chosen: jax.Array, after: Signal, before: Signal) -> dict[str, jax.Array]:
    """Per-sample fields: those of `after` where chosen, else those of `before`."""
    merged = {}
    for field, default in (("rewards", 0), ("mask", False), ("advantages", 0), ("weights", 1)):
        new, old = getattr(after, field), getattr(before, field)
        if new is not None:
            old = jnp.full_like(new, default) if old is None else old
            merged[field] = jnp.where(_like(chosen, new), new, old)
    return merged


def record(
    name: str, measure: Callable[[Signal], jax.Array], reads: Sequence[str] = ()
) -> RewardTransform:
    """Records a scalar of the passing signal as metric `name`; changes nothing else."""

    def update(key, signal):
        del key
        return signal.replace(metrics={**signal.metrics, name: measure(signal)})

    return stateless(update, Spec(f"record({name})", "record", tuple(reads), ("metrics",)))


def per_prompt(transform: RewardTransform, num_prompts: int) -> RewardTransform:
    """Gives every prompt of a data set its own copy of a transform's state.

    The state of all prompts is one table with leading axis `num_prompts`, indexed by
    `aux["prompt_id"]`; `update` gathers the rows of the batch, updates each on its own
    group (`P = 1`) under `vmap`, and scatters them back. Where a prompt stands twice in a
    batch, the last row's state is kept. Metrics are averaged over the batch; every entry of
    `aux` must have leading axis `[P]`.

    Args:
      transform: any transform.
      num_prompts: size of the data set. A prompt whose id is outside `[0, num_prompts)` starts
        from the transform's initial state each time, and its state is not kept.

    Raises:
      ValueError: `num_prompts` < 1.
    """
    if num_prompts < 1:
        raise ValueError(f"num_prompts = {num_prompts}; allowed is >= 1")

    def init():
        return jax.tree.map(
            lambda leaf: jnp.broadcast_to(leaf, (num_prompts,) + jnp.shape(leaf)),
            transform.init(),
        )

    def one_group(key, signal, state):
        after, state = transform.update(key, signal, state)
        return _rates_by_prompt(after).replace(metrics={}), after.metrics, state

    def update(key, signal, table):
        ids = signal.aux["prompt_id"]
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(ids)
        before, signal = signal.metrics, _rates_by_prompt(signal.replace(metrics={}))
        inside = (ids >= 0) & (ids < num_prompts)  # jax would take the nearest, or from the end
        rows = jax.tree.map(lambda leaf: leaf[jnp.where(inside, ids, 0)], table)
        rows = jax.tree.map(
            lambda leaf, first: jnp.where(_like(inside, leaf), leaf, first), rows, transform.init()
        )
        groups = jax.tree.map(lambda leaf: leaf[:, None], signal)
        groups, recorded, rows = jax.vmap(one_group)(keys, groups, rows)
        last = _last_of_each(jnp.where(inside, ids, num_prompts), num_prompts)
        table = jax.tree.map(lambda leaf, new: leaf.at[last].set(new, mode="drop"), table, rows)
        metrics = {name: jnp.mean(value) for name, value in recorded.items()}
        after = jax.tree.map(lambda leaf: leaf[:, 0], groups)
        return after.replace(metrics={**before, **metrics}), table

    spec = transform.spec
    if spec.rates_vary in ("never", "step"):
        spec = spec._replace(rates_vary="prompt")
    return RewardTransform(init, update, spec)


def _last_of_each(ids: jax.Array, num_prompts: int) -> jax.Array:
    """The ids, with `num_prompts` in place of those that stand again in a later row."""
    row = jnp.arange(ids.shape[0])
    again = (ids[:, None] == ids[None, :]) & (row[:, None] < row[None, :])
    return jnp.where(jnp.any(again, axis=1), num_prompts, ids)


def _rates_by_prompt(signal: Signal) -> Signal:
    """The signal with a global channel repeated for every prompt."""
    if signal.rates is None or signal.rates.matrix.ndim > 2:
        return signal
    matrix = signal.rates.matrix
    repeated = jnp.broadcast_to(matrix, (signal.rewards.shape[0],) + matrix.shape)
    return signal.replace(rates=Channel(repeated))


def _like(mask: jax.Array, reference: jax.Array) -> jax.Array:
    """`mask` of `[P]` or `[P, G]` broadcast to the shape of `reference`."""
    mask = mask.reshape(mask.shape + (1,) * (reference.ndim - mask.ndim))
    return jnp.broadcast_to(mask, reference.shape)
