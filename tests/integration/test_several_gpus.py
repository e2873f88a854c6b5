"""Several processes make the run that one makes: steps, answers, files; none is left behind."""

import dataclasses
import json
import multiprocessing
import os
import signal
import socket
import time
import traceback
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from medvqa.config.compose import resolved
from medvqa.config.errors import UserError
from medvqa.config.lora import LoraConfig
from medvqa.config.model import Device
from medvqa.config.training import Engine, TrainingConfig
from medvqa.config.typed import typed
from medvqa.evaluation.answering import shares_of_batches
from medvqa.evaluation.generate import answering_order, even_batch_size
from medvqa.fast.choice import make_engine
from medvqa.models import sharding
from medvqa.models.adapter import read_adapter
from medvqa.models.load import load_model
from medvqa.run import ProcessState, run_rank
from medvqa.tracking.record import read_lines
from medvqa.training.loop import Trainer
from medvqa.training.optimizer import AdapterOptimizer
from medvqa.training.ranks import Ranks, join, leave
from medvqa.training.torchrun import TIMEOUTS
from tests.conftest import PATIENCE_S, TINY, start, wait_for
from tests.unit.config.test_compose import composed
from tests.unit.training.test_loop import BASE, STAGES, adapter, make_plan

SMOKE = (
    "experiment=smoke",
    "model.device=cpu",
    "training.gpus=2",
    "data.evaluation.test.limit=16",
    "evaluation.bertscore.enabled=false",
    "tracking.pictures=false",
    "evaluation.zero_shot=false",
)
# float32 sums in another order. Losses differed by 1.8e-6 over 24 steps, log-probabilities of
# the trained weights by 1.3e-5, those of the base weights not at all.
TOLERANCE = 1e-4
BASE_TOLERANCE = 1e-5


def run_json(directory):
    return json.loads((directory / "run.json").read_text())


def losses(directory):
    return [row["loss"] for row in read_lines(directory / "metrics.jsonl")]


def alone(directory, config):
    """Make the run of a stored config in this process."""
    config = {**config, "training": {**config["training"], "gpus": 1, "sharding": "none"}}
    settings = {"config": config, "overrides": [], "run_id": "-"}
    run_rank(typed(config), directory, settings, ProcessState())


def assert_close(ours, theirs, tolerance, place):
    """Compare log-probabilities of differently shared batches; None equals only None."""
    if ours is None or theirs is None:
        assert ours is theirs, place
    else:
        assert ours == pytest.approx(theirs, rel=tolerance, abs=1e-6), place


def same_run(one, several):
    """Assert that two directories hold one run, up to the last bits of float32."""
    assert losses(several) == pytest.approx(losses(one), rel=TOLERANCE)
    assert (several / "order.jsonl").read_text() == (one / "order.jsonl").read_text()
    paths = sorted(path.relative_to(one) for path in one.glob("evaluation/*/*/predictions.jsonl"))
    assert paths
    for path in paths:
        tolerance = BASE_TOLERANCE if "zero_shot" in path.parts else TOLERANCE
        pairs = zip(read_lines(several / path), read_lines(one / path), strict=True)
        for ours, theirs in pairs:
            for name in ("logprob_mean", "logprob_sum", "choice_probs"):
                assert_close(ours.pop(name), theirs.pop(name), tolerance, f"{path}: {name}")
            assert ours == theirs, path
    hashes = [run_json(run)["training"]["consumed_sha256"] for run in (one, several)]
    assert hashes[0] == hashes[1]


def kept_files(directory):
    files = {str(p.relative_to(directory)) for p in directory.rglob("*") if p.is_file()}
    return {f for f in files if not f.startswith("wandb")}


@pytest.mark.slow
def test_a_grid_of_runs_on_two_processes_is_that_of_one_process(tmp_path):
    process = start(
        tmp_path, "-m", *SMOKE, "curriculum=open_first", "seed=1", "tracking.mode=offline",
        "hydra.launcher.slots=3", "hydra.launcher.warm=true", "evaluation.blind=true",
    )  # fmt: skip
    output, _ = process.communicate()
    assert process.returncode == 0, output
    assert "jobs on several GPUs run isolated" in output
    cells = sorted(path.parent for path in tmp_path.glob("multirun/*/*/run.json"))
    (cell,) = cells
    record = run_json(cell)
    assert (record["state"], record["world_size"]) == ("finished", 2)
    assert record["num_starts"] == 1
    # The first rank alone speaks.
    assert (cell / "console.log").read_text().count("first sample") == 1
    assert len(list(cell.glob("wandb/offline-run-*"))) == 1
    tracking = record["config"]["tracking"] | {"mode": "disabled"}
    config = record["config"] | {"tracking": tracking}
    alone(tmp_path / "alone", config)
    same_run(tmp_path / "alone", cell)
    ours = {"console.log", "status.json", ".lock", "checkpoints/.lock"}
    theirs = {".hydra/config.yaml", ".hydra/hydra.yaml", ".hydra/overrides.yaml"}
    assert kept_files(cell) - ours - theirs == kept_files(tmp_path / "alone")


