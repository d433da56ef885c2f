"""What a run will take, before it runs: parameters, tokens, steps, memory, time and money.

Parameters are counted on the real network, built without weights; what a step computes and keeps, on a dry run of it
(:mod:`tunesmith.planning.dry_run`). Tokens come from rendering a sample of the real rows, rates from measuring this
machine or from a table. After each run its measurements are put beside the plan and correct later ones
(:mod:`tunesmith.planning.calibration`).
"""

from tunesmith.planning.forecast import forecast, gather, machine_of, plan
from tunesmith.planning.result import Plan, StagePlan

__all__ = ["Plan", "StagePlan", "forecast", "gather", "machine_of", "plan"]
