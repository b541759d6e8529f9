"""The quiz "guess the level": the number of a round determines its tile, question and answer."""

from __future__ import annotations

import torch

from attributegan.attributes import AttributeSchema
from attributegan.sampling import latents
from attributegan.utils.rng import Purpose, rng_for
from tools.explorer.state import State


def state_of(schema: AttributeSchema, number: int, size: int) -> State:
    """Return the state of a round's tile: a random latent and uniform assessable levels."""
    return State(tuple(latents.levels_for(schema, number, [0])[0].tolist()), seed=number, size=size)


def attribute_of(schema: AttributeSchema, number: int) -> int:
    """Return the column of the attribute that a round asks about, if the user has not chosen one."""
    return int(torch.randint(len(schema.attributes), (), generator=rng_for(number, Purpose.QUIZ_ATTRIBUTE)))
