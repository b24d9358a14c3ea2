"""Shared state: named tensors that all members hold alike, revision by revision.

    layout tree agreement told fetch messages   decide: values in, values out
    tensors shared donor receiver stream        act: memory, sockets, threads
    sync joining checkpoint                     what programs call, by way of Communicator

Invariant: memory of the caller is written only with chunks whose hash belongs to an agreed root.
"""
