"""Rewards as composable transformations."""
