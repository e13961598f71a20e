"""One module per paper: its sweep by scale, analysis, figure and claims. `lab list` shows them."""
