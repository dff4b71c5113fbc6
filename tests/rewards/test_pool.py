"""The verifier pool: a hostile verifier or text costs its own sample, and nothing else."""

import signal
import subprocess
import sys
import threading
import time

import hostile_verifiers
import numpy as np
import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxreward.rewards import pool_worker
from jaxreward.rewards.pool import CAUSES, open_pool

TIMEOUT_S = 1.0
SLACK_S = 2.0


def _path(name: str) -> str:
    return f"{hostile_verifiers.__name__}:{name}"


def _open(*names: str, **options):
    options = {"workers": 2, "timeout_s": TIMEOUT_S, "allowed_range": None, **options}
    return open_pool({name: _path(name) for name in names}, **options)


@pytest.fixture(scope="module")
def pool():
    """Compares response and answer, or does what the response names."""
    names = ("mixed", "equal", "sees", "code_points", "length", "prints")
    with _open(*names, allowed_range=(0.0, 2e9)) as pool:
        yield pool


def _samples(n: int, hostile: dict[int, str]) -> tuple[list[str], list[str]]:
    """`n` samples, every third one right, with hostile ones at the given places."""
    responses = [hostile.get(i, f"sample {i}") for i in range(n)]
    answers = [f"sample {i}" if i % 3 == 0 else "other" for i in range(n)]
    return responses, answers


def _check_others(verdicts, hostile: dict[int, str]) -> None:
    """Everyone but the hostile has the verdict he deserves."""
    n = len(verdicts.ok)
    others = np.array([i not in hostile for i in range(n)])
    np.testing.assert_array_equal(verdicts.ok, others)
    expected = (np.arange(n) % 3 == 0).astype(np.float32)
    np.testing.assert_array_equal(verdicts.values[others], expected[others])
    assert np.isnan(verdicts.values[~others]).all()
    assert all((cause == "") == ok for cause, ok in zip(verdicts.causes, verdicts.ok))


@pytest.mark.parametrize(
    "behaviour, cause",
    [
        ("raises", "raised"),
        ("raises_without_words", "raised"),
        ("changes_modules", "non_finite"),
        ("sys_exit", "raised"),
        ("recurse", "raised"),
        ("allocate", "raised"),
        ("os_exit", "died"),
        ("kill", "died"),
        ("segfault", "died"),
        ("garbage", "died"),
        ("nan", "non_finite"),
        ("infinite", "non_finite"),
        ("too_big_an_integer", "non_finite"),
        ("huge", "out_of_range"),
        ("none", "not_a_number"),
        ("string", "not_a_number"),
        ("wrong_length", "not_a_number"),
        ("complex_number", "not_a_number"),
    ],
)
def test_a_hostile_verifier_costs_its_own_sample_only(pool, behaviour, cause):
    hostile = {7: f"{behaviour} 1"}
    before = pool.stats()[cause]
    begun = time.monotonic()
    verdicts = pool.verify("mixed", *_samples(16, hostile))
    assert time.monotonic() - begun < TIMEOUT_S + SLACK_S
    _check_others(verdicts, hostile)
    assert verdicts.causes[7] == cause
    assert pool.stats()[cause] == before + 1


def test_verifiers_that_hang_cost_their_own_samples_only(pool):
    """However they hang: in one batch, since each has to be waited for."""
    hostile = {3: "hang 1", 7: "tower 1", 11: "hang_ignoring_sigterm 1"}
    before = pool.stats()["timeout"]
    begun = time.monotonic()
    verdicts = pool.verify("mixed", *_samples(16, hostile))
    assert time.monotonic() - begun < TIMEOUT_S + SLACK_S
    _check_others(verdicts, hostile)
    assert [verdicts.causes[i] for i in hostile] == ["timeout"] * 3
    assert pool.stats()["timeout"] == before + 3


def test_one_in_64_hangs_and_the_batch_ends_in_time(pool):
    hostile = {i: f"hang {i}" for i in (13, 64, 65, 255)} | {100: "kill", 101: "kill 2"}
    begun = time.monotonic()
    verdicts = pool.verify("mixed", *_samples(256, hostile))
    assert time.monotonic() - begun < TIMEOUT_S + SLACK_S
    _check_others(verdicts, hostile)
    assert [verdicts.causes[i] for i in hostile] == ["timeout"] * 4 + ["died"] * 2


def test_every_sample_of_a_batch_may_kill_its_worker():
    with _open("mixed", cache_size=0) as pool:
        verdicts = pool.verify("mixed", ["kill"] * 6, [""] * 6)
        assert verdicts.causes == ("died",) * 6
        assert pool.verify("mixed", ["a"], ["a"]).values.tolist() == [1.0]


