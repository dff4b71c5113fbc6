"""One arm of an rlvr config on every device of every host.

    python -m experiments.rlvr_mesh --config=configs/<method>.py --workdir=DIR
        [--distributed] [--mesh=1,-1,1] [--arm=NAME] [--accumulate=1] [--config.a.b=value]

All hosts run the same command with `--distributed`, which asks the environment (TPU slice, GKE,
SLURM) who they are; without such an environment give `--coordinator=ADDRESS:PORT`, `--processes`
and `--process`. Every host judges the samples that its devices hold, and all write one
checkpoint; the workdir must be a folder that all see. The same command continues.

`experiments.rlvr` compares arms and seeds on one host; this trains one.
"""

import contextlib
import functools
import sys
from typing import Any, Iterator, NamedTuple, Sequence

from experiments import cli, rlvr_config
from jaxreward.training.exits import ConfigError

FLAGS = (
    cli.Flag("config", help="file of the config, with :variant"),
    cli.Flag("workdir", help="folder of the run"),
    cli.Flag("mesh", str, "1,-1,1", "sizes of data, fsdp, tensor; -1 for what is left"),
    cli.Flag("arm", help="of the config; default its first corrected one"),
    cli.Flag("accumulate", int, 1, "micro-batches of an update"),
    cli.Flag("distributed", bool, False, "one of several processes"),
    cli.Flag("coordinator", help="address of process 0, where the environment does not say"),
    cli.Flag("processes", int, 0, "how many, likewise"),
    cli.Flag("process", int, 0, "which one this is, likewise"),
)


def main(argv: Sequence[str] | None = None) -> None:
    """Parses, joins the other processes, runs; exits with a code unless all went well."""
    argv = sys.argv[1:] if argv is None else list(argv)
    if "--help" in argv or "-h" in argv:
        print(cli.usage([flag for flag in FLAGS if flag.name not in ("config", "workdir")]))
        return
    with cli.exit_codes():
        command = cli.parse(argv, FLAGS)
        config = cli.load(command, rlvr_config.validate)
        flags = command.values
        if not flags["workdir"]:
            raise ConfigError("--workdir is missing; allowed is the name of a folder")
        with _joined(flags), _opened(flags["workdir"], config):
            run(config, flags)


@contextlib.contextmanager
def _joined(flags: dict[str, Any]) -> Iterator[None]:
    import jax

    if not flags["distributed"] and not flags["coordinator"]:
        yield
        return
    known = ()
    if flags["coordinator"]:
        known = (flags["coordinator"], flags["processes"], flags["process"])
    jax.distributed.initialize(*known)
    try:
        yield
    finally:
        jax.distributed.shutdown()


@contextlib.contextmanager
def _opened(workdir: str, config: Any) -> Iterator[None]:
    """The workdir, held by process 0 for all."""
    import jax

    if jax.process_index() != 0:
        yield
        return
    cli.check_workdir(workdir, config)
    with cli.open_workdir(workdir, config):
        yield


class _Parts(NamedTuple):
    """What a step is made of."""

    mesh: Any
    policy: Any
    step: Any
    group_size: int
    accumulate: int
    verification: Any


def run(config: Any, flags: dict[str, Any]) -> None:
    """Trains the arm to the end, or what is left of it."""
    import jax

    from experiments import rlvr_problem
    from jaxreward.tasks import pipeline
    from jaxreward.training import loop, sharding

    mesh = _mesh(flags, config)
    for key in ("lagged", "own"):
        if config.get(key):
            raise ConfigError(f"config.{key} is set; allowed on a mesh, with one arm, is unset")
    if config.model.get("lora_rank", 0):
        raise ConfigError(
            f"config.model.lora_rank = {config.model.lora_rank}; allowed is 0 on a mesh, where all "
            "parameters learn"
        )
    problem = _in_turn(lambda: rlvr_problem.load_problem(config, flags["workdir"]))
    rules = sharding.transformer_rules(problem.model.network, mesh)
    shapes = jax.eval_shape(problem.policy.init, jax.random.key(0))
    shardings = sharding.state_shardings(shapes, mesh, rules)
    start = rlvr_problem.warm_start(config, problem, shardings)
    batches = pipeline.make_pipeline(
        problem.train, config.prompts_per_step, seed=config.seed, fingerprint=problem.fingerprint
    )
    iterator = iter(batches.dataset)
    with rlvr_problem.open_verification(config, problem) as verification:
        parts = _parts(config, flags, mesh, problem, verification)
        key = jax.random.key(config.seed)
        state = sharding.sharded_init(parts.step.init, mesh, rules, key, start)
        reference = jax.device_put(start, shardings)
        iteration = _iteration(parts, state, reference)
        loop.run_loop(
            lambda state, step: iteration(state, next(iterator)),
            state,
            loop.Schedule(
                config.steps, save_every=config.checkpoint.every, keep=config.checkpoint.keep
            ),
            workdir=flags["workdir"],
            host=loop.HostState(
                lambda: pipeline.save_position(batches, iterator),
                lambda value: pipeline.restore_position(batches, iterator, value),
            ),
            safety=loop.Safety(
                lambda state: state.skipped_in_a_row, config.safety.max_skipped_in_a_row
            ),
            show=("reward/true", "reward/observed"),
        )


