"""Every reward transform of the library through the same tests; the table is in `battery.py`."""

import ast
import functools
import pathlib

import battery
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from battery import CASES, assert_same, in_parts, visible, written

import jaxreward
from jaxreward.transforms import advantage, base
from jaxreward.transforms.base import ALWAYS
from jaxreward.types import make_signal

PROMPTS = 3
KEYS = jax.random.split(jax.random.key(5), 4).reshape(2, 2)
KEY = KEYS[0, 0]
CLOSE = dict(rtol=2e-4, atol=2e-5)  # intervals go through exponentials of a curvature
PACKAGE = pathlib.Path(jaxreward.__file__).parent
HOSTILE = (float("nan"), float("-inf"), 1e30)

every_case = pytest.mark.parametrize("name", CASES)


@functools.cache
def transforms():
    return {name: case.build() for name, case in CASES.items()}


def states():
    return {name: transform.init() for name, transform in transforms().items()}


@functools.cache
def signals(seed=0):
    """The signal of outcomes and that of process rewards."""
    return {dense: battery.make_signal(seed, PROMPTS, dense) for dense in (False, True)}


def signal_of(name, seed=0):
    return signals(seed)[CASES[name].dense]


COMPILED = []
"""One longer for each time that a part of the table is compiled."""


def update_table(key, signals, states):
    """The update of every transform of which there is a state."""
    COMPILED.append(1)
    return {
        name: transforms()[name].update(key, signals[CASES[name].dense], state)
        for name, state in states.items()
    }


part_of_table = jax.jit(update_table)  # one program of several, to compile less


def table(key, signals, states):
    """`update_table`, compiled."""
    results = {}
    for part in in_parts({name: states[name] for name in CASES}):  # always the same parts
        results |= part_of_table(key, signals, part)
    return results


@functools.cache
def first_steps():
    return table(KEY, signals(), states())


@functools.cache
def second_steps():
    return table(KEYS[1, 0], signals(2), states_of(first_steps()))


def states_of(results):
    return {name: state for name, (_, state) in results.items()}


def seen(name, result):
    return visible(transforms()[name].spec, *result)


def permuted(tree):
    """Another order of the prompts."""
    return jax.tree.map(lambda leaf: leaf[np.array([2, 0, 1])], tree)


# The table


