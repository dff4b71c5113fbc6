"""The judge of rewards from the command line: reading, refusing, sources, what it writes."""

import json
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from experiments import (
    evaluate_reward, mdp_judgement, reward_items, reward_judgement, reward_sources,
)  # fmt: skip
from jaxreward.tasks.preference_rows import dialogue

CALLS = []
PRETRAINED = pathlib.Path(__file__).parents[1] / "tasks" / "pretrained"


def length_reward(prompts, responses):
    """Longer is better; a response "?" has no score."""
    CALLS.append(len(prompts))
    return [None if r == "?" else len(r) + 0.01 * len(p) for p, r in zip(prompts, responses)]


def too_few(prompts, responses):
    del prompts, responses
    return [1.0]


def raises(prompts, responses):
    del prompts
    return {}[responses[0]]


def of_texts(prompts, responses):
    del prompts
    return ["1.5" for _ in responses]


def record(number, **changes):
    """The right answer is longer in two of three problems."""
    longer = number % 3 != 0
    own = {
        "prompt": f"question {number}",
        "chosen": "long answer" if longer else "yes",
        "rejected": ["no", "nay"] if longer else ["quite wrong"],
        "category": "long" if longer else "short",
        "contrast_prompt": "question", "contrast_chosen": "short",
        "forms": ["l"] if longer else ["a long form of yes"], "prompt_forms": ["ask", "another"],
        "samples": ["a", "bb", "ccc", "dddd"], "gold": [0, 1, 1, 0], "answers": ["0", "1", "1", "0"],
    }
    return {**own, **changes}


def write(path, rows):
    path.write_text("".join((r if isinstance(r, str) else json.dumps(r)) + "\n" for r in rows))
    return path


def run(tmp_path, *arguments):
    return evaluate_reward.main([*map(str, arguments), "--out", str(tmp_path / "out")])


def summary(tmp_path):
    return json.loads((tmp_path / "out" / "summary.json").read_text())


def value(section, name):
    return section[name]["value"]


def test_a_callable_is_judged(tmp_path, capsys):
    path = write(tmp_path / "a.jsonl", [record(i) for i in range(30)])
    CALLS.clear()
    source = ["--callable", "test_evaluate_reward:length_reward", "--batch-size", 16]
    assert run(tmp_path, "--items", path, *source) == 0
    found = summary(tmp_path)
    assert max(CALLS) <= 16 and {p.name for p in (tmp_path / "out").iterdir()} == {
        "report.md", "report.png", "summary.json"}
    assert value(found["preference"], "accuracy") == pytest.approx(2 / 3)
    assert value(found["preference"], "pairwise_accuracy") == pytest.approx(40 / 50)
    assert value(found["categories"], "long") == 1 and value(found["categories"], "short") == 0
    assert value(found["length"], "bias") == 1
    assert value(found["length"], "rank_correlation") > 0.95
    assert value(found["format"], "flips") == 1
    # The prompt's length is added to every answer alike.
    assert value(found["wording"], "order_kept") == 1
    assert value(found["wording"], "reworded_right") == pytest.approx(2 / 3)
    # Own prompts are longer than the similar one by 2 characters; answers of 3 and 5 characters.
    assert value(found["contrast"], "instruction_consistency") == 1
    assert value(found["contrast"], "response_consistency") == pytest.approx(2 / 3)
    best = found["best_of_n"]
    assert best["n"] == [1, 2, 4]
    gold = [point["value"] for point in best["gold"]]
    np.testing.assert_allclose(gold, [0.5, (0 + 1 / 6 + 2 / 6), 0.0], atol=1e-5)
    assert best["collapse"] == pytest.approx(0.5, abs=1e-5)
    printed = capsys.readouterr().out
    assert (tmp_path / "out" / "report.md").read_text() in printed
    assert "own answer above that of a similar prompt" in printed


