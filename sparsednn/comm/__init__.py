"""The communicator layer: MPI, counted. Knows arrays and ranks, nothing of networks."""
