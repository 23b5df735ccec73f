"""Choosing grids: words and memory of every placement, the cheapest of them, lower bounds."""