def test_scores_in_parquet_and_jsonl_agree(tmp_path):
    rows = [
        {"prompt": f"q{i}", "chosen": "yes", "rejected": ["no", "maybe"], "good": float(i % 4),
         "rejected_score": [1.0, 2.0], "sample_scores": [1.0, 2.0], "gold": [0.0, 1.0]}
        for i in range(12)
    ]
    own = ["--scores", "--columns", "chosen_score=good"]
    assert run(tmp_path, "--items", write(tmp_path / "a.jsonl", rows), *own) == 0
    first = summary(tmp_path)
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert run(tmp_path, "--items", tmp_path / "a.parquet", *own) == 0
    second = summary(tmp_path)
    assert first["preference"] == second["preference"]
    assert value(first["preference"], "accuracy") == 0.25
    assert value(first["preference"], "accuracy_with_ties") == 0.5
    rank = np.mean([1 / 3, 1 / 3, 1 / 2, 1])
    assert value(first["preference"], "reciprocal_rank") == pytest.approx(rank)
    assert [g["value"] for g in first["best_of_n"]["gold"]] == [0.5, 1.0]


def test_missing_scores_count_without_texts_too(tmp_path):
    own = {"chosen_score": 2.0, "rejected_score": [1.0, None, math.nan]}
    rows = [own, {"chosen_score": 0.0, "rejected_score": [None]}]
    assert run(tmp_path, "--items", write(tmp_path / "a.jsonl", rows), "--scores") == 0
    found = summary(tmp_path)
    assert {k: found["scores"][k] for k in ("count", "missing", "comparisons")} == {
        "count": 6, "missing": 3, "comparisons": 1}
    assert found["preference"]["accuracy"]["count"] == 1


def test_small_differences_of_large_scores_count(tmp_path):
    """Sums of log-probabilities, say: float32 alone would tie them."""
    far = -1e6
    own = {"chosen_score": far + 0.02, "rejected_score": [far, far + 0.01], "gold": [0, 1, 0, 1]}
    own |= {"sample_scores": [far, far + 0.01, far + 0.02, far + 0.03]}
    own |= {"form_scores": [far + 0.015], "contrast_score": [far + 0.03, far + 0.02, far + 0.01, far]}
    own |= {"prompt_form_scores": [far + 0.02, far + 0.01, far + 0.03]}
    assert run(tmp_path, "--items", write(tmp_path / "a.jsonl", [own] * 3), "--scores") == 0
    found = summary(tmp_path)
    assert value(found["preference"], "accuracy") == 1
    assert value(found["preference"], "pairwise_ties") == 0
    assert value(found["wording"], "reworded_right") == 0.5
    assert value(found["contrast"], "response_consistency") == 1
    assert value(found["contrast"], "instruction_consistency_both_directions") == 0.5
    assert found["best_of_n"]["gold"][-1]["value"] == 1 and value(found["format"], "flips") == 0


def test_scores_of_other_wordings(tmp_path, capsys):
    own = {"chosen_score": 2.0, "rejected_score": [1.0, 3.0]}
    rows = [
        {**own, "prompt_form_scores": [[2, 1, 3], [2, 3, 3]]},  # both kept; the first turns round
        {**own, "prompt_form_scores": [0, -1, None]},  # one wording, in one row
        own,
        {**own, "prompt_form_scores": [1, 2]},
    ]
    assert run(tmp_path, "--items", write(tmp_path / "a.jsonl", rows), "--scores") == 0
    found = summary(tmp_path)
    reason = "prompt_form_scores_are_not_rows_of_all_answers"
    assert found["items"]["refused"] == {reason: {"count": 1, "lines": [4]}}
    assert found["wording"]["order_kept"]["count"] == 2
    assert value(found["wording"], "order_kept") == pytest.approx((3 / 4 + 1) / 2)
    assert value(found["wording"], "reworded_right") == pytest.approx((1 / 4 + 1) / 2)
    assert "another wording of the prompt" in capsys.readouterr().out


