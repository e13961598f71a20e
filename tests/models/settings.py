"""Small config nodes for the tests of models and parametrizations."""

from lab.config import default_config


def model_config(**changes):
    """A `model` node of a tiny decoder: width 16, 2 layers, 4 heads, 12 tokens a sequence, 24 words."""
    config = default_config().model
    config.update(width=16, depth=2, heads=4, kv_heads=4, sequence_length=12, vocab_size=24)
    config.update(changes)
    return config


def parametrization_config(**changes):
    """A `parametrization` node with base width 16."""
    config = default_config().parametrization
    config.update(base_width=16)
    config.update(changes)
    return config
