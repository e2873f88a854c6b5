"""The loop: equal batches give equal steps, the base stays, what was begun is finished exactly."""

import dataclasses
import logging
import math
import time

import pytest
import torch

from medvqa.config.curriculum import CurriculumConfig, Filter, StageConfig
from medvqa.config.errors import DivergenceError, UserError
from medvqa.config.lora import LoraConfig
from medvqa.config.model import Backend
from medvqa.config.training import Engine, TrainingConfig
from medvqa.curriculum import plan_curriculum
from medvqa.models.load import load_model
from medvqa.tracking.record import read_lines
from medvqa.training.clock import Arriving
from medvqa.training.flat_tensors import BLOCK, SMALL, FlatTensors
from medvqa.training.loop import Trainer
from medvqa.training.optimizer import AdapterOptimizer
from tests.conftest import TINY

BASE = TrainingConfig(
    max_steps=6,
    micro_batch_size=4,
    accumulation_steps=1,
    learning_rate=5e-3,
    warmup_steps=1,
    checkpoint_every=2,
)
STAGES = CurriculumConfig(
    name="open_first",
    stages=[
        StageConfig(name="open", filter=Filter.open, share=0.5),
        StageConfig(name="closed", filter=Filter.closed, share=0.5),
    ],
)


def make_plan(examples, config=BASE, curriculum=None):
    curriculum = curriculum or CurriculumConfig(
        name="all", stages=[StageConfig(name="all", share=1.0)]
    )
    batch_size = config.micro_batch_size * config.accumulation_steps
    return plan_curriculum(
        curriculum, examples, max_steps=config.max_steps, batch_size=batch_size, seed=0
    )


def train(tiny, encoder, examples, directory, *, config=BASE, plan=None, on_step=None):
    directory.mkdir(exist_ok=True)
    trainer = Trainer(tiny, encoder, config, directory=directory, seed=0)
    return trainer.train(
        plan or make_plan(examples, config),
        {example.id: example for example in examples},
        on_step=on_step or (lambda row: None),
        on_stage_end=lambda stage, step: None,
    )


def adapter(tiny):
    return {name: p.detach().clone() for name, p in tiny.trainable}


class ScarceTrainer(Trainer):
    """Has memory only where layers are computed again in the backward pass."""

    def _backward(self, samples, num_answer_tokens):
        if not self.is_scarce(self):
            return super()._backward(samples, num_answer_tokens)
        raise torch.OutOfMemoryError("pretended")


def test_a_sample_that_never_fits_is_an_error(tiny, encoder, phantoms, tmp_path, monkeypatch):
    monkeypatch.setattr(ScarceTrainer, "is_scarce", lambda *_: True, raising=False)
    monkeypatch.setattr("tests.unit.training.test_loop.Trainer", ScarceTrainer)
    with pytest.raises(UserError, match="one sample does not fit"):
        train(tiny, encoder, phantoms[:48], tmp_path)


def test_out_of_memory_captured_passes_end_before_recomputed_batches_are_halved(
    tiny, encoder, phantoms, tmp_path, monkeypatch, caplog
):
    monkeypatch.setattr(ScarceTrainer, "is_scarce", lambda *_: True, raising=False)
    config = dataclasses.replace(BASE, engine=Engine.fused, micro_batch_size=4)
    trainer = ScarceTrainer(tiny, encoder, config, directory=tmp_path, seed=0)
    trainer._engine.decoder.graphs._is_possible = True  # as on a GPU
    caplog.set_level(logging.WARNING)
    forms = (
        *("micro-batches of 2 from", "computed again in the backward pass, in micro-batches of 4"),
        *("without CUDA graphs", "micro-batches of 2 from", "micro-batches of 1 from"),
    )
    for form in forms:
        trainer._shrink()
        assert form in caplog.messages[-1]
    with pytest.raises(UserError, match="one sample does not fit"):
        trainer._shrink()


def test_training_moves_the_adapter_and_nothing_else(tiny, encoder, phantoms, tmp_path):
    before = {name: p.detach().clone() for name, p in tiny.model.named_parameters()}
    train(tiny, encoder, phantoms[:48], tmp_path)
    for name, parameter in tiny.model.named_parameters():
        assert torch.equal(parameter, before[name]) == ("lora_" not in name), name