def children(pid):
    return [int(x) for x in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def torchrun_and_ranks(process):
    (torchrun,) = children(process.pid)
    return torchrun, children(torchrun)


def checkpoints(directory):
    return sorted(path.name for path in directory.glob("checkpoints/step-*"))


@pytest.mark.slow
def test_no_process_outlives_a_killed_rank_or_a_killed_command_and_the_run_goes_on(tmp_path):
    directory = tmp_path / "run"
    command = (
        *SMOKE, f"hydra.run.dir={directory}", "training.max_steps=16", "evaluation.zero_shot=true",
    )  # fmt: skip

    process = start(tmp_path, *command)
    wait_for(lambda: checkpoints(directory))
    torchrun, ranks = torchrun_and_ranks(process)
    assert len(ranks) == 2
    os.kill(ranks[1], signal.SIGKILL)
    # Whoever is left would hold the other end of the pipe, and this would not return.
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, output
    assert "rank 1 of 2 was killed by SIGKILL; was the memory full?" in output
    assert "the same command goes on from its last checkpoint" in output
    assert "Traceback" not in output
    assert run_json(directory)["state"] == "failed"
    assert "rank 1 of 2 was killed" in run_json(directory)["error"]
    assert not any(Path(f"/proc/{pid}").exists() for pid in (torchrun, *ranks))

    first = checkpoints(directory)
    process = start(tmp_path, *command)
    wait_for(lambda: checkpoints(directory) > first)
    torchrun, ranks = torchrun_and_ranks(process)
    left = [torchrun, *ranks]
    process.kill()
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert "continuing from step" in output
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in left))

    config = run_json(directory)["config"]
    alone(directory, config)  # the same run, now on one processor
    record = run_json(directory)
    assert (record["state"], record["num_starts"], record["world_size"]) == ("finished", 3, 1)
    assert record["training"]["resumed_from_step"] > 2
    alone(tmp_path / "whole", config)
    same_run(tmp_path / "whole", directory)


@pytest.mark.slow
def test_a_rank_that_hangs_ends_the_run_in_one_line_and_the_run_goes_on(tmp_path):
    directory = tmp_path / "run"
    command = (
        *SMOKE, f"hydra.run.dir={directory}", "training.max_steps=12", "training.rank_timeout_s=4",
    )  # fmt: skip
    process = start(tmp_path, *command)
    wait_for(lambda: checkpoints(directory))
    _, ranks = torchrun_and_ranks(process)
    os.kill(ranks[1], signal.SIGSTOP)
    wait_for(lambda: not Path(f"/proc/{ranks[0]}").exists())
    os.kill(ranks[1], signal.SIGCONT)  # torchrun would kill it after half a minute
    output, _ = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 1, output
    line = "one of 2 ranks hangs: another one waited for it longer than training.rank_timeout_s ("
    assert line in output
    assert "Traceback" not in output
    assert line in run_json(directory)["error"]

    alone(directory, run_json(directory)["config"])
    record = run_json(directory)
    assert record["state"] == "finished"
    assert record["training"]["resumed_from_step"] > 0