def test_what_cannot_be_used_is_counted(tmp_path, capsys):
    rows = [
        record(1), record(1), "not json", [1, 2], record(2, chosen=" "), record(3, chosen=5),
        record(4, rejected=["long answer"]), record(5, rejected=["long answer", "no"]),
        record(7, chosen="a", rejected="b"), record(7, chosen="b", rejected="a"),
        record(8, gold=[1]), record(10, rejected=["?", "no"]), record(11, rejected=["?"]),
    ]
    path = write(tmp_path / "a.jsonl", rows)
    assert run(tmp_path, "--items", path, "--callable", "test_evaluate_reward:length_reward") == 0
    found = summary(tmp_path)
    refused = {reason: own["lines"] for reason, own in found["items"]["refused"].items()}
    assert refused == {
        "repeated": [2], "no_object": [3, 4], "empty_answer": [5], "wrong_kind": [6],
        "identical": [7], "contradictory": [9, 10], "samples_and_gold_differ_in_number": [11],
    }
    assert found["items"]["used"] == 4 and found["scores"]["missing"] == 2
    assert found["preference"]["accuracy"]["count"] == 3  # one has nothing left to compare with
    assert found["preference"]["pairwise_accuracy"]["count"] == 4
    printed = capsys.readouterr().out
    assert "refused: 2 contradictory (first: line 9, 10)" in printed and "2 missing" in printed


def test_chat_messages(tmp_path):
    user, say = {"role": "user", "content": "hi"}, lambda text: {
        "role": "assistant", "content": text}
    rows = [{"chosen": [user, say("long answer")], "rejected": [user, say("no")]}]
    read = reward_items.read_items(write(tmp_path / "a.jsonl", rows), {}, scored=False)
    assert read.items[0][1:4] == ("hi", "long answer", ("no",))
    rows = [{"prompt": [{"role": "system", "content": "s"}, user], "chosen": "a", "rejected": "b"}]
    read = reward_items.read_items(write(tmp_path / "b.jsonl", rows), {}, scored=False)
    assert read.items[0].prompt == "system: s\n\nuser: hi"


def test_a_reward_that_is_constant(tmp_path, capsys):
    rows = [{"chosen_score": 1.0, "rejected_score": [1.0]}] * 5
    assert run(tmp_path, "--items", write(tmp_path / "a.jsonl", rows), "--scores") == 0
    found = summary(tmp_path)
    assert value(found["preference"], "accuracy") == 0
    assert value(found["preference"], "accuracy_with_ties") == 1
    assert found["length"] is None and found["best_of_n"] is None
    assert "every pair is tied" in capsys.readouterr().out


USER, SYSTEM = {"role": "user", "content": "hi"}, {"role": "system", "content": "be kind"}


def said(text):
    return {"role": "assistant", "content": text}


@pytest.mark.parametrize(
    "changes, reason",
    [
        (dict(rejected=[[{**USER, "content": "bye"}, said("no")]]), "different_prompts"),
        (dict(chosen=[USER, said("a")], rejected=[[SYSTEM, USER, said("b")]]), "different_prompts"),
        (dict(prompt="other", chosen=[USER, said("a")]), "different_prompts"),
        (dict(chosen=[said("a"), USER]), "last_message_is_no_answer"),
        (dict(prompt=[{"role": "user", "content": None}]), "wrong_kind"),
        (dict(prompt=[{"content": "hi"}]), "wrong_kind"),
        (dict(chosen=["a", "b"]), "wrong_kind"),
        (dict(prompt="\ud800"), "not_unicode"),
        (dict(rejected=["\udc00"]), "not_unicode"),
        (dict(category="\udc00"), "not_unicode"),
        (dict(answers=5), "wrong_kind"),
        (dict(gold=["1", "0", "1", "0"]), "wrong_kind"),
    ],
)
def test_further_records_that_are_refused(tmp_path, changes, reason):
    path = write(tmp_path / "a.jsonl", [record(1, prompt="hi"), record(2, **{"prompt": "hi", **changes})])
    assert reward_items.read_items(path, {}, scored=False).refused == {reason: [2]}


