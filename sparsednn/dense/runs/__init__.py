"""What is done with a dense network on ranks: training, inference, measuring; and its files."""