def test_a_mistake_that_a_rank_finds_is_one_line_and_exit_code_2(tmp_path):
    process = start(tmp_path, *SMOKE, "data.split=tain", f"hydra.run.dir={tmp_path / 'run'}")
    output, _ = process.communicate()
    assert process.returncode == 2, output
    assert output.startswith("medvqa: phantom has no split 'tain'; it has train, validation")
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"training": {"gpus": 0}}, r"training.gpus must be in \[1, 1024\], got 0"),
        ({"training": {"gpus": 9}}, "training.gpus=9 is above the effective batch of 8"),
        ({"training": {"sharding": "fsdp2"}}, "training.gpus=1 must be above 1 and divide 8"),
        ({"training": {"gpus": 3, "sharding": "fsdp2"}}, "training.gpus=3 must be above 1 and"),
        (
            {"training": {"gpus": 2, "sharding": "fsdp2", "engine": "fused"}},
            "training.engine=fused needs whole weights",
        ),
        (
            {
                "training": {"gpus": 2, "sharding": "fsdp2"},
                "model": {"name": "medvqa/tiny", "load_in_4bit": True},
            },
            "training.sharding=fsdp2 spreads .* with model.load_in_4bit=true; leave out one of",
        ),
        ({"training": {"gpus": 2}}, r"training.gpus=2, but 0 CUDA GPU\(s\) are visible here"),
    ],
)
def test_a_number_of_gpus_that_cannot_be_is_refused(monkeypatch, overrides, message):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    values = {
        "model": {"name": "medvqa/tiny"},
        "data": {"name": "phantom", "split": "train"},
        "curriculum": {"name": "mixed", "stages": [{"name": "all", "share": 1.0}]},
        **{name: {} for name in ("contamination", "lora", "evaluation", "tracking")},
    }
    with pytest.raises(UserError, match=message):
        typed(values | overrides)


# Below, processes are forked from this one: what costs seconds, the imports, is done already.


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def in_ranks(size, function):
    """Call `function(ranks)` in so many processes that have met; assert that all succeed."""
    port = free_port()

    def child(rank):
        os.environ |= {
            **{"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(size)},
            **{"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)},
        }
        torch.set_num_threads(1)  # the parent's threads are not here
        try:
            function(join(Device.cpu))
            leave()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)

    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=child, args=(rank,)) for rank in range(size)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(PATIENCE_S)
        process.kill()
    assert [process.exitcode for process in processes] == [0] * size


@pytest.mark.slow
def test_a_run_with_sharded_weights_is_that_of_one_process(tmp_path):
    directory = tmp_path / "run"
    options = ("training.sharding=fsdp2", "evaluation.zero_shot=true", "tracking=disabled")
    config = resolved(composed(*SMOKE, *options))

    def sharded(ranks):
        place = tmp_path / f"rank-{ranks.rank}" if ranks.rank else directory
        settings = {"config": config, "overrides": [], "run_id": "-"}
        run_rank(typed(config), place, settings, ProcessState(), ranks)

    in_ranks(2, sharded)
    record = run_json(directory)
    reason = record["compute_path"]["reason"]
    assert "the fused engine does not support qwen3_vl with sharded weights" in reason
    alone(tmp_path / "alone", config)
    same_run(tmp_path / "alone", directory)
    names = ("num_parameters", "num_trainable")
    whole = run_json(tmp_path / "alone")
    assert [record["model"][name] for name in names] == [whole["model"][name] for name in names]
    assert (
        read_adapter(directory / "adapter").keys()
        == read_adapter(tmp_path / "alone" / "adapter").keys()
    )


def train(ranks, tiny, encoder, examples, directory, *, config=BASE, plan=None, stop_at=None,
          trainer=Trainer):  # fmt: skip
    """Train; the first rank writes into the directory, each leaves its adapter beside it."""
    place = directory if ranks.rank == 0 else directory / f"rank-{ranks.rank}"
    place.mkdir(parents=True, exist_ok=True)

    def on_step(row):
        if row["step"] == stop_at:
            raise KeyboardInterrupt

    try:
        result = trainer(tiny, encoder, config, directory=place, seed=0, ranks=ranks).train(
            plan or make_plan(examples, config),
            {example.id: example for example in examples},
            on_step=on_step,
            on_stage_end=lambda stage, step: None,
        )
    except KeyboardInterrupt:
        return
    (directory / f"result-{ranks.rank}.json").write_text(json.dumps(dataclasses.asdict(result)))
    torch.save(adapter(tiny), directory / f"adapter-{ranks.rank}.pt")


class ForgetfulTrainer(Trainer):
    """The second rank has memory for one sample at a time."""

    def _backward(self, samples, num_answer_tokens):
        if self.ranks.rank == 1 and len(samples) > 1:
            raise torch.OutOfMemoryError("pretended")
        return super()._backward(samples, num_answer_tokens)


class LateTrainer(Trainer):
    """The second rank runs out of memory once, when its gradients are complete."""

    def _backward(self, samples, num_answer_tokens):
        loss = super()._backward(samples, num_answer_tokens)
        if self.ranks.rank == 1 and len(samples) > 1:
            raise torch.OutOfMemoryError("pretended")
        return loss


