"""Configs: overriding, refusing, naming, hashing, and seeing what is read."""

import copy
import json
import pickle
import subprocess
import sys
import textwrap

import ml_collections
import pytest

from jaxreward.training import config as config_lib
from jaxreward.training.exits import ConfigError


def make_config():
    config = ml_collections.ConfigDict()
    config.steps = 100
    config.name = "x"
    config.flag = True
    config.grid = (1e-3, 1e-2)
    config.names = ("a", "b")
    config.limit = config_lib.optional(int)
    config.transforms = {"noise": {"false_positive": 0.1}, "correction": {"scale": "none"}}
    config.half = config.get_ref("steps") // 2
    config.hyper = config_lib.section(learning_rate=1e-3, kl=0.1)
    return config_lib.finish(config)


def test_iteration_is_in_the_order_of_writing():
    config = make_config()
    assert list(config)[:4] == ["steps", "name", "flag", "grid"]
    assert list(config.transforms) == ["noise", "correction"]
    changed = config_lib.override(config, {"steps": "7"})
    assert list(changed) == list(config) and list(changed.transforms) == ["noise", "correction"]


@pytest.mark.parametrize(
    "path, text, value",
    [
        ("steps", "20", 20),
        ("steps", "1_000", 1000),
        ("hyper.kl", "1", 1.0),
        ("hyper.kl", "2e-3", 0.002),
        ("name", "12", "12"),
        ("flag", "False", False),
        ("grid", "(1, 0.5)", (1.0, 0.5)),
        ("grid", "0.1,", (0.1,)),
        ("names", "a,c", ("a", "c")),
        ("names", "('a', 'd')", ("a", "d")),
        ("names", "", ()),
        ("limit", "3", 3),
    ],
)
def test_text_becomes_a_value_of_the_right_type(path, text, value):
    config = make_config()
    changed = config_lib.override(config, {path: text})
    actual = config_lib.get(changed, path)
    assert actual == value and type(actual) is type(value)
    if isinstance(value, tuple):
        assert [type(v) for v in actual] == [type(v) for v in value]
    assert config_lib.plain(config) == config_lib.plain(make_config())  # the original is kept


def test_references_follow_and_are_resolved():
    changed = config_lib.override(make_config(), {"steps": "10"})
    assert changed.half == 5
    assert config_lib.override(make_config(), {"half": "3"}).steps == 100
    assert changed.limit is None
    assert changed.is_locked and changed.hyper.is_locked


@pytest.mark.parametrize(
    "path, text, message",
    [
        ("step", "1", "config.step is not a key: config has no 'step'; did you mean 'steps'?"),
        ("hyper.lr", "1", "config.hyper has no 'lr'; allowed are learning_rate, kl"),
        ("kl", "1", "config.kl is not a key; did you mean config.hyper.kl?"),
        ("steps.more", "1", "config.steps.more is not a key: config.steps is a value"),
        ("steps", "1.5", "config.steps = '1.5'; allowed is an integer"),
        ("steps", "true", "config.steps = 'true'; allowed is an integer"),
        ("hyper.kl", "big", "config.hyper.kl = 'big'; allowed is a number"),
        ("hyper.kl", "nan", "config.hyper.kl = nan; allowed are finite numbers"),
        ("flag", "yes", "config.flag = 'yes'; allowed is true or false"),
        ("grid", "0.1", r"config.grid = '0.1'; allowed is a tuple, e.g. \(0.001, 0.01\)"),
        ("grid", "('a',)", "config.grid = .* allowed is a tuple"),
        ("grid", "__import__('os')", "config.grid = .* allowed is a tuple"),
        ("limit", "x", "config.limit = 'x'; allowed is an integer"),
        ("hyper", "1", "config.hyper = '1': this is a section; allowed are its keys learning_r"),
    ],
)
def test_what_does_not_fit_is_refused_with_key_value_and_allowed(path, text, message):
    with pytest.raises(ConfigError, match=message) as caught:
        config_lib.override(make_config(), {path: text})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "value, message",
    [
        (None, "config.a.b is a bare None; use optional"),
        (float("inf"), "config.a.b = inf; allowed are finite numbers"),
        (len, "config.a.b = .* has no place in a config"),
        ((1, (2, object())), "has no place in a config"),
    ],
)
def test_values_without_a_place_in_a_config(value, message):
    config = ml_collections.ConfigDict({"a": {"b": value}})
    with pytest.raises(ConfigError, match=message):
        config_lib.finish(config)


def write(tmp_path, body):
    path = tmp_path / "method.py"
    path.write_text(textwrap.dedent(body))
    return str(path)


def test_loading_a_file_and_its_variant(tmp_path):
    path = write(
        tmp_path,
        """
        import ml_collections

        def get_config(arg=""):
            config = ml_collections.ConfigDict({"steps": 10})
            if arg not in ("", "smoke"):
                raise ValueError(f"variant {arg!r}; allowed is smoke")
            if arg:
                config.steps = 1
            return config
        """,
    )
    assert config_lib.load_config(path).steps == 10
    assert config_lib.load_config(f"{path}:smoke").steps == 1
    assert config_lib.load_config(path).is_locked
    with pytest.raises(ConfigError, match=r"variant 'huge'; allowed is smoke \(line 7\)"):
        config_lib.load_config(f"{path}:huge")


