"""Every head on loaded checkpoints of every family: Llama, Qwen 2, Qwen 3, Gemma 3."""

import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxreward.losses import pointwise, preference, reduction
from jaxreward.networks import experts, heads, lora, transformer, weights
from jaxreward.rewards import learned

pytest.importorskip("safetensors")

DATA = pathlib.Path(__file__).parent / "data"
FAMILIES = ("llama", "qwen2", "qwen3", "gemma3_text")
SLOW = [
    pytest.param(name, marks=() if name == "gemma3_text" else pytest.mark.slow) for name in FAMILIES
]
LENGTHS = jnp.array([6, 3, 0], jnp.int32)
ENDS = jnp.array([[1, 5], [2, -1], [-1, -1]])
HEADS = {
    "scalar": heads.Scalar(hidden=(4,)),
    "mean": heads.Scalar(pool="mean"),
    "gaussian": heads.Gaussian(),
    "quantiles": heads.Quantiles(3),
    "steps": heads.StepScores(),
    "hierarchical": heads.HierarchicalQuery(2),
    "verdict": heads.Verdict(yes=(3, 5), no=(4,)),
}


@functools.cache
def loaded(family):
    """Its config, its stored parameters, and the same with every head."""
    checkpoint = weights.open_checkpoint(DATA / family)
    trunk, config = weights.load_params(checkpoint), checkpoint.config
    nets, own = {name: network(config, name) for name in HEADS}, started(config.width)
    for name in HEADS if family == "llama" else ("hierarchical",):
        fresh = jax.eval_shape(nets[name].init, jax.random.key(0))
        shapes = jax.tree.map(jnp.shape, {"trunk": trunk, "head": own[name]})
        assert jax.tree.map(jnp.shape, fresh) == shapes, name
    return config, trunk, own, nets


@functools.cache
def started(width):
    """Random parameters of every head."""
    last = jnp.zeros((3, 6, width))
    mask, extra = jnp.ones((3, 6), bool), {"steps": (ENDS,), "verdict": (jnp.zeros((width, 9)),)}
    init = lambda key: {
        name: head.init(key, (last, last), last, mask, *extra.get(name, ())).get("params", {})
        for name, head in HEADS.items()
    }
    return jax.jit(init)(jax.random.key(0))


def network(config, name):
    layers = (1, config.layers - 1) if name == "hierarchical" else ()
    extra = (ENDS[:1],) if name == "steps" else ()
    return heads.on_transformer(config, HEADS[name], layers, extra)


def texts(config, filling):
    tokens = jnp.arange(18, dtype=jnp.int32).reshape(3, 6) * 7 % config.vocab_size
    return jnp.where(jnp.arange(6)[None] < LENGTHS[:, None], tokens, filling)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_head_reads_every_family(family):
    config, trunk, own, nets = loaded(family)

    @jax.jit
    def everything(trunk, own, tokens):
        given = {"steps": (ENDS,)}
        return {
            name: net.apply({"trunk": trunk, "head": own[name]}, tokens, LENGTHS, *given.get(name, ()))
            for name, net in nets.items()
        }

    found = everything(trunk, own, texts(config, 0))
    for name, value in found.items():
        for leaf in jax.tree.leaves(value):
            assert np.isfinite(leaf[:2]).all() and not np.array_equal(leaf[0], leaf[1]), name
            assert name == "steps" or np.isnan(leaf[2]).all(), name  # an empty text has no reward
    assert found["quantiles"].shape == (3, 3) and (np.diff(found["quantiles"][:2]) >= 0).all()
    assert found["steps"][1, 1] == 0 and found["steps"][0, 1] != 0
    other = everything(trunk, own, texts(config, 9))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), found, other)


def losses_of(name, found):
    """The loss that belongs to each kind of head, of three texts."""
    target = jnp.array([1.0, 0.0, 1.0])
    if name == "gaussian":
        return pointwise.gaussian(found.mean, found.log_std, target)
    if name == "quantiles":
        return pointwise.quantile(found, jnp.array([0.2, 0.5, 0.8]), target)
    if name == "verdict":
        return pointwise.verdict(found.log_yes, found.log_no, target)
    if name == "steps":
        return jnp.mean(pointwise.cross_entropy(found, jnp.ones(found.shape)), axis=1)
    return pointwise.cross_entropy(found, target)


