"""The toy run behind the command line of real ones.

`python tests/experiments/toy_cli.py --config=... --workdir=DIR [--stream=BOOL]`
"""

import pathlib
import sys

HERE = pathlib.Path(__file__).parent
sys.path[:0] = [str(HERE), str(HERE.parent / "training"), str(HERE.parents[1])]

from experiments import cli

FLAGS = (cli.Flag("shout", bool, False, "say when it is done"),)


def run(config, workdir, shout=False):
    import toy_run
    from jaxreward.training import report
    from jaxreward.training.exits import ConfigError

    noise = config.transforms.noise
    assert noise.false_positive + noise.false_negative < config.group_size
    if config.mode == "refuse":
        raise ConfigError("config.mode = 'refuse'; allowed is anything else")
    state = toy_run.run(workdir, config.steps, mode=config.mode, seed=config.seed)
    results = report.summarize({"toy": {"w": state["params"]["w"]}})
    report.write_summary(workdir, report.make_summary(config, "toy", range(8), results, []))
    if shout:
        print("DONE")


def prepare(config):
    if config.seed == 13:
        raise ValueError("config.seed = 13; allowed is anything else")


if __name__ == "__main__":
    cli.main(run, flags=FLAGS, prepare=prepare, may_differ=("mode",))
