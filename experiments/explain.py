"""Draws the README's figure: a noisy verifier acts like a larger KL coefficient.

    python -m experiments.explain [--out=experiments/results/noise_is_kl.png]
"""

import pathlib
import sys

from experiments import cli
from jaxreward.training.exits import ConfigError

REFERENCE, TRUE_REWARDS = (0.5, 0.3, 0.2), (0.0, 1.0, 0.0)
FALSE_POSITIVE, FALSE_NEGATIVE = 0.2, 0.4


def main(argv: list[str]) -> int:
    """Draws and says where; returns the exit code."""
    default = "experiments/results/noise_is_kl.png"
    flags = (cli.Flag("out", default=default, help="a .png"),)
    if cli.asked_for_help(argv, flags):
        return 0
    try:
        out = cli.parse(argv, flags).values["out"]
        if not pathlib.Path(out).parent.is_dir():
            raise ConfigError(f"out = {out!r}; allowed is a file in a folder that exists")
    except ConfigError as error:
        cli.say(error)
        return error.exit_code
    draw(out)
    print(f"wrote {out}")
    return 0


def draw(out: str) -> None:
    """Success probability of the KL-regularised optimum, and the factors of each baseline."""
    import jax.numpy as jnp
    import numpy as np

    from jaxreward import channel as channels
    from jaxreward.evaluation import fixed_point
    from jaxreward.training import figures

    channel = channels.binary(FALSE_POSITIVE, FALSE_NEGATIVE)
    reference, rewards = jnp.asarray(REFERENCE), jnp.asarray(TRUE_REWARDS)
    coefficients = np.geomspace(0.05, 2.0, 60)
    optima = {
        "clean": lambda c: fixed_point.regularized_optimum(reference, rewards, c),
        "noisy": lambda c: fixed_point.noisy_optimum(reference, rewards, c, channel),
        "noisy, backward-corrected": lambda c: fixed_point.restored_optimum(
            reference, rewards, c, channel, rates=channel
        ),
    }
    figure, axes = figures.new_figure(1, 2, width=5.5, height=3.6)
    for (label, optimum), style in zip(optima.items(), ("-", "-", ":")):
        success = [float(optimum(jnp.float32(c)) @ rewards) for c in coefficients]
        axes[0, 0].semilogx(coefficients, success, style, label=label, linewidth=2)
    j = float(channel.determinant)
    success = [float(optima["clean"](jnp.float32(c / j)) @ rewards) for c in coefficients]
    axes[0, 0].semilogx(coefficients, success, "k--", label="clean with KL / J", linewidth=1)
    axes[0, 0].set(xlabel="KL coefficient", ylabel="P(right answer) at the optimum")
    axes[0, 0].set_title(
        f"false_positive {FALSE_POSITIVE:g}, false_negative {FALSE_NEGATIVE:g}: J = {j:.1f}"
    )
    axes[0, 0].legend(frameon=False)
    rates = np.linspace(0.01, 0.99, 99)
    for false_positive, false_negative in ((0.05, 0.05), (0.1, 0.2), (0.3, 0.3), (0.1, 0.5)):
        one = channels.binary(false_positive, false_negative)
        kappa = channels.reliability(jnp.asarray(rates, jnp.float32), one)
        label = f"{false_positive:g}, {false_negative:g} (J = {float(one.determinant):.1f})"
        axes[0, 1].plot(rates, kappa, label=label, linewidth=2)
    axes[0, 1].set(xlabel="true success rate of the prompt", ylabel="factor on the GRPO advantage")
    axes[0, 1].set_title("what is left of a prompt's gradient: kappa")
    axes[0, 1].legend(frameon=False, title="false_positive, false_negative")
    figures.save(figure, out)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
