"""The programs of one GRPO step, lowered for devices that need not be there.

They are the library's own: the policy samples, scores for the KL term, and the update step of
the config's arm, loss and optimizer learns. Only shapes go in.
"""

import dataclasses
import functools
import math
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
from jax.sharding import Mesh

from experiments import arms
from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.policies.language import Layout, Prompts, language_policy
from jaxreward.training import sharding
from jaxreward.training.config import build
from jaxreward.training.gradient import map_in_parts
from jaxreward.training.step import make_update_step, sample_key
from jaxreward.types import Trajectories, make_signal


class Job(NamedTuple):
    """What is planned.

    Attributes:
      network: the policy's network.
      config: of a method; gives the arm's chain, the loss, the optimizer, the sampler.
      arm: name of the arm.
      prompts: per step, `P`.
      group_size: samples of each, `G`.
      prompt_length: tokens, `L`.
      response_length: tokens, `S`.
    """

    network: TransformerConfig
    config: ml_collections.ConfigDict
    arm: str
    prompts: int
    group_size: int
    prompt_length: int
    response_length: int


class Program(NamedTuple):
    """One program of a step.

    Attributes:
      name: "sample", "score" or "update".
      lower: `() -> jax.stages.Lowered`.
      beside: bytes on each device that are there while it runs and are not its arguments.
      rounds: of the loop over tokens, whose number is decided while it runs.
      state: placed shapes of the train state.
    """

    name: str
    lower: Callable[[], jax.stages.Lowered]
    beside: float
    rounds: int
    state: Any


def programs(job: Job, mesh: Mesh, accumulate: int) -> list[Program]:
    """The programs of a step, in order, on a mesh.

    Raises:
      ValueError: the prompts cannot be split over the mesh and the micro-batches.
    """
    sharding.check_batch(mesh, job.prompts, accumulate)
    policy = make_policy(job, sharding.language_layout(job.network, mesh))
    step = _update_step(job, mesh, policy, accumulate)
    state, shardings = _state(job, mesh, policy, step)
    weights = _reference(job, state.params)
    whole = per_device(state)
    return [
        Program(
            "sample",
            functools.partial(_lower_sample, job, mesh, policy, state),
            whole - per_device((state.params, state.key)) + per_device(weights),
            job.response_length - 1,
            state,
        ),
        Program(
            "score",
            functools.partial(_lower_score, job, mesh, policy, weights, accumulate),
            whole,
            1,
            state,
        ),
        Program(
            "update",
            functools.partial(_lower_update, job, mesh, step, state, shardings),
            per_device(weights),
            _head_blocks(job, mesh, accumulate),
            state,
        ),
    ]


def make_policy(job: Job, layout: Layout):
    """The policy in a layout of the mesh."""
    sampler = job.config.sampler
    return language_policy(
        job.network,
        max_new_tokens=job.response_length,
        stop_tokens=(1,),
        pad_token=0,
        temperature=sampler.temperature,
        top_k=sampler.top_k,
        top_p=sampler.top_p,
        layout=layout,
    )


def per_device(tree: Any) -> float:
    """Bytes of a tree of placed shapes on each device."""
    return sum(
        leaf.dtype.itemsize * math.prod(leaf.sharding.shard_shape(leaf.shape))
        for leaf in jax.tree.leaves(tree)
    )


def _update_step(job: Job, mesh: Mesh, policy, accumulate: int):
    """As `experiments.rlvr_mesh` builds it."""
    config, copies = job.config, sharding.are_copies(mesh)
    learner = make_policy(job, sharding.copy_layout(mesh)) if copies else policy
    loss = build(config.loss, policy=learner, kl_coefficient=config.hyper.kl_coefficient)
    optimizer = build(config.optimizer, learning_rate=config.hyper.learning_rate)
    chain = arms.build_arms(config)[job.arm]
    options = dict(accumulate=accumulate, spike_factor=config.safety.spike_factor)
    return make_update_step(
        loss, chain, optimizer, mesh=mesh if copies else None, **options
    )


def _state(job: Job, mesh: Mesh, policy, step):
    """The placed shapes of the train state, and its shardings."""
    shapes = jax.eval_shape(lambda key: step.init(key, policy.init(key)), jax.random.key(0))
    rules = sharding.transformer_rules(job.network, mesh)
    shardings = sharding.state_shardings(shapes, mesh, rules)
    return jax.tree.map(_placed, shapes, shardings), shardings


def _placed(shape, where) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=where)


def _reference(job: Job, params: Any) -> Any:
    """The reference policy's parameters, kept in the type of the activations."""
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, job.network.dtype, sharding=leaf.sharding),
        params,
    )


def _head_blocks(job: Job, mesh: Mesh, accumulate: int) -> int:
    """Blocks of tokens of the head's backward pass, all with a gradient."""
    tokens = job.prompts * job.group_size * job.response_length // (mesh.size * accumulate)
    rows = sharding.head_options(mesh, job.network.vocab_size).get("block_rows", 256)
    return -(-tokens // rows)


def _batch(job: Job, mesh: Mesh) -> Callable[..., jax.ShapeDtypeStruct]:
    where = sharding.batch_sharding(mesh)
    return lambda shape, dtype: jax.ShapeDtypeStruct(shape, dtype, sharding=where)


def _prompts(job: Job, mesh: Mesh) -> Prompts:
    array = _batch(job, mesh)
    tokens = array((job.prompts, job.prompt_length), jnp.int32)
    return Prompts(tokens, array((job.prompts,), jnp.int32))


def _trajectories(job: Job, mesh: Mesh) -> Trajectories:
    array, shape = _batch(job, mesh), (job.prompts, job.group_size, job.response_length)
    tokens = array(shape, jnp.int32)
    return Trajectories(
        _prompts(job, mesh), tokens, tokens, array(shape, jnp.float32), array(shape, jnp.bool_)
    )


def _lower_sample(job: Job, mesh: Mesh, policy, state):
    def sample(state, prompts):
        return policy.sample(state.params, sample_key(state), prompts, job.group_size)

    where = sharding.batch_sharding(mesh)
    needed = dataclasses.replace(
        state, opt_state=(), chain_state=(), skipped=(), skipped_in_a_row=()
    )
    return jax.jit(sample, out_shardings=where).lower(needed, _prompts(job, mesh))


def _lower_score(job: Job, mesh: Mesh, policy, weights, accumulate: int):
    def score(params, trajectories):
        own = lambda part: policy.log_prob(params, part).log_probs
        return map_in_parts(own, trajectories, accumulate)

    where = sharding.batch_sharding(mesh)
    return jax.jit(score, out_shardings=where).lower(weights, _trajectories(job, mesh))


def _lower_update(job: Job, mesh: Mesh, step, state, shardings):
    def update(state, rewards, trajectories, aux):
        return step.update(state, make_signal(rewards, trajectories=trajectories, **aux))

    array, groups = _batch(job, mesh), (job.prompts, job.group_size)
    aux = {
        "prompt_id": array(groups[:1], jnp.int32),
        "prompt_type": array(groups[:1], jnp.int32),
        "true_rewards": array(groups, jnp.float32),
        "output_form": array(groups, jnp.int32),
        "output_id": array(groups, jnp.uint32),
        "reference_log_probs": array(groups + (job.response_length,), jnp.float32),
    }
    jitted = sharding.jit_step(update, shardings, donate_argnums=0)
    return jitted.lower(state, array(groups, jnp.float32), _trajectories(job, mesh), aux)
