"""Providers that fine-tune for money: checks, tokens, prices, jobs, comparison, break-even.

Everything that changes without us (prices, dates, limits, who supports what) stands in ``prices.yaml``, dated and with
its source; a user's own file overrides it. Code asks :mod:`tunesmith.hosted.table` and names no price and no date.
"""
