"""Bytes: frames, codecs, control channels and the life of the native engine.

This room knows no message of the rooms above it; it imports `pccl.base` alone.
"""
