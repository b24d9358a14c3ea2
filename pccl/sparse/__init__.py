"""Sparse exchange: the largest entries of each block of a tensor, a few bits each.

`code` turns tensors into bytes and back, `exchange` carries them between the members.  Programs use
`Communicator.sparse_all_reduce` and `sparse_all_gather`; `pccl.diloco.SparseLoCo` trains with it.
"""

from pccl.sparse.code import Sparse, SparseCode
from pccl.sparse.exchange import SparseGathered, SparseReduced

__all__ = ["Sparse", "SparseCode", "SparseGathered", "SparseReduced"]
