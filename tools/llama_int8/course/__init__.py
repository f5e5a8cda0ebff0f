"""What every lesson is written with: figures, tables, controls, claims and exercises."""
