"""Lesson 08: FP16 against int8."""

TOPIC = "memory, quality with intervals, speed in turns, PIQA"
QUESTION = "What do memory, speed and quality say, measured so that it convinces?"
