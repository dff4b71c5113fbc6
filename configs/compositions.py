"""Methods that no paper tried together, each a chain of one arm.

- appeals_forward_refinement: Online Label Refinement replaces labels, appeals measure how often
  what is left of the verifier errs, the forward correction takes that out.
- majority_appeals: the majority vote as reward, appeals against it, group normalisation by the
  clean moments that they imply.
- flips_patterns_backward: group flips, the pattern reward lifts what scored low, and appeals
  measure the lifted reward.
- patterns_then_refinement: the pattern reward first, then labels that refinement replaces.
- missing_exact: flips by output and missing verdicts under the exact correction of RLOO.
- hacked_fixed: a pattern that is always accepted, appeals that also overwrite what they re-check.
- minimum_error_refinement: refinement, and the minimum-error weights of known rates.

Each stands beside `noisy_*`, the same noise under plain RLOO. No claim: what runs is what counts.

Measured (3 seeds, final true accuracy; start 0.206, which guesses more often than it works out;
tuned over three KL coefficients, in brackets the difference from the same noise without remedy):
noisy_labels 0.21, appeals_forward_refinement 0.31 (+0.10 [-0.06, 0.25]), minimum_error_refinement
0.35 (+0.14 [0.02, 0.25]), patterns_then_refinement 0.38 (+0.17 [-0.05, 0.39]); noisy_groups 0.21,
flips_patterns_backward 0.15 (-0.06 [-0.48, 0.36]); noisy_hack 0.40, hacked_fixed 0.33 (-0.07 [-0.22,
0.07]); majority_appeals 0.14 and missing_exact 0.25 (-0.07 [-0.15, 0.02], +0.04 [-0.17, 0.25] from
the start). At equal hyper-parameters none gains; hacked_fixed loses 0.21 [0.14, 0.28].
- What decides is whether a seed turns to working answers out: responses of 21 tokens where accuracy
  rises, 12 under noisy_labels, 5 under the majority vote, 8 at the start.
- Refinement replaces 0.4 to 0.5 of the labels by the end, of which 0.50 to 0.65 are right, fewer than
  the 0.7 of the given ones: what these chains gain over noisy_labels is not better labels.
- The hole pays for a marker word, and markers come with worked answers here: being hacked raises
  accuracy (+0.20 [0.17, 0.23] over the start). Appeals find the hole (false positives 0.62 at the
  end) and correcting for it takes away what taught.
- The majority vote locks in: its share of a group rises from 0.34 to 0.98 while right labels fall
  from 0.37 to 0.11. Appeals see it (false positives from 0.06 to 0.75), but in groups that agree
  there is no variance left to correct.

Hardware and time: 11 minutes of CPU time on one core; `smoke`: seconds.
Command: python -m experiments.rlvr --config=configs/compositions.py --workdir=DIR
"""

import ml_collections

from configs import common

CHAINS = {
    "noisy_labels": ("wrong_labels", "flips", "rloo"),
    "appeals_forward_refinement": (
        "wrong_labels", "flips", "refine", "appeal", "appeals_rates", "forward", "direct",
    ),
    "minimum_error_refinement": ("wrong_labels", "flips", "refine", "known_rates", "minimum_error"),
    "majority_appeals": ("majority", "appeal", "appeals_rates", "corrected_normalization"),
    "noisy_groups": ("group_flips", "rloo"),
    "flips_patterns_backward": (
        "group_flips", "lift_by_patterns", "appeal", "appeals_rates", "backward", "pass_at_2",
    ),
    "patterns_then_refinement": ("wrong_labels", "patterns_first", "refine", "dr_grpo"),
    "missing_exact": ("flips_by_output", "drop", "known_rates", "exact_rloo"),
    "noisy_hack": ("hack", "rloo"),
    "hacked_fixed": ("hack", "appeal_more", "appeals_fix", "backward", "rloo"),
}  # fmt: skip


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`arg`: "" or "smoke" (seconds)."""
    if arg not in ("", "smoke"):
        raise ValueError(f"variant {arg!r}; allowed are 'smoke' or none")
    config = common.rlvr()
    config.method = "compositions"
    common.mixed_calculation(config)
    common.pattern_reward(config)
    config.seeds = 3
    config.steps = 60
    config.hyper.kl_coefficient = 0.02
    config.tune.kl_coefficient = (0.005, 0.02, 0.08)
    config.tune.seeds = 1
    _add_transforms(config)
    for name, stages in CHAINS.items():
        config.arms[name] = stages
    if arg == "smoke":
        common.smoke(config)
        config.evaluation.start_samples = 4
    return config


def _add_transforms(config: ml_collections.ConfigDict) -> None:
    room = "jaxreward.transforms"
    channel = dict(
        fn=f"{room}.sources:constant", false_positive=0.1, false_negative=0.2
    )
    appealed = dict(fn=f"{room}.rates:appeals", rechecks_positives=True, prior_strength=20.0)
    lift = dict(second="pattern_reward", threshold=0.5, weight=0.1)
    refinement = dict(num_prompts=config.task.prompts, start_visit=1, min_slope=0.0)
    pieces = {
        "wrong_labels": dict(fn=f"{room}.refinement:label_noise", kind="active", rate=0.3),
        "flips": dict(fn=f"{room}.noise:class_conditional", source=channel),
        "flips_by_output": dict(
            fn=f"{room}.noise:class_conditional", source=channel, fixed_by="output"
        ),
        "group_flips": dict(fn=f"{room}.noise:group_flip", rate=0.3, answered="answer_id"),
        "drop": dict(fn=f"{room}.noise:drop", rate=0.2),
        "hack": dict(fn=f"{room}.noise:hackable", pattern="pattern_reward"),
        "majority": dict(fn=f"{room}.majority:majority_reward", min_share=0.25),
        "refine": dict(fn=f"{room}.refinement:label_refinement", **refinement),
        "lift_by_patterns": dict(fn=f"{room}.calibration:lift_low_rewards", **lift),
        "patterns_first": dict(
            fn=f"{room}.calibration:warm_up", second="pattern_reward", steps=10
        ),
        "known_rates": dict(fn=f"{room}.rates:known", source=channel),
        "appeal": dict(
            fn=f"{room}.appeals:simulated_appeals", negative_share=0.1, positive_share=0.1
        ),
        "appeal_more": dict(
            fn=f"{room}.appeals:simulated_appeals", negative_share=0.1, positive_share=0.5
        ),
        "appeals_rates": appealed,
        "appeals_fix": dict(appealed, fix_rewards=True),
        "backward": dict(fn=f"{room}.correction:backward"),
        "forward": dict(fn=f"{room}.correction:forward", scale="determinant"),
        "corrected_normalization": dict(
            fn=f"{room}.correction:corrected_group_normalization", power=-1.0
        ),
        "minimum_error": dict(
            fn=f"{room}.correction:corrected_group_normalization", power=1.0
        ),
        "exact_rloo": dict(
            fn=f"{room}.exact_correction:exact_group_correction",
            advantage=dict(fn=f"{room}.advantage:rloo"),
        ),
        "rloo": dict(fn=f"{room}.advantage:rloo"),
        "dr_grpo": dict(fn=f"{room}.advantage:dr_grpo"),
        "direct": dict(fn=f"{room}.advantage:direct"),
        "pass_at_2": dict(fn=f"{room}.advantage:pass_at_k", k=2),
    }
    for name, piece in pieces.items():
        config.transforms[name] = ml_collections.ConfigDict(piece)
