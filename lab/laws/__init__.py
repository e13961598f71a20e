"""Law forms, fits and intervals, in float64 on the CPU. Imports nothing of the rest of the laboratory."""
