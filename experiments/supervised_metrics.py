"""Names of what a supervised run measures."""

TRUE, GREEDY = "eval/true_accuracy", "eval/greedy_accuracy"
"""Accuracy of answers sampled at temperature 1, and of the most probable ones."""
