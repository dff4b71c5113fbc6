"""Language policies learn from a verifier: arms x seeds, tuned and untuned, in one run.

`python -m experiments.rlvr --config=configs/<method>.py[:variant] --workdir=DIR`

1. Warm start: one supervised policy, the start and the KL reference of every run.
2. Tune: every arm over the same grid of `config.tune`, on seeds of its own; not where
   `config.settings` leaves `tuned` out.
3. Compare: every arm at `config.hyper` (setting `equal`) and at its own best (`tuned`), on
   the reported seeds, all runs in one program.
4. Report: `summary.json`, `report.png` and two tables.

The stages checkpoint in `tune/` and `compare/`; the same command continues where the last one
stopped.
"""

import ml_collections


def run(config: ml_collections.ConfigDict, workdir: str) -> None:
    """Runs all stages. `config` has passed `rlvr_config.validate`."""
    from experiments import arms as arms_lib  # heavy imports only once the config is good
    from experiments import answer_scores, rlvr_problem, rlvr_programs, rlvr_report
    from experiments import rlvr_stages, rlvr_start

    arms = arms_lib.build_arms(config, arms_lib.provided(config))
    problem = rlvr_problem.load_problem(config, workdir)
    with rlvr_problem.open_verification(config, problem) as verification:
        start = rlvr_problem.warm_start(config, problem)
        problem = rlvr_start.with_votes(config, problem, verification, start)
        problem = answer_scores.with_base_scores(config, problem, start)
        scores = rlvr_start.yardsticks(config, problem, verification, start)
        probed = rlvr_start.probe(config, problem, start)
        if probed:
            scores = {**scores, "start_completes": probed}
        context = rlvr_programs.Context(config, problem, arms, verification, start, workdir)
        programs = rlvr_programs.make_programs(context)
        stage = rlvr_stages.comparison_stage(
            config, len(arms), rlvr_stages.tune(context, programs)
        )
        final = rlvr_stages.train(context, programs, stage)
    rlvr_report.write(context, stage, final, scores)


if __name__ == "__main__":
    from experiments import cli, rlvr_config

    cli.spread_over_cores()
    cli.main(run, validate=rlvr_config.validate)
