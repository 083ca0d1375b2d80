"""Pipelines: runs, and what stands between them, as stages of one folder, such as those of DeepSeek-R1.

A stage begins where the one before it ended, and goes on where it was interrupted. Imports every other package of rl; none imports it.
"""
