"""The study of prompts that are followed: its run, its resumption, and what it measures with."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import prompted_digits as configs
from experiments import noise_search
from experiments.image_studies import prompted_digits
from jaxreward.rewards.images import CELL_LABELS
from jaxreward.tasks import digit_canvases as canvases
from jaxreward.training import config as config_lib
from jaxreward.training.exits import ConfigError


def test_smoke_run_writes_all_and_keeps_what_it_pretrained(tmp_path):
    config = configs.get_config("smoke")
    noise_search.validate(config)
    noise_search.run(config, str(tmp_path))
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(prompted_digits.arms(config.study)) == set(summary["results"])
    for arm, own in summary["results"].items():
        for name, value in own.items():
            assert value["mean"] is not None, (arm, name)
    spent = [summary["results"][a]["spent/cost"]["mean"] for a in ("best_of_n", "one_long")]
    assert spent[0] == spent[1] >= summary["results"]["reno"]["spent/cost"]["mean"]
    with np.load(tmp_path / "curves.npz") as curves:
        for arm in ("best_of_n", "best_of_n_unguided", "reno", "one_long"):
            for name in ("budget", "reward", "trusted"):
                assert np.all(np.isfinite(curves[f"{arm}::curve/{name}"]))
        assert curves["best_of_n::samples/prompts"].shape == (1, 4, 4)
    for name in ("report.png", "curves.png", "samples.png"):
        assert (tmp_path / name).stat().st_size > 1000
    assert (tmp_path / "pretrained" / "0.npz").exists()
    with pytest.raises(ValueError, match="variant 'x'"):
        configs.get_config("x")
    assert configs.get_config().seeds >= 3


def sure(*pairs):
    """A judge that is sure of these labels of the two cells of each image, told by its first pixel."""
    labels = jnp.asarray(pairs, jnp.int32)

    def judge(image):
        own = labels[image[0, 0].astype(jnp.int32)]
        return jax.nn.log_softmax(9.0 * jax.nn.one_hot(own, CELL_LABELS), axis=-1)

    images = jnp.broadcast_to(jnp.arange(float(len(pairs)))[:, None, None], (len(pairs), 8, 16))
    return judge, images


B, R, C, S = range(4)
CASES = {  # prompt, labels of the cells: whole, digits, relation, count, size
    "both": ((B, 3, 7, 0), (8, 4), dict(right=1, digits=1)),
    "both, one missing": ((B, 3, 7, 0), (4, 4), dict(right=0, digits=0)),
    "relation": ((R, 3, 7, 1), (8, 4), dict(right=1, digits=1, relation=1)),
    "relation, swapped": ((R, 3, 7, 0), (8, 4), dict(right=0, digits=1, relation=0)),
    "two": ((C, 5, 5, 1), (6, 6), dict(right=1, digits=1, count=1)),
    "two, one there": ((C, 5, 5, 1), (6, 0), dict(right=0, digits=1, count=0)),
    "two, others": ((C, 5, 5, 1), (3, 4), dict(right=0, digits=0, count=1)),
    "one, of two sizes": ((C, 5, 5, 0), (6, 16), dict(right=0, digits=1, count=0)),
    "small": ((S, 4, 4, 1), (0, 15), dict(right=1, digits=1, size=1)),
    "small, but big": ((S, 4, 4, 1), (0, 5), dict(right=0, digits=1, size=0)),
    "small, other digit": ((S, 4, 4, 1), (19, 0), dict(right=0, digits=0, size=1)),
    "big, nothing there": ((S, 4, 4, 0), (0, 0), dict(right=0, digits=0, size=0)),
}


@pytest.fixture(scope="module")
def parts():
    """What `followed` says of each case on its own."""
    prompts, labels, _ = zip(*CASES.values())
    judge, images = sure(*labels)
    of = lambda image, prompt: prompted_digits.followed(judge, image[None], prompt[None])
    every = jax.jit(jax.vmap(of))(images, np.array(prompts, np.int32))
    every = jax.device_get(every)
    return {name: jax.tree.map(lambda leaf, i=i: leaf[i], every) for i, name in enumerate(CASES)}


@pytest.mark.parametrize("name", CASES)
def test_parts_of_prompts(name, parts):
    prompt, _, expected = CASES[name]
    found = parts[name]
    for part, value in expected.items():
        assert found["right" if part == "right" else f"follows/{part}"] == value, part
    assert found[f"right/{canvases.CATEGORIES[prompt[0]]}"] == expected["right"]


def test_shuffled_prompts_keep_their_kind():
    """Relations keep their digits, so that the share of the right order has something to count."""
    prompts = np.array([(B, 3, 7, 0), (R, 3, 7, 0), (C, 5, 5, 1), (S, 4, 4, 1)] * 2, np.int32)
    prompts[5] = (R, 1, 2, 1)

    @jax.jit
    def shuffle(prompts):
        judge, images = sure(*[(4, 8), (4, 8), (6, 6), (15, 0)] * 2)
        return prompted_digits.shuffled(judge, images.at[5].set(1.0), prompts)

    found = shuffle(prompts)
    # the second relation's digits are not there; the first is judged by "3 right of 7"
    assert found["follows/relation"] == 0.0 and found["follows/count"] == 1.0
    # whole prompts are judged by those of the other canvas, which here shows the same
    assert found["right/relation"] == 0.5 and found["right/both"] == 1.0


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"study.tested": "7"}, "study.tested = 7; allowed is a multiple of 4"),
        ({"study.search.guidance": "3.0"}, "study.search.guidance = 3.0"),
        ({"study.guidances": "(0.0, 2.0)"}, "study.guidances = .0.0, 2.0.; allowed are some with 1"),
        ({"study.search.candidates": "0"}, "study.search.candidates = 0; allowed is whole numbers"),
        ({"study.generator.heads": "3"}, "study.generator: features = 16 with 3"),
    ],
)
def test_wrong_inputs_are_named(changes, message):
    with pytest.raises(ConfigError, match=message):
        noise_search.validate(config_lib.override(configs.get_config("smoke"), changes))
