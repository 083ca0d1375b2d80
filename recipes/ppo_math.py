"""PPO on math problems with checked answers: a critic says what each state is worth, on the policy's own trunk or on its own.

accelerate launch recipes/ppo_math.py                                   a tiny model learns arithmetic on two CPU cores
accelerate launch recipes/ppo_math.py --value separate
accelerate launch recipes/ppo_math.py --model Qwen/Qwen2.5-0.5B-Instruct --dataset gsm8k --dtype bfloat16
"""

from rl.cli import run_recipe

if __name__ == "__main__":
    run_recipe(__doc__ or "", algorithm="ppo")
