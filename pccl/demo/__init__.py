"""`pccl demo`: peers train a small language model together while one is killed and another joins.

The parent (`run`) starts a coordinator and one process per peer (`train`), kills one of them with
SIGKILL on the way, starts a new one later, and shows what they report (`screen`).  What has to
happen when is decided in pure code (`story`); what came of it is judged and written down at the
end (`report`, `picture`).  The text is the Python standard library's own sources (`corpus`), the
model a GPT over bytes (`model`).

Nothing here is part of pccl's public API, and only `train`, `model` and `picture` import torch or
matplotlib.
"""
