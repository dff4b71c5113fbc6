import jax
import jax.numpy as jnp
import pytest

from jaxreward.search import golden_noise, pruning
from jaxreward.search import noise_optimization as optimization
from jaxreward.search.accounting import Costs, Spent, add, as_metrics, cost, times


def test_sums_and_prices():
    both = add(Spent(2, 1, 3, 1), times(Spent(1, 0, 1), 4))
    assert both == Spent(6, 1, 7, 1)
    assert cost(both) == 6 + 2
    assert cost(both, Costs(9.9, 0.2, 1.0, 0.0)) == pytest.approx(59.4 + 0.2 + 7)


def test_as_metrics():
    found = as_metrics(Spent(4, 1, 2, 3), Costs(1.0, 0.0, 0.0, 2.0))
    assert {name: float(value) for name, value in found.items()} == {
        "spent/network_calls": 4, "spent/decodes": 1, "spent/reward_calls": 2,
        "spent/backward_calls": 3, "spent/cost": 10,
    }  # fmt: skip


def test_a_negative_price_is_refused():
    with pytest.raises(ValueError, match="decode = -1.0"):
        cost(Spent(1), Costs(decode=-1.0))


# What searches say they spent, against calls that the host counts


class Counter:
    """Functions that the host counts, by name."""

    def __init__(self):
        self.calls = {}

    def seen(self, name, x, count=1):
        add = lambda _: self.calls.update({name: self.calls.get(name, 0) + count})
        jax.debug.callback(add, jnp.sum(x))
        return x

    def of(self, run, *arguments):
        """The calls of a compiled run."""
        jax.effects_barrier()
        self.calls.clear()
        jax.block_until_ready(jax.jit(run)(*arguments))
        jax.effects_barrier()
        return self.calls


@pytest.mark.parametrize("method", ["reno", "carinox", "best_of_n"])
def test_calls_of_climbs(method):
    counter, noises = Counter(), jnp.arange(6.0).reshape(3, 2)
    generate = lambda z: counter.seen("images", 2 * z)
    losses = lambda x: jnp.stack([jnp.sum(counter.seen("judged", x) ** 2), jnp.sum(jnp.abs(x))])
    settings = optimization.Climb(steps=4, clip_each=method == "carinox")
    own = (generate, losses, jnp.ones(2))
    search = {
        "reno": lambda z: optimization.reno(z[0], *own, settings),
        "carinox": lambda z: optimization.carinox(z, *own, settings),
        "best_of_n": lambda z: optimization.best_of_n(z, *own),
    }[method]
    kept = search(noises).spent
    calls = counter.of(lambda z: search(z)._replace(spent=()), noises)
    assert kept[:3] == (calls["images"], calls["images"], 2 * calls["judged"])
    assert kept.backward_calls == {"reno": 4, "carinox": 2 * 12, "best_of_n": 0}[method]


@pytest.mark.parametrize(
    "count, steps, keep, total",
    [(11, (0, 3), (0.37, 0.5), 6), (1, (2,), (0.1,), 3), (7, (5,), (1.0,), 6), (4, (), (), 3)],
)
def test_calls_of_pruning(count, steps, keep, total):
    """Counts that the shares do not divide, a stage at the last step, one candidate, no stage."""
    counter, plan = Counter(), pruning.Schedule(steps, keep)

    def advance(states, step):
        return 0.9 * counter.seen("network", states, len(states)), states

    score = lambda estimates, stage: counter.seen("judged", estimates, len(estimates))[:, 0]
    reward = lambda images: counter.seen("judged", images, len(images))[:, 1]
    search = lambda z: pruning.pruned_search(z, advance, score, reward, plan, total)
    calls = counter.of(search, jnp.arange(2.0 * count).reshape(count, 2))
    kept = pruning.spent(count, plan, total)
    assert kept == (calls["network"], calls["judged"], calls["judged"], 0)


def test_calls_of_redenoising():
    counter = Counter()
    predict = lambda x, conditional: counter.seen("network", x) * (0.5 if conditional else 0.4)
    levels = golden_noise.Levels(0.3, 0.95, 0.9, 0.4)
    calls = counter.of(lambda z: golden_noise.redenoise(z, predict, levels), jnp.ones(2))
    assert golden_noise.REDENOISE_SPENT.network_calls == calls["network"]
