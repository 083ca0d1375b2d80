"""What a user sees of a run: metrics and their definitions, console progress, health checks, plots, the report, the audit.

Imports nothing else of rl: it reads the files that a run writes.
"""
