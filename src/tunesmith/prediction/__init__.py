"""Asking models: how each kind answers the rows of a task, and the classical fits whose heads answer too."""
