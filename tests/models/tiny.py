"""A small model's configuration."""

from tallow.models.config import DecoderConfig

CONFIG = DecoderConfig(
    vocab_size=31,
    hidden_size=16,
    num_layers=2,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    intermediate_size=24,
    max_positions=32,
)
