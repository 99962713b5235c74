"""What `selfadapt.base_models` needs to make a name a base: the built-in one, GGUF files, special tokens."""
