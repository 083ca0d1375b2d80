"""RL of a prover as DeepSeek-Prover has it: SFT on proofs, then GRPO on the statements that the model proves sometimes.

python recipes/prover.py                                    a tiny model and theorems in Metamath, on two CPU cores
python recipes/prover.py --model MODEL --dataset statements.jsonl --stages filter rl --run-dir runs/prover

The same command again goes on where the last one ended. All options of a run are those of the stage rl.
"""

from rl.cli import run_pipeline


def load():
    from rl.pipeline.prover import RUN_DEFAULTS, ProverOptions, run_prover

    return RUN_DEFAULTS, ProverOptions, run_prover


if __name__ == "__main__":
    run_pipeline(__doc__ or "", load)
