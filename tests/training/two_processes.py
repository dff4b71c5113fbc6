"""One of several processes that train together; run by test_two_processes.py.

`python two_processes.py PORT PROCESSES INDEX WORKDIR STEPS`. Every process has two devices. Each
judges on the host the samples that its own devices hold, and appends to
`judged-<index>.jsonl` which step it was and how many samples.
"""

import functools
import json
import pathlib
import sys

import jax
import numpy as np
import toy_language_run as toy

from jaxreward.training import loop, sharding


def judge(tokens):
    """What `toy.true_rewards` says, without jax, sample by sample."""
    verdicts = np.zeros(tokens.shape[:2], np.float32)
    for index in np.ndindex(verdicts.shape):
        written = [token for token in tokens[index].tolist() if token > 1]
        even = sum(token % 2 == 0 for token in written)
        verdicts[index] = even > len(written) - even
    return verdicts


def make_iteration(mesh, log):
    """Sample, judge this process's share, learn."""
    policy = toy.make_policy(sharding.language_layout(toy.CONFIG, mesh))
    rules = sharding.transformer_rules(toy.CONFIG, mesh)
    shardings = sharding.state_shardings(
        jax.eval_shape(toy.init, jax.random.key(0)), mesh, rules
    )
    by_prompt = sharding.batch_sharding(mesh)
    roll_out = jax.jit(functools.partial(toy.roll_out, policy), out_shardings=by_prompt)
    learn = sharding.jit_step(
        functools.partial(toy.learn, toy.make_step(policy, 0.01)), shardings
    )
    prompts = jax.tree.map(
        lambda leaf: sharding.from_own_rows(_share(leaf, mesh), mesh), toy.make_prompts()
    )

    def iteration(state, step):
        trajectories, scores = roll_out(state, prompts)
        tokens = sharding.own_rows(trajectories.actions)
        verdicts = judge(tokens)
        log.write(json.dumps({"step": step, "samples": verdicts.size}) + "\n")
        true = sharding.from_own_rows(verdicts, mesh)
        return learn(state, trajectories, scores, true)

    return iteration


def _share(leaf, mesh):
    """The rows of a host's array that the devices of this process hold."""
    return sharding.own_rows(jax.device_put(leaf, sharding.batch_sharding(mesh)))


def main(port, processes, index, workdir, steps):
    """Runs, or continues, to the end."""
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", int(processes), int(index))
    assert jax.device_count() == 2 * int(processes) == 2 * jax.local_device_count()
    mesh = sharding.make_mesh(data=1, fsdp=int(processes), tensor=2)
    root = pathlib.Path(workdir)
    root.mkdir(parents=True, exist_ok=True)
    with open(root / f"judged-{index}.jsonl", "a", buffering=1) as log:
        loop.run_loop(
            make_iteration(mesh, log),
            toy.start(mesh)[0],
            loop.Schedule(int(steps), save_every=2, keep=2),
            workdir=root,
        )
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
