"""What the runners of generators refuse before anything compiles, and what they draw."""

import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import generate_rl, generator_checks, generator_figures, noise_search
from experiments.image_studies import report
from jaxreward.rewards.opaque import on_host
from jaxreward.search.accounting import Spent
from jaxreward.training import config as config_lib
from jaxreward.training import figures
from jaxreward.training.exits import ConfigError

RL = ("find", "rg_lcd", "rlcm")
SEARCH = ("reno", "carinox", "ttsnap", "golden_noise", "prompted_digits")


def config_of(method, **changes):
    """The smoke config of `method[:variant]`, with dotted keys changed (`__` for dots)."""
    name, _, arg = method.partition(":")
    own = importlib.import_module(f"configs.{name}").get_config(arg or "smoke")
    text = {name.replace("__", "."): str(value) for name, value in changes.items()}
    return config_lib.override(own, text)


def validate(method, **changes):
    runner = generate_rl if method.partition(":")[0] in RL else noise_search
    runner.validate(config_of(method, **changes))


@pytest.mark.parametrize("method", RL + SEARCH)
def test_every_number_of_every_config_has_a_rule(method):
    """So no key is forgotten, and nothing that a config holds is refused."""
    full = importlib.import_module(f"configs.{method}").get_config()
    for path, value in generator_checks.leaves(full.study, "study"):
        if list(generator_checks.numbers(value)):
            assert path.rpartition(".")[2] in generator_checks.RULES, path
    (generate_rl if method in RL else noise_search).validate(full)
    validate(method)


