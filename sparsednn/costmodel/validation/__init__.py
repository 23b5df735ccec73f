"""Real runs on this machine against what the cost models predict: how far can they be trusted?

::

    cases, choices          what is run, and tasks with all the ways to do them
      │
      ├── predict           the model that belongs to a case
      ├── measure ── program ── subjects      starts ranks; turns; the engines themselves
      │                            networks   weights and inputs that keep all neurons alive
      └── run.validate ──► report             errors, choices; table, file, changes
"""
