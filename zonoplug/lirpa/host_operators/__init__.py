"""Operators that the host lacks, or has in a form that fails or is wrong."""
