"""Which way to go: from data, task and limits to a ranked list of ways, each with quality, cost and reason.

What is known of ways in general stands in a table (``ways.yaml``); what each would take here is planned
(:mod:`tunesmith.planning`); how good each is on these data is measured, when asked (:mod:`tunesmith.advice.trials`).
"""

from tunesmith.advice.advise import Advice, Limits, Suggestion, advise

__all__ = ["Advice", "Limits", "Suggestion", "advise"]