def test_batch_deadline_bounds_a_batch_that_hangs_throughout():
    with _open("mixed", timeout_s=30.0, batch_timeout_s=0.7, cache_size=0) as pool:
        begun = time.monotonic()
        verdicts = pool.verify("mixed", ["hang"] * 8 + ["a"], ["a"] * 9)
        assert time.monotonic() - begun < 0.7 + SLACK_S
        assert verdicts.causes[:8] == ("timeout",) * 8
        assert pool.verify("mixed", ["a"], ["a"]).values.tolist() == [1.0]


def test_a_slow_honest_verifier_keeps_its_workers():
    with _open("patient", workers=1, timeout_s=10.0) as pool:
        verdicts = pool.verify("patient", ["a", "b", "c"], ["a", "a", "c"])
        assert verdicts.values.tolist() == [1.0, 0.0, 1.0]
        assert pool.stats()["lost"] <= 1  # at most the one whose first chunk was shared out


def test_workers_are_recycled():
    with _open("process_id", recycle_after=5, cache_size=0) as pool:
        ids = pool.verify("process_id", ["x"] * 23, [""] * 23).values
        counts = np.unique(ids, return_counts=True)[1]
        assert counts.max() <= 5 and counts.sum() == 23
        assert pool.stats()["recycled"] >= 4


def test_range_is_an_option():
    with _open("mixed", "length") as pool:
        verdicts = pool.verify("mixed", ["huge", "nan"], ["", ""])
        np.testing.assert_array_equal(verdicts.values[:1], np.float32(1e30))
        assert verdicts.causes == ("", "non_finite")
    with _open("length", allowed_range=(2.0, 3.0)) as pool:
        verdicts = pool.verify("length", ["a", "ab", "abc", "abcd"], [""] * 4)
        assert verdicts.causes == ("out_of_range", "", "", "out_of_range")


def test_numpy_scalars_are_numbers_and_prints_do_no_harm(pool):
    with _open("numpy_scalar", workers=1, timeout_s=30.0) as patient_pool:
        verdicts = patient_pool.verify("numpy_scalar", ["float", "bool"], ["", ""])
        assert verdicts.values.tolist() == [0.25, 1.0]
    assert pool.verify("prints", ["a"], [""]).values.tolist() == [1.0]


def test_workers_see_no_accelerator_and_no_jax(pool):
    modules = ["jax", "jaxlib", "jaxreward", "sys"]
    assert pool.verify("sees", modules, [""] * 4).values.tolist() == [0.0, 0.0, 0.0, 1.0]
    hidden = {"JAX_PLATFORMS": "cpu", "CUDA_VISIBLE_DEVICES": "", "PYTHONHASHSEED": "0"}
    verdicts = pool.verify("sees", list(hidden), ["=" + value for value in hidden.values()])
    assert verdicts.values.tolist() == [1.0, 1.0, 1.0]
    assert pool.verify("sees", ["thread"], [""]).values.tolist() == [1.0]


def test_imports_stay_where_they_belong():
    paths = {name: f"jaxreward.rewards.verifiers:{name}" for name in ("lenient", "math_verify")}
    with open_pool({"sees": _path("sees"), **paths}, workers=1) as pool:
        modules = ["math_verify", "jaxreward", "jax", "numpy"]  # preloaded, and nothing heavy
        assert pool.verify("sees", modules, [""] * 4).values.tolist() == [1.0, 1.0, 0.0, 0.0]
    code = "import sys, jaxreward.rewards.verifiers; sys.exit('sympy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@given(st.lists(st.text(st.characters(exclude_categories=())), max_size=8))
@settings(max_examples=15)
def test_texts_arrive_as_they_are(pool, texts):
    verdicts = pool.verify("code_points", texts, [""] * len(texts))
    expected = np.array([sum(map(ord, text)) for text in texts], np.float32)
    np.testing.assert_array_equal(verdicts.values, expected)
    assert verdicts.values.dtype == np.float32 and verdicts.ok.dtype == bool


def test_long_and_undecodable_texts(pool):
    texts = ["a" * 100_000, "\ud800" * 100_000, "a" * 100_001, "", "\x00\n\r\u2028"]
    verdicts = pool.verify("length", texts, [""] * 5)
    assert verdicts.values[[0, 1, 3, 4]].tolist() == [1e5, 1e5, 0.0, 4.0]
    assert verdicts.causes == ("", "", "too_long", "", "")
    assert pool.verify("length", ["a"], ["a" * 100_001]).causes == ("too_long",)


