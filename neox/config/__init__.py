"""Configuration of the trainer: schema, loading and arithmetic; imports no torch."""