@pytest.mark.parametrize(
    "changes, reason",
    [
        (dict(chosen_score=[1.0, 2.0]), "several_scores_of_chosen"),
        (dict(rejected=["a", "b"]), "rejected_and_scores_differ_in_number"),
        (dict(contrast_score=[1.0, 2.0]), "contrast_score_is_not_four_numbers"),
        (dict(chosen_score=None), "no_score"),
        (dict(rejected_score=None), "no_score"),
        (dict(chosen_score="2"), "wrong_kind"),
    ],
)
def test_scores_that_are_refused(tmp_path, changes, reason):
    own = {"chosen_score": 2, "rejected_score": 10**400, "chosen": "x", "rejected": "y"}
    path = write(tmp_path / "a.jsonl", [own, {**own, "chosen": "z", **changes}])
    read = reward_items.read_items(path, {}, scored=True)
    assert read.refused == {reason: [2]} and math.isnan(read.items[0].scores["rejected_score"][0])


@pytest.mark.parametrize(
    "changes, messages",
    [
        (dict(prompt=[SYSTEM, USER]), [SYSTEM, USER]),
        (dict(chosen=[SYSTEM, USER, said("a")], rejected=["b"]), [SYSTEM, USER]),
        (dict(prompt="hi", chosen=[SYSTEM, USER, said("a")]), [SYSTEM, USER]),
        (dict(prompt=[USER], chosen=[said("a")], rejected=[[USER, said("b")]]), [USER]),
        (dict(prompt=" ", chosen=[USER, said("a")]), [USER]),
        (dict(prompt="hi", chosen=["a"]), []),
    ],
)
def test_conversations_are_remembered(tmp_path, changes, messages):
    path = write(tmp_path / "a.jsonl", [{"rejected": "b", "chosen": "a", **changes}])
    (item,) = reward_items.read_items(path, {}, scored=False).items
    assert list(getattr(item.prompt, "messages", [])) == messages
    assert item.prompt == ("system: be kind\n\nuser: hi" if len(messages) == 2 else "hi")
    assert (item.chosen, item.rejected) == ("a", ("b",))


def test_numbers_of_any_kind_are_taken():
    numbers = [np.float32(1), 2, True, None, np.array([4.0]), jnp.float32(5), float("inf")]
    found = reward_sources._numbers("a:b", numbers, 7)
    np.testing.assert_array_equal(found, [1, 2, 1, np.nan, 4, 5, np.inf])


def test_a_template_gets_the_messages(tmp_path):
    """Of a conversation, not one message with all of its text."""
    from jaxreward.networks import hf_config
    from jaxreward.networks.transformer_config import TransformerConfig
    from jaxreward.rewards import learned, learned_files
    from jaxreward.tasks import pretrained_tokenizer
    from jaxreward.tasks import tokenizer as tokenizers

    pytest.importorskip("safetensors")
    pytest.importorskip("tokenizers")
    where = PRETRAINED / "smollm"
    pretrained = pretrained_tokenizer.open_pretrained(where)
    config = TransformerConfig(
        pretrained.tokenizer.vocab_size, width=8, layers=1, heads=2, kv_heads=1, intermediate=8)
    trunk = hf_config.to_hf(config, "float32")
    spec = {"network": "text", "trunk": trunk, "head": {"kind": "scalar"}}
    model = learned_files.build(spec)
    params = jax.jit(model.init)(jax.random.key(0))
    learned_files.save(tmp_path / "model", params, spec)
    rows = [{"chosen": [SYSTEM, USER, said("x"), USER, said("y")], "rejected": "z"}]
    (item,) = reward_items.read_items(write(tmp_path / "a.jsonl", rows), {}, scored=False).items
    text = "".join(
        f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in rows[0]["chosen"])
    assert pretrained_tokenizer.render_chats(pretrained, [rows[0]["chosen"]]) == [text]
    tokens = tokenizers.encode(pretrained.tokenizer, [text])
    own = learned.Texts(jnp.asarray(tokens.tokens), jnp.asarray(tokens.lengths))
    found = reward_sources.from_checkpoint(tmp_path / "model", str(where))([item.prompt], ["y"])
    np.testing.assert_allclose(found, jax.jit(model.score)(params, own), rtol=1e-5)


