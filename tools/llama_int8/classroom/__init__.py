"""The parts that a notebook shows: figures, interactive figures, exercises, claims on trial."""
