"""The stages of DeepSeek-R1: cold start, RL, rejection sampling, SFT of the base, RL again; and R1-Zero.

python recipes/r1.py                                        a tiny model and arithmetic, on two CPU cores
python recipes/r1.py --stages zero --model Qwen/Qwen2.5-0.5B --dataset gsm8k        R1-Zero: RL of the base
python recipes/r1.py --model Qwen/Qwen2.5-0.5B --dataset gsm8k --cold-start traces.jsonl --run-dir runs/r1

The same command again goes on where the last one ended. All options of a run are those of every stage of RL.
"""

from rl.cli import run_pipeline


def load():
    from rl.pipeline.r1 import RUN_DEFAULTS, R1Options, run_r1

    return RUN_DEFAULTS, R1Options, run_r1


if __name__ == "__main__":
    run_pipeline(__doc__ or "", load)
