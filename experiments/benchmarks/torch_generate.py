"""The work of `generate` in eager PyTorch, as a process that answers line by line.

`python -m experiments.benchmarks.torch_generate DIR` reads the files that `generate` wrote to
DIR and then, from standard input, lines such as `["check", "rlcm"]` and
`["time", "reno", "whole", 2, 3]` (with 2 threads, three runs in a row after one that is not
counted). It answers each with one JSON line, the mean seconds of a run, or writes `DIR/NAME_found.npz` and answers its path. A process of
its own, so that the threads of the two frameworks do not share one; while one works the other
waits.
"""

import functools
import json
import math
import pathlib
import sys
import time
from typing import Any, Callable, NamedTuple

import numpy as np
import torch

from experiments.benchmarks import torch_denoisers
from experiments.benchmarks.torch_denoisers import Params, from_flax, to_flax

HALF_LOG_2_PI = 0.5 * math.log(2.0 * math.pi)


class Work(NamedTuple):
    """One case: the ways to do the work once, by name, and what must agree.

    Attributes:
      ways: "whole", and for RLCM "by step", with a backward pass for every step of a trajectory.
      check: what must agree with the other implementation, arrays by name.
    """

    ways: dict[str, Callable[[], None]]
    check: Callable[[], dict[str, np.ndarray]]


def main(argv: list[str]) -> None:
    """Answers until standard input ends."""
    folder = pathlib.Path(argv[1])
    print(json.dumps(torch.__version__), flush=True)
    works: dict[str, Work] = {}
    for line in sys.stdin:
        task, name, *how = json.loads(line)
        if name not in works:
            works[name] = _load(folder, name)
        if task == "check":
            answer: Any = str(folder / f"{name}_found.npz")
            np.savez(answer, **works[name].check())
        else:
            answer = _timed(works[name].ways[how[0]], *how[1:])
        print(json.dumps(answer), flush=True)


def _timed(run: Callable[[], None], threads: int, repeats: int) -> float:
    """Mean seconds of a run."""
    torch.set_num_threads(threads)
    run()
    start = time.perf_counter()
    for _ in range(repeats):
        run()
    return (time.perf_counter() - start) / repeats


