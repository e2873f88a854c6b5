"""Grids: a queue of jobs on the free GPUs, one process per job or a warm one for several."""