def test_the_first_loss_that_is_not_finite_ends_the_training(tiny, encoder, phantoms, tmp_path):
    config = dataclasses.replace(BASE, learning_rate=1e6, max_grad_norm=1e6, checkpoint_every=1)
    with pytest.raises(
        DivergenceError, match=r"diverged: \w+=nan in step \d at .*; lower training"
    ):
        train(tiny, encoder, phantoms[:48], tmp_path, config=config)
    *finite, last = read_lines(tmp_path / "metrics.jsonl")
    assert last["step"] < BASE.max_steps
    assert "NaN" in (last["loss"], last["grad_norm"])
    assert all(math.isfinite(row["loss"]) for row in finite)
    checkpoints = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert checkpoints[-1] == f"step-{last['step'] - 1:06d}"


def test_a_weight_that_is_not_finite_after_the_last_step_is_no_result(
    tiny, encoder, phantoms, tmp_path
):
    def poison(row):
        if row["step"] == BASE.max_steps:
            tiny.trainable[0][1].data[0, 0] = math.inf

    with pytest.raises(DivergenceError, match=r"a weight is not finite in step 6"):
        train(tiny, encoder, phantoms[:48], tmp_path, on_step=poison)


def test_seconds_of_steps_add_up_to_the_time_between_first_and_last(
    tiny, encoder, phantoms, tmp_path
):
    """What lies between two steps is the later one's; what lies behind a checkpoint is nobody's."""
    examples = phantoms[:48]
    config = dataclasses.replace(BASE, checkpoint_every=3)
    rows, pause = [], 0.05

    def on_step(row):
        rows.append(row)
        time.sleep(pause)

    begun = time.perf_counter()
    train(tiny, encoder, examples, tmp_path, config=config, on_step=on_step)
    wall = time.perf_counter() - begun
    assert sum(row["seconds"] for row in rows) < wall
    waited = {row["step"] for row in rows if row["seconds"] >= pause}
    assert waited >= {2, 3, 5, 6}


def test_numbers_arrive_as_they_were_when_they_were_sent():
    loss, norm = torch.tensor(1.5), torch.tensor(2.25, dtype=torch.bfloat16)
    numbers = Arriving([loss, norm])
    loss += 1
    assert numbers.read() == [1.5, 2.25]


def test_what_a_checkpoint_takes_is_not_changed_by_later_steps(tiny, encoder, phantoms, tmp_path):
    examples = phantoms[:48]
    plan = make_plan(examples)
    trainer = Trainer(tiny, encoder, BASE, directory=tmp_path, seed=0)
    taken, then = {}, {}

    def on_step(row):
        found = {**trainer.optimizer.weights()}
        for number, moments in trainer.optimizer.state_dict()["state"].items():
            found |= {f"{number}.{name}": tensor for name, tensor in moments.items()}
        taken[row["step"]] = found
        then[row["step"]] = {name: tensor.clone() for name, tensor in found.items()}

    by_id = {example.id: example for example in examples}
    trainer.train(plan, by_id, on_step=on_step, on_stage_end=lambda stage, step: None)
    first, last = taken[1], taken[BASE.max_steps]
    assert any(name.endswith(".exp_avg") for name in first)
    assert all(torch.equal(tensor, then[1][name]) for name, tensor in first.items())
    assert not torch.equal(first["0.exp_avg"], last["0.exp_avg"])


def test_a_checkpoint_copies_moments_however_deep_an_optimiser_keeps_them(tiny):
    """As bitsandbytes does, which this machine need not have."""

    class Nested(torch.optim.AdamW):
        def state_dict(self):
            whole = super().state_dict()
            nested = {n: {"kept": dict(inner)} for n, inner in whole["state"].items()}
            return {**whole, "state": nested}

    optimizer = AdapterOptimizer(tiny, BASE, in_compute_type=False)
    optimizer._optimizer = Nested([p for _, p in tiny.trainable], lr=1e-3)

    def step():
        for _, parameter in tiny.trainable:
            parameter.grad = torch.ones_like(parameter)
        optimizer.step(1e-3, max_grad_norm=1e9)

    step()
    taken = optimizer.state_dict()["state"][0]["kept"]["exp_avg"]
    then = taken.clone()
    step()
    assert torch.equal(taken, then)


