"""Imported once by the process that the others are forked from: whatever a command imports when it comes to it."""

import importlib

STAGES = ("cli.main", "cli.stages", "data", "gram.fill", "networks.stage", "regression.stage", "report.write", "table")
for name in (*(f"exact_ntk.{stage}" for stage in STAGES), "matplotlib.figure", "torch._dynamo", "tests.faults.machine"):
    importlib.import_module(name)
