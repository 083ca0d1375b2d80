"""What a person sees of a run: metrics and their explanations, progress, health checks, plots, the report, the audit.

Imports nothing else of rl: it reads the files that a run writes.
"""