def test_cache_changes_no_result():
    hostile = {3: "raises", 4: "nan", 5: "string", 9: "kill"}
    responses, answers = _samples(24, hostile)
    responses, answers = responses * 2, answers * 2
    with _open("mixed", cache_size=100) as cached, _open("mixed", cache_size=0) as plain:
        runs = [p.verify("mixed", responses, answers) for p in (cached, cached, plain)]
        for run in runs[1:]:
            np.testing.assert_array_equal(run.values, runs[0].values)
            assert run.causes == runs[0].causes
        stats = cached.stats()
        assert stats["cached"] == 24 + 2 * 20 + 4  # equal samples, the verdicts, missing twins
        assert plain.stats()["cached"] == 0


def test_only_real_verdicts_are_remembered(pool):
    before = pool.stats()
    for _ in range(2):
        assert pool.verify("mixed", ["none 5"], [""]).causes == ("not_a_number",)
    assert pool.stats()["not_a_number"] == before["not_a_number"] + 2
    assert pool.stats()["cached"] == before["cached"]


def test_cache_is_bounded_and_keyed_by_all_three_texts():
    with _open("counter", "length", workers=1, cache_size=2) as pool:
        ask = lambda response, answer: pool.verify("counter", [response], [answer]).values[0]
        first = ask("a", "b")
        assert ask("a", "b") == first
        assert pool.verify("length", ["a"], ["b"]).values[0] == 1.0  # the other verifier's own
        assert len({first, ask("ab", ""), ask("", "ab")}) == 3  # and "a", "b" is forgotten now
        assert ask("a", "b") != first


def test_without_a_cache_equal_samples_are_verified_each():
    with _open("counter", workers=1, cache_size=0) as pool:
        assert pool.verify("counter", ["a"] * 5, [""] * 5).values.tolist() == [1, 2, 3, 4, 5]


