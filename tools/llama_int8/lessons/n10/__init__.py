"""Lesson 10: fast int8."""
