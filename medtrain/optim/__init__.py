"""Optimizers with parameter groups, and learning-rate schedules as pure functions of the step."""
