"""Process groups, locks, progress meters, and stages' receipts for flows."""
