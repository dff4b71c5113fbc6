"""Five reward models trained as one vmapped program against one; scoring of many responses.

Training: perceptrons on features of the size that `configs/rm_ensemble.py` trains, the members
spread over the cores, wider ones, and a transformer whose trunk the members share; each from the
same code with one member and with five. A step of one perceptron is bound by arithmetic on one
core, so five cannot cost less than five over the number of cores. Scoring: a stream of responses
that are made as they are asked for, with the process's memory at its start and its highest.
"""

import functools
import time
from typing import Any

from experiments import cli

MEMBERS, BAR = 5, 2.5


def run(workdir: str, quick: bool) -> dict[str, Any]:
    """Times both, one after another in this process."""
    del workdir
    cli.spread_over_cores()
    rows = [["what", "one member [ms a step]", f"{MEMBERS} members [ms a step]", "ratio"]]
    ratios = {}
    programs = {
        "perceptrons": functools.partial(_perceptrons, features=12, pairs=300),
        "perceptrons, 32 features": functools.partial(_perceptrons, features=32, pairs=2000),
        "text, shared trunk": _texts,
    }
    for name, make in programs.items():
        steps = (100 if quick else 1000) // (10 if make is _texts else 1)
        ratios[name] = _ratio(make, steps, 3 if quick else 9, rows, name)
    scoring = _scoring(1000 if quick else 10_000)
    notes = [
        f"{name}: {MEMBERS} members cost {ratio:.2f} times one; bar {BAR:g}: "
        + ("reached" if ratio <= BAR else "not reached")
        for name, ratio in ratios.items()
    ]
    notes += [
        f"scored {scoring['responses']} responses at {scoring['per_second']:.0f} a second; "
        f"memory grew by {scoring['grown_mib']:.0f} MiB, and by "
        f"{scoring['grown_short_mib']:.0f} MiB for a tenth of them",
    ]
    return {"rows": rows, "notes": notes, "ratios": ratios, "scoring": scoring}


def _ratio(make, steps: int, repeats: int, rows: list, name: str) -> float:
    """Median of the pairs' ratios; one and many take turns, so that both meet the same machine."""
    import jax
    import numpy as np

    one, many = (jax.jit(make(members, steps)) for members in (1, MEMBERS))
    times = np.empty((repeats, 2))
    for function in (one, many):
        jax.block_until_ready(function(jax.random.key(0)))
    for row in times:
        for column, function in enumerate((one, many)):
            start = time.perf_counter()
            jax.block_until_ready(function(jax.random.key(1)))
            row[column] = 1e3 * (time.perf_counter() - start) / steps
    ratio = float(np.median(times[:, 1] / times[:, 0]))
    rows.append([name, *(f"{t:.3f}" for t in np.median(times, axis=0)), f"{ratio:.2f}"])
    return ratio


def _perceptrons(members: int, steps: int, *, features: int, pairs: int):
    """`(key) -> parameters` after training on pairs of feature vectors, each member alone."""
    import jax
    import optax

    from jaxreward.losses import preference
    from jaxreward.rewards.learned import mlp_reward_model
    from jaxreward.training.fit import fit, rows
    from jaxreward.training.population import map_runs, run_mesh

    model, mesh = mlp_reward_model(features, (64, 64)), run_mesh(members, even=False)
    data = jax.random.normal(jax.random.key(2), (pairs, 2, features))

    def loss(params, batch):
        scores = model.score(params, batch)
        return preference.pair_loss(scores[:, 0] - scores[:, 1], 0.0 * scores[:, 0] + 1.0)

    def one(key):
        sample = lambda key: rows(data, key, 64)
        return fit(key, model.init(key), loss, sample, optax.adam(1e-3), steps=steps)[0]

    return lambda key: map_runs(one, (jax.random.split(key, members),), 0, mesh)


def _text_model():
    from jaxreward.networks.transformer_config import TransformerConfig
    from jaxreward.rewards.learned import text_reward_model

    config = TransformerConfig(128, width=64, layers=2, heads=4, kv_heads=2, intermediate=128)
    return text_reward_model(config)


def _texts(members: int, steps: int):
    """The same for pairs of texts: one trunk, a head for each member."""
    import jax
    import jax.numpy as jnp
    import optax

    from jaxreward.losses import preference
    from jaxreward.rewards.learned import Texts, ensemble
    from jaxreward.training.fit import fit, rows

    model = ensemble(_text_model(), members, shared=("trunk",))
    data = jax.random.randint(jax.random.key(2), (500, 2, 32), 0, 128)

    def loss(params, batch):
        flat = batch.reshape(-1, batch.shape[-1])
        lengths = jnp.full(flat.shape[:1], flat.shape[1], jnp.int32)
        scores = model.score(params, Texts(flat, lengths)).reshape(members, -1, 2)
        margins = (scores[..., 0] - scores[..., 1]).reshape(-1)
        return preference.pair_loss(margins, jnp.ones(margins.shape))

    def train(key):
        sample = lambda key: rows(data, key, 16)
        return fit(key, model.init(key), loss, sample, optax.adam(1e-3), steps=steps)[0]

    return train


def _scoring(responses: int) -> dict[str, Any]:
    """Speed and memory of `score_many` on a stream."""
    import jax
    import numpy as np
    import psutil

    from jaxreward.rewards.learned import Texts, score_many

    model, process = _text_model(), psutil.Process()
    params = model.init(jax.random.key(0))
    generator, highest = np.random.default_rng(0), [0]

    def stream(count: int):
        for number in range(count):
            if number % 200 == 0:
                highest[0] = max(highest[0], process.memory_info().rss)
            length = np.int32(generator.integers(1, 65))
            yield Texts(generator.integers(0, 128, 64, dtype=np.int32), length)

    def grown(count: int) -> tuple[float, float]:
        highest[0] = before = process.memory_info().rss
        start = time.perf_counter()
        scores = score_many(model.score, params, stream(count))
        assert scores.shape == (count,)
        return (highest[0] - before) / 2**20, time.perf_counter() - start

    score_many(model.score, params, stream(300), progress=False)  # compiles
    short, _ = grown(responses // 10)
    whole, seconds = grown(responses)
    return {
        "responses": responses,
        "per_second": responses / seconds,
        "grown_mib": whole,
        "grown_short_mib": short,
    }
