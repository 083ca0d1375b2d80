"""GRPO with a reward model that is made of the policy and trained again as it moves: DeepSeekMath's Algorithm 1 from the beginning.

python recipes/iterative_grpo.py --model Qwen/Qwen2.5-1.5B-Instruct --dataset gsm8k --every 20
python recipes/iterative_grpo.py --reward benchmarks/even_answer.py:even --every 4 --num-steps 12       a tiny model, a rule that it can judge

The same command again goes on where the last one ended. All options of a run are those of the stage rl.
"""

from rl.cli import run_pipeline


def load():
    from rl.pipeline.iterative import RUN_DEFAULTS, IterativeOptions, run_iterative

    return RUN_DEFAULTS, IterativeOptions, run_iterative


if __name__ == "__main__":
    run_pipeline(__doc__ or "", load)
