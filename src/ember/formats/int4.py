"""Integers of 4 bits; see `ember.formats.integer`."""

from ember.formats.integer import integer_format

INT4 = integer_format(4)
