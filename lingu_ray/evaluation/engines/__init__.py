"""Loaded models that score and answer: on vLLM or on Transformers, behind one interface."""
