"""Lesson 00: one model in two precisions."""
