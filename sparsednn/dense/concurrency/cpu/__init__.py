"""Kernels and lanes of a processor."""
