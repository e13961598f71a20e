"""Timelines (schedules as data) and optimizers whose hyperparameters are traced numbers."""