def public_factories():
    """`{<module>.<function>: whether it takes axis_name}` of what returns a RewardTransform."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text()).body:
            if not isinstance(node, ast.FunctionDef) or node.name.startswith("_"):
                continue
            if node.returns is not None and ast.unparse(node.returns).endswith("RewardTransform"):
                names = [arg.arg for arg in node.args.args + node.args.kwonlyargs]
                found[f"{path.stem}.{node.name}"] = "axis_name" in names
    return found


def test_the_table_is_complete():
    factories = public_factories()
    assert len(factories) >= 30
    assert {name.split("/")[0] for name in CASES} == set(factories)
    for name, case in CASES.items():
        factory = name.split("/")[0]
        assert factory.split(".")[1] in case.make.__code__.co_names, name
    on_axes = {name.split("/")[0] for name, case in CASES.items() if case.takes_axis}
    assert {name for name, takes in factories.items() if takes} <= on_axes


# Same numbers however it is run


SLOW_EAGER = ("base.chain", "base.per_prompt", "rates_em.disagreement")
"""Hundreds of operations to compile one by one."""


@pytest.mark.parametrize("name", [n for n in CASES if "/" not in n and n not in SLOW_EAGER])
def test_compiled_equals_eager(name):
    eager = transforms()[name].update(KEY, signal_of(name), transforms()[name].init())
    assert_same(seen(name, first_steps()[name]), seen(name, eager), **CLOSE)


def set_by(name, after):
    return written(transforms()[name].spec, after)


def stack(trees):
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


LOOPED = [name for name in CASES if "/" not in name] + ["rates.appeals/feature"]


@functools.cache
def scanned():
    """Two steps under `scan` of two seeds under `vmap`; what `signals` and `KEYS` hold."""

    @jax.jit
    def run(keys, signals, states):
        def step(states, inputs):
            results = jax.vmap(update_table)(*inputs, states)
            return states_of(results), {n: set_by(n, after) for n, (after, _) in results.items()}

        return jax.lax.scan(step, states, (keys, signals))

    rows = [stack([signals(seed + 2 * step) for seed in (0, 1)]) for step in (0, 1)]
    inputs, last, results = stack(rows), {}, {}
    for part in in_parts({name: transforms()[name].init() for name in LOOPED}):
        ends, steps = run(KEYS, inputs, stack([part] * 2))
        last |= ends
        results |= steps
    return last, results


@functools.cache
def looped():
    """The same one after the other: results by seed and step."""
    first = [table(KEYS[0, seed], signals(seed), states()) for seed in (0, 1)]
    second = [table(KEYS[1, seed], signals(seed + 2), states_of(first[seed])) for seed in (0, 1)]
    return list(zip(first, second))


@pytest.mark.parametrize("name", LOOPED)
def test_seeds_under_vmap_and_steps_under_scan_equal_loops(name):
    last, results = scanned()
    for seed in (0, 1):
        for step in (0, 1):
            mapped = jax.tree.map(lambda leaf: leaf[step, seed], results[name])
            assert_same(mapped, set_by(name, looped()[seed][step][name][0]), **CLOSE)
        final = jax.tree.map(lambda leaf: leaf[seed], last[name])
        assert_same(final, looped()[seed][1][name][1], **CLOSE)


@functools.cache
def reordered():
    return table(KEY, permuted(signals()), states())


@every_case
def test_prompts_may_come_in_any_order(name):
    after, state = first_steps()[name]
    rates = after.rates if after.rates.matrix.ndim == 2 else permuted(after.rates)
    expected = permuted(after.replace(metrics={}, rates=None))
    expected = expected.replace(metrics=after.metrics, rates=rates)
    assert_same(seen(name, reordered()[name]), seen(name, (expected, state)), **CLOSE)


# Keys, state, types


@functools.cache
def with_other_keys():
    return [table(key, signals(), states()) for key in KEYS.reshape(-1)[1:]]


@every_case
def test_the_key_alone_decides_what_is_drawn(name):
    first = seen(name, first_steps()[name])
    assert_same(seen(name, first_again()[name]), first)
    differ = [not equal(seen(name, other[name]), first) for other in with_other_keys()]
    assert any(differ) == CASES[name].draws


@functools.cache
def first_again():
    return table(KEY, signals(), states())


def equal(one, other):
    try:
        assert_same(one, other)
    except AssertionError:
        return False
    return True


@every_case
def test_state_keeps_its_form(name):
    form = lambda tree: jax.tree.map(lambda leaf: leaf.aval, tree)  # shape, dtype, weak type
    expected = form(transforms()[name].init())
    for results in (first_steps(), second_steps()):
        assert form(results[name][1]) == expected


def test_steps_compile_once():
    first_steps(), second_steps()
    before = len(COMPILED)
    table(KEYS[1, 1], signals(3), states_of(second_steps()))
    assert len(COMPILED) == before


@every_case
def test_reals_are_float32(name):
    for path, leaf in jax.tree.leaves_with_path(first_steps()[name]):
        if jnp.issubdtype(leaf.dtype, jnp.floating):
            assert leaf.dtype == jnp.float32, jax.tree_util.keystr(path)


def test_states_can_be_donated():
    """A buffer that two leaves share is refused by jit with `donate_argnums`."""
    for name, state in states().items():
        leaves = [leaf for leaf in jax.tree.leaves(state) if leaf.dtype.kind in "biuf"]
        buffers = {leaf.unsafe_buffer_pointer() for leaf in leaves}
        assert len(buffers) == len(leaves), name


def test_states_survive_a_checkpoint(tmp_path):
    """All states in one checkpoint; each goes on as if it had never been written."""
    from jaxreward.training import checkpoint  # slow to import

    saved = states_of(first_steps())
    assert len(jax.tree.leaves(saved)) > 30
    with checkpoint.open_checkpoints(tmp_path / "checkpoints") as checkpoints:
        checkpoints.save(1, saved, {})
        checkpoints.wait()
        restored = checkpoints.restore_newest(states()).state
    assert_same(restored, saved)
    goes_on = table(KEYS[1, 0], signals(2), restored)
    for name in CASES:
        assert_same(seen(name, goes_on[name]), seen(name, second_steps()[name]))


# Missing and hostile rewards


def hide(signal, value):
    """`value`, and other nonsense, in everything that belongs to a missing reward."""
    mask = signal.mask
    gone = ~mask if mask.ndim == 2 else ~jnp.any(mask, axis=2)
    put = lambda x, new: jnp.where(gone, jnp.asarray(new, x.dtype), x)
    lay = lambda x: jnp.where(mask, x, jnp.asarray(value, x.dtype))
    aux = signal.aux
    verdicts = jnp.where(gone[..., None], jnp.float32(value), aux["verdicts"])
    return signal.replace(rewards=lay(signal.rewards), weights=put(signal.weights, value)).with_aux(
        recheck=lay(aux["recheck"]),
        appeal_probability=lay(aux["appeal_probability"]),
        appealed=aux["appealed"] | ~mask,
        verdicts=verdicts,
        feature=put(aux["feature"], 99),
        output_id=put(aux["output_id"], 7),
        hit=aux["hit"] | gone,
        rate=put(aux["rate"], np.nan),
    )


@functools.cache
def hidden(value):
    return table(KEY, {dense: hide(s, value) for dense, s in signals().items()}, states())


@every_case
@pytest.mark.parametrize("value", HOSTILE)
def test_what_is_stored_under_a_mask_is_never_used(name, value):
    after, state = hidden(value)[name]
    assert_same(seen(name, (after, state)), seen(name, first_steps()[name]))
    for leaf in jax.tree.leaves((after.advantages, after.metrics, state)):
        assert np.all(np.isfinite(leaf))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_reward_that_is_no_number_is_missing(value):
    raw = jnp.array([[1.0, value, 0.0], [value, value, value]])
    signal = make_signal(raw)
    np.testing.assert_array_equal(signal.mask, np.isfinite(raw))
    np.testing.assert_array_equal(signal.rewards, [[1, 0, 0], [0, 0, 0]])
    assert bool(make_signal(jnp.array([[1e30, 0.0]])).mask.all())  # finite, so it counts


def unscorable(signal):
    """The signal with no reward for one more sample of each prompt, which has all but that.

    Also returns which one that is.
    """
    shape = signal.mask.shape
    sample = jnp.argmax(signal.mask.reshape(*shape[:2], -1)[..., 0], axis=1)
    picked = jnp.arange(battery.GROUP)[None] == sample[:, None]
    chosen = jnp.broadcast_to(picked.reshape(picked.shape + (1,) * (len(shape) - 2)), shape)
    raw = make_signal(jnp.where(chosen, jnp.nan, signal.rewards), signal.mask)
    best = lambda x: jnp.where(chosen, jnp.ones_like(x), x)
    changed = signal.replace(
        rewards=raw.rewards,
        mask=raw.mask,
        advantages=jnp.where(chosen, 0.0, signal.advantages),  # as estimators leave it
    ).with_aux(
        true_rewards=jnp.where(chosen, jnp.nan, signal.aux["true_rewards"]),
        appealed=best(signal.aux["appealed"]),
        recheck=best(signal.aux["recheck"]),
        verdicts=jnp.where(picked[..., None], 1.0, signal.aux["verdicts"]),
        hit=signal.aux["hit"] | picked,
    )
    return changed, np.asarray(chosen)


@functools.cache
def without_scores():
    return table(KEY, {dense: unscorable(s)[0] for dense, s in signals().items()}, states())


pay = jax.jit(lambda signal: advantage.rloo().update(KEY, signal, ())[0].advantages)


@every_case
def test_unscorable_never_pays(name):
    """No reward, no advantage: not by a pattern, a re-check, a verdict or a coin."""
    after, _ = without_scores()[name]
    chosen = unscorable(signal_of(name))[1]
    assert not np.any(np.asarray(after.mask) & chosen)
    spec = transforms()[name].spec
    if "advantages" not in spec.writes:
        raw = jnp.where(after.mask, after.rewards, jnp.nan)
        paid = np.asarray(pay(make_signal(raw)))
        assert np.all(np.isfinite(paid)) and np.all(paid[chosen] == 0)
    else:
        paid = np.asarray(after.advantages)
        assert np.all(np.isfinite(paid))
    if spec.role == "credit" and not CASES[name].returns:
        assert np.all(paid[chosen.reshape(*chosen.shape[:2], -1).all(axis=2)] == 0)
    elif spec.role != "credit":
        assert np.all(paid[~np.asarray(after.mask)] == 0)


# Under `where`

FIELDS = ("rewards", "mask", "advantages", "weights")
RESHAPING = ("credit.broadcast", "credit.broadcast_steps")  # advantages of another shape


@functools.cache
def factories():
    """The first line of each factory that sets one of these fields."""
    first = {n: t for n, t in transforms().items() if "/" not in n and n not in RESHAPING}
    return {name: t for name, t in first.items() if set(FIELDS) & set(t.spec.writes)}


@functools.cache
def limited_to_none():
    limited = {n: base.where(t, lambda s: s.aux["prompt_id"] < 0) for n, t in factories().items()}

    @jax.jit
    def run(key, signals, states):
        after = {
            n: limited[n].update(key, signals[CASES[n].dense], state)[0]
            for n, state in states.items()
        }
        return {n: {field: getattr(s, field) for field in FIELDS} for n, s in after.items()}

    results = {}
    for part in in_parts({name: states()[name] for name in limited}):
        results |= run(KEY, signals(), part)
    return results


def test_where_no_prompt_is_selected_nothing_changes():
    assert len(limited_to_none()) > 20
    for name, after in limited_to_none().items():
        assert_same(after, {field: getattr(signal_of(name), field) for field in FIELDS})


# Declarations


@every_case
def test_it_reads_no_more_than_it_says(name):
    transform, signal = transforms()[name], signal_of(name)
    reads = set(transform.spec.reads) | set(ALWAYS)
    aux = {entry: value for entry, value in signal.aux.items() if f"aux/{entry}" in reads}
    unread = [field for field in ("advantages", "rates", "trajectories") if field not in reads]
    bare = signal.replace(aux=aux, weights=None, **dict.fromkeys(unread))
    jax.eval_shape(transform.update, KEY, bare, transform.init())


SELDOM = {
    "noise.class_conditional": "mask",  # where rates are not known
    "noise.symmetric": "mask",
    "noise.use_true_rewards": "mask",  # where the truth is not
    "aggregation.aggregate_members": "mask",  # where a member has no score
    "calibration.center_on_reference": "mask",  # where no reference has one
    "mixture.weighted_sum": "mask",
    "refinement.label_refinement": "rewards",
}
"""What a transform writes, though on these signals it does not."""


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("base.")])
def test_it_writes_all_that_it_says(name):
    writes = set(transforms()[name].spec.writes) - {"aux/true_rewards"}  # kept where they are there
    writes.discard(SELDOM.get(name.split("/")[0]))
    for before, results in ((signal_of(name), first_steps()), (signal_of(name, 2), second_steps())):
        after = results[name][0]
        get = lambda s, field: s.aux.get(field[4:]) if "/" in field else getattr(s, field)
        writes -= {field for field in writes if not equal(get(after, field), get(before, field))}
    assert not writes


@every_case
def test_it_writes_no_more_than_it_says(name):
    writes, signal = transforms()[name].spec.writes, signal_of(name)
    after, _ = first_steps()[name]
    assert all(f"aux/{entry}" in writes for entry in set(after.aux) - set(signal.aux))
    for entry, value in signal.aux.items():
        if f"aux/{entry}" not in writes:
            np.testing.assert_array_equal(after.aux[entry], value, err_msg=entry)
    for field in ("rewards", "mask", "advantages", "weights", "rates", "trajectories"):
        if field not in writes:
            assert_same(getattr(after, field), getattr(signal, field))
    assert "metrics" in writes or after.metrics == {}
