"""The network, its attention, LoRA layers and losses."""
