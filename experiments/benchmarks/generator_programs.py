"""The programs that `generate` times, and what their PyTorch twins need to be the same.

A program is built from a case: `rlcm`, one iteration of RL of a consistency model as the study
`configs/rlcm.py` runs it; `reno`, the climb of 16 noises on digit canvases.
"""

import dataclasses
import math
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from configs import rlcm as rlcm_config
from experiments.generator_studies import devices, digits, rlcm
from jaxreward.losses.policy import policy_objective
from jaxreward.networks.diffusion import Condition, DiffusionConfig, make_network
from jaxreward.networks.perceptron import Perceptron
from jaxreward.policies import consistency
from jaxreward.rewards import images as image_rewards
from jaxreward.search.noise_optimization import Climb, nesterov, reno
from jaxreward.tasks import digit_canvases as canvases
from jaxreward.training import sharding
from jaxreward.training.population import map_runs, run_mesh
from jaxreward.types import Signal, make_signal

READERS, CANVAS = ((32,), (64,), (64, 64)), (8, 16)


class Case(NamedTuple):
    """What is timed.

    Attributes:
      title: for the table.
      work: "rlcm" or "reno".
      kind: of the network, as `make_network` takes it.
      config: of the network.
      steps: of the sampler, or of the climb.
      batch: samples of each class, or prompts.
      devices: over which the batch may be split, as far as there are so many.
    """

    title: str
    work: str
    kind: str
    config: DiffusionConfig
    steps: int
    batch: int
    devices: int = 1


class Program(NamedTuple):
    """A case, ready to run.

    Attributes:
      run: does the work once and waits for it.
      settings: plain values for the twin.
      arrays: arrays for the twin, by name.
      found: what the twin must find as well, arrays by name.
    """

    run: Callable[[], None]
    settings: dict[str, Any]
    arrays: dict[str, np.ndarray]
    found: dict[str, np.ndarray]


def build(case: Case) -> Program:
    """The program of a case, compiled on its first run."""
    return {"rlcm": _rlcm, "reno": _reno}[case.work](case)


def _moved(init: Callable[[jax.Array], Any]) -> Any:
    """Parameters away from their start, where much is 0 and hides mistakes."""
    rng = np.random.default_rng(0)
    moved = lambda leaf: leaf + np.float32(0.05) * rng.standard_normal(leaf.shape, np.float32)
    return jax.tree.map(moved, jax.jit(init)(jax.random.key(0)))


def _named(params: Any, prefix: str) -> dict[str, np.ndarray]:
    flat = flatten_dict(params, sep="/")
    return {f"{prefix}/{name}": np.asarray(leaf) for name, leaf in flat.items()}


def levels(times: np.ndarray) -> np.ndarray:
    """Rows alpha, sigma, skip, out, time in [0, 1], and alpha and sigma of the next time."""
    schedule, after = digits.SCHEDULE, np.append(times[1:], times[-1:])
    skip, out = consistency.lcm_scalings()(jnp.asarray(times))
    own = [schedule.alpha(times), schedule.sigma(times), skip, out, times / schedule.last]
    return np.stack([*own, schedule.alpha(after), schedule.sigma(after)], axis=1).astype(np.float32)


# RL of a consistency model


def _rlcm(case: Case) -> Program:
    settings = rlcm_config.get_config().study
    arm = settings.arms.rlcm_4
    arm.steps, settings.group_size = case.steps, case.batch
    generator = digits.build(settings.generator)
    network = make_network(case.config, case.kind)
    function = consistency.consistency_function(
        network.apply, digits.SCHEDULE, digits.PARAMETERIZATION
    )
    params = _moved(network.init)
    task = rlcm.Task(generator._replace(function=function), params, None, None)
    rows = digits.CLASSES * case.batch // settings.updates
    split = math.gcd(rows, min(case.devices, jax.device_count()))
    mesh = devices.mesh_over(split)
    policy = rlcm.make_policy(task, arm, mesh)
    reward = rlcm.make_reward(settings.reward, None)
    start, iteration = rlcm.make_iteration(policy, reward, arm, settings)

    def advance(state):
        with jax.numpy_dtype_promotion("standard"):  # Adam's bias correction mixes int and float
            return iteration(state)[0]

    jitted = jax.jit(advance, donate_argnums=0)
    lies = None if mesh is None else sharding.replicated(mesh)
    state = [jax.jit(start, out_shardings=lies)(jax.random.key(2))]

    def run() -> None:
        state[0] = jax.block_until_ready(jitted(state[0]))

    arrays, found = _rlcm_check(policy, params, arm, case.batch)
    arrays |= _named(params, "params") | {"levels": levels(consistency.grid(case.steps))}
    return Program(run, _rlcm_settings(case, arm, settings), arrays, found)


def _rlcm_settings(case: Case, arm, settings) -> dict[str, Any]:
    return dict(
        work="rlcm", network=case.config._asdict(), kind=case.kind, classes=digits.CLASSES,
        group_size=case.batch, shape=rlcm.SHAPE, updates=settings.updates, clip=arm.clip,
        learning_rate=arm.learning_rate, clip_norm=5.0, buffer=settings.tracker.buffer,
        min_count=settings.tracker.min_count,
        rate_steps=3 * settings.iterations * settings.updates,
    )  # fmt: skip


