"""How many replicas every variant of an LLM deployment should have, decided and served."""

__version__ = "0.1.0"
