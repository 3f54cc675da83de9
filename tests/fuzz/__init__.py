"""Fuzzing of the receiver: valid conversations and files, changed at random, and what must hold whatever comes.

``python -m tests.fuzz --help`` has the long run, ``python -m tests.fuzz.coverage_guided --help`` the one that
is guided by coverage.
"""