def _rlcm_check(policy, params, arm, group: int) -> tuple[dict, dict]:
    """Trajectories with advantages; their log-probabilities, loss and its gradient."""
    prompts = digits.condition(jnp.arange(digits.CLASSES, dtype=jnp.int32))
    trajectories = jax.jit(policy.sample, static_argnums=3)(
        params, jax.random.key(3), prompts, group
    )
    advantages = jax.random.normal(jax.random.key(4), (digits.CLASSES, group))
    old = trajectories.log_probs + 0.003 * jax.random.normal(
        jax.random.key(5), trajectories.log_probs.shape
    )  # some ratios inside the clip, some outside
    signal = make_signal(advantages, trajectories=dataclasses.replace(trajectories, log_probs=old))
    loss = policy_objective(policy, clip_low=arm.clip, clip_high=arm.clip)

    def value_and_gradient(params: Any, signal: Signal):
        return jax.value_and_grad(loss, has_aux=True)(params, signal)

    signal = signal.replace(advantages=advantages)
    (value, _), gradient = jax.jit(value_and_gradient)(params, signal)
    flat = np.concatenate([np.ravel(leaf) for leaf in flatten_dict(gradient).values()])
    shown = trajectories.outputs.reshape((-1,) + trajectories.outputs.shape[2:])
    found = dict(
        loss=value, gradient=flat, gradient_by_step=flat, shown=shown,
        log_probs=trajectories.log_probs,
    )  # fmt: skip
    given = dict(states=trajectories.actions, log_probs=old, advantages=advantages)
    host = lambda tree: {name: np.asarray(leaf) for name, leaf in tree.items()}
    return host(given), host(found)


# Optimising noise


def _reno(case: Case) -> Program:
    network = make_network(case.config, case.kind)
    params = _moved(network.init)
    perceptrons = [Perceptron(hidden, image_rewards.CELL_LABELS) for hidden in READERS]
    cell = jnp.zeros(image_rewards.SIDE**2)
    seen = [jax.jit(p.init)(jax.random.key(i), cell)["params"] for i, p in enumerate(perceptrons)]
    draw = jax.jit(canvases.draw_prompts, static_argnums=1)
    prompts = draw(jax.random.key(2), case.batch)
    noise = jax.random.normal(jax.random.key(3), (case.batch, *CANVAS))
    tokens = jnp.asarray(np.stack([canvases.tokens(prompt) for prompt in prompts]))
    weights = jnp.asarray([1.0] * len(READERS) + [1.0, 0.0])
    climb = jax.jit(_make_climb(case, network, perceptrons))
    given = (params, seen, noise, prompts, tokens, weights)

    def run() -> None:
        jax.block_until_ready(climb(*given))

    found = climb(*given)
    arrays = dict(
        levels=levels(np.array([digits.SCHEDULE.last], np.float32)),
        tokens=tokens.astype(jnp.int32), noise=noise, weights=weights,
        allowed=jax.jit(jax.vmap(canvases.allowed_pairs))(prompts),
    )  # fmt: skip
    arrays = {name: np.asarray(leaf) for name, leaf in arrays.items()} | _named(params, "params")
    for i, reader in enumerate(seen):
        arrays |= _named(reader, f"reader_{i}")
    settings = dict(
        work="reno", network=case.config._asdict(), kind=case.kind, readers=len(READERS),
        steps=case.steps, learning_rate=5.0, momentum=0.9, prior=0.01, clip=0.1,
    )  # fmt: skip
    check = {"course": np.asarray(found.losses), "noise": np.asarray(found.noise)}
    return Program(run, settings, arrays, check)


def _make_climb(case: Case, network, perceptrons) -> Callable:
    """`(params, readers' parameters, noises, prompts, tokens, weights) -> Found`, by prompt."""
    function = consistency.consistency_function(
        network.apply, digits.SCHEDULE, digits.PARAMETERIZATION
    )
    settings = Climb(steps=case.steps, clip=0.1, prior=0.01)

    def climb(params, seen, noise, prompts, tokens, weights):
        readers = [
            lambda image, p=p, own=own: image_rewards.cell_log_probs(
                lambda params, x: p.apply({"params": params}, x), own, image
            )
            for p, own in zip(perceptrons, seen)
        ]

        def one(noise, prompt, tokens):
            def generate(noise):
                state, told = noise[None, :, :, None], Condition(tokens=tokens[None])
                clean = function(params, state, digits.SCHEDULE.last, told)[0, :, :, 0]
                return jnp.clip(0.5 * (clean + 1.0), 0.0, 1.0)

            losses = _make_losses(readers, canvases.allowed_pairs(prompt))
            found = reno(noise, generate, losses, weights, settings, nesterov())
            return found._replace(spent=None)

        runs = (noise, prompts, tokens)
        mesh = run_mesh(len(noise)) if case.devices > 1 else None
        return map_runs(one, runs, 0, mesh)

    return climb


def _make_losses(readers: list[Callable], allowed: jax.Array) -> Callable:
    """Minus the log-probability of the prompt under every reader, smoothness and checkerboard."""

    def losses(image):
        read = [-image_rewards.composition(reader(image), allowed) for reader in readers]
        flawed = (image_rewards.smoothness(image), image_rewards.checkerboard(image))
        return jnp.stack([*read, *(-score for score in flawed)])

    return losses
