"""The planner: shapes, chips, the estimates, and a small topology compiled without a TPU."""

import json

import jax
import jax.numpy as jnp
import processes
import pytest

from experiments import hardware, model_shapes, plan, plan_search
from jaxreward.policies.language import language_policy
from jaxreward.training.exits import ConfigError

PARAMETERS = {
    "qwen2.5-0.5b": 494_032_768,
    "qwen2.5-1.5b": 1_543_714_304,
    "qwen2.5-3b": 3_085_938_688,
    "qwen2.5-7b": 7_615_616_512,
    "qwen2.5-14b": 14_770_033_664,
    "qwen2.5-32b": 32_763_876_352,
    "qwen2.5-72b": 72_706_203_648,
    "llama-3-8b": 8_030_261_248,
}
"""As published with the weights."""


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_preset_has_the_models_number_of_parameters(name):
    network = model_shapes.model_shape(name)
    policy = language_policy(network, max_new_tokens=2, stop_tokens=(), pad_token=0)
    shapes = jax.eval_shape(policy.init, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes)) == PARAMETERS[name]
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(shapes))
    assert abs(plan_search.parameters(network) / PARAMETERS[name] - 1) < 1e-3


def test_unknown_models_and_topologies_are_refused():
    with pytest.raises(ConfigError, match="--model = 'gpt'; allowed are tiny, qwen2.5-0.5b"):
        model_shapes.model_shape("gpt")
    for topology in ("v9:2x2", "v5e", "v5e:two"):
        with pytest.raises(ConfigError, match=f"--topology = {topology!r}; allowed are v4, v5e"):
            hardware.chip_of(topology)


class _Job:
    """A 7B job without the config."""

    network = model_shapes.model_shape("qwen2.5-7b")
    prompts, group_size, prompt_length, response_length = 256, 8, 512, 1024


def test_the_search_proposes_splits_that_divide():
    chip = hardware.chip_of("v5e:16x16")
    found = plan_search.candidates(_Job, 256, chip)
    assert 1 <= len(found) <= 4
    for split in found:
        assert split.data * split.fsdp * split.tensor == 256
        assert _Job.prompts % (split.data * split.fsdp * split.accumulate) == 0
        assert _Job.network.kv_heads % split.tensor == 0
        # 15 GB of bfloat16 weights do not fit beside anything else: the sampler must cut them.
        assert split.tensor > 1
    seconds = [plan_search.estimated_seconds(_Job, split, chip) for split in found]
    assert seconds == sorted(seconds)


def test_more_micro_batches_need_less_memory():
    splits = [plan_search.Split(1, 64, 4, parts) for parts in (1, 2, 4)]
    sizes = [plan_search.estimated_memory(_Job, split) for split in splits]
    assert sizes == sorted(sizes, reverse=True)


def test_a_small_topology_is_planned(tmp_path):
    pytest.importorskip("libtpu")
    done = processes.python(
        "-m", "experiments.plan", "--config=configs/noise_corrected_grpo.py", "--model=tiny", "--topology=v5e:2x2",
        "--mesh=1,2,2", "--prompts=4", "--group_size=4", "--prompt_length=64",
        "--response_length=64", f"--workdir={tmp_path}", optimized=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "FITS: --mesh=1,2,2 --accumulate=1" in done.stdout
    plan = json.loads((tmp_path / "plan.json").read_text())["programs"]
    assert list(plan) == ["sample", "score", "update"]
    weights = plan_search.parameters(model_shapes.SHAPES["tiny"])
    tokens = 4 * (64 + 4 * 63) / 4
    for name, passes in (("score", 2), ("update", 8)):
        part = plan[name]
        # Without the embedding, with the head, whose backward pass costs what remat costs.
        assert 0.9 < part["flops"] / (passes * weights * tokens) < 1.8, name
        assert part["fits"] and 0 < part["temporary"] < part["peak"] < 2**28
        assert {"all-gather"} <= {row["kind"] for row in part["collectives"]}
        assert part["bound_by"] == max(part["seconds"], key=part["seconds"].get)
    # Parameters and two moments in float32, split over four chips.
    held = plan["update"]["arguments"]
    assert 12 * weights / 4 < held < 13 * weights / 4 + 2**16


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--model=tiny", "--topology=v9:2x2"], "--topology = 'v9:2x2'"),
        (["--model=none", "--topology=v5e:2x2"], "--model = 'none'"),
        (["--model=tiny", "--topology=v5e:2x2", "--arm=x"], "--arm = 'x'"),
    ],
)
def test_bad_flags_end_in_one_line(flags, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        plan.main(["--config=configs/noise_corrected_grpo.py", *flags])
    said = capsys.readouterr().err
    assert stopped.value.code == 2 and message in said and said.count("\n") == 1


@pytest.mark.parametrize(
    "flag", ["--prompts=0", "--prompt_length=0", "--response_length=-1", "--accumulate=0",
             "--group_size=-2"],
)  # fmt: skip
def test_sizes_that_cannot_be_are_refused_before_anything_is_compiled(flag, capsys):
    command = ["--config=configs/noise_corrected_grpo.py", "--model=tiny", "--topology=v5e:2x2"]
    with pytest.raises(SystemExit) as stopped:
        plan.main([*command, flag])
    assert stopped.value.code == 2
    name, value = flag.removeprefix("--").split("=")
    assert f"--{name} = {value}; allowed is >= 1" in capsys.readouterr().err
