"""`medvqa report`: run directories -> arms, comparisons, tables, plots and one page."""