@pytest.mark.parametrize(
    "body, message",
    [
        ("x = 1", "does not define get_config"),
        ("def get_config(arg=''):\n    return {}", "get_config returned dict"),
        ("import jax_does_not_exist", "ModuleNotFoundError: .*line 1"),
        ("def get_config(:", "SyntaxError"),
        ("def get_config(arg=''):\n    return 1 / 0", r"ZeroDivisionError: .*\(line 2\)"),
    ],
)
def test_a_file_that_does_not_work(tmp_path, body, message):
    path = write(tmp_path, body)
    with pytest.raises(ConfigError, match=message) as caught:
        config_lib.load_config(path)
    assert path in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_there_names_its_neighbours(tmp_path):
    path = write(tmp_path, "")
    with pytest.raises(ConfigError, match=f"did you mean '{path}'"):
        config_lib.load_config(path.replace("method", "metod"))


def test_resolve():
    assert config_lib.resolve("os.path:join") is __import__("os").path.join
    assert config_lib.resolve("jaxreward.channel:Channel.levels.fget").__name__ == "levels"
    for bad, message in [
        ("os.path", "is not a path; allowed is package.module:name"),
        ("os.path:joyn", "os.path has no 'joyn'; did you mean 'join'?"),
        ("not_there_at_all:x", "No module named 'not_there_at_all'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            config_lib.resolve(bad)


def scale(x, *, factor, offset=0.0, inner=None):
    if factor < 0:
        raise ValueError(f"factor = {factor}; allowed is >= 0")
    return x * factor + offset + (inner or 0.0)


def test_build_calls_with_the_sections_keys():
    here = f"{__name__}:scale"
    config = config_lib.section(fn=here, factor=2.0, inner={"fn": "math:fabs"})
    config.offset = config_lib.optional(float)
    config.inner = config_lib.section(fn=here, x=1.0, factor=3.0)
    assert config_lib.build(config, 5.0) == 13.0
    assert config_lib.build(config, 5.0, offset=1.0) == 14.0
    config.factor = -1.0
    with pytest.raises(ConfigError, match="factor = -1.0; allowed is >= 0"):
        config_lib.build(config, 5.0)
    with pytest.raises(ConfigError, match="its parameters are x, factor, offset, inner"):
        config_lib.build(config_lib.section(fn=here, facto=1.0), 5.0)


def test_the_hash_depends_on_values_and_order_only():
    first, second = make_config(), make_config()
    assert config_lib.sha(first) == config_lib.sha(second)
    resolved = config_lib.override(first, {})
    assert config_lib.sha(resolved) == config_lib.sha(first)
    assert config_lib.sha(config_lib.override(first, {"hyper.kl": "0.2"})) != config_lib.sha(first)
    swapped = config_lib.finish(ml_collections.ConfigDict({"b": 1, "a": 2}))
    straight = config_lib.finish(ml_collections.ConfigDict({"a": 2, "b": 1}))
    assert config_lib.sha(swapped) != config_lib.sha(straight)
    assert json.loads(config_lib.canonical_json(first)) == config_lib.plain(first)


def test_reads_are_noted_and_only_reads():
    config = config_lib.override(make_config(), {})
    tracked, unread = config_lib.track_reads(config)
    everything = [path for path, _ in config_lib.leaves(config)]
    assert config_lib.plain(tracked) == config_lib.plain(config)
    assert config_lib.sha(tracked) == config_lib.sha(config)
    assert "steps" in tracked and config_lib.get(tracked, "steps") == 100
    pickle.loads(pickle.dumps(tracked))
    assert unread() == everything
    assert (tracked.steps, tracked["hyper.kl"]) == (100, 0.1)
    assert dict(**tracked.transforms.noise) == {"false_positive": 0.1}
    assert {"steps", "hyper.kl", "transforms.noise.false_positive"} == {*everything} - {*unread()}
    assert isinstance(tracked, ml_collections.ConfigDict)
    with pytest.raises(AttributeError):
        tracked.steppes
    with pytest.raises((AttributeError, KeyError)):
        tracked.new = 1
    tracked.to_dict()
    assert unread() == []


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda c: pickle.loads(pickle.dumps(c))])
def test_a_copy_of_a_tracked_config_is_an_ordinary_one(duplicate):
    tracked, unread = config_lib.track_reads(config_lib.override(make_config(), {}))
    copied = duplicate(tracked)
    assert config_lib.plain(copied) == config_lib.plain(tracked)
    assert list(copied) == list(tracked)
    assert copied.names == ("a", "b") and "names" in unread()


def test_nothing_heavy_is_imported():
    code = (
        "import sys; from jaxreward.training import check, config; "
        "heavy = {'jax', 'flax', 'orbax', 'numpy', 'matplotlib'} & set(sys.modules); "
        "sys.exit(str(heavy) if heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
