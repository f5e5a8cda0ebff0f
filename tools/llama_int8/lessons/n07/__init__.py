"""Lesson 07: outliers and LLM.int8()."""

TOPIC = "outliers, decomposition, a ladder of schemes"
QUESTION = "Why do a few large values ruin everything, and what saves it?"
