"""GRPO on programs that must pass tests, run in a sandbox.

accelerate launch recipes/grpo_code.py                                  a tiny model learns small programs on two CPU cores
accelerate launch recipes/grpo_code.py --model Qwen/Qwen2.5-Coder-0.5B-Instruct --dataset problems.jsonl --dtype bfloat16
accelerate launch recipes/grpo_code.py --algorithm dapo --group-size 8
"""

from rl.cli import run_recipe

if __name__ == "__main__":
    run_recipe(__doc__ or "", dataset="small-programs")
