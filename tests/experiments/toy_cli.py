"""The toy run behind the command line of real ones.

`python tests/experiments/toy_cli.py --config=... --workdir=DIR [--shout]`
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

    noise = config.transforms.noise
    assert noise.false_positive + noise.false_negative < config.group_size
    state = toy_run.run(workdir, config.steps, mode=config.mode, seed=config.seed)
    results = report.summarize({"toy": {"w": state["params"]["w"]}})
    report.write_summary(workdir, report.make_summary(config, "toy", range(8), results, []))
    if shout:
        print("DONE")


if __name__ == "__main__":
    cli.main(run, flags=FLAGS, may_differ=("mode",))
