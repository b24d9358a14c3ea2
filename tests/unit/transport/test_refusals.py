"""Refusals that the native core sends are known here, each by its number."""

from __future__ import annotations

import pytest

from pccl.transport import native_frames as nf


@pytest.mark.parametrize("code", list(nf.RefusalCode))
def test_every_refusal_comes_through(code: nf.RefusalCode) -> None:
    frame = nf.RefusedFrame(int(code), "why")
    assert nf.decode(nf.encode(frame)) == frame
