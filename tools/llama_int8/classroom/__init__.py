"""What a notebook shows: figures, interactive figures, exercises, claims on trial."""
