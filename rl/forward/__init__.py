"""Log-probs, entropies and values of sampled tokens under a model, without padding and without logits.

Lays groups out as rows of tokens, runs the model's own layers with our attention, and applies the output layer a chunk of tokens at
a time. Imports rl.objective.
"""
