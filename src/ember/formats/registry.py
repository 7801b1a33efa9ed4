"""All number formats: importing this module makes them known by name."""

from ember.formats import fp8, int2, int4, int8, mxfp4, nf4, nvfp4  # noqa: F401
from ember.formats.base import FORMATS, Format, FormatError, Packed, Quantised, format_named

__all__ = ["FORMATS", "Format", "FormatError", "Packed", "Quantised", "format_named"]
