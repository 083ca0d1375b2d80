"""The forward: log-probs, entropies and values of sampled tokens under a model, without padding and without storing the logits.

Packs groups into rows of tokens, runs the model's own layers with the attention functions of this package, and applies the output
layer to a chunk of tokens at a time. Imports rl.objective.
"""
