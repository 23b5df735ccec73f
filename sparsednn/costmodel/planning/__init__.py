"""Planning: the best configuration for each number of ranks, sweeps, simulated scaling."""
