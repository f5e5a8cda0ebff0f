"""Lesson 00: one model in three precisions."""

TOPIC = "one model in three precisions: answers, memory, quality, speed"
QUESTION = "What do 8 bits buy, and what do they cost?"
