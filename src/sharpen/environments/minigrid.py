"""MiniGrid's seven by seven view in a few words, as seen by who stands in it.

After BabyAI-Text (Carta et al. 2023, "Grounding Large Language Models in Interactive Environments with Online Reinforcement
Learning"): each thing in view with the steps to it, forward and sideways; of the walls only the one straight ahead.
"""

from __future__ import annotations

from typing import Any

from sharpen.environments.gym_text import Words

ACTIONS = {
    "turn left": 0,
    "turn right": 1,
    "go forward": 2,
    "pick up": 3,
    "drop": 4,
    "toggle": 5,
    "done": 6,
}  # minigrid.core.actions.Actions
ALIASES = {"left": "turn left", "right": "turn right", "forward": "go forward", "pickup": "pick up", "open": "toggle"}
UNSEEN_OR_FREE = ("unseen", "empty", "floor", "wall")


def opening(observation: Any) -> str:
    """The mission and what is in view."""
    return f"Mission: {observation['mission']}.\n{describe(observation)}"


def describe(observation: Any) -> str:
    """What is in view, nearest first, and what is carried.

    ``observation["image"]`` is MiniGrid's encoding, size x size x (kind, colour, state): the player is in the middle of the last column,
    looks towards column 0, and has on the own cell what is carried.
    """
    from minigrid.core.constants import IDX_TO_COLOR, IDX_TO_OBJECT, STATE_TO_IDX

    image = observation["image"]
    middle, last = image.shape[0] // 2, image.shape[1] - 1
    states = {index: name for name, index in STATE_TO_IDX.items()}

    def name(cell: Any) -> str:
        kind = str(IDX_TO_OBJECT[int(cell[0])])
        if kind == "wall":
            return kind
        return f"{IDX_TO_COLOR[int(cell[1])]} {kind}" + (f" ({states[int(cell[2])]})" if kind == "door" else "")

    seen = []
    for x in range(image.shape[0]):
        for y in range(image.shape[1]):
            forward, side, kind = last - y, x - middle, IDX_TO_OBJECT[int(image[x, y, 0])]
            if (forward or side) and kind not in UNSEEN_OR_FREE:
                seen.append((forward + abs(side), forward, side, name(image[x, y])))
    ahead = next((y for y in range(last - 1, -1, -1) if IDX_TO_OBJECT[int(image[middle, y, 0])] == "wall"), None)
    if ahead is not None:
        seen.append((last - ahead, last - ahead, 0, "wall"))
    things = [" ".join([what, *_steps(forward, side)]) for _, forward, side, what in sorted(seen)]
    text = f"You see: {', '.join(things)}." if things else "You see nothing."
    carried = image[middle, last]
    return text if IDX_TO_OBJECT[int(carried[0])] in UNSEEN_OR_FREE else f"{text} You carry: {name(carried)}."


def _steps(forward: int, side: int) -> list[str]:
    sideways = f"{abs(side)} {'left' if side < 0 else 'right'}"
    return [f"{forward} forward"] * (forward > 0) + [sideways] * (side != 0)


WORDS = Words(
    name="minigrid-1",  # raise it when the words change: samples of other words are other samples
    system=f"You walk on a grid. Answer with one command only: {', '.join(ACTIONS)}.",
    actions=ACTIONS,
    aliases=ALIASES,
    opening=opening,
    describe=describe,
)
