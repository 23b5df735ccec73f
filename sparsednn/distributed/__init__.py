"""The row-wise engine: a network whose neurons are divided among ranks."""
