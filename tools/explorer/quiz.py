"""Guess the level: a round is a number, from which tile, question and answer follow."""

from __future__ import annotations

import torch

from attributegan.attributes import AttributeSchema
from attributegan.sampling import latents
from attributegan.utils.rng import Purpose, rng_for
from tools.explorer.state import State


def state_of(schema: AttributeSchema, number: int, size: int) -> State:
    """The tile of a round: levels and latent drawn for it, every assessable level as likely."""
    return State(tuple(latents.levels_for(schema, number, [0])[0].tolist()), seed=number, size=size)


def attribute_of(schema: AttributeSchema, number: int) -> int:
    """The column of the attribute that a round asks for, where the visitor has chosen none."""
    return int(torch.randint(len(schema.attributes), (), generator=rng_for(number, Purpose.QUIZ_ATTRIBUTE)))
