"""Lesson 02: the Transformer."""

TOPIC = "blocks, the whole Transformer, three kinds of it"
