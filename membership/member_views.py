"""What one peer knows of views: the plan it prepares, what is in force, what it must say again.

Everything the coordinator says about views is level-triggered: it is passed to the engine until the
engine says it is done, and answered from memory after that.  A part of `member.Member`; its effects
are what to tell the engine and what to answer; whether an answer can be sent is Member's matter.

Invariant: generations and epochs in force never go down, and what an older coordinator or an
abandoned plan still says has no effect.
"""

from __future__ import annotations

from pccl.membership import messages as m
from pccl.membership.member_events import (
    ActivateView,
    CancelView,
    Effect,
    ExcludeEngine,
    HoldEngine,
    InstallView,
    PrepareView,
    Send,
)
from pccl.membership.testimony import Witness


class Views:
    def __init__(self, witness: Witness) -> None:
        self._witness = witness
        self.generation = 0  # the newest whose word was taken; of no older one it is any more
        self.epoch = 0  # in force here
        self._installed: tuple[int, int] | None = None  # (generation, epoch) the engine confirmed
        self._installing: tuple[int, int] | None = None
        self._plan: m.ViewPlan | None = None
        self._links: m.LinksUp | m.LinksFailed | None = None  # what became of _plan
        self._switched: m.Switched | None = None
        self.met: tuple[m.MemberInfo, ...] = ()  # whom this peer can reach, as it was told last

    def unsaid(self) -> list[Effect]:
        """Returns what a coordinator that has just been found may not have heard."""
        return [Send(said) for said in (self._links, self._switched) if said is not None]

    def follow(self, generation: int) -> None:
        """What an older coordinator says has no effect from now on."""
        self.generation = max(self.generation, generation)

    def is_past(self, generation: int, epoch: int) -> bool:
        """Whether a message is of an older coordinator, or of a view that already is in force."""
        return generation < self.generation or epoch <= self.epoch

    # ---- the coordinator's messages

    def plan(self, plan: m.ViewPlan) -> list[Effect]:
        if self.is_past(plan.generation, plan.epoch):
            return self._repeat_switched(plan.epoch)
        if self._plan == plan:
            return [] if self._links is None else [Send(self._links)]
        if self._plan is not None and self._plan.epoch > plan.epoch:
            return []  # overtaken by a later plan of a coordinator as new as this one
        self._plan, self._links = plan, None
        self.met = plan.members
        return [PrepareView(plan)]

    def hold(self, hold: m.Hold) -> list[Effect]:
        if self.is_past(hold.generation, hold.epoch):
            return self._repeat_switched(hold.epoch)
        self.follow(hold.generation)
        return [HoldEngine(hold.generation, hold.epoch, hold.name)]

    def activate(self, activate: m.Activate) -> list[Effect]:
        if self.is_past(activate.generation, activate.epoch):
            return self._repeat_switched(activate.epoch)
        self.follow(activate.generation)
        self._witness.announced(activate.epoch, activate.members)
        self.met = activate.members
        return [ActivateView(activate)]

    def cancel(self, cancel: m.CancelPlan) -> list[Effect]:
        if self.is_past(cancel.generation, cancel.epoch):
            return []
        self.follow(cancel.generation)
        if self._plan is not None and self._plan.epoch == cancel.epoch:
            self._plan = self._links = None
        return [CancelView(cancel.generation, cancel.epoch)]

    def install(self, install: m.Install) -> list[Effect]:
        key = (install.generation, install.epoch)
        if install.generation < self.generation or install.epoch < self.epoch:
            return []
        asked = self._installing
        if asked is not None and asked[0] == install.generation and install.epoch < asked[1]:
            return []  # its coordinator has said a later one, not confirmed yet
        if self._installed == key:
            return [Send(m.Installed(install.epoch))]
        self.follow(install.generation)
        self._installing = key
        self._witness.announced(install.epoch, install.members)
        self.met = install.members
        return [InstallView(install)]

    def excluded(self, excluded: m.Excluded) -> list[Effect]:
        if excluded.generation < self.generation:
            return []
        self.follow(excluded.generation)
        if excluded.epoch <= self.epoch:
            return [Send(m.Installed(excluded.epoch))]
        return [ExcludeEngine(excluded)]

    def _repeat_switched(self, epoch: int) -> list[Effect]:
        if self._switched is not None and self._switched.epoch == epoch:
            return [Send(self._switched)]
        return []

    # ---- the engine's answers

    def links(self, epoch: int, answer: m.LinksUp | m.LinksFailed) -> list[Effect]:
        if self._plan is None or self._plan.epoch != epoch:
            return []
        self._links = answer
        return [Send(answer)]

    def switched(self, epoch: int, step: int) -> list[Effect]:
        self.epoch = max(self.epoch, epoch)
        self._switched = m.Switched(epoch, step)
        self._witness.switched(epoch, step)
        return [Send(self._switched)]

    def left(self, epoch: int) -> list[Effect]:
        """A planned view without this peer is in force; its heartbeats say so."""
        self.epoch = max(self.epoch, epoch)
        return []

    def in_force(self, epoch: int) -> list[Effect]:
        """The engine has installed a view, or taken this peer out of all up to `epoch`."""
        self._witness.installed(epoch)
        self.epoch = max(self.epoch, epoch)
        if self._installing is not None and self._installing[1] == epoch:
            self._installed, self._installing = self._installing, None
        if self._plan is not None and self._plan.epoch <= epoch:
            self._plan = self._links = None
        if self._switched is not None and self._switched.epoch <= epoch:
            self._switched = None
        return [Send(m.Installed(epoch))]