def test_an_engine_that_does_not_know_the_model_is_an_error_where_it_was_asked_for(
    tiny, encoder, tmp_path
):
    other = dataclasses.replace(tiny, backend=Backend.unsloth)
    config = dataclasses.replace(BASE, engine=Engine.fused)
    with pytest.raises(UserError, match=r"engine=fused .* model\.backend=unsloth; say .*=auto"):
        Trainer(other, encoder, config, directory=tmp_path, seed=0)


def test_each_line_of_the_order_names_stage_and_ids(tiny, encoder, phantoms, tmp_path):
    plan = make_plan(phantoms, curriculum=STAGES)
    train(tiny, encoder, phantoms, tmp_path, plan=plan)
    rows = read_lines(tmp_path / "order.jsonl")
    assert [row["stage"] for row in rows] == ["open"] * 3 + ["closed"] * 3
    assert tuple(name for row in rows for name in row["ids"]) == plan.order
    types = {example.id: example.answer_type for example in phantoms}
    assert {types[name] for row in rows[:3] for name in row["ids"]} == {"open"}


def test_adamw_8bit_without_a_gpu_says_what_is_used(tiny, encoder, phantoms, tmp_path, caplog):
    result = train(tiny, encoder, phantoms[:48], tmp_path)
    assert result.optimizer == "adamw (torch)"
    assert "adamw_8bit needs a GPU: AdamW in 32 bits instead" in caplog.text


def test_a_checkpoint_of_another_adapter_is_refused(tiny):
    optimizer = AdapterOptimizer(tiny, BASE, in_compute_type=False)
    whole = optimizer.weights()
    name = next(iter(whole))
    for other in ({"other": torch.zeros(1)}, {**whole, name: torch.zeros(3, 3)}):
        with pytest.raises(UserError, match=r"tensors are not the model's 56 in name and shape"):
            optimizer.load(other, optimizer.state_dict())


@pytest.mark.parametrize("moments", [{}, [], None, {"state": 1}])
def test_moments_that_are_none_are_refused_in_one_line(tiny, moments):
    optimizer = AdapterOptimizer(tiny, BASE, in_compute_type=False)
    with pytest.raises(UserError, match=r"moments do not fit .*fresh=true"):
        optimizer.load(optimizer.weights(), moments)


def test_updates_below_bfloat16_are_not_lost(tiny):
    """The weights behind a bfloat16 adapter add up what each copy alone would round away."""
    low = dataclasses.replace(tiny, dtype=torch.bfloat16)
    config = dataclasses.replace(BASE, weight_decay=0.0)
    optimizer = AdapterOptimizer(low, config, in_compute_type=True)
    before = optimizer.weights()
    copies = {name: parameter.detach().clone() for name, parameter in low.trainable}
    assert {parameter.dtype for parameter in copies.values()} == {torch.bfloat16}
    for _ in range(20):
        for _, parameter in low.trainable:
            parameter.grad = torch.ones_like(parameter)
        optimizer.collect()
        optimizer.step(1e-5, max_grad_norm=1e9)
    after = optimizer.weights()
    name = next(name for name in before if "lora_A" in name)
    assert torch.allclose(before[name] - after[name], torch.full_like(after[name], 2e-4), rtol=1e-2)
    assert torch.equal(dict(low.trainable)[name], after[name].bfloat16())


