"""Strictness lives here, not in the code under test; how programs are compiled, in processes.py."""

import gc
import os

import processes

gc.set_threshold(50_000, 10, 10)  # tracing makes many small objects and few cycles
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
processes.compile_quickly()

from jaxtyping import install_import_hook

install_import_hook("jaxreward", "typecheck.beartype_once")

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile(
    "default", deadline=None, max_examples=25, derandomize=True, print_blob=False
)
hypothesis.settings.load_profile("default")


LONGEST = (
    "test_generator_smokes", "test_reward_study_smokes", "test_answer_scores", "test_rlvr",
    "test_battery", "test_battery_devices", "test_sharding_multi_device", "test_precision",
    "test_rlvr_pretrained", "test_prompted_digits", "test_benchmark_generate", "test_transformer",
)  # fmt: skip


def pytest_collection_modifyitems(items):
    """The longest files first, so that no worker is left alone with one in the end."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


def pytest_collection_finish():
    """What is there before the first test stays, so that no collection looks at it again."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def key() -> jax.Array:
    """A typed key."""
    return jax.random.key(0)


@pytest.fixture
def optimized():
    """For checks of what the compiler makes of a program."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)
