"""The command line of the evaluation in the background."""

from __future__ import annotations

from dataclasses import replace

import pytest

from attributegan.config import Config
from launch import evaluator


@pytest.mark.parametrize(("features", "word"), [("efficientnet-lite0", "auto"), ("random", "random"), ("timm:resnet50", "timm:resnet50")])
def test_the_default_network_is_replaced_if_the_model_was_trained_on_it(features: str, word: str) -> None:
    """``auto`` leaves the choice to attributegan-evaluate; any other network is a request."""
    config = Config()
    words = evaluator.command(replace(config, evaluate=replace(config.evaluate, features=features)))
    assert f"--features={word}" in words
