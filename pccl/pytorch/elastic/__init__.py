"""Elastic groups: one group object that lives on while its members die and join.

    survey       pure: from what members say at an entry to who heals whom
    replica      what this process is a part of, and what its parts agree on
    meeting      where members and joiners meet, and joiners are healed
    transaction  one training step's reductions, all of which are committed or none
    run          the communicator of an elastic group, made anew when this process was put out
    group        the ProcessGroup: begin, commit, and the step in between
    state        what a joiner receives: model, optimizer, loader, and whatever else
    batches      a loader whose position is part of that state
    wrapping     gradients of DDP and of FSDP2 into the step
    steps        the loop that programs write

Invariant: between `begin` and `commit` rank, size and members are those of one roster, the same on
every member.
"""
