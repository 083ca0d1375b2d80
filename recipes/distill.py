"""Distillation as DeepSeek-R1 has it: SFT of a small model on the correct samples of a larger one that RL trained.

python recipes/distill.py --samples-from runs/r1/final-rl/checkpoints/step-000024                 the tiny model learns from it
python recipes/distill.py --samples-from TEACHER --model Qwen/Qwen2.5-0.5B --dataset gsm8k --run-dir runs/distilled
python recipes/distill.py --samples-from TEACHER --model Qwen/Qwen2.5-0.5B --dataset gsm8k --run-dir runs/distilled --stages rl      RL after it

The same command again goes on where the last one ended. All options of a run are those of the stage rl.
"""

from rl.cli import run_pipeline


def load():
    from rl.pipeline.distill import RUN_DEFAULTS, DistillOptions, run_distillation

    return RUN_DEFAULTS, DistillOptions, run_distillation


if __name__ == "__main__":
    run_pipeline(__doc__ or "", load)
