"""The whole update step of a language policy never holds the logits of its tokens."""

import jax
import jax.numpy as jnp
import linear_log_prob_oracle as oracle
import optax

from jaxreward.losses.policy import policy_objective
from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.policies import language
from jaxreward.training.step import make_update_step
from jaxreward.transforms import advantage
from jaxreward.types import Trajectories, make_signal

PROMPTS, GROUP, STEPS, VOCABULARY = 32, 16, 32, 32768
LOGITS = PROMPTS * GROUP * STEPS * VOCABULARY


def _compiled(**settings):
    """Buffers are those of any level of the backend, which turns them into machine code last."""
    config = TransformerConfig(
        VOCABULARY, width=32, layers=1, heads=2, kv_heads=1, intermediate=32
    )
    policy = language.language_policy(
        config, max_new_tokens=STEPS, stop_tokens=(2,), pad_token=0, **settings
    )
    loss = policy_objective(policy, normalize="token", entropy_coefficient=0.01)
    step = make_update_step(loss, advantage.grpo(), optax.sgd(1e-2, momentum=0.9))
    lengths = jnp.full((PROMPTS,), 4, jnp.int32)
    prompts = language.Prompts(jnp.ones((PROMPTS, 4), jnp.int32), lengths)

    def start(key):
        tokens = jnp.ones((PROMPTS, GROUP, STEPS), jnp.int32)
        log_probs, mask = jnp.zeros(tokens.shape), tokens > 0
        trajectories = Trajectories(prompts, tokens, tokens, log_probs, mask)
        rewards = jnp.zeros((PROMPTS, GROUP))
        return step.init(key, policy.init(key)), make_signal(rewards, trajectories=trajectories)

    state, signal = jax.eval_shape(start, jax.random.key(0))
    lowered = jax.jit(step.update, donate_argnums=0).lower(state, signal)
    return lowered.compile(compiler_options={"xla_backend_optimization_level": 0})


def test_no_buffer_holds_all_logits(optimized):
    compiled = _compiled()
    assert max(oracle.array_sizes(compiled.as_text())) < LOGITS / 8
    assert compiled.memory_analysis().temp_size_in_bytes < 4 * LOGITS / 8


def test_the_check_sees_logits(optimized):
    """Filters need all logits at once: the same measurement finds them."""
    compiled = _compiled(top_k=5)
    assert max(oracle.array_sizes(compiled.as_text())) >= LOGITS
    assert compiled.memory_analysis().temp_size_in_bytes >= 4 * LOGITS
