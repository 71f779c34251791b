"""The network, attention, LoRA layers and losses."""