WRONG = {
    "seeds": ("find", dict(seeds=0), "config.seeds = 0; allowed is > 0"),
    "count": ("find", dict(study__calls=0), "config.study.calls = 0; allowed is whole numbers"),
    "wish": ("find", dict(study__wishes="(0, 12)"), "config.study.wishes = .*12.*allowed is .0, 9."),
    "devices": ("find", dict(study__devices=5), "study.devices = 5; allowed is a divisor of 2"),
    "kind": ("find", dict(study__arms__find__kind="nois"), "find.kind = 'nois'.*mean 'noise'"),
    "objective": ("find", dict(study__arms__find__objective="ppo"), "find.objective = 'ppo'"),
    "old": ("find", dict(study__arms__find__old="initial"), "find.old = 'initial'.*recomputed"),
    "batch": ("find", dict(study__arms__find__batch=17), "find.batch = 17; allowed is .1, 16."),
    "clip": ("find", dict(study__arms__find__clip=-0.2), "find.clip = -0.2; allowed is > 0"),
    "rate": ("find", dict(study__arms__ddpo__learning_rate=0.0), "ddpo.learning_rate = 0.0"),
    "grid": ("find", dict(study__sampler_steps=51), r"sampler_steps = 51; allowed is \[2, 50\]"),
    "points": ("rg_lcd", dict(study__sampling_steps=51), r"sampling_steps = 51; allowed is \[1, 50\]"),
    "teacher": ("rg_lcd", dict(study__arms__teacher_2__steps=51), r"teacher_2.steps = 51; allowed is"),
    "group": ("find", dict(study__arms__ddpo__batch=1), "ddpo.batch = 1; allowed is >= 2 for a group"),
    "dear": ("find", dict(study__arms__ddpo__equal="cost"), r"ddpo.batch = 8; allowed is \[1, 5\]"),
    "equal": ("find", dict(study__arms__ddpo__equal="time"), "ddpo.equal = 'time'.*calls, cost"),
    "eta": ("find", dict(study__arms__ddpo__eta=0.0), "ddpo.eta = 0.0; allowed is .0, 1."),
    "network": ("find", dict(study__generator__kind="unit"), "generator.kind = 'unit'.*unet"),
    "heads": ("find", dict(study__generator__kind="transformer", study__generator__heads=3),
              "study.generator: features = 16 with 3"),
    "patch": ("rlcm", dict(study__generator__kind="transformer", study__generator__patch=3),
              "study.generator: image of 8 x 8"),
    "drop": ("rlcm", dict(study__generator__drop=1.0), r"generator.drop = 1.0; allowed is \[0, 1\)"),
    "reward": ("rlcm", dict(study__reward="beauty"), "study.reward = 'beauty'; allowed is compr"),
    "slow": ("rlcm", dict(study__slow="ddpo"), "study.slow = 'ddpo'.*ddpo_20"),
    "sampler": ("rlcm", dict(study__arms__rlcm_4__sampler="euler"), "rlcm_4.sampler = 'euler'"),
    "steps": ("rlcm", dict(study__arms__rlcm_4__steps=1), r"rlcm_4.steps = 1; allowed is \[2, 50\]"),
    "walk": ("rlcm", dict(study__arms__rlcm_4__steps=51), "rlcm_4.steps = 51; allowed is"),
    "loss": ("rlcm", dict(study__arms__rlcm_4__loss="dpo"), "rlcm_4.loss = 'dpo'; allowed is clip"),
    "pairs": ("rlcm", dict(study__arms__rlcm_4__loss="rebel", study__group_size=1),
              "group_size = 1; allowed is >= 2 for pairs"),
    "rows": ("rlcm", dict(study__devices=7), "study.devices = 7; allowed are divisors of"),
    "parts": ("rlcm", dict(study__updates=3), "prompts_per_step = 10; allowed are multiples of.*3"),
    "memory": ("rlcm", dict(study__tracker__min_count=33), "min_count = 33; allowed is .1, 32."),
    "decay": ("rg_lcd", dict(study__distillation__decay=1.0), "distillation.decay = 1.0"),
    "arm": ("rg_lcd", dict(study__arms__lcm__kind="lora"), "lcm.kind = 'lora'; allowed is teacher"),
    "labels": ("rg_lcd", dict(study__arms__proxy__labels="firm"), "proxy.labels = 'firm'"),
    "beta": ("rg_lcd", dict(study__arms__direct__beta=-1.0), "direct.beta = -1.0; allowed is >= 0"),
    "guidance": ("rg_lcd", dict(study__distillation__guidance="(2.0, 1.0)"), "guidance = .2.0, 1.0."),
    "layers": ("reno", dict(study__judge__members=0), "judge.members = 0; allowed is whole"),
    "climb": ("reno", dict(study__learning_rate=-5.0), "study.learning_rate = -5.0; allowed is > 0"),
    "opinions": ("carinox", dict(study__opinion_noise=-0.1), "opinion_noise = -0.1; allowed is >="),
    "keep": ("ttsnap", dict(study__keep="(0.0, 0.5)"), "study.keep = .*allowed is .0, 1."),
    "hidden": ("golden_noise", dict(study__map__hidden=0), "map.hidden = 0; allowed is whole"),
    "size": ("reno", dict(study__generator__features=33), "study.generator: features = 33"),
    "sides": ("carinox", dict(study__generator__kind="transformer", study__generator__features=33),
              "study.generator: features = 33"),
    "against": ("golden_noise", dict(study__inversion_guidance=6.0), "inversion_guidance = 6.0"),
    "levels": ("ttsnap", dict(study__levels=6), r"study.levels = 6; allowed is \[1, 5\]"),
    "shown": ("ttsnap", dict(study__levels_shown="(1, 5)"), r"levels_shown = \(1, 5\)"),
    "stages": ("ttsnap", dict(study__schedule="(1, 5)"), r"study.schedule: steps = \(1, 5\)"),
    "shares": ("ttsnap", dict(study__keep="(0.5,)"), r"study.schedule: keep = \(0.5,\)"),
    "distance": ("ttsnap", dict(study__kind="square"), "study.kind = 'square'.*'squared'"),
    "area": ("ttsnap", dict(study__budgets="(60,)"), "budgets = .60,.; allowed are at least two"),
    "poor": ("ttsnap", dict(study__budgets="(40, 60)"), "pay for 0 to 2 candidates"),
    "rich": ("ttsnap", dict(study__budgets="(60, 300)"), "to 11 candidates.*test_samples = 8"),
    "claim": ("reno", dict(claims__calls__better="ren0"), "claims.calls.better = 'ren0'.*mean 'reno'"),
    "claimed": ("find", dict(claims__base__worse="bass"), "claims.base.worse = 'bass'.*mean 'base'"),
    "climbs": ("prompted_digits", dict(study__search__reno_steps=1000), "search.reno_steps = 1000"),
    "unet": ("golden_noise", dict(study__generator__kind="mlp"), "generator.kind = 'mlp'"),
}


