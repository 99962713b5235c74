"""To and from elsewhere: LoRAs, merged checkpoints, another base, the files of the paper's code."""
