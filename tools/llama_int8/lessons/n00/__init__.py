"""Lesson 00: one model in two precisions."""

TOPIC = "one model in two precisions: memory, speed, answers"