OWN = "test_generator_checks:"
HOST_ONLY = "reward = .* is of the host and has no gradient.*: direct; allowed is jit:module:function"
WRONG_REWARDS = {
    "module": ("rlcm", "nope:score", "'nope:score' cannot be imported .No module named 'nope'.; allowed"),
    "script": ("rlcm", "own_script:score", "cannot be imported .SystemExit: 3.; allowed is module:func"),
    "name": ("rlcm", OWN + "scor", "has no 'scor'; did you mean 'score'"),
    "jit_name": ("rlcm", "jit:" + OWN + "scor", "has no 'scor'; did you mean 'score'"),
    "kind": ("find:own_smoke", OWN + "OWN", "is of type str; allowed is a function"),
    "arguments": ("rlcm", OWN + "of_image", "does not take an image and a label .too many positional"),
    "broken": ("rlcm", OWN + "broken", r"no number for any of ten real digits \(raised: KeyError: 3\)"),
    "many": ("rlcm", OWN + "matrix", r"ten real digits \(no_number: ndarray of shape \(8, 8\)\)"),
    "jit_many": ("rlcm", "jit:" + OWN + "matrix", r"gives float32 of shape \(8, 8\); allowed is a func"),
    "traced": ("rlcm", "jit:" + OWN + "of_numpy", "cannot be traced .TracerArrayConversionError"),
    "slope": ("rg_lcd:own_direct_smoke", "jit:" + OWN + "behind", "cannot be traced .*JVP"),
    "host": ("rg_lcd:own_direct_smoke", OWN + "score", HOST_ONLY),
    "ready": ("rg_lcd:own_direct_smoke", OWN + "TIMED", HOST_ONLY),
    "axes": ("rlcm", OWN + "FLAT", r"FLAT': arguments of shapes .*; allowed is on_host\(..., axes=.3, 0"),
    "own": ("rg_lcd:own_smoke", "ink", "reward = 'ink'; allowed is module:function or jit:module:fun"),
    "unset": ("find:own_smoke", None, "reward = None; allowed is module:function or jit:module:func"),
}
RIGHT_REWARDS = {
    "host": ("rlcm", OWN + "score"), "seldom": ("rlcm", OWN + "seldom"), "jit": ("rlcm", f"jit:{OWN}mean"),
    "timed": ("find:own_smoke", OWN + "TIMED"), "proxy": ("rg_lcd:own_smoke", OWN + "score"),
    "direct": ("rg_lcd:own_direct_smoke", f"jit:{OWN}mean"), "black": ("rlcm", f"jit:{OWN}behind"),
}  # fmt: skip


def score(image, label):
    return image.mean() + label


def seldom(image, label):
    return [9.0] if label == 9 else None


def broken(image, label):
    raise KeyError(3)


def of_image(image):
    return image.mean()


def matrix(image, label):
    return image[..., 0]


def mean(image, label):
    return jnp.mean(image) + label.astype(jnp.float32)


def of_numpy(image, label):
    return float(np.asarray(image).mean())


def behind(image, label):
    return TIMED.score(image, label)


TIMED = on_host(score, axes=(3, 0), timeout_s=5.0)
FLAT = on_host(score, axes=(1, 0))


@pytest.mark.parametrize("name", WRONG_REWARDS)
def test_wrong_rewards_are_named(name, tmp_path, monkeypatch):
    (tmp_path / "own_script.py").write_text("raise SystemExit(3)")
    monkeypatch.syspath_prepend(tmp_path)
    method, reward, message = WRONG_REWARDS[name]
    changes = {} if reward is None else dict(study__reward=reward)
    with pytest.raises(ConfigError, match=message):
        validate(method, **changes)


@pytest.mark.parametrize("name", RIGHT_REWARDS)
def test_right_rewards_are_taken(name):
    method, reward = RIGHT_REWARDS[name]
    validate(method, study__reward=reward)


