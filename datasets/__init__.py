"""Networks and inputs by name: RadiX-Net, Graph Challenge, MNIST, digits."""
