"""Lesson 07: outliers and LLM.int8()."""

TOPIC = "outliers, decomposition, a ladder of schemes"
