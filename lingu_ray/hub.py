"""The Hugging Face hub: what its libraries raise where it does not give what it is asked for."""

from huggingface_hub.errors import HTTPError

HUB_ERRORS = (OSError, ValueError, HTTPError)
"""Of what is not there, may not be read, or is not in the cache of a machine that is offline; the last: a connection
that broke, again and again."""
