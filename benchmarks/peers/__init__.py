"""Training and answering rates beside those of other libraries; `python -m benchmarks.peers -h`."""
