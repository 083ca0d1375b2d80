"""Large collections of rows and pages, read as streams: what is chosen, what is left out, and why.

Nothing here holds a whole collection in memory, and nothing imports torch.
"""