def test_checkpoints_of_vectors(tmp_path, capsys):
    from jaxreward.rewards import learned_files

    pytest.importorskip("safetensors")
    spec = {"network": "mlp", "width": 2, "hidden": [4], "members": 2}
    model = learned_files.build(spec)
    params = jax.jit(model.init)(jax.random.key(0))
    learned_files.save(tmp_path / "model", params, spec)
    rows = [{"prompt": "", "chosen": f"[{i}, 1.0]", "rejected": [f"[1.0, {i}]"]} for i in (2, 3, 4)]
    path = write(tmp_path / "a.jsonl", rows)
    assert run(tmp_path, "--items", path, "--checkpoint", tmp_path / "model") == 0
    scores = np.asarray(jax.jit(model.score)(params, jnp.array([[2.0, 1.0], [1.0, 2.0]])))
    wanted = {
        "mean": scores.mean(0), "worst_case": scores.min(0), "0": scores[0], "1": scores[1],
        "uncertainty_weighted": scores.mean(0) - 0.5 * scores.var(0),
    }  # fmt: skip
    for members, expected in wanted.items():
        scorer = reward_sources.from_checkpoint(tmp_path / "model", members=members)
        np.testing.assert_allclose(scorer(["", ""], ["[2, 1]", "[1, 2]"]), expected, rtol=1e-5)
    assert run(tmp_path, "--items", path, "--checkpoint", tmp_path / "model", "--members", 1) == 0
    assert run(tmp_path, "--items", path, "--checkpoint", tmp_path / "model", "--members", 2) == 2
    assert "--members = 2; allowed with" in capsys.readouterr().err
    with pytest.raises(ValueError, match="no list of 2 numbers"):
        scorer([""], ["[1]"])


@pytest.mark.parametrize("head", [
    {"kind": "scalar"}, {"kind": "quantiles", "count": 3}, {"kind": "verdict", "yes": [5], "no": [6]},
])  # fmt: skip
def test_checkpoints_of_texts(tmp_path, head):
    from jaxreward.networks import hf_config
    from jaxreward.networks.transformer_config import TransformerConfig
    from jaxreward.rewards import learned, learned_files
    from jaxreward.tasks import tokenizer as tokenizers

    pytest.importorskip("safetensors")
    tokenizer = tokenizers.make_tokenizer()
    config = TransformerConfig(
        tokenizer.vocab_size, width=8, layers=1, heads=2, kv_heads=1, intermediate=8
    )
    spec = {"network": "text", "trunk": hf_config.to_hf(config, "float32"), "head": head}
    model = learned_files.build(spec)
    params = jax.jit(model.init)(jax.random.key(0))
    learned_files.save(tmp_path / "model", params, spec)
    rows = [{"prompt": f"{i}+1=", "chosen": str(i + 1), "rejected": [str(i)]} for i in range(4)]
    where = ("--tokenizer", "jaxreward.tasks.tokenizer:ALPHABET")
    path = write(tmp_path / "a.jsonl", rows)
    assert run(tmp_path, "--items", path, "--checkpoint", tmp_path / "model", *where) == 0
    assert summary(tmp_path)["scores"]["count"] == 8
    found = reward_sources.from_checkpoint(tmp_path / "model", where[1])(["2+1="], ["3"])
    tokens = tokenizers.encode(tokenizer, ["2+1=3"], eos=True)
    texts = learned.Texts(jnp.asarray(tokens.tokens), jnp.asarray(tokens.lengths))
    own = jax.jit(model.score)(params, texts)
    np.testing.assert_allclose(found, own, rtol=1e-5, atol=1e-6)


