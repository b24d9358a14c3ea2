"""Measuring on one machine: rank processes, what they are told, and the arithmetic of figures.

`pccl bench` and the scripts in `benchmarks/` share it, so that every contender is started, checked
and timed by the same few lines.  These are programs, not a part of the library: nobody's peer
imports them.
"""
