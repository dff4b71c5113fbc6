"""Every reward transform on eight devices equals itself on one; see `battery.py`.

The devices are forced in a process of their own, which prints what went wrong as JSON.
"""

import json

import processes
import pytest

PROMPTS = 8
WAYS = ("sharded jit", "shard_map", "pmap")


@pytest.fixture(scope="module")
def report():
    """`{way: {name: what went wrong, "" for nothing}}`."""
    return processes.found(__file__)


@pytest.mark.parametrize("way", WAYS)
def test_eight_devices_equal_one(report, way):
    wrong = {name: problem for name, problem in report[way].items() if problem}
    assert not wrong


def test_no_transform_is_left_out(report):
    from battery import CASES

    on_axes = {name for name, case in CASES.items() if case.takes_axis}
    assert set(report["sharded jit"]) == set(factories(CASES))
    assert set(report["pmap"]) == set(factories(on_axes)) and len(report["pmap"]) > 8
    # A table of all prompts is not the same everywhere once each device has seen its own.
    local = {"base.per_prompt", "calibration.warm_up", "refinement.label_refinement"}
    local |= {"prompt_statistics.prompt_statistics"}
    local |= {"majority_guard.vote_history", "majority_guard.scale_by_flips"}
    assert set(report["shard_map"]) == (set(factories(CASES)) | on_axes) - local


def factories(names):
    """The first line of each factory."""
    return [name for name in names if "/" not in name]


def main():
    """Runs the table; prints JSON."""
    import jax
    from battery import CASES, in_parts

    for name, value in (
        ("jax_disable_most_optimizations", True),
        ("jax_numpy_dtype_promotion", "strict"),
        ("jax_numpy_rank_promotion", "raise"),
    ):
        jax.config.update(name, value)
    assert jax.device_count() == PROMPTS
    found = {way: {} for way in WAYS}
    for dense in (False, True):
        cases = {name: case for name, case in CASES.items() if case.dense == dense}
        for part in in_parts(cases):
            for way, problems in problems_of(part, dense).items():
                found[way] |= problems
    print(json.dumps(found))


def problems_of(cases, dense):
    """What is wrong by way and name; the cases of a way are one program."""
    import battery
    import jax

    on_axes = [name for name in cases if cases[name].takes_axis]
    cases = {name: cases[name] for name in cases if name in factories(cases) + on_axes}
    key, signal = jax.random.key(3), battery.make_signal(4, PROMPTS, dense)
    whole = {name: without_local_metrics(case) for name, case in cases.items()}
    part = {name: without_local_metrics(case, "devices") for name, case in cases.items()}
    states = {name: transform.init() for name, transform in whole.items()}
    expected = jax.jit(together(whole))(key, signal, states)
    split = [name for name in cases if name in on_axes or not jax.tree.leaves(states[name])]
    runs = {
        "sharded jit": (factories(cases), whole, sharded),
        "shard_map": (split, part, mapped),
        "pmap": (factories(on_axes), part, pmapped),
    }
    problems = {}
    for way, (names, transforms, run) in runs.items():
        if not names:
            continue
        only = lambda table: {name: table[name] for name in names}
        results = run(together(only(transforms)), key, signal, only(states), only(expected))
        problems[way] = {name: difference(results[name], expected[name]) for name in names}
    return problems


def without_local_metrics(case, axis_name=None):
    """The transform without the metrics that are of the prompts of one device."""
    transform = case.build(axis_name)

    def update(key, signal, state):
        after, state = transform.update(key, signal, state)
        kept = {n: v for n, v in after.metrics.items() if case.takes_axis and n not in case.local}
        return after.replace(metrics=kept), state

    return transform._replace(update=update)


def together(transforms):
    """What all of a table set, each on the same signal, and their states."""
    from battery import written

    def one(transform, key, signal, state):
        after, state = transform.update(key, signal, state)
        return written(transform.spec, after), state

    def update(key, signal, states):
        return {name: one(t, key, signal, states[name]) for name, t in transforms.items()}

    return update


def difference(result, expected):
    """In words, "" for none."""
    import battery

    try:
        battery.assert_same(result, expected, rtol=2e-4, atol=2e-5)
    except AssertionError as error:
        return " ".join(str(error).split())[:400]
    return ""


def layout(result):
    """The same tree; True where rows of prompts are split, False for what is everywhere.

    State and metrics must come out the same on all devices.
    """
    import jax

    fields, state = result
    nowhere = lambda tree: jax.tree.map(lambda leaf: False, tree)
    return {**rows_of(fields), "metrics": nowhere(fields["metrics"])}, nowhere(state)


def rows_of(tree):
    """True where the leading axis is that of prompts."""
    import jax

    return jax.tree.map(lambda leaf: leaf.shape[:1] == (PROMPTS,), tree)


def specs(tree):
    """Partition specs from a layout."""
    import jax
    from jax.sharding import PartitionSpec as P

    return jax.tree.map(lambda split: P("devices") if split else P(), tree)


def mesh():
    """All devices in one axis."""
    import jax
    import numpy as np

    return jax.sharding.Mesh(np.array(jax.devices()), ("devices",))


def sharded(update, key, signal, states, expected):
    """The plain update under `jit`, of a signal that lies on eight devices."""
    import jax
    from jax.sharding import NamedSharding

    del expected
    place = lambda leaf, spec: jax.device_put(leaf, NamedSharding(mesh(), spec))
    spread = jax.tree.map(place, signal, specs(rows_of(signal)))
    assert len(spread.rewards.sharding.device_set) == PROMPTS
    return jax.jit(update)(key, spread, states)


def mapped(update, key, signal, states, expected):
    """Under `shard_map`, which checks that what should be the same everywhere is."""
    import jax
    from jax.sharding import PartitionSpec as P

    out = {name: specs(layout(result)) for name, result in expected.items()}
    into = P(), specs(rows_of(signal)), P()
    return jax.jit(jax.shard_map(update, mesh=mesh(), in_specs=into, out_specs=out))(
        key, signal, states
    )


def pmapped(update, key, signal, states, expected):
    """Under `pmap`, a prompt for each device."""
    import jax
    import numpy as np

    rows = jax.tree.map(lambda leaf: leaf[:, None], signal)
    update = jax.pmap(update, axis_name="devices", in_axes=(None, 0, None))
    results = jax.tree.map(np.asarray, update(key, rows, states))

    def joined(split, leaf):
        if split:
            return leaf[:, 0]
        assert np.array_equal(leaf, np.broadcast_to(leaf[:1], leaf.shape), equal_nan=True)
        return leaf[0]

    return {
        name: jax.tree.map(joined, layout(expected[name]), result)
        for name, result in results.items()
    }


if __name__ == "__main__":
    main()
