"""The dense CNN path: distributed convolutions, networks, training, and planning."""
