"""Experiments with users: assignment, simulated days, metrics, tests, and the closed loop."""
