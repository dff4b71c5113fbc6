"""A run small enough to be killed often: noisy gradient descent on a quadratic.

`python tests/training/toy_run.py WORKDIR STEPS [MODE]`; also a runner for `experiments.cli`.
"""

import os
import signal
import sys
import time


def problem(config_seed=0, nan_from=None):
    """Initial state, iteration and evaluation. Every kind of state takes part."""
    import jax
    import jax.numpy as jnp

    def init():
        return {
            "params": {"w": jnp.linspace(-1.0, 1.0, 8), "b": jnp.zeros((), jnp.bfloat16)},
            "key": jax.random.key(config_seed),
            "step": jnp.int32(0),
            "skipped": jnp.int32(0),
        }

    @jax.jit
    def update(state, batch):
        key = jax.random.fold_in(state["key"], state["step"])
        noise = jax.random.normal(key, (8,))
        w = state["params"]["w"]
        target = jnp.where(state["step"] >= (nan_from or 10**9), jnp.nan, batch)
        loss, grad = jax.value_and_grad(lambda w: jnp.sum((w - target + 0.1 * noise) ** 2))(w)
        good = jnp.isfinite(loss)
        params = {
            "w": jnp.where(good, w - 0.05 * grad, w),
            "b": state["params"]["b"] + jnp.bfloat16(0.5),
        }
        skipped = jnp.where(good, 0, state["skipped"] + 1)
        new = {"params": params, "key": state["key"], "step": state["step"] + 1}
        metrics = {"train": {"loss": loss, "skipped": skipped}}
        return new | {"skipped": skipped}, metrics

    update = jax.jit(update, donate_argnums=0)

    def evaluate(state, step):
        return {"eval/distance": jnp.sum(jnp.abs(state["params"]["w"])), "eval/step": step}

    return init, update, evaluate


def run(workdir, steps, *, mode="", seed=0, save_every=7, stream=None, **kwargs):
    """Trains; `host` is a data iterator that is not a function of the step."""
    import numpy as np

    from jaxreward.training import loop

    init, update, evaluate = problem(seed, nan_from=12 if mode == "nan" else None)
    iterator = {"position": 0, "seen": 0.0}

    def iteration(state, step):
        iterator["position"] += 3
        iterator["seen"] += 0.1 * iterator["position"]
        if mode == "slow":
            time.sleep(0.01)
        if mode == "full" and step == 10:
            import resource

            resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
        if mode == "sigterm" and step == 10:
            os.kill(os.getpid(), signal.SIGTERM)
        return update(state, np.float32(iterator["seen"] % 1.0))

    host = loop.HostState(get=lambda: dict(iterator), set=iterator.update)
    return loop.run_loop(
        iteration,
        init(),
        loop.Schedule(steps, save_every=save_every, evaluate_every=5),
        workdir=workdir,
        evaluate=evaluate,
        host=host,
        safety=loop.Safety(lambda state: {"toy": state["skipped"]}, allowed=4),
        stream=stream,
        **kwargs,
    )


if __name__ == "__main__":
    run(sys.argv[1], int(sys.argv[2]), mode="".join(sys.argv[3:]))
