"""Step 4: the only loop."""
