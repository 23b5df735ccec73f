"""Who owns which neuron: hypergraph models, partitioners and their metrics.

The partitioners come with the next part of the plan; nothing is here yet.
"""
