"""Step 2: data. Sources, checks, splits, rendering, batches.

Import what you need from its module (``tunesmith.data.prepare`` has the two entry points): this file imports nothing,
because tasks need :mod:`tunesmith.data.rows` and must start fast.
"""
