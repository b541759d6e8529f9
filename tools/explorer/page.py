"""Renders the pages as HTML. Jinja escapes all texts; the model card's Markdown is rendered without raw HTML."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markdown_it import MarkdownIt

from attributegan.attributes import Attribute, AttributeSchema
from tools.explorer.drawing import NOTICE
from tools.explorer.model import Model
from tools.explorer.predictions import TileAnalyzer
from tools.explorer.state import LARGEST_SEED, TRUNCATION, State, middle, sizes

TEMPLATES = Environment(loader=FileSystemLoader(Path(__file__).parent / "templates"), autoescape=True, undefined=StrictUndefined)


def title(name: str) -> str:
    """Return the display name of an attribute."""
    return name.replace("_", " ").capitalize()


class Pages:
    """The pages of one model."""

    def __init__(self, model: Model, analyzer: TileAnalyzer) -> None:
        self.schema, self.analyzer = model.generator.schema, analyzer
        self.sizes = sizes(model.generator.image_size)
        numbered = [attribute.name for attribute in self.schema.attributes if attribute.numbered]
        self.common = {"model": model, "notice": NOTICE, "title": title, "numbered": numbered}
        self.card = MarkdownIt("commonmark", {"html": False}).enable("table").render(model.card)

    def explore(self, state: State, problems: list[str]) -> str:
        """Render the explorer page with its controls set to ``state``, and with error messages about the link."""
        return self._page(
            "explore.html",
            state=state,
            controls=controls(self.schema, state),
            problems=problems,
            sizes=self.sizes,
            largest_seed=LARGEST_SEED,
            truncation=TRUNCATION,
            analyzer=self.analyzer,
            card=self.card,
        )

    def quiz(self) -> str:
        """Render the quiz page."""
        return self._page("quiz.html", names=self.schema.names, has_predictor=self.analyzer.attribute_predictor is not None)

    def enter(self, wrong: bool) -> str:
        """Render the token form, which shows nothing of the model."""
        return TEMPLATES.get_template("enter.html").render(wrong=wrong)

    def _page(self, name: str, **context: Any) -> str:
        return TEMPLATES.get_template(name).render(**self.common, **context)


def controls(schema: AttributeSchema, state: State) -> list[dict[str, Any]]:
    """Return the template context of each attribute's slider."""
    return [_control(attribute, level) for attribute, level in zip(schema.attributes, state.levels, strict=True)]


def _control(attribute: Attribute, level: float) -> dict[str, Any]:
    not_assessable = level == attribute.not_assessable
    return {
        "name": attribute.name,
        "title": title(attribute.name),
        "numbered": attribute.numbered,
        "levels": [(level, attribute.levels[level]) for level in attribute.assessable],
        "value": middle(attribute) if not_assessable else level,
        "not_assessable": not_assessable,
        "not_assessable_name": None if attribute.not_assessable is None else attribute.levels[attribute.not_assessable],
    }
