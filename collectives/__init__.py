"""What an operation is: element types, reductions, descriptors and plans seen from Python.

A sibling of `pccl.membership`: neither imports the other.
"""
