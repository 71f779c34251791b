"""Classification and instruction fine-tuning: rows, batches, losses, answers."""
