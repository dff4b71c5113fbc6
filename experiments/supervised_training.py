"""The training of `experiments.supervised`: one arm, all seeds in one program."""

import json
import pathlib
from typing import Any, Callable, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from experiments.supervised_metrics import GREEDY, TRUE
from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.policies import language, supervised
from jaxreward.policies.language import Prompts
from jaxreward.rewards.token_match import final_token_match
from jaxreward.tasks import datasets, pipeline, tokenizer, traced, worked
from jaxreward.training import population as populations
from jaxreward.training.config import build, resolve
from jaxreward.training.exits import ConfigError
from jaxreward.training.files import atomic_write
from jaxreward.types import Policy

Found = dict[str, list[float]]
"""`{metric: [seeds]}` of one arm."""


class Data(NamedTuple):
    """The rows of one arm.

    Attributes:
      train: training rows as arrays, repeated at the end up to a size equal for every arm.
      count: how many of them are there.
      test: clean rows.
      tokenizer: of all texts.
      right: share of the training texts whose answer is right.
      spec: of the data.
    """

    train: dict[str, jax.Array]
    count: int
    test: pipeline.Batch
    tokenizer: tokenizer.Tokenizer
    right: float
    spec: Any


def finished(config: ml_collections.ConfigDict, arm: str, workdir: str) -> Found | None:
    """What an earlier call of the same command has found, None if nothing."""
    path = _path(workdir, arm)
    found = json.loads(path.read_text()) if path.exists() else None
    return found if found and len(found[TRUE]) == config.seeds else None


def _path(workdir: str, arm: str) -> pathlib.Path:
    return pathlib.Path(workdir) / "arms" / f"{arm}.json"


def load_data(config: ml_collections.ConfigDict, arm: str, workdir: str) -> Data:
    """Prepares an arm's data set under the workdir.

    Raises:
      ConfigError: no such data, damaged ones, or characters outside the alphabet.
    """
    spec = build(config.task.spec)._replace(**config.arms[arm].to_dict())
    chars = tokenizer.make_tokenizer(resolve(config.task.alphabet))
    try:
        dataset = datasets.prepare(config.task.dataset, pathlib.Path(workdir) / "data", spec)
        splits = pipeline.load_arrays(dataset, chars)
    except ValueError as error:
        raise ConfigError(f"config.task.dataset = {config.task.dataset!r}: {error}") from error
    train, size = splits["train"], dict(spec.sizes)["train"]
    count = len(train["prompt_id"])
    right = float(np.mean(train["form"] != traced.FORMS.index("destructive")))
    rows = pipeline.take(train, np.arange(size) % count)
    tested = np.arange(min(config.samples_tested, len(splits["test"]["prompt_id"])))
    test = pipeline.take(splits["test"], tested)
    return Data(pipeline.device_arrays(rows), count, test, chars, right, spec)


class Programs(NamedTuple):
    """The compiled parts, shared by all arms whose arrays have the same shapes.

    Attributes:
      learn: `(keys [seeds], rows, count) -> params [seeds, ...]`.
      test: by metric `(params, key, prompts, answer tokens, answer lengths)` of one seed to
        outputs, lengths and the share of right answers.
    """

    learn: Callable[..., Any]
    test: dict[str, Callable[..., Any]]


def make_programs(config: ml_collections.ConfigDict) -> Programs:
    """The programs of a config."""
    chars = tokenizer.make_tokenizer(resolve(config.task.alphabet))
    network = TransformerConfig(vocab_size=chars.vocab_size, **config.model.to_dict())
    separator = int(tokenizer.encode(chars, [worked.SEPARATOR]).tokens[0, 0])
    policies = {TRUE: _policy(config, network, 0), GREEDY: _policy(config, network, 1)}
    test = {name: jax.jit(_tester(policy, separator)) for name, policy in policies.items()}
    return Programs(jax.jit(_learner(config, network, policies[TRUE])), test)


