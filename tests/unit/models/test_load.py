"""The adapter: where it sits, how it starts, that it alone trains, that PEFT loads it back."""

import gc
import hashlib
import sys

import huggingface_hub
import peft
import pytest
import torch
from transformers import AutoModelForImageTextToText

from medvqa.config.errors import UserError
from medvqa.config.lora import LoraConfig
from medvqa.config.model import ModelConfig
from medvqa.models import load
from medvqa.models.adapter import reset_adapter, save_adapter
from medvqa.models.load import UNUSED, import_alone, load_base, load_model
from medvqa.models.source import check_base, hub_answers, load_processor, model_source
from tests.conftest import TINY
from tests.loopback import body, served


def logits(model, encoder, examples):
    batch = encoder.generation_batch([encoder.encode(example) for example in examples])
    model.eval()
    with torch.inference_mode():
        return model(**batch).logits


def test_only_the_adapter_on_the_language_model_trains(tiny):
    names = [name for name, _ in tiny.trainable]
    assert names
    assert all("lora_" in name and ".language_model." in name for name in names)
    # 4 layers x 7 projections x (A, B)
    assert len(names) == 4 * 7 * 2


def test_vision_layers_are_adapted_only_when_asked():
    lora = LoraConfig(r=4, vision_layers=True)
    loaded = load_model(TINY, lora, gradient_checkpointing=False, seed=0)
    vision = [name for name, _ in loaded.trainable if ".visual." in name]
    # 4 blocks x (qkv, proj, linear_fc1, linear_fc2) x (A, B)
    assert len(vision) == 4 * 4 * 2


def test_a_module_name_that_matches_nothing_is_an_error():
    lora = LoraConfig(target_modules=["q_proj", "query"])
    with pytest.raises(UserError, match=r"lora.target_modules: query match no layer.*q_proj"):
        load_model(TINY, lora, gradient_checkpointing=False, seed=0)


def test_a_fresh_adapter_changes_no_answer(tiny, encoder, phantoms):
    with_adapter = logits(tiny.model, encoder, phantoms[:3])
    with tiny.adapter_disabled():
        base = logits(tiny.model, encoder, phantoms[:3])
    assert torch.equal(with_adapter, base)


def test_the_adapter_starts_from_the_seed_alone(tiny):
    first = {name: p.detach().clone() for name, p in tiny.trainable}
    torch.manual_seed(1234)
    reset_adapter(tiny.model, seed=0)
    assert all(torch.equal(first[name], p) for name, p in tiny.trainable)
    reset_adapter(tiny.model, seed=1)
    changed = [name for name, p in tiny.trainable if not torch.equal(first[name], p)]
    assert changed == [name for name, _ in tiny.trainable if "lora_A" in name]


def test_the_adapter_of_a_seed_is_the_same_forever():
    """Bit for bit what it was when it was defined, at the four models' widths."""
    shapes = {
        f"layers.{width}.{name}": shape
        for width in (1536, 2048, 3584, 4096, 12288, 18944)
        for name, shape in (("lora_A.weight", (16, width)), ("lora_B.weight", (width, 16)))
    }
    module = torch.nn.Module()
    for name, shape in shapes.items():
        parameter = torch.nn.Parameter(torch.ones(shape, dtype=torch.bfloat16))
        module.register_parameter(name.replace(".", "/"), parameter)
    reset_adapter(module, seed=7)
    for name, parameter in module.named_parameters():
        expected = torch.zeros(parameter.shape)
        if "lora_A" in name:
            digest = hashlib.sha256(f"7:{name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") >> 1)
            bound = parameter.shape[1] ** -0.5
            expected = torch.rand(parameter.shape, generator=generator) * 2 * bound - bound
        assert torch.equal(parameter, expected), name
        assert parameter.dtype is torch.float32


def test_the_saved_adapter_loads_back_with_peft(tiny, encoder, phantoms, tmp_path):
    with torch.no_grad():
        for _, parameter in tiny.trainable:
            parameter.normal_(std=0.05, generator=torch.Generator().manual_seed(3))
    expected = logits(tiny.model, encoder, phantoms[:2])
    save_adapter(tiny, tmp_path / "adapter")
    base = AutoModelForImageTextToText.from_pretrained(model_source(TINY), dtype=torch.float32)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path / "adapter")
    assert torch.allclose(logits(loaded, encoder, phantoms[:2]), expected, atol=1e-5)
    assert not (tmp_path / "adapter" / "adapter_model.bin").exists()


def test_a_hub_model_without_a_network_is_refused_in_seconds_and_in_one_line(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    hub_answers.cache_clear()
    with pytest.raises(UserError, match=r"cannot load the base model a/b: .*\(no network\? give"):
        check_base(ModelConfig(name="a/b"))
    hub_answers.cache_clear()


def test_a_proxy_that_refuses_the_connection_is_one_line(monkeypatch):
    with served(body(b"")) as proxy:  # which knows no CONNECT
        monkeypatch.setenv("HTTPS_PROXY", f"http://127.0.0.1:{proxy.port}")
        huggingface_hub.close_session()  # the client reads the variable when it is made
        with pytest.raises(UserError, match=r"cannot load the base model a/b: 501 .*no network"):
            load_processor(ModelConfig(name="a/b"))
    huggingface_hub.close_session()


def test_a_path_without_a_model_is_refused_before_anything_loads(tmp_path):
    with pytest.raises(UserError, match=r"holds no config.json"):
        model_source(ModelConfig(name="x", path=str(tmp_path)))


def test_a_budget_below_one_patch_is_refused():
    config = ModelConfig(name="medvqa/tiny", min_pixels=16, max_pixels=64)
    with pytest.raises(UserError, match=r"model.max_pixels=64 is not obeyed.*at least 1024"):
        load_model(config, LoraConfig(r=2), gradient_checkpointing=False, seed=0)


def test_every_module_is_switched_however_the_model_was_left():
    loaded = load_model(TINY, LoraConfig(r=4, alpha=8), gradient_checkpointing=False, seed=0)
    for training in (True, True, False, True):
        loaded.use_for(training=training)
        assert {module.training for module in loaded.model.modules()} == {training}
    loaded.model.eval()
    loaded.use_for(training=True)
    assert all(module.training for module in loaded.model.modules())


@pytest.mark.parametrize("is_enabled", [True, False])
def test_the_collector_is_left_as_it_was(is_enabled):
    try:
        (gc.enable if is_enabled else gc.disable)()
        load_base(TINY)
        assert gc.isenabled() is is_enabled
    finally:
        gc.enable()


def test_a_failed_import_hides_no_package(monkeypatch):
    def fail():
        raise ImportError

    for name in UNUSED:
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(load, "_import_libraries", fail)
    with pytest.raises(ImportError):
        import_alone()
    assert not sys.modules.keys() & set(UNUSED)
