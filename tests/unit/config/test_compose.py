"""Compositions have the published numbers exactly; a directory is named by what was chosen."""

import copy
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from omegaconf import DictConfig, OmegaConf

from medvqa.cli import register
from medvqa.config.compose import checked, compose_cells, with_roles
from medvqa.config.errors import MISTAKES, UserError, explain
from medvqa.config.model import Backend, Dtype
from medvqa.config.schema import Config
from medvqa.config.training import Optimizer, Schedule, TrainingConfig

CONF = Path(__file__).parents[3] / "conf"


def composed(*overrides: str, hydra: bool = False) -> DictConfig:
    register()
    with initialize_config_dir(version_base="1.3", config_dir=str(CONF)):
        return compose("config", overrides=list(overrides), return_hydra_config=hydra)


def resolved_plain(config: DictConfig) -> dict[str, object]:
    plain = OmegaConf.to_container(config, resolve=True, enum_to_str=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def config_of(*overrides: str) -> Config:
    config = OmegaConf.to_object(composed(*overrides))
    assert isinstance(config, Config)
    return config


def run_directory(*overrides: str) -> str:
    return str(composed(*overrides, hydra=True).hydra.run.dir)


def test_the_default_is_the_embedded_run():
    config = config_of()
    assert (config.model.name, config.data.name, config.curriculum.name) == (
        "medvqa/tiny",
        "phantom",
        "mixed",
    )
    assert config.training == config_of("training=tiny").training
    assert config.model.max_pixels == 128 * 128


@pytest.mark.parametrize(
    ("option", "hub_id", "steps", "is_4bit"),
    [
        ("qwen3_vl_8b", "Qwen/Qwen3-VL-8B-Instruct", 40, False),
        ("qwen3_vl_2b", "Qwen/Qwen3-VL-2B-Instruct", 40, False),
        ("qwen2_vl_7b", "Qwen/Qwen2-VL-7B-Instruct", 50, False),
        ("qwen2_vl_2b_4bit", "unsloth/Qwen2-VL-2B-Instruct-bnb-4bit", 60, True),
    ],
)
def test_choosing_a_published_model_alone_brings_its_numbers(option, hub_id, steps, is_4bit):
    config = config_of(f"model={option}")
    assert config.model.name == hub_id
    assert config.model.load_in_4bit is is_4bit
    assert config.model.backend is Backend.auto
    assert config.model.dtype is Dtype.auto
    assert config.model.max_pixels == 512 * 512
    training, lora = config.training, config.lora
    assert training.max_steps == steps
    assert (training.micro_batch_size, training.accumulation_steps) == (2, 4)
    assert (training.learning_rate, training.warmup_steps) == (2e-4, None)
    assert (training.optimizer, training.schedule) == (Optimizer.adamw_8bit, Schedule.linear)
    assert training.weight_decay == 0.01
    assert (lora.r, lora.alpha, lora.dropout, lora.vision_layers) == (16, 32.0, 0.0, False)
    assert lora.target_modules is None  # the family's own: all seven projections


def test_a_model_without_a_training_file_gets_the_published_recipe():
    assert config_of("model=qwen3_vl_8b").training == TrainingConfig()
    assert config_of("model=qwen3_vl_8b", "training=default").training == TrainingConfig()


def test_a_chosen_training_file_wins_over_the_models_own():
    assert config_of("model=tiny", "training=qwen2_vl_7b").training.max_steps == 50


def test_published_scoring_uses_bert_scores_english_encoder():
    assert config_of("evaluation=published").evaluation.bertscore.model == "roberta-large"


def test_all_of_vqa_rad_says_that_it_holds_training_rows():
    data = config_of("data=vqa_rad_all").data
    assert (data.split, data.allow_training_rows) == ("train", True)
    assert [source.split for source in data.evaluation.values()] == ["all"]


@pytest.mark.parametrize("path", sorted(CONF.glob("experiment/*.yaml")), ids=lambda path: path.stem)
def test_an_experiment_is_a_delta_that_opens_with_its_command(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith(f"# python train.py experiment={path.stem}")


def test_the_same_config_lands_in_the_same_directory():
    assert run_directory("seed=3", "lora.r=8") == run_directory("lora.r=8", "seed=3")


@pytest.mark.parametrize(
    "same",
    ["tracking=disabled", "tracking.project=other", "fresh=true"],
)
def test_what_cannot_change_a_result_does_not_change_the_directory(same):
    assert run_directory(same) == run_directory()


@pytest.mark.parametrize("other", ["seed=1", "lora.r=8", "evaluation.max_new_tokens=8"])
def test_what_can_change_a_result_changes_the_directory(other):
    assert run_directory(other) != run_directory()


def test_a_directory_is_named_by_what_was_chosen():
    name = run_directory("data=vqa_rad", "curriculum=mixed", "seed=2")
    assert name.startswith("outputs/tiny-vqa_rad-mixed-s2-")
    assert len(name.rpartition("-")[2]) == 8


@pytest.mark.parametrize("setting", ["training.engine=fused", "evaluation.decoding=shared_prefix"])
def test_our_kernels_on_unsloth_s_layers_are_refused(setting):
    name = setting.partition("=")[0]
    with pytest.raises(ValueError, match=f"^{setting} computes on .*; say {name}=auto or model"):
        config_of("model=qwen3_vl_8b", "model.backend=unsloth", setting)
    for backend in ("auto", "transformers"):
        config_of("model=qwen3_vl_8b", f"model.backend={backend}", setting)


def test_the_smoke_experiment_asks_few_questions_of_any_data_set():
    for data in ("phantom", "vqa_rad_all", "closed_mix"):
        config = config_of("experiment=smoke", f"data={data}")
        assert config.data.evaluation_limit == 40
        assert config.data.evaluation == config_of(f"data={data}").data.evaluation


def test_the_schemas_are_not_copied_for_each_cell_and_no_cell_changes_them():
    plain = composed()
    store = ConfigStore.instance()
    assert copy.deepcopy(store) is store
    assert composed("seed=7", "lora.r=3", "data.evaluation.test.limit=3") != plain
    assert composed() == plain


def test_one_role_of_the_columns_is_an_override_of_its_own():
    data = config_of(*with_roles(["data=table", "data.columns.image=img"])).data
    assert data.columns == data.evaluation["test"].columns == {"image": "img"}
    mapped = ("data=table", "data.columns={question: q}", "data.columns.image=img")
    assert config_of(*with_roles(mapped)).data.columns == {"question": "q", "image": "img"}
    own = ("data=table", "data.evaluation.test.columns.image=scan")
    assert config_of(*with_roles(own)).data.evaluation["test"].columns == {"image": "scan"}


def test_an_unknown_role_of_the_columns_is_named():
    with pytest.raises(ValueError, match="unknown role 'imgae'; known: image, question"):
        config_of("data=table", "data.columns={imgae: x}")


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("curriculum.stages={a:1}", "curriculum.stages={a:1}: Cannot merge"),
        ("data.path=${nope}", "data.path: Interpolation key 'nope' not found"),
        ("data.evaluation={x:{name:phantom,split:test}}", "there is no data.evaluation.x; sets"),
    ],
)
def test_a_mistake_names_its_key(override, message):
    with pytest.raises(MISTAKES) as caught:
        checked(composed(override), runs_here=False)
    assert explain(caught.value).startswith(message)


@pytest.mark.parametrize("override", ["seed=range(3,1)", "curriculum=glob(zz*)"])
def test_a_grid_without_cells_is_refused(override):
    with pytest.raises(UserError, match=r"the grid has no cells: .* stands for no value"):
        compose_cells([override], is_sweep=True)


def test_batches_of_no_job_are_refused():
    with pytest.raises(UserError, match="max_batch_size must be at least 1"):
        compose_cells(["seed=1,2", "hydra.sweeper.max_batch_size=0"], is_sweep=True)
