"""Predictions for dense CNNs: what one step takes, for any placement of the layers on ranks."""
