"""What the tests of the verl plug-in share."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="module")
def compose():
    """verl's configuration with these words of the command line."""
    from hydra import compose, initialize_config_module

    from dibs.integrations.verl.launch import hydra_words

    with initialize_config_module("verl.trainer.config", version_base=None):
        yield lambda *words: compose("ppo_trainer", hydra_words(words))
