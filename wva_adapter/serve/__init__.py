"""The HTTP port: whoever asks for a number gets it here."""
