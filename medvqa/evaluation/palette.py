"""Colours of all figures."""

# Okabe and Ito's palette, told apart by colour-blind eyes, without the yellow that white hides.
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#6a51a3", "#7f7f7f")
INK, FAINT = "#1f2328", "#8c959f"
