"""The OpenAI API on one's own hardware: files, fine-tuning jobs and inference behind ``tunesmith serve``.

A job is a recipe run by :mod:`tunesmith.pipeline`; nothing is trained by other code. Files and run directories under
the data folder are the truth, the database is an index of them that ``--rebuild-index`` restores.
"""
