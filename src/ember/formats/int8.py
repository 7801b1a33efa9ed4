"""Integers of 8 bits; see `ember.formats.integer`."""

from ember.formats.integer import integer_format

INT8 = integer_format(8)
