"""Text that becomes other text: pairs, batches, encoder-decoder models, generation."""
