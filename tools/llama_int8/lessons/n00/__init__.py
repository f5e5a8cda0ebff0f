"""Lesson 00: one model in two precisions."""

TOPIC = "one model in two precisions: memory, speed, answers"
QUESTION = "What do 8 bits buy, and what do they cost?"
