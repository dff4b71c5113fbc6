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
    nets = {name: network(config, name) for name in HEADS}
    made = jax.jit(lambda key: {n: net.init(key)["head"] for n, net in nets.items()})
    return config, trunk, made(jax.random.key(0)), nets


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
    keys = jax.random.split(key, 4)
    last, weight = jax.random.normal(keys[0], (3, 6, 8)), jax.random.normal(keys[1], (8, 9))
    mask = jnp.arange(6)[None] < LENGTHS[:, None]
    seen = (tuple(jax.random.normal(keys[2], (2, 3, 6, 8))), last, mask)
    extra = {"steps": (ENDS,), "verdict": (weight,)}
    some = (LENGTHS > 0).astype(jnp.float32)
    params = {n: head.init(keys[3], *seen, *extra.get(n, ())) for n, head in HEADS.items()}

    @jax.jit
    def gradients(params, last):
        def loss(params, last):
            found = {
                name: head.apply(params[name], seen[0], last, seen[2], *extra.get(name, ()))
                for name, head in HEADS.items()
            }
            return sum(reduction.mean(losses_of(name, own), some) for name, own in found.items())

        return jax.value_and_grad(loss, argnums=(0, 1))(params, last)

    value, (grads, of_states) = gradients(params, last)
    assert np.isfinite(value) and np.isfinite(of_states).all() and grads.pop("verdict") == {}
    assert of_states[:2].any() and not of_states[2].any()
    for name, part in grads.items():
        sizes = [float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(part)]
        assert np.isfinite(sizes).all() and max(sizes) > 0, name


@pytest.mark.parametrize("family", (*FAMILIES, "llama3_tied"))
def test_a_verdict_is_what_the_language_model_says_next(family):
    config, trunk, own, nets = loaded(family)
    tokens = texts(config, 0)[:2]
    found = nets["verdict"].apply({"trunk": trunk}, tokens, LENGTHS[:2])
    reader = heads.on_transformer(config, heads.State())
    last = reader.apply({"trunk": trunk}, tokens, LENGTHS[:2])
    weight = transformer.Transformer(config).apply({"params": trunk}, method="head_weight")
    log_probs = jax.nn.log_softmax(last @ weight)
    expected = jnp.logaddexp(log_probs[:, 3], log_probs[:, 5]), log_probs[:, 4]
    np.testing.assert_allclose(found, expected, atol=1e-4)


@pytest.mark.parametrize("family", SLOW)
def test_experts_and_ensembles_on_every_family(family):
    """LoRA experts start as the base; members that share a trunk train it together."""
    config, trunk, own, nets = loaded(family)
    params = {"trunk": trunk, "head": own["scalar"]}
    adapters = lora.lora_config(2, targets=("q_proj", "v_proj"))
    made = experts.init_experts(jax.random.key(1), params, adapters, 2)
    tokens = texts(config, 0)[:2]
    model = learned.text_reward_model(config, HEADS["scalar"])
    many = learned.ensemble(model, 3, shared=("trunk",))
    heads_of = jax.vmap(lambda k: nets["scalar"].init(k)["head"])(jax.random.split(jax.random.key(2), 3))
    members = {"trunk": trunk, "head": heads_of}

    @jax.jit
    def run(params, made, members):
        items = learned.Texts(tokens, LENGTHS[:2])

        def loss(members):
            scores = many.score(members, items)
            return jnp.mean(preference.bradley_terry(scores[:, 0] - scores[:, 1], jnp.ones(3)))

        base = nets["scalar"].apply(params, tokens, LENGTHS[:2])
        scores = experts.apply_experts(nets["scalar"], params, made, adapters, tokens, LENGTHS[:2])
        return base, scores, many.score(members, items), jax.grad(loss)(members)

    base, scores, of_members, grads = run(params, made, members)
    np.testing.assert_allclose(scores, np.tile(base, (2, 1)), rtol=1e-5, atol=1e-6)
    assert of_members.shape == (3, 2) and len(np.unique(of_members)) == 6
    for part in grads.values():
        sizes = [float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(part)]
        assert np.isfinite(sizes).all() and max(sizes) > 0


def test_verdicts_need_tokens_of_the_vocabulary():
    config = weights.open_checkpoint(DATA / "llama").config
    for tokens, message in (((), r"yes = \(\)"), ((config.vocab_size,), "yes = ")):
        with pytest.raises(ValueError, match=message):
            heads.on_transformer(config, heads.Verdict(tokens, (4,)))
