"""Evaluation of `training.predictions.Predictions`: metrics with intervals, operating points, tables of the papers."""
