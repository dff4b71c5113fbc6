"""Preparing and reading the data sets of this room.

Data are generated once under a folder, whole or not at all, also when several processes ask
at the same time. tensorflow-datasets is imported when first needed, not with this module.
"""

import contextlib
import fcntl
import hashlib
import importlib
import io
import pathlib
import shutil
from typing import Any, Iterator, NamedTuple

from jaxreward.tasks import records
from jaxreward.tasks.records import Example

NAMES = (
    "digit_images", "exact_fraction", "gsm_symbolic", "preference_pairs", "random_calculation",
    "traced_integer", "worked_calculation",
)  # fmt: skip
"""The data sets: packages of this room with a builder."""


class Dataset(NamedTuple):
    """A prepared data set.

    Attributes:
      name: `<data set>/<config>`.
      splits: sizes by name.
      prompt_types: names behind `prompt_type`.
      forms: names behind `form`.
      fingerprint: 16 hex digits, different for different data.
      builder: the tensorflow-datasets builder.
    """

    name: str
    splits: dict[str, int]
    prompt_types: tuple[str, ...]
    forms: tuple[str, ...]
    fingerprint: str
    builder: Any


def prepare(dataset: str, data_dir: str | pathlib.Path, spec: Any = None) -> Dataset:
    """Generates a data set unless it is there.

    Args:
      dataset: `<data set>/<config>` such as `random_calculation/digits`; the data set alone
        where `spec` is given.
      data_dir: folder of all data sets, created if needed.
      spec: a spec of your own, such as an `ExpressionSpec`, in place of a named config.

    Raises:
      ValueError: no such data set or config, an impossible spec, or the folder holds data
        that another spec made.
    """
    package, config = _find_config(dataset, spec)
    data_dir, expected = pathlib.Path(data_dir), records.spec_text(config.spec)
    data_dir.mkdir(parents=True, exist_ok=True)
    with _locked(data_dir, dataset.partition("/")[0]):
        # made under the lock, because a builder looks for its data only when it is made
        builder = package.Builder(config=config, data_dir=data_dir, file_format="array_record")
        _prepare_locked(builder)
    folder = pathlib.Path(builder.data_dir)
    metadata = builder.info.metadata or {}
    if metadata.get("spec") != expected:
        raise ValueError(
            f"{folder} holds data of another specification, {metadata.get('spec')}; wanted is "
            f"{expected}; delete the folder, or give another data_dir"
        )
    name = f"{builder.name}/{builder.builder_config.name}"
    identity = f"{name}|{builder.version}|{expected}"
    return Dataset(
        name=name,
        splits={split: info.num_examples for split, info in builder.info.splits.items()},
        prompt_types=tuple(metadata["prompt_types"]),
        forms=tuple(metadata["forms"]),
        fingerprint=hashlib.sha256(identity.encode()).hexdigest()[:16],
        builder=builder,
    )


def _find_config(dataset: str, spec: Any):
    """The package of a data set and the builder config that is asked for."""
    name, _, config_name = dataset.partition("/")
    if name not in NAMES:
        raise ValueError(
            f"dataset = {dataset!r}; allowed are {', '.join(NAMES)}, each with /config"
        )
    package = importlib.import_module(f"jaxreward.tasks.{name}")
    if spec is None:
        known = {config.name: config for config in package.Builder.BUILDER_CONFIGS}
        if config_name in known:
            return package, known[config_name]
        raise ValueError(
            f"dataset = {dataset!r} has no config {config_name!r}; allowed are {', '.join(known)}"
        )
    if config_name:
        raise ValueError(
            f"dataset = {dataset!r} names a config and spec is given; allowed is one of them"
        )
    allowed = type(package.Config.spec)
    if not isinstance(spec, allowed):
        raise ValueError(
            f"spec is a {type(spec).__name__}; allowed for {name} is {allowed.__name__}"
        )
    digest = hashlib.sha256(records.spec_text(spec).encode()).hexdigest()
    return package, package.Config(name=f"custom_{digest[:12]}", description="custom", spec=spec)


@contextlib.contextmanager
def _locked(data_dir: pathlib.Path, name: str) -> Iterator[None]:
    """Holds the lock of one data set against other processes of this machine."""
    with open(data_dir / f".{name}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _prepare_locked(builder) -> None:
    folder = pathlib.Path(builder.data_dir)
    if folder.exists():
        return
    if folder.parent.exists():  # left by a process that was killed
        for torn in folder.parent.glob("incomplete.*"):
            shutil.rmtree(torn)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        builder.download_and_prepare()


def read(dataset: Dataset, split: str) -> list[Example]:
    """All examples of a split in the order of their ids.

    Raises:
      ValueError: no such split, an empty one, records that cannot be read, or ids that are
        not `0 .. n - 1`.
    """
    if split not in dataset.splits:
        raise ValueError(
            f"split = {split!r} of {dataset.name}; allowed are {', '.join(dataset.splits)}"
        )
    folder = dataset.builder.data_dir
    try:
        source = dataset.builder.as_data_source(split=split)
        raw = source.__getitems__(list(range(len(source)))) if len(source) else []
    except Exception as error:
        raise ValueError(
            f"split {split!r} in {folder} cannot be read ({error}); delete the folder to "
            "generate it again"
        ) from error
    if not raw:
        raise ValueError(f"split {split!r} in {folder} has 0 examples; allowed is >= 1")
    examples = [records.from_record(record) for record in raw]
    wrong = next((i for i, example in enumerate(examples) if example.id != i), None)
    if wrong is not None:
        raise ValueError(
            f"split {split!r} in {folder}: example {wrong} has id {examples[wrong].id}; allowed "
            "are ids equal to positions; delete the folder to generate it again"
        )
    return examples
