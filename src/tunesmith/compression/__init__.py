"""Smaller and faster: quantization, its measurement, and export to what other programs read."""
