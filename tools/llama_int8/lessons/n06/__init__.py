"""Lesson 06: quantization mathematics."""

TOPIC = "scales, rounding, signal-to-noise ratio"
