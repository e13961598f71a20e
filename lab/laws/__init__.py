"""Law forms, fits and intervals. Float64 numpy and scipy only: imports nothing of the rest of the laboratory."""
