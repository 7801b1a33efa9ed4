"""Integers of 2 bits; see `ember.formats.integer`."""

from ember.formats.integer import integer_format

INT2 = integer_format(2)