def test_calls_from_several_threads(pool):
    results = {}

    def work(offset):
        texts = [f"thread {offset} {i}" for i in range(50)]
        answers = texts[:offset] + ["other"] * (50 - offset)
        results[offset] = pool.verify("equal", texts, answers).values.sum()

    threads = [threading.Thread(target=work, args=(10 * i,)) for i in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {10: 10.0, 20: 20.0, 30: 30.0, 40: 40.0}


@pytest.fixture
def interrupts():
    """Python's handler: a process that a shell put into the background ignores interrupts."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_usable_after_an_interrupt(interrupts):
    with _open("mixed", timeout_s=30.0) as pool:
        # Python loses an interrupt that falls into a finalizer; then a user presses again
        press = lambda: signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        timers = [threading.Timer(delay, press) for delay in (0.3, 4.0, 8.0, 12.0, 16.0, 20.0)]
        for timer in timers:
            timer.start()
        with pytest.raises(KeyboardInterrupt):
            pool.verify("mixed", ["hang", "a"], ["", "a"])
        for timer in timers:
            timer.cancel()
        assert pool.verify("mixed", ["a", "b"], ["a", "a"]).values.tolist() == [1.0, 0.0]


def test_workers_killed_while_idle_cost_nothing(pool):
    workers = [c for c in psutil.Process().children() if pool_worker.__file__ in c.cmdline()]
    for worker in workers:
        worker.kill()
    latest = time.monotonic() + 5
    while any(w.status() != psutil.STATUS_ZOMBIE for w in workers) and time.monotonic() < latest:
        time.sleep(0.01)
    verdicts = pool.verify("equal", list("uvwxyz"), ["u"] * 6)
    assert verdicts.values.tolist() == [1.0, 0.0, 0.0, 0.0, 0.0, 0.0]


def test_log_names_the_sample_and_is_rate_limited(caplog):
    with _open("mixed", cache_size=0) as pool, caplog.at_level("WARNING"):
        pool.verify("mixed", ["a"] * 5 + ["raises \x1b[31m"] * 10, [""] * 15)
    lines = [record.getMessage() for record in caplog.records]
    assert [line.split("sample ")[1].split(" ")[0] for line in lines] == ["5", "6", "7", "8", "12"]
    assert "mixed" in lines[0] and "raised" in lines[0] and "no verdict on" in lines[0]
    assert "\x1b" not in "".join(lines) and "\\x1b" in lines[0]


_FORBIDDEN = tuple("exec compile open socket subprocess os. import pickle ctypes".split())
_watch: list[str] = []
_watching = threading.Event()


def test_poison_text_has_no_effect_in_this_process(tmp_path):
    target = tmp_path / "touched"
    poison = [
        f"__import__('os').system('touch {target}')",
        f"open({str(target)!r}, 'w').close()",
        f"exec(\"open('{target}', 'w')\")",
        f"\\boxed{{__import__('pathlib').Path('{target}').touch()}}",
        "{0.__class__.__mro__[1].__subclasses__()}",
        "%(asctime)s %n %s",
        "../../../../etc/passwd",
        f"file://{target}",
        "\n[0, 1.0, \"\", \"\"]\n",
        "${jndi:ldap://localhost/a}",
    ]
    verifiers = {
        name: f"jaxreward.rewards.verifiers:{name}"
        for name in ("exact_match", "exact_rational", "lenient", "closeness", "math_verify")
    }
    me = threading.get_ident()

    def hook(event, args):
        if _watching.is_set() and threading.get_ident() == me and event.startswith(_FORBIDDEN):
            _watch.append(event)

    with open_pool(verifiers, timeout_s=20.0) as pool:
        pool.verify("exact_match", ["warm up"], ["1"])
        sys.addaudithook(hook)  # stays for good, so it listens only while told to
        _watching.set()
        try:
            verdicts = [pool.verify(name, poison, ["1"] * len(poison)) for name in verifiers]
        finally:
            _watching.clear()
    assert _watch == []
    assert not target.exists()
    assert not any(v.values[v.ok].any() for v in verdicts[:2])


def test_the_audit_hook_would_notice(tmp_path):
    events = []
    sys.addaudithook(lambda event, _: events.append(event) if len(events) < 1000 else None)
    eval("1")  # pylint: disable=eval-used
    assert any(event.startswith(_FORBIDDEN) for event in events)


@pytest.mark.parametrize(
    "options, named",
    [
        ({"workers": 0}, "workers = 0"),
        ({"timeout_s": 0.0}, "timeout_s = 0.0"),
        ({"timeout_s": float("nan")}, "timeout_s = nan"),
        ({"batch_timeout_s": -1.0}, "batch_timeout_s = -1.0"),
        ({"recycle_after": 0}, "recycle_after = 0"),
        ({"cache_size": -1}, "cache_size = -1"),
        ({"max_length": 0}, "max_length = 0"),
        ({"memory_limit_mb": 0}, "memory_limit_mb = 0"),
        ({"allowed_range": (1.0, 0.0)}, "allowed_range"),
    ],
)
def test_bad_options_are_refused(options, named):
    with pytest.raises(ValueError, match=named):
        _open("equal", **options)


@pytest.mark.parametrize(
    "verifiers, named",
    [
        ({}, "verifiers is empty"),
        ({"a": "no_colon"}, "no_colon"),
        ({"a": "module:"}, "module:"),
        ({"a": "no.such.module:verify"}, "ModuleNotFoundError"),
        ({"a": "math:no_such_function"}, "AttributeError"),
        ({"a": "math:pi"}, "allowed is a function"),
    ],
)
def test_bad_verifiers_are_refused(verifiers, named):
    before = len(psutil.Process().children())
    with pytest.raises(ValueError, match=named):
        open_pool(verifiers)
    assert len(psutil.Process().children()) == before


def test_bad_calls_are_refused(pool):
    with pytest.raises(ValueError, match="allowed are .*'equal'"):
        pool.verify("unknown", [], [])
    with pytest.raises(ValueError, match="2 responses and 1 answers"):
        pool.verify("equal", ["a", "b"], ["a"])
    with pytest.raises(ValueError, match=r"responses\[1\] is a bytes"):
        pool.verify("equal", ["a", b"b"], ["a", "b"])
    verdicts = pool.verify("equal", [], [])
    assert verdicts.values.shape == (0,) and verdicts.causes == ()


def test_a_closed_pool_refuses():
    pool = _open("equal")
    pool.close()
    pool.close()
    with pytest.raises(RuntimeError, match="closed"):
        pool.verify("equal", ["a"], ["a"])


def test_workers_that_cannot_start_stop_the_call(monkeypatch):
    with _open("mixed") as pool:
        monkeypatch.setattr(pool_worker, "__file__", "/nonexistent/worker.py")
        with pytest.raises(RuntimeError, match="ended while starting"):
            pool.verify("mixed", ["kill", "kill 2", "a", "b"], [""] * 4)
        monkeypatch.undo()
        assert pool.verify("mixed", ["a"], ["a"]).values.tolist() == [1.0]


def test_stats_add_up():
    with _open("mixed") as pool:
        pool.verify("mixed", ["a", "a", "nan", "none", "none", "b"], ["a"] * 6)
        stats = pool.stats()
    expected = {"samples": 6, "cached": 2, "non_finite": 1, "not_a_number": 2, "started": 2}
    assert stats == dict.fromkeys((*CAUSES, "recycled", "lost"), 0) | expected
