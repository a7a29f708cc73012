"""What is private in texts: found, counted, and replaced by placeholders."""

from tallow.data.privacy.config import KindConfig, PrivacyConfig

__all__ = ["KindConfig", "PrivacyConfig"]
