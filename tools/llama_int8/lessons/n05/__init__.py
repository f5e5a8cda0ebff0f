"""Lesson 05: how LLaMA is trained."""

TOPIC = "compute, memory, data, ablations, longer contexts"
QUESTION = "What does a training run take, and what does each change do for the loss?"
