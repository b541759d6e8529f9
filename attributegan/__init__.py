"""attributegan: multi-attribute controllable GANs on H&E tiles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attributegan.export import AttributeGenerator

__all__ = ["AttributeGenerator"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imports `AttributeGenerator` on first use, because it imports torch."""
    if name == "AttributeGenerator":
        from attributegan.export import AttributeGenerator

        return AttributeGenerator
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
