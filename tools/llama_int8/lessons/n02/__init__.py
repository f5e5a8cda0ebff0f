"""Lesson 02: the Transformer."""