@pytest.mark.bitsandbytes
@pytest.mark.parametrize("max_grad_norm", [1.0, 1e9])
@pytest.mark.parametrize("rank", [2, 23])  # 23: tensors that are no whole number of blocks
def test_eight_bit_steps_of_all_tensors_together_are_those_of_each(
    rank, max_grad_norm, monkeypatch
):
    """Also where tensors are small enough for moments in 32 bits, and for a continued run.

    They never wait for the GPU, as the library's own steps do.
    """
    bitsandbytes = pytest.importorskip(
        "bitsandbytes", reason="adamw_8bit is NOT checked: no bitsandbytes"
    )
    waits = []
    monkeypatch.setattr(bitsandbytes.optim.optimizer, "sync_gpu", waits.append)
    low = load_model(TINY, LoraConfig(r=rank), gradient_checkpointing=False, seed=0)
    low = dataclasses.replace(low, dtype=torch.bfloat16)
    alone = [p.detach().clone().requires_grad_() for _, p in low.trainable]
    assert {p.numel() < SMALL for p in alone} == ({True} if rank == 2 else {True, False})
    reference = bitsandbytes.optim.AdamW8bit(alone, lr=1e-2, weight_decay=BASE.weight_decay)

    def begun():
        optimizer = AdapterOptimizer(low, BASE, in_compute_type=True)
        optimizer._on_gpu = True  # the library computes the same on a CPU, slowly
        optimizer.reset()
        assert optimizer.name.startswith("adamw_8bit")
        return optimizer

    optimizer = begun()
    for number in range(4):
        if number == 2:
            saved = optimizer.weights(), optimizer.state_dict()
            optimizer = begun()
            optimizer.load(*saved)
        torch.manual_seed(number)
        for (_, parameter), own in zip(low.trainable, alone, strict=True):
            parameter.grad = torch.randn_like(parameter)
            own.grad = parameter.grad.float()
        optimizer.collect()
        num_waits = len(waits)
        optimizer.step(1e-2, max_grad_norm=max_grad_norm)
        assert len(waits) == num_waits
        torch.nn.utils.clip_grad_norm_(alone, max_grad_norm)
        reference.step()
    assert waits
    for weight, own in zip(optimizer.weights().values(), alone, strict=True):
        assert torch.equal(weight, own)


def test_tensors_that_lie_together_begin_with_a_block_and_small_ones_lie_apart():
    shapes = [torch.Size(s) for s in ((5, 3), (70, 70), (64, 64), (1, 4097))]
    together = FlatTensors(shapes, torch.device("cpu"))
    whole, small = together.wholes
    assert [part.shape for part in together.parts] == shapes
    assert small is together.parts[0] and small.numel() < SMALL
    begins = [part.storage_offset() for part in together.parts[1:]]
    assert begins == [0, 20 * BLOCK, 36 * BLOCK]  # 4,900 numbers take 20 blocks of 256, 4,096 16
    assert whole.numel() == 53 * BLOCK
    for number, part in enumerate(together.parts, start=1):
        part.fill_(number)
    assert whole.sum() == 2 * 4900 + 3 * 4096 + 4 * 4097  # between them is nothing
    copies = together.on_cpu()
    assert all(map(torch.equal, copies, together.parts))
    assert len({copy.untyped_storage().data_ptr() for copy in copies}) == len(copies)


def test_moments_of_another_layout_are_one_clear_line():
    low = load_model(TINY, LoraConfig(r=16), gradient_checkpointing=False, seed=0)
    apart = AdapterOptimizer(low, BASE, in_compute_type=False)
    together = AdapterOptimizer(low, BASE, in_compute_type=True)
    with pytest.raises(UserError, match=r"do not fit .*group.*fresh=true"):
        together.load(apart.weights(), apart.state_dict())
    other = {**apart.state_dict(), "name": "adamw_8bit (bitsandbytes)"}
    with pytest.raises(UserError, match=r"bitsandbytes\) wrote it, this run has adamw"):
        apart.load(apart.weights(), other)


def test_micro_batches_add_up_in_full_precision(tiny):
    low = dataclasses.replace(tiny, dtype=torch.bfloat16)
    optimizer = AdapterOptimizer(low, BASE, in_compute_type=True)
    for value in (256.0, 1.0, 1.0):  # in bfloat16, 256 + 1 is 256
        for _, parameter in low.trainable:
            parameter.grad = torch.full_like(parameter, value)
        optimizer.collect()
    norm = optimizer.step(0.0, max_grad_norm=1e9)
    num_weights = sum(parameter.numel() for _, parameter in low.trainable)
    assert norm.item() == pytest.approx(258 * num_weights**0.5, rel=1e-5)
