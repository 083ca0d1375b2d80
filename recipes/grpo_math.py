"""GRPO on math problems with checked answers.

accelerate launch recipes/grpo_math.py                                  a tiny model learns arithmetic on two CPU cores
accelerate launch recipes/grpo_math.py --model Qwen/Qwen2.5-0.5B-Instruct --dataset gsm8k --dtype bfloat16
accelerate launch recipes/grpo_math.py --algorithm dapo --group-size 8
"""

from rl.cli import run_recipe

if __name__ == "__main__":
    run_recipe(__doc__ or "")