def _load(folder: pathlib.Path, name: str) -> Work:
    settings = json.loads((folder / f"{name}.json").read_text())
    with np.load(folder / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    return {"rlcm": _rlcm, "reno": _reno}[settings["work"]](settings, arrays)


def _part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """The arrays under a prefix, which is cut off."""
    return {k[len(prefix) :]: v for k, v in arrays.items() if k.startswith(prefix)}


# RL of a consistency model


def _rlcm(settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Work:
    params = from_flax(_part(arrays, "params/"), train=True)
    apply = torch_denoisers.make_network(settings["network"], settings["kind"])
    levels, labels = torch.from_numpy(arrays["levels"]), torch.arange(settings["classes"])
    sampler = functools.partial(_sample, apply, params, levels, settings)
    loss = functools.partial(_clip_loss, apply, params, settings, levels)
    optimizer = torch.optim.Adam(params.values(), lr=settings["learning_rate"], fused=True)
    table, total = np.zeros((settings["classes"], 0), np.float32), settings["rate_steps"]
    kept, count = [table], [0]

    def run(backward: Callable[..., None]) -> None:
        states, old, shown = sampler(labels.repeat_interleave(settings["group_size"]))
        rewards = -_compressed(shown.numpy()).reshape(settings["classes"], -1)
        kept[0], advantages = _credit(kept[0], rewards, settings)
        for part in range(settings["updates"]):
            rows = slice(part, None, settings["updates"])
            for group in optimizer.param_groups:
                group["lr"] = settings["learning_rate"] * max(1.0 - count[0] / total, 0.0)
            optimizer.zero_grad(set_to_none=True)
            backward(states[rows], old[rows], advantages[rows], labels[rows])
            torch.nn.utils.clip_grad_norm_(list(params.values()), settings["clip_norm"])
            optimizer.step()
            count[0] += 1

    def by_step(states, old, advantages, labels) -> None:
        steps, part = old.shape[2], functools.partial(_clip_loss, apply, params, settings)
        for i in range(steps):
            own = states[:, :, i : i + 2], old[:, :, i : i + 1], advantages, labels
            (part(levels[i : i + 2], *own) / steps).backward()

    def check() -> dict[str, np.ndarray]:
        given = {k: torch.from_numpy(arrays[k]) for k in ("states", "log_probs", "advantages")}
        states, old, advantages = given.values()
        value = loss(states, old, advantages, labels)
        names, leaves = zip(*params.items())
        grads = torch.autograd.grad(value, leaves)
        by_step(states, old, advantages, labels)
        flat = lambda grads: np.concatenate(
            [to_flax(name, g).reshape(-1) for name, g in zip(names, grads)]
        )
        with torch.no_grad():
            found = _log_probs(apply, params, levels, states, labels)
            shown = _function(apply, params, levels[-1:], *_last(states, labels))
        return dict(
            log_probs=found.numpy(), shown=shown.numpy(), loss=value.detach().numpy(),
            gradient=flat(grads), gradient_by_step=flat([leaf.grad for leaf in leaves]),
        )  # fmt: skip

    ways = {"whole": lambda *batch: loss(*batch).backward(), "by step": by_step}
    return Work({name: functools.partial(run, way) for name, way in ways.items()}, check)


def _last(states: torch.Tensor, labels: torch.Tensor):
    return states[:, :, -1].flatten(0, 1), labels.repeat_interleave(states.shape[1])


def _function(apply, params: Params, levels: torch.Tensor, x, labels):
    """The consistency function; `levels [B or 1, 7]` as `generate` lists them."""
    alpha, sigma, skip, out, when = (c.reshape(-1, 1, 1, 1) for c in levels[:, :5].unbind(1))
    velocity = apply(params, x, when.reshape(-1).expand(x.shape[0]), labels)
    clean = (alpha * x - sigma * velocity) / (alpha * alpha + sigma * sigma)
    return skip * x + out * clean


@torch.no_grad()
def _sample(apply, params: Params, levels, settings: dict[str, Any], labels):
    """States `[P, G, S + 1, ...]`, log-probabilities `[P, G, S]`, images `[P G, ...]`."""
    x = torch.randn(len(labels), *settings["shape"])
    states, log_probs = [x], []
    for own in levels[:-1].split(1):
        mean = own[:, 5] * _function(apply, params, own, x, labels)
        x = mean + own[:, 6] * torch.randn_like(x)
        log_probs.append(_log_density(x, mean, own[:, 6]))
        states.append(x)
    shown = _function(apply, params, levels[-1:], x, labels)
    by_group = lambda y: y.unflatten(0, (-1, settings["group_size"]))
    return by_group(torch.stack(states, 1)), by_group(torch.stack(log_probs, 1)), shown


def _log_density(x, mean, std):
    squares = torch.square((x - mean).flatten(1)).mean(1)
    return -0.5 * squares / torch.square(std) - torch.log(std) - HALF_LOG_2_PI


def _log_probs(apply, params: Params, levels, states, labels):
    """`[P, G, S]` of all actions, by one call of the network on all of them."""
    shape = states.shape[:2] + (states.shape[2] - 1,)
    before, after = states[:, :, :-1].flatten(0, 2), states[:, :, 1:].flatten(0, 2)
    own = levels[:-1].repeat(shape[0] * shape[1], 1)
    rows = labels.repeat_interleave(shape[1] * shape[2])
    mean = own[:, 5].reshape(-1, 1, 1, 1) * _function(apply, params, own, before, rows)
    return _log_density(after, mean, own[:, 6]).reshape(shape)


def _clip_loss(apply, params: Params, settings, levels, states, old, advantages, labels):
    ratio = torch.exp(_log_probs(apply, params, levels, states, labels) - old)
    clipped = ratio.clamp(1.0 - settings["clip"], 1.0 + settings["clip"])
    advantages = advantages[:, :, None]
    return -torch.minimum(ratio * advantages, clipped * advantages).mean()


def _compressed(images: np.ndarray) -> np.ndarray:
    from jaxreward.rewards import compression

    return compression.compressed_sizes(images)


def _credit(kept: np.ndarray, rewards: np.ndarray, settings: dict[str, Any]):
    """The last rewards of every class, and advantages from them (from the batch at first)."""
    kept = np.concatenate([kept, rewards], 1)[:, -settings["buffer"] :]
    seen = kept if kept.shape[1] >= settings["min_count"] else rewards.reshape(1, -1)
    centred = rewards - seen.mean(1, keepdims=True)
    advantages = centred / (seen.std(1, keepdims=True) + 1e-6)
    return kept, torch.from_numpy(np.clip(advantages, -10.0, 10.0))


# Optimising noise


def _reno(settings: dict[str, Any], arrays: dict[str, np.ndarray]) -> Work:
    params = from_flax(_part(arrays, "params/"), train=False)
    readers = [
        from_flax(_part(arrays, f"reader_{i}/"), train=False) for i in range(settings["readers"])
    ]
    apply = torch_denoisers.make_network(settings["network"], settings["kind"])
    given = {k: torch.from_numpy(arrays[k]) for k in ("levels", "tokens", "noise", "weights")}
    allowed = torch.from_numpy(arrays["allowed"])

    def candidates(noise):
        image = _one_step(apply, params, given["levels"], noise, given["tokens"])
        return image, _losses(readers, allowed, image)

    climb = functools.partial(_climb, candidates, given["noise"], given["weights"], settings)

    def check() -> dict[str, np.ndarray]:
        course, noise = climb()
        return {"course": course.numpy(), "noise": noise.numpy()}

    return Work({"whole": lambda: (climb(), None)[1]}, check)


def _one_step(apply, params: Params, levels, noise, tokens):
    """Images `[B, H, W]` in [0, 1]."""
    alpha, sigma, skip, out, when = levels[0, :5].tolist()
    x = noise[..., None]
    velocity = apply(params, x, torch.full((len(x),), when), None, tokens)
    clean = (alpha * x - sigma * velocity) / (alpha * alpha + sigma * sigma)
    return (0.5 * ((skip * x + out * clean)[..., 0] + 1.0)).clamp(0.0, 1.0)


def _losses(readers: list[Params], allowed, image):
    """`[B, M]`: what the readers see, roughness, and minus the checkerboard."""
    batch, height, width = image.shape
    cells = image.reshape(batch, height, width // 8, 8).transpose(1, 2).reshape(batch, -1, 64)
    found = []
    for reader in readers:
        read = torch.log_softmax(torch_denoisers.perceptron(reader, cells), -1)
        pairs = read[:, 0, :, None] + read[:, 1, None, :]
        pairs = pairs.masked_fill(~allowed, -math.inf)
        found.append(-torch.logsumexp(pairs.flatten(1), 1))
    down, across = image.diff(dim=1).abs(), image.diff(dim=2).abs()
    found.append(0.5 * (down.mean((1, 2)) + across.mean((1, 2))))
    rows, columns = torch.arange(height)[:, None], torch.arange(width)[None]
    board = 1.0 - 2.0 * ((rows + columns) % 2)
    found.append(-(image * board).mean((1, 2)).abs())
    return torch.stack(found, 1)


def _climb(candidates, start, weights, settings: dict[str, Any]):
    """Losses of every candidate `[B, N, M]`, and the best noises."""
    noise = start.clone().requires_grad_()
    size, options = start[0].numel(), dict(momentum=settings["momentum"], nesterov=True)
    optimizer = torch.optim.SGD([noise], lr=settings["learning_rate"], **options)
    best, image_of_best = torch.full((len(start),), math.inf), None
    best_noise, course = start, []
    for _ in range(settings["steps"]):
        image, own = candidates(noise)
        score = own @ weights
        (gradient,) = torch.autograd.grad(score.sum(), noise)
        with torch.no_grad():
            square = torch.square(noise).sum((1, 2), keepdim=True)
            gradient += settings["prior"] * noise * (1.0 - (size - 1) / square)
            norm = torch.linalg.vector_norm(gradient, dim=(1, 2), keepdim=True)
            noise.grad = gradient * (settings["clip"] / (norm + 1e-6)).clamp(max=1.0)
            wins = (score < best)[:, None, None]
            kept = image if image_of_best is None else image_of_best
            best_noise = torch.where(wins, noise, best_noise)
            image_of_best, best = torch.where(wins, image, kept), torch.minimum(score, best)
        optimizer.step()
        course.append(own.detach())
    return torch.stack(course, 1), best_noise


if __name__ == "__main__":
    main(sys.argv)