@pytest.mark.parametrize("forgetful", [ForgetfulTrainer, LateTrainer])
@pytest.mark.parametrize("engine", [Engine.plain, Engine.fused])
def test_three_ranks_share_eight_examples_and_one_without_memory_stops_no_other(
    tiny, encoder, phantoms, tmp_path, forgetful, engine
):
    config = dataclasses.replace(BASE, engine=engine, max_steps=3, micro_batch_size=8)
    examples = phantoms[:48]
    in_ranks(
        1, lambda ranks: train(ranks, tiny, encoder, examples, tmp_path / "one", config=config)
    )
    in_ranks(
        3,
        lambda ranks: train(
            *(ranks, tiny, encoder, examples, tmp_path / "three"),
            config=config,
            trainer=forgetful,
        ),
    )
    assert losses(tmp_path / "three") == pytest.approx(losses(tmp_path / "one"), rel=TOLERANCE)
    for name in ("num_answer_tokens", "num_tokens", "num_examples", "learning_rate"):
        rows = [read_lines(tmp_path / run / "metrics.jsonl") for run in ("one", "three")]
        assert [row[name] for row in rows[0]] == [row[name] for row in rows[1]]
    order = [(tmp_path / run / "order.jsonl").read_text() for run in ("one", "three")]
    assert order[0] == order[1]
    results = [json.loads((tmp_path / "three" / f"result-{r}.json").read_text()) for r in range(3)]
    assert results[0] == results[1] == results[2]
    assert results[0]["micro_batch_size"] == 1
    assert not (tmp_path / "three" / "rank-1" / "checkpoints").exists()
    # All ranks have taken the same steps, to the last bit.
    weights = [torch.load(tmp_path / "three" / f"adapter-{r}.pt") for r in range(3)]
    for name, weight in weights[0].items():
        assert torch.equal(weight, weights[1][name]), name
        assert torch.equal(weight, weights[2][name]), name


@pytest.mark.parametrize("in_compute_type", [True, False])
def test_the_gradients_of_two_ranks_sum_to_those_of_one(tiny, encoder, phantoms, in_compute_type):
    samples = [encoder.encode(example) for example in phantoms[:4]]

    def gradients(ranks):
        optimizer = AdapterOptimizer(tiny, BASE, in_compute_type=in_compute_type)
        engine, total = make_engine(Engine.fused, tiny, encoder), torch.zeros(())
        for sample in ranks.share(samples, ["same"] * 4):  # micro-batches
            loss = engine.loss([sample], 100)
            loss.backward()
            optimizer.collect()
            total += loss.detach()
        ranks.sum_in_place([total, *optimizer.whole_gradients()])
        return [total.clone(), *(gradient.clone() for gradient in optimizer.gradients())]

    expected = gradients(Ranks())
    tiny.model.zero_grad()

    def check(ranks):
        torch.testing.assert_close(gradients(ranks), expected, rtol=1e-4, atol=1e-5)

    in_ranks(2, check)


def test_each_of_two_ranks_holds_half_of_a_sharded_base_and_the_whole_adapter(encoder, phantoms):
    whole = load_model(TINY, LoraConfig(r=4, alpha=8), gradient_checkpointing=False, seed=0)
    samples = [encoder.encode(example) for example in phantoms[:2]]
    expected = {name: parameter.shape for name, parameter in whole.trainable}
    num_weights = sum(p.numel() for p in whole.model.parameters() if not p.requires_grad)
    loss = make_engine(Engine.plain, whole, encoder).loss(samples, 10).item()

    def check(ranks):
        ours = load_model(
            TINY, LoraConfig(r=4, alpha=8), gradient_checkpointing=False, seed=0,
            group=ranks.tensors,
        )  # fmt: skip
        assert {name: parameter.shape for name, parameter in ours.trainable} == expected
        frozen = [p for p in ours.model.parameters() if not p.requires_grad]
        own = sum(parameter.to_local().numel() for parameter in frozen)
        assert 0.45 < own / num_weights < 0.55
        total = make_engine(Engine.plain, ours, encoder).loss(samples, 10)
        assert total.item() == pytest.approx(loss, rel=1e-5)
        total.backward()
        assert all(parameter.grad is not None for _, parameter in ours.trainable)
        assert all(parameter.grad is None for parameter in frozen)

    in_ranks(2, check)


