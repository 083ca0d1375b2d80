"""What a run takes, computed before it runs: operations, bytes, and the choice of sizes that fit the device.

Imports rl.objective, rl.forward, rl.settings and rl.policy.
"""
