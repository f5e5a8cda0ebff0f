"""Lesson 02: the Transformer."""

TOPIC = "blocks, the whole Transformer, three kinds of it"
QUESTION = "How does attention become a model, and what does it look at?"
