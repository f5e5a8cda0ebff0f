"""Lesson 08: FP16 against int8."""

TOPIC = "memory, quality with intervals, speed in turns, PIQA"
