"""Writing text with a causal model: many requests in one running batch, each free to join and leave at every step.

:class:`~tunesmith.generation.batch.RunningBatch` is the engine (no threads);
:class:`~tunesmith.generation.engine.Engine` runs one in a thread for a server;
:func:`tunesmith.models.inference.generate` is the plain function on top of it.
"""
