"""Training: gradients, losses, optimizers, schedules and checkpoints of networks on ranks."""
