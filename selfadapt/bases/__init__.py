"""What `selfadapt.base_models` needs to make a base from a name: the built-in one, GGUF files, special tokens."""
