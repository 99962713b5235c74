"""Pass one: prompts in, mixture out."""
