"""Cost models: what a run takes on a machine that may not be here. Seconds, bytes, words."""
