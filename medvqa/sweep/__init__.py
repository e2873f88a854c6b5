"""Grids: a queue of jobs on the free GPUs, one process a job or a warm one for several."""