def test_every_head_has_a_loss_and_no_empty_text_spoils_it(key):
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal(shape, np.float32) for shape in ((2, 3, 6, 8), (3, 6, 8), (8, 9))]
    some = (LENGTHS > 0).astype(jnp.float32)

    @jax.jit
    def gradients(key, shallow, last, weight):
        mask = jnp.arange(6)[None] < LENGTHS[:, None]
        extra = {"steps": (ENDS,), "verdict": (weight,)}
        arguments = lambda name, last: (tuple(shallow), last, mask, *extra.get(name, ()))
        params = {name: head.init(key, *arguments(name, last)) for name, head in HEADS.items()}

        def loss(params, last):
            found = {
                name: head.apply(params[name], *arguments(name, last)) for name, head in HEADS.items()
            }
            return sum(reduction.mean(losses_of(name, own), some) for name, own in found.items())

        return jax.value_and_grad(loss, argnums=(0, 1))(params, last)

    value, (grads, of_states) = jax.device_get(gradients(key, *inputs))
    assert np.isfinite(value) and np.isfinite(of_states).all() and grads.pop("verdict") == {}
    assert of_states[:2].any() and not of_states[2].any()
    for name, part in grads.items():
        sizes = [np.max(np.abs(leaf)) for leaf in jax.tree.leaves(part)]
        assert np.isfinite(sizes).all() and max(sizes) > 0, name


@pytest.mark.parametrize("family", (*FAMILIES, "llama3_tied"))
def test_a_verdict_is_what_the_language_model_says_next(family):
    config, trunk, own, nets = loaded(family)

    @jax.jit
    def run(trunk, tokens):
        inputs = {"trunk": trunk}, tokens, LENGTHS[:2]
        last = heads.on_transformer(config, heads.State()).apply(*inputs)
        weight = transformer.Transformer(config).apply({"params": trunk}, method="head_weight")
        return nets["verdict"].apply(*inputs), jax.nn.log_softmax(last @ weight)

    found, log_probs = jax.device_get(run(trunk, texts(config, 0)[:2]))
    expected = np.logaddexp(log_probs[:, 3], log_probs[:, 5]), log_probs[:, 4]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("family", SLOW)
def test_experts_and_ensembles_on_every_family(family):
    """LoRA experts start as the base; members that share a trunk train it together."""
    config, trunk, own, nets = loaded(family)
    adapters = lora.lora_config(2, targets=("q_proj", "v_proj"))
    many = learned.ensemble(learned.text_reward_model(config, HEADS["scalar"]), 3, shared=("trunk",))
    scalar = nets["scalar"]

    @jax.jit
    def run(key, params, tokens):
        items = learned.Texts(tokens, LENGTHS[:2])
        made = experts.init_experts(key, params, adapters, 2)
        heads_of = jax.vmap(lambda key: scalar.init(key)["head"])(jax.random.split(key, 3))
        members = {"trunk": params["trunk"], "head": heads_of}

        def loss(members):
            scores = many.score(members, items)
            return jnp.mean(preference.bradley_terry(scores[:, 0] - scores[:, 1], jnp.ones(3)))

        base = scalar.apply(params, tokens, LENGTHS[:2])
        scores = experts.apply_experts(scalar, params, made, adapters, tokens, LENGTHS[:2])
        return base, scores, many.score(members, items), jax.grad(loss)(members)

    params = {"trunk": trunk, "head": own["scalar"]}
    base, scores, of_members, grads = run(jax.random.key(1), params, texts(config, 0)[:2])
    np.testing.assert_allclose(scores, np.tile(base, (2, 1)), rtol=1e-5, atol=1e-6)
    assert of_members.shape == (3, 2) and len(np.unique(of_members)) == 6
    for part in grads.values():
        sizes = [np.max(np.abs(leaf)) for leaf in jax.tree.leaves(part)]
        assert np.isfinite(sizes).all() and max(sizes) > 0


def test_verdicts_need_tokens_of_the_vocabulary():
    config = weights.open_checkpoint(DATA / "llama").config
    for tokens, message in (((), r"yes = \(\)"), ((config.vocab_size,), "yes = ")):
        with pytest.raises(ValueError, match=message):
            heads.on_transformer(config, heads.Verdict(tokens, (4,)))
