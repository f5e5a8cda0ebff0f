"""Lesson 03: generation and decoding."""
