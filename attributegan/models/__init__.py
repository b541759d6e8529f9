"""The networks of AttributeGAN. The published checkpoint's names are in `attributegan.models.published`."""

from attributegan.models.discriminator import Discriminator, DiscriminatorOutput
from attributegan.models.generator import Generator

__all__ = ["Discriminator", "DiscriminatorOutput", "Generator"]
