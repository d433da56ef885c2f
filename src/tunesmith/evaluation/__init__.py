"""Step 5: what the tuned model is worth, with intervals, against what one could have used without tuning."""
