"""Lesson 05: how LLaMA is trained."""

TOPIC = "compute, memory, data, ablations, longer contexts"
