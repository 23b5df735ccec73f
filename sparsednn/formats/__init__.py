"""Model and input file formats: one module each, one registry."""
