"""Runs told from nothing: event streams like those of real peers, for the tests of the demo."""

import math
import random

from pccl.demo.events import Admitted, Done, Entered, Exited, Ready, StepDone
from pccl.demo.story import Kill, Launch, Plan, Story


def peer_id(name: str) -> str:
    return f"{int(name.split()[1]):08x}"


def step_done(number: int, contributors: list[str], **told: float) -> StepDone:
    """Returns the report of step `number` as the members `contributors` give it."""
    return StepDone(
        step=number,
        loss=told.get("loss", 4.0),
        epoch=int(told.get("epoch", 1)),
        world_size=len(contributors),
        wire_bytes=1000,
        retries=int(told.get("retries", 0)),
        step_s=told.get("step_s", 0.1),
        reduce_s=told.get("step_s", 0.1) * 0.3,
        contributors=tuple(peer_id(name) for name in contributors),
    )


def meet(story: Story, now_s: float) -> list[str]:
    """Brings the founders to their first step; returns their names."""
    names = list(story.peers)
    for name in names:
        story.handle(name, Ready(), now_s)
    for name in names:
        story.handle(name, Admitted(peer_id(name)), now_s)
        story.handle(name, Entered(0, 5.5), now_s)
    return names


def a_good_run(plan: Plan, *, join_delay_steps: int = 6, seed: int = 1) -> Story:
    """Tells a whole run in which all goes well, with losses and times like a real one's."""
    dice = random.Random(seed)
    story = Story(plan)
    story.start(0.0)
    now_s = 4.0
    members = meet(story, now_s)
    epoch, joins_at = 1, None
    for number in range(1, plan.steps + 1):
        killed_now = story.killed_at is not None and story.victim in members
        if killed_now:
            members.remove(story.victim)
            epoch += 1
            story.handle(story.victim, Exited(-9), now_s)
        if number == joins_at:
            members.append(story.newcomer)
            epoch += 1
            story.handle(story.newcomer, Ready(), now_s)
            story.handle(story.newcomer, Admitted(peer_id(story.newcomer)), now_s)
            story.handle(story.newcomer, Entered(number - 1, 3.0), now_s)
        step_s = dice.uniform(0.33, 0.40) * (1.4 if killed_now else 1.0)
        now_s += step_s
        curve = 2.0 + 3.5 * math.exp(-number / 35)
        for name in list(members):
            told = step_done(
                number,
                members,
                loss=curve + dice.gauss(0.0, 0.12),
                epoch=epoch,
                retries=int(killed_now),
                step_s=step_s,
            )
            for effect in story.handle(name, told, now_s):
                if isinstance(effect, Launch):
                    joins_at = number + join_delay_steps
                else:
                    assert effect == Kill(story.victim)
    for name in members:
        story.handle(name, Done(plan.steps, 2.05, "ab" * 32), now_s)
    for name in members:
        story.handle(name, Exited(0), now_s)
    return story
