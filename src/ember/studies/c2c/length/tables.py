"""The table of cache length (C-M3)."""

from ember.studies.c2c.point_tables import compared

C2C_M3 = compared("c2c_m3", "How much of the instruction's cache is sent, and which part of it")