def test_process_reward_models(tmp_path, capsys):
    """Steps are those of the response: prompt and template hold the separator, a line's end, too."""
    from jaxreward.networks import heads, hf_config
    from jaxreward.networks.transformer_config import TransformerConfig
    from jaxreward.rewards import learned_files
    from jaxreward.tasks import pretrained_tokenizer
    from jaxreward.tasks import tokenizer as tokenizers

    pytest.importorskip("safetensors")
    pytest.importorskip("tokenizers")
    where = PRETRAINED / "llama-bpe"
    pretrained = pretrained_tokenizer.open_pretrained(where)
    newline = int(tokenizers.encode(pretrained.tokenizer, ["\n"]).tokens[0, 0])
    size = pretrained.tokenizer.vocab_size
    config = TransformerConfig(size, width=8, layers=1, heads=2, kv_heads=1, intermediate=8)
    head = {"kind": "steps", "separators": [newline], "aggregation": "min"}
    spec = {"network": "text", "trunk": hf_config.to_hf(config, "float32"), "head": head}
    params = jax.jit(learned_files.build(spec).init)(jax.random.key(0))
    learned_files.save(tmp_path / "model", params, spec)
    rows = [{"prompt": "a\nb", "chosen": "x\nyy\n\nz", "rejected": ["x", "\n "]}]
    path = write(tmp_path / "a.jsonl", rows)
    source = ("--checkpoint", tmp_path / "model", "--tokenizer", where)
    assert run(tmp_path, "--items", path, *source) == 2  # no answer
    assert "empty_answer 1" in capsys.readouterr().err
    rows[0]["rejected"][1] = "y\nz"
    assert run(tmp_path, "--items", write(tmp_path / "a.jsonl", rows), *source) == 0
    assert summary(tmp_path)["scores"] | {"mean": 0, "std": 0} == {
        "count": 3, "missing": 0, "distinct": 3, "comparisons": 2, "mean": 0, "std": 0}

    text = "<bos><start_of_turn>user\na\nb<end_of_turn>\n<start_of_turn>model\nx\nyy\n\nz<end_of_turn>\n"
    tokens = tokenizers.encode(pretrained.tokenizer, [text])
    last = int(tokens.lengths[0]) - 3  # z, before what the template writes
    ends = jnp.array([[last - 5, last - 2, last]])
    x, y = (tokenizers.decode(pretrained.tokenizer, tokens.tokens[:, place]) for place in (last - 6, last - 3))
    assert x == ["x"] and y == ["y"]
    network = heads.on_transformer(config, heads.StepScores(), extra=(ends,))
    arrays = jnp.asarray(tokens.tokens), jnp.asarray(tokens.lengths)
    apply = jax.jit(lambda params: jax.nn.sigmoid(network.apply(params, *arrays, ends))[0])
    expected = np.asarray(apply(params))
    for aggregation, value in (("min", expected.min()), ("last", expected[-1])):
        (tmp_path / "model" / "reward_model.json").write_text(
            json.dumps({**spec, "head": {**head, "aggregation": aggregation}}))
        scorer = reward_sources.from_checkpoint(tmp_path / "model", str(where))
        np.testing.assert_allclose(scorer(["a\nb"], ["x\nyy\n\nz"]), [value], rtol=1e-5)
    for change, message in (
        ({"separators": [size]}, f"separators = [{size}]; allowed is one token or more in"),
        ({"aggregation": "sum"}, "aggregation = 'sum'; allowed are 'min'"),
    ):
        (tmp_path / "model" / "reward_model.json").write_text(
            json.dumps({**spec, "head": {**head, **change}}))
        assert run(tmp_path, "--items", path, *source) == 2
        assert message in capsys.readouterr().err


