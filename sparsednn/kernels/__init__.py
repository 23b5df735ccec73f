"""Compute kernels behind one interface."""
