"""Lesson 08: FP16 against int8."""