def _mesh(flags: dict[str, Any], config: Any):
    from jaxreward.training import sharding

    sizes = flags["mesh"].split(",")
    if len(sizes) != 3 or not all(size.removeprefix("-").isdecimal() for size in sizes):
        raise ConfigError(f"--mesh = {flags['mesh']!r}; allowed are three sizes, such as 1,-1,1")
    if flags["accumulate"] < 1:
        raise ConfigError(f"--accumulate = {flags['accumulate']}; allowed is >= 1")
    try:
        mesh = sharding.make_mesh(*map(int, sizes))
        sharding.check_batch(mesh, config.prompts_per_step, flags["accumulate"])
    except ValueError as error:
        raise ConfigError(f"--mesh = {flags['mesh']!r}: {error}") from error
    return mesh


def _in_turn(load):
    """`load()`, by process 0 before the others, because it may write files."""
    import jax
    from jax.experimental import multihost_utils

    first = load() if jax.process_index() == 0 else None
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("loaded")
    return first or load()


def _parts(config: Any, flags: dict[str, Any], mesh, problem, verification) -> _Parts:
    from experiments import arms, rlvr_model
    from jaxreward.training import sharding
    from jaxreward.training.config import build
    from jaxreward.training.step import make_update_step

    layout = sharding.language_layout(problem.model.network, mesh)
    policy = rlvr_model.make_policy(config, problem.model, layout)
    if config.updates_per_rollout != 1:
        raise ConfigError(
            f"config.updates_per_rollout = {config.updates_per_rollout}; allowed is 1 on a mesh"
        )
    chains = arms.build_arms(config)
    name = flags["arm"] or next(iter(config.controls), next(iter(chains)))
    if name not in chains:
        raise ConfigError(f"--arm = {name!r}; allowed are {', '.join(chains)}")
    copies = sharding.are_copies(mesh)
    own = sharding.copy_layout(mesh) if copies else layout
    learner = rlvr_model.make_policy(config, problem.model, own)
    step = make_update_step(
        build(config.loss, policy=learner, kl_coefficient=config.hyper.kl_coefficient),
        chains[name],
        build(config.optimizer, learning_rate=config.hyper.learning_rate),
        accumulate=flags["accumulate"],
        mesh=mesh if copies else None,
        spike_factor=config.safety.spike_factor,
    )
    return _Parts(mesh, policy, step, config.group_size, flags["accumulate"], verification)


def _iteration(parts: _Parts, state, reference):
    """`(state, rows) -> (state, metrics)`: sample, judge this host's share, learn."""
    import jax
    import numpy as np

    from jaxreward.policies.language import Prompts
    from jaxreward.training import sharding

    mesh, by_prompt = parts.mesh, sharding.batch_sharding(parts.mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    roll_out = jax.jit(functools.partial(_roll_out, parts), out_shardings=by_prompt)
    learn = sharding.jit_step(functools.partial(_learn, parts), shardings, donate_argnums=0)

    def iteration(state, rows):
        texts = rows.pop("answer")
        rows.pop("prompt", None)
        count = len(rows["prompt_id"])
        placed = {name: jax.device_put(value, by_prompt) for name, value in rows.items()}
        prompts = Prompts(placed["tokens"], placed["lengths"])
        trajectories, scores = roll_out(state, reference, prompts)
        tokens, mask = (
            sharding.own_rows(a) for a in (trajectories.outputs, trajectories.mask)
        )
        own = sharding.own_rows(jax.device_put(np.arange(count, dtype=np.int32), by_prompt))
        answers = {name: value[own][None] for name, value in rows.items()}
        answers["answer"] = texts[own][None]
        lengths = mask.sum(axis=-1, dtype=np.int32)
        verdict = parts.verification.verify(tokens[None], lengths[None], answers)
        verdict = [sharding.from_own_rows(np.asarray(column)[0], mesh) for column in verdict]
        return learn(state, placed, trajectories, scores, verdict)

    return iteration


def _roll_out(parts: _Parts, state, reference, prompts):
    from jaxreward.training.gradient import map_in_parts
    from jaxreward.training.step import sample_key

    key = sample_key(state)
    trajectories = parts.policy.sample(state.params, key, prompts, parts.group_size)
    score = lambda own: parts.policy.log_prob(reference, own).log_probs
    return trajectories, map_in_parts(score, trajectories, parts.accumulate)


def _learn(parts: _Parts, state, rows, trajectories, scores, verdict):
    from jaxreward.transforms import noise
    from jaxreward.types import make_signal

    rewards, mask, true, form, answer_id, reference_id = verdict
    signal = make_signal(
        rewards,
        mask,
        prompt_id=rows["prompt_id"],
        trajectories=trajectories,
        prompt_type=rows["prompt_type"],
        true_rewards=true,
        output_form=form,
        answer_id=answer_id,
        reference_id=reference_id,
        output_id=noise.output_id(trajectories.actions, trajectories.mask),
        reference_log_probs=scores,
    )
    return parts.step.update(state, signal)


if __name__ == "__main__":
    main()
