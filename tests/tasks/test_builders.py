import fractions
import subprocess
import sys

import numpy as np
import pytest
import tensorflow_datasets as tfds

import jaxreward.tasks.digit_images
import jaxreward.tasks.exact_fraction
import jaxreward.tasks.gsm_symbolic
import jaxreward.tasks.preference_pairs
import jaxreward.tasks.random_calculation
import jaxreward.tasks.traced_integer
import jaxreward.tasks.worked_calculation
from jaxreward.tasks import datasets

PACKAGES = {name: getattr(jaxreward.tasks, name) for name in datasets.NAMES}


@pytest.mark.parametrize("name", datasets.NAMES)
def test_builder_describes_itself(name, tmp_path):
    for config in PACKAGES[name].Builder.BUILDER_CONFIGS:
        builder = tfds.builder(f"{name}/{config.name}", data_dir=tmp_path)
        assert builder.info.description and config.description
        assert builder.info.citation.startswith("@") and "arXiv" in builder.info.citation
        assert builder.info.homepage.startswith("https://arxiv.org/abs/2")
    names = [config.name for config in PACKAGES[name].Builder.BUILDER_CONFIGS]
    assert len(names) == len(set(names))


@pytest.mark.parametrize("dataset", ["random_calculation/digits", "exact_fraction/tiny"])
def test_plain_tensorflow_datasets_calls_work(dataset, tmp_path):
    builder = tfds.builder(dataset, data_dir=tmp_path, file_format="array_record")
    builder.download_and_prepare()
    source = tfds.data_source(dataset, split="train", data_dir=tmp_path, download=False)
    made = datasets.prepare(dataset, tmp_path)
    examples = datasets.read(made, "train")
    assert len(source) == len(examples) == made.splits["train"]
    assert source[5]["prompt"].decode() == examples[5].prompt
    assert list(tmp_path.rglob("*.array_record*"))


def test_every_named_config_can_be_drawn(tmp_path):
    tiny = ["digits", "digits_add", "numbers", "digitwise", "digit_steps"]
    configs = {
        "random_calculation": [*tiny, "steps_3"],
        "worked_calculation": ["steps", "small", "larger", "mixed", "mixed_uncorrelated", "forms", "long"],
        "traced_integer": ["runmax", "runsum_static", "median_dynamic", "gcd"],
        "exact_fraction": ["tiny", "small", "medium"],
    }
    names = [f"{name}/{config}" for name, chosen in configs.items() for config in chosen]
    script = (
        "import sys; from jaxreward.tasks import datasets;"
        "[datasets.prepare(name, sys.argv[1]) for name in sys.argv[2:]]"
    )  # in a process of its own: run-time type checks make drawing ten times slower
    subprocess.run([sys.executable, "-c", script, str(tmp_path), *names], check=True)
    for name in names:
        made = datasets.prepare(name, tmp_path)
        for split in made.splits:
            for example in datasets.read(made, split):
                assert 0 <= example.prompt_type < len(made.prompt_types)
                assert 0 <= example.form < len(made.forms)
                exact = fractions.Fraction(int(example.numerator), int(example.denominator))
                assert float(exact) == example.value  # all 64 bits survive the file


def test_paper_sets_are_there():
    names = [c.name for c in PACKAGES["random_calculation"].Builder.BUILDER_CONFIGS]
    assert [f"steps_{n}" for n in range(1, 21)] == [n for n in names if n.startswith("steps_")]
    sizes = PACKAGES["random_calculation"].Config.spec.sizes
    assert dict(sizes) == {"train": 700, "validation": 300}
    assert np.sum([size for _, size in sizes]) == 1000
