"""The command line: parse, call the library, print. No logic lives here.

Nothing heavy is imported at module level, so that ``sparsednn --help`` answers at once.
"""