def train(
    config: ml_collections.ConfigDict, programs: Programs, arm: str, workdir: str
) -> Found:
    """Trains and tests an arm over all seeds and keeps what was found in `arms/`."""
    data, keys = load_data(config, arm, workdir), _keys(config)
    sequences = pipeline.supervised_sequences(data.train)
    params = programs.learn(keys, sequences, jnp.int32(data.count))
    found: Found = {"train/right_answers": [data.right] * config.seeds}
    for name, test in programs.test.items():
        found.update(_tested(test, data, params, keys, name))
    path = _path(workdir, arm)
    path.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(path, json.dumps(found, indent=1) + "\n")
    return found


def _policy(config: ml_collections.ConfigDict, network, top_k: int) -> Policy:
    return language.language_policy(
        network,
        max_new_tokens=config.sampler.max_new_tokens,
        stop_tokens=(tokenizer.EOS,),
        pad_token=tokenizer.PAD,
        temperature=1.0,
        top_k=top_k,
    )


def _keys(config: ml_collections.ConfigDict) -> jax.Array:
    root = jax.random.key(config.seed)
    return jax.vmap(lambda i: jax.random.fold_in(root, i))(jnp.arange(config.seeds))


def _learner(config: ml_collections.ConfigDict, network, policy: Policy):
    decay = max(config.steps, config.warm_up + 1)
    schedule = optax.warmup_cosine_decay_schedule(0.0, config.learning_rate, config.warm_up, decay)
    optimizer, loss_fn = optax.adam(schedule), supervised.supervised_loss(network)

    def one(key, rows, count):
        params = policy.init(key)

        def body(carry, step):
            params, opt_state = carry
            own = jax.random.fold_in(key, step)
            indices = jax.random.randint(own, (config.batch_size,), 0, count)
            batch = jax.tree.map(lambda leaf: leaf[indices], rows)
            grads = jax.grad(loss_fn, has_aux=True)(params, batch)[0]
            updates, opt_state = optimizer.update(grads, opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        start = (params, optimizer.init(params))
        return jax.lax.scan(body, start, jnp.arange(config.steps))[0][0]

    def learn(keys, rows, count):
        own = lambda key: one(key, rows, count)
        return populations.map_runs(own, (keys,), config.runs_at_a_time, None)

    return learn


def _tester(policy: Policy, separator: int):
    def test(params, key, prompts, answer_tokens, answer_lengths):
        drawn = policy.sample(params, key, prompts, 1)
        right = final_token_match(
            drawn.outputs, answer_tokens, answer_lengths, separator, tokenizer.EOS
        )
        return drawn.outputs, drawn.lengths, jnp.mean(right)

    return test


def _tested(test, data: Data, params, keys, name: str) -> Found:
    """Accuracy and the state of the traces, `[seeds]`."""
    rows = data.test
    prompts = Prompts(jnp.asarray(rows["tokens"]), jnp.asarray(rows["lengths"]))
    answers = (jnp.asarray(rows["answer_tokens"]), jnp.asarray(rows["answer_lengths"]))
    inputs = [traced.read_inputs(data.spec, prompt) for prompt in rows["prompt"]]
    kind, found = name.split("/")[1].removesuffix("_accuracy"), {}
    for seed, key in enumerate(keys):
        own = jax.tree.map(lambda leaf, seed=seed: leaf[seed], params)
        tokens, lengths, right = test(own, key, prompts, *answers)
        texts = tokenizer.decode(data.tokenizer, np.asarray(tokens), np.asarray(lengths))
        lines = [traced.line_checks(data.spec, x, text) for x, text in zip(inputs, texts)]
        found.setdefault(name, []).append(float(right))
        for check in ("equal", "consistent"):
            share = float(np.mean([line[check] for line in lines]))
            found.setdefault(f"trace/{kind}_{check}", []).append(share)
    return found