def test_ranks_wait_longer_than_within_a_step_while_the_first_one_reads_the_weights(monkeypatch):
    read = sharding.from_pretrained

    def slow(library, config, **options):
        time.sleep(3 * bool(options))  # the weights alone, which the first rank reads
        return read(library, config, **options)

    monkeypatch.setattr(sharding, "from_pretrained", slow)

    def check(ranks):
        impatient = dist.new_group(timeout=timedelta(seconds=1))
        sharding.sharded_base(TINY, torch.float32, torch.device("cpu"), impatient)

    in_ranks(2, check)


def test_a_rank_that_hangs_outside_a_step_is_noticed_by_the_others(monkeypatch):
    monkeypatch.setattr(join, "__defaults__", (1,))  # seconds within a step
    monkeypatch.setattr("medvqa.training.ranks.TIMES_OUTSIDE", 2)

    def check(ranks):
        if ranks.rank == 1:
            time.sleep(8)  # loads, answers or writes
            os._exit(0)
        started = time.monotonic()
        with pytest.raises(RuntimeError, match=TIMEOUTS[1]):
            ranks.gather(ranks.rank)
        assert 1 < time.monotonic() - started < 7
        os._exit(0)

    in_ranks(2, check)


@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1)])
def test_a_run_goes_on_with_another_number_of_ranks(
    tiny, encoder, phantoms, tmp_path, before, after
):
    plan = make_plan(phantoms, curriculum=STAGES)

    def part(size, name, stop_at=None):
        in_ranks(
            size,
            lambda ranks: train(
                ranks, tiny, encoder, phantoms, tmp_path / name, plan=plan, stop_at=stop_at
            ),
        )

    part(1, "whole")
    part(before, "cut", stop_at=5)  # after the checkpoint of step 4
    part(after, "cut")
    assert json.loads((tmp_path / "cut" / "result-0.json").read_text())["resumed_from_step"] == 4
    assert losses(tmp_path / "cut") == pytest.approx(losses(tmp_path / "whole"), rel=TOLERANCE)
    order = [(tmp_path / run / "order.jsonl").read_text() for run in ("whole", "cut")]
    assert order[0] == order[1]


def test_dropout_differs_between_ranks_and_a_continued_run_draws_what_the_whole_one_drew(
    encoder, phantoms, tmp_path
):
    lora = LoraConfig(r=4, alpha=8, dropout=0.2)
    tiny = load_model(TINY, lora, gradient_checkpointing=False, seed=0)
    config = dataclasses.replace(BASE, max_steps=3, checkpoint_every=1)

    def part(name, examples, stop_at=None):
        in_ranks(
            2,
            lambda ranks: train(
                ranks, tiny, encoder, examples, tmp_path / name, config=config, stop_at=stop_at
            ),
        )

    part("whole", phantoms[:24])
    part("cut", phantoms[:24], stop_at=2)
    part("cut", phantoms[:24])
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    seeds = [Ranks(rank, 3).step_seed(0, 3) for rank in range(3)]
    assert len(set(seeds)) == 3


@pytest.mark.parametrize("num_shares", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("batch_size", [7, 32, 500])
def test_shares_consist_of_the_batches_that_one_process_makes(phantoms, num_shares, batch_size):
    def batches(places):
        chosen = [phantoms[place] for place in places]
        order = [places[i] for i in answering_order(chosen)]
        return [order[i : i + size] for i in range(0, len(order), size)]

    size = even_batch_size(len(phantoms), batch_size)
    assert size <= batch_size
    shares = shares_of_batches(phantoms, size, num_shares)
    assert len(shares) == num_shares
    together = [batch for share in shares for batch in batches(share)]
    assert together == batches(list(range(len(phantoms))))
    numbers = [len(batches(share)) for share in shares]
    assert max(numbers) - min(numbers) <= 1


def test_from_three_batches_on_two_and_four_processes_have_equal_shares():
    assert even_batch_size(451, 128) == 113
    assert even_batch_size(200, 128) == 100
    assert even_batch_size(5, 128) == 5
    assert even_batch_size(0, 128) == 1


def test_one_process_needs_nobody():
    ranks = Ranks()
    assert ranks.first(max, 1, 2) == 2
    assert ranks.gather("a") == ["a"]
    assert ranks.total((3, 4), torch.device("cpu")) == (3, 4)
    assert ranks.share([1, 2, 3], ["b", "a", "b"]) == [1, 2, 3]
    assert TrainingConfig().gpus == 1
