"""The published systems: arrays in, findings out."""