def test_distances_in_an_mdp(tmp_path, capsys):
    transitions = np.array([[[1, 0], [0, 1]], [[0, 1], [1, 0]]], float)
    gold = np.zeros((2, 2, 2))
    gold[0, 1, 1] = 1
    other = gold.copy()
    other[0, 0, 1], other[1, 0, 0] = 5, -4
    arrays = dict(transitions=transitions, discount=0.9, gold=gold)
    np.savez(tmp_path / "mdp.npz", **arrays, impossible=other, opposite=-gold)
    assert run(tmp_path, "--mdp", tmp_path / "mdp.npz") == 0
    found = summary(tmp_path)["mdp"]
    assert found["impossible"]["VAL-2-2"] < 1e-12  # exactly 0 or not, by the compiler
    assert found["impossible"]["EPIC-2-2"] == pytest.approx(1.754127, abs=1e-5)
    assert found["opposite"]["worst_case_regret"] == pytest.approx(1.0, abs=1e-5)
    assert "impossible" in capsys.readouterr().out
    potential = np.array([50.0, -30.0])
    shaped = 3 * gold + 0.999 * potential[None, None] - potential[:, None, None]
    near_one = mdp_judgement.judge_mdp({**arrays, "discount": np.array(0.999), "shaped": shaped})
    assert max(abs(x) for x in near_one["shaped"].values()) < 1e-7
    assert not jax.config.jax_enable_x64
    for change, message in (
        (dict(gold=gold[0]), "gold has shape"), (dict(discount=1.5), "discount = 1.5"),
        (dict(gold=gold * np.nan), "gold has a value that is not finite"),
    ):
        np.savez(tmp_path / "bad.npz", **{**arrays, **change}, one=other)
        assert run(tmp_path, "--mdp", tmp_path / "bad.npz") == 2
        assert message in capsys.readouterr().err
    np.savez(tmp_path / "bad.npz", **arrays)
    assert run(tmp_path, "--mdp", tmp_path / "bad.npz") == 2
    assert "no reward beside gold" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, message",
    [
        ([], "give --items=FILE"),
        (["--items=a.jsonl"], "given are 0"),
        (["--items=a.jsonl", "--scores", "--hf=x"], "given are 2"),
        (["--scores", "--mdp=m.npz"], "--scores needs --items"),
        (["--items=none.jsonl", "--scores"], "none.jsonl is not a file"),
        (["--items=a.csv", "--scores"], "suffix '.csv' is unknown"),
        (["--items=a.jsonl", "--scores", "--columns=score=x"], "--columns has 'score=x'"),
        (["--items=a.jsonl", "--scores", "--columns=gold=x"], "no column 'chosen_score'"),
        (["--items=a.jsonl", "--callable=nothing"], "allowed is MODULE:FUNCTION"),
        (["--items=a.jsonl", "--callable=os:nothing"], "cannot be imported"),
        (["--items=a.jsonl", "--callable=os:sep"], "is a str"),
        (["--items=a.jsonl", "--callable=os:getcwd"], "must take prompts and responses"),
        (["--items=a.jsonl", "--callable=test_evaluate_reward:too_few"], "returned 1 scores"),
        (["--items=a.jsonl", "--callable=test_evaluate_reward:raises"], "raised KeyError: 'yes'"),
        (["--items=a.jsonl", "--callable=test_evaluate_reward:of_texts"], "no list of numbers"),
        (["--items=a.jsonl", "--callable=broken:score"], "imported: ZeroDivisionError: division"),
        (["--items=a.jsonl", "--scores", "--members=mean"], "--members = mean needs --checkpoint"),
        (["--items=a.jsonl", "--checkpoint=.", "--members=least"], "--members = 'least'; allowed"),
        (["--items=a.jsonl", "--scores", "--bins=0"], "--bins = 0"),
        (["--items=a.jsonl", "--checkpoint=nowhere"], "nowhere is not a folder"),
        (["--mdp=a.jsonl"], "allowed is an existing .npz"),
        (["--wrong"], "unrecognized arguments"),
    ],
)
def test_bad_command_lines_write_nothing(tmp_path, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.jsonl", [record(i) for i in range(3)])
    (tmp_path / "a.csv").write_text("x")
    (tmp_path / "broken.py").write_text("1 / 0")
    assert run(tmp_path, *arguments) == 2
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_hugging_face_models_need_their_packages(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    path = write(tmp_path / "a.jsonl", [record(1)])
    assert run(tmp_path, "--items", path, "--hf", "model") == 2
    assert "needs the packages transformers and torch" in capsys.readouterr().err


def hugging_face_model(folder, *, template=None, pad="[PAD]", in_config=None, head=True):
    """A random Llama of five words in `folder`."""
    transformers = pytest.importorskip("transformers")
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = Tokenizer(models.WordLevel({"[PAD]": 0, "[UNK]": 1, "a": 2, "b": 3, "c": 4}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token=pad, eos_token="c", model_max_length=6)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)
    config = transformers.LlamaConfig(
        vocab_size=5, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_labels=1,
        num_attention_heads=2, pad_token_id=in_config,
    )
    kind = transformers.LlamaForSequenceClassification if head else transformers.LlamaForCausalLM
    model = kind(config).eval()
    model.save_pretrained(folder)
    return model


TEMPLATE = "{% for m in messages %}{% if m.role == 'system' %}a {% endif %}{{ m.content }} {% endfor %}"


@pytest.mark.slow  # torch and transformers are imported
@pytest.mark.parametrize("template", [None, TEMPLATE])
@pytest.mark.parametrize("pad, in_config", [("[PAD]", 0), ("[PAD]", None), (None, None), (None, 0)])
def test_a_hugging_face_model_is_judged(tmp_path, template, pad, in_config):
    """Alone, in a batch, and with a text that ends with the token that ends texts."""
    torch = pytest.importorskip("torch")
    model = hugging_face_model(tmp_path / "model", template=template, pad=pad, in_config=in_config)
    rows = [{"prompt": "a ", "chosen": "b", "rejected": ["c", "b c a"]}]
    path = write(tmp_path / "a.jsonl", rows)
    assert run(tmp_path, "--items", path, "--hf", tmp_path / "model") == 0
    assert summary(tmp_path)["scores"]["count"] == 3
    scorer = reward_sources.from_hugging_face(str(tmp_path / "model"))
    ids = ([2, 3], [2, 3, 4, 2], [2, 3, 4])
    with torch.no_grad():
        expected = [model(torch.tensor([row])).logits[0, 0].item() for row in ids]
    found = scorer(["a "] * 4, ["b", "b c a", "b c", "a b c a b c"])  # the last is too long
    np.testing.assert_allclose(found, [*expected, np.nan], rtol=1e-4, atol=1e-6)
    if template:
        prompt = dialogue([("system", "b"), ("user", "c")])
        with torch.no_grad():
            expected = model(torch.tensor([[2, 3, 4, 3]])).logits[0]
        np.testing.assert_allclose(scorer([prompt], ["b"]), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow  # likewise
def test_a_language_model_is_no_reward(tmp_path, capsys):
    hugging_face_model(tmp_path / "model", head=False)
    path = write(tmp_path / "a.jsonl", [record(1)])
    capsys.readouterr()
    assert run(tmp_path, "--items", path, "--hf", tmp_path / "model") == 2
    assert "has no weights score.weight" in capsys.readouterr().err


def test_intervals():
    zeros = reward_judgement.mean(np.zeros(10))
    assert zeros["value"] == zeros["low"] == 0 and 0.2 < zeros["high"] < 0.35  # Wilson
    few = reward_judgement.mean([0.5, 0.7, 0.9])
    half = 1.959964 * 0.2 / math.sqrt(3)
    assert few["low"] == pytest.approx(0.7 - half) and few["high"] == pytest.approx(0.7 + half)
    assert reward_judgement.mean([]) is None and reward_judgement.mean([0.3])["low"] is None
