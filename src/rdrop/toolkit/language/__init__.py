"""Language models: documents, blocks of tokens, causal models, continuations."""