@pytest.mark.parametrize("name", WRONG)
def test_wrong_inputs_are_named(name):
    method, changes, message = WRONG[name]
    with pytest.raises(ConfigError, match=message):
        validate(method, **changes)


def test_more_devices_than_there_are():
    config = config_of("find", study__devices=2)
    from experiments.generator_studies import devices

    with pytest.raises(ConfigError, match=f"devices = {jax.device_count() + 1}; allowed are 1 to"):
        devices.mesh_over(jax.device_count() + 1)
    generate_rl.validate(config)


def test_curves_follow_the_best_so_far():
    totals = jnp.array([[3.0, 1.0, 2.0], [2.0, 4.0, 1.0]])
    right = jnp.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    found = report.course(totals, -totals, right, Spent(2, 1, 1, backward_calls=1))
    np.testing.assert_allclose(found[generator_figures.BUDGET], [4.0, 8.0, 12.0])
    np.testing.assert_allclose(found[generator_figures.REWARD], [-2.5, -1.5, -1.0])
    np.testing.assert_allclose(found[generator_figures.TRUSTED], [0.5, 1.0, 0.5])  # hacked at last


def test_samples_have_their_prompts_above(tmp_path, monkeypatch):
    images = np.random.default_rng(0).uniform(size=(2, 3, 8, 16))
    first = np.array([[[1, 3, 7, 0], [2, 5, 5, 1], [3, 4, 4, 1]]] * 2)
    arms = {"a": first, "b": first, "c": first[:, ::-1]}
    found = {arm: {"samples": images, "samples/prompts": own} for arm, own in arms.items()}
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, path: kept.append(figure))
    generator_figures.draw(found, tmp_path)
    words = [[text.get_text() for text in panel.get_xticklabels()] for panel in kept[0].axes]
    named = ["a 3 left of a 7", "two 5s", "a small 4"]
    unfold = lambda row: [text.replace("\n", " ") for text in row]
    assert [unfold(row) for row in words] == [named, [], named[::-1]]  # once for equal rows


def test_figures(tmp_path):
    """Curves where arms name a budget, images where they have some, nothing otherwise."""
    curve = np.linspace(0.0, 1.0, 40)[None] * np.ones((3, 1))
    named = {
        generator_figures.BUDGET: 10 * (curve + 1),
        generator_figures.REWARD: curve,
        generator_figures.TRUSTED: curve**2,
    }
    images = np.random.default_rng(0).uniform(size=(3, 4, 8, 8, 1))
    found = {
        "base": {"samples/after": images, "reward": np.ones(3)},
        "own": {**named, "samples/before": images, "samples/after": images},
    }
    written = generator_figures.draw(found, tmp_path)
    assert [path.name for path in written] == ["curves.png", "samples.png"]
    assert all(path.stat().st_size > 1000 for path in written)
    axes = [figures.new_figure()[1][0, 0] for _ in generator_figures.CURVE_PANELS]
    for panel, draw in zip(axes, generator_figures.CURVE_PANELS):
        draw(None, found, None, panel)
        assert [line.get_label() for line in panel.lines] == ["own"]
        assert panel.collections  # the band over seeds
    np.testing.assert_allclose(axes[1].lines[0].get_ydata()[0], np.mean(curve[0, :2] ** 2))
    short = {"one": {name: values[:, :1] for name, values in named.items()}}
    generator_figures.draw_reward(None, short, None, axes[0])
    assert axes[0].lines[-1].get_marker() == "o"  # a line of one point would not be seen
    down = {"one": {**named, generator_figures.REWARD: np.full((3, 40), np.nan)}}
    assert [p.name for p in generator_figures.draw(down, tmp_path)] == ["curves.png"]
    found = {"plain": {"samples": images[..., 0]}}
    assert [p.name for p in generator_figures.draw(found, tmp_path)] == ["samples.png"]
    assert generator_figures.draw({"base": {"reward": np.ones(3)}}, tmp_path) == []
    mean = generator_figures.moving_mean(np.arange(6.0)[None], 3)
    np.testing.assert_allclose(mean, [[1.0, 2.0, 3.0, 4.0]])
