"""Process groups, locks, progress, and the receipt a stage leaves for its flow."""
