"""Model and input file formats: one module each, one registry.

Importing this loads NumPy only; a format's own libraries are loaded when a file needs them.
"""

from sparsednn.formats.categories import read_categories, write_categories
from sparsednn.formats.input_files import INPUT_FORMATS, read_inputs, write_inputs
from sparsednn.formats.options import ReadOptions
from sparsednn.formats.registry import (
    FORMATS,
    check_target_format,
    detect_format,
    read_network,
    summarize_network,
    write_network,
)

__all__ = [
    "FORMATS",
    "INPUT_FORMATS",
    "ReadOptions",
    "check_target_format",
    "detect_format",
    "read_categories",
    "read_inputs",
    "read_network",
    "summarize_network",
    "write_categories",
    "write_inputs",
    "write_network",
]
