"""Real vLLM over several processes: an engine in each of the trainer's, and one engine spread over workers of its own."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rewards.errors import UserError
from rewards.math_answer import MathVerifier
from rl.capacity.cost import ModelCost
from rl.policy.policy import Policy
from rl.processes.runtime import Runtime, cpu_cores
from rl.run.loop import train
from rl.settings.config import RunConfig
from rl.update.delivery import Delivery
from rollout.sampler import SamplingParams
from rollout.torch_sampler import stop_token_ids
from tests.rl.test_checkpoint import in_a_child
from tests.rl.test_loop import odd_lengths, options
from tests.rl.test_processes import FSDP2, assert_same_run, be, free_port, run_two, train_by
from tests.rollout.sampler_contract import requests, tokens
from tests.rollout.tiny import tokenizer
from tests.vllm.conftest import MAX_LENGTH, model_of, saved
from tests.vllm.test_delivery import in_a_process_of_its_own
from tests.vllm.test_server import sums


def train_alone(config: RunConfig) -> None:
    MathVerifier.verify_batch = odd_lengths
    train(config)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run of one process, done."""
    folder = tmp_path_factory.mktemp("one")
    usual = {"sampler": "vllm", "problems_per_step": 5, "max_tokens": 24, "learning_rate": 1e-4}
    config = options(saved(model_of(0), folder / "model"), sums(folder), folder / "run", **usual)
    child = in_a_child(train_alone, config)  # a second engine in a process takes the first one's groups with it
    child.join(300)
    assert child.exitcode == 0
    return config


@pytest.mark.parametrize("environment", [{}, FSDP2], ids=["whole", "fsdp2"])
def test_an_engine_in_each_of_two_processes_makes_the_run_of_one(
    environment: dict[str, str], one: RunConfig, tmp_path: Path
) -> None:
    """Five problems, so the shares are unequal. With whole weights, and put together for each engine from parts of them."""
    train_by(2, RunConfig(**{**vars(one), "run_dir": tmp_path / "two"}), environment)
    assert one.run_dir is not None
    assert_same_run(tmp_path / "two", one.run_dir, 3)


def tells_its_device(rank: int, port: int, folder: Path) -> None:
    be(rank, port)
    runtime = Runtime.start(dtype="float32", device="cpu")
    from rollout.vllm_sampler import VLLMOptions, VLLMSampler

    engine = VLLMOptions(dtype="float32", max_length=MAX_LENGTH, key_values=128, processes=2)
    sampler = VLLMSampler(folder, tokenizer(), {1}, engine)
    (device,) = sampler.llm.collective_rpc(lambda worker: worker.local_rank)
    (folder / f"{rank}").write_text(f"{device} {runtime.cores}")


def test_each_engine_is_on_its_process_s_own_device(tmp_path: Path) -> None:
    """And the process still knows with how many others it shares the machine's cores, which vLLM on a CPU tells it otherwise."""
    saved(model_of(0), tmp_path)
    run_two(tells_its_device, tmp_path)
    share = max(1, cpu_cores() // 2)
    assert [(tmp_path / f"{rank}").read_text() for rank in range(2)] == [f"0 {share}", f"1 {share}"]


def test_one_engine_spread_over_two_workers_gets_what_the_policy_holds(tmp_path: Path) -> None:
    """They are processes of their own: what is sent to them must be what can be sent."""
    in_a_process_of_its_own(samples_over_two, tmp_path)


def samples_over_two(folder: Path) -> None:
    cores = sorted(os.sched_getaffinity(0))
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"{cores[0]}|{cores[-1]}"  # else it asks for a NUMA node for each
    from rollout.vllm_sampler import VLLMOptions, VLLMSampler

    model, trained = model_of(0), model_of(1)
    sizes = {"max_length": MAX_LENGTH, "key_values": ModelCost.of(model).key_value}
    stop_ids, asked, params = stop_token_ids(model, tokenizer()), requests(6, 3), SamplingParams(max_tokens=20)
    source, found = saved(model, folder / "model"), []
    for workers in (2, 1):
        engine = VLLMOptions(dtype="float32", tensor_parallel=workers, **sizes)
        sampler = VLLMSampler(source, tokenizer(), stop_ids, engine)
        assert Delivery(Policy.of(trained), sampler, tolerance=1e-3).deliver(0) < 1e-4
        found.append(tokens(sampler.sample(asked, params)))
        sampler.close()
    assert found[0] == found[1]


def both_ways(rank: int, port: int, config: RunConfig, said: Path) -> None:
    be(rank, port)
    try:
        train(config)
    except UserError as error:
        (said / f"{rank}").write_text(str(error))


def test_engines_in_several_processes_and_over_several_gpus_are_refused(one: RunConfig, tmp_path: Path) -> None:
    config, port = RunConfig(**{**vars(one), "run_dir": tmp_path / "run", "vllm_tensor_parallel": 2}), free_port()
    children = [in_a_child(both_ways, rank, port, config, tmp_path) for rank in range(2)]
    for rank, child in enumerate(children):
        child.join(120)
        told = (tmp_path / f"{rank}").read_text()
        assert "vllm_tensor_parallel is 2: each of the 2 processes has an engine on its own GPU" in told
