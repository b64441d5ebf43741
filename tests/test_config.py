"""The configuration: what is accepted, what is refused, and in which words."""

from pathlib import Path

import pytest
import yaml
from conftest import run_config

from iris_ray.config import RunConfig
from iris_ray.errors import ConfigError
from iris_ray.plugins import configured_objective
from iris_ray.preparation import check_names
from iris_ray.reference import page

RECIPES = sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))
MINIMAL = {"model": {"path": "a"}, "data": {"path": "b"}}


@pytest.fixture
def recipe(tmp_path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    return path


def refused(**sections) -> str:
    with pytest.raises(ConfigError) as error:
        RunConfig.from_dict(MINIMAL | sections)
    return str(error.value)


def test_everything_but_model_and_data_has_a_default():
    config = RunConfig.from_dict(MINIMAL)
    assert config.folder == Path("runs/demo")
    assert config.max_length == 2048


def test_an_unknown_setting_is_refused_with_the_nearest_known_one():
    message = refused(learner={"batchsize": 4})
    assert (
        message == "configuration:\n  learner.batchsize: there is no such setting. Did you mean batch_size?"
    )


def test_an_unknown_section_is_refused_with_the_nearest_known_one():
    assert "learnr: there is no such setting. Did you mean learner?" in refused(learnr={})


def test_an_unknown_setting_deep_inside_is_refused_with_those_there_are():
    message = refused(model={"scratch": {"hidden_sizes": 64, "xyz": 1}})
    assert "model.scratch.hidden_sizes: there is no such setting. Did you mean hidden_size?" in message
    assert (
        "model.scratch.xyz: there is no such setting. Known here: vocab_size, padded_vocab_size," in message
    )


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("learner", {"zero_stage": 4}, "learner.zero_stage: 4 does not fit: input should be 0, 1, 2 or 3."),
        ("learner", {"learning_rate": 0}, "learner.learning_rate: 0 does not fit: input should be greater"),
        ("learner", {"learning_rate": "high"}, "learner.learning_rate: 'high' does not fit: input should be"),
        ("learner", {"learning_rate": []}, "learner.learning_rate: [] does not fit: input should be greater"),
        ("learner", {"learning_rate": [1e-6, -1]}, "learner.learning_rate: [1e-06, -1] does not fit: input"),
        ("learner", {"learning_rate": float("nan")}, "learner.learning_rate: nan does not fit: input should"),
        ("learner", {"adam_betas": [0.9, 1]}, "learner.adam_betas.1: 1 does not fit: input should be less"),
        (
            "learner",
            {"optimizer": "sgd"},
            "learner.optimizer: 'sgd' does not fit: input should be 'adamw' or",
        ),
        ("learner", {"max_skipped_steps": -1}, "learner.max_skipped_steps: -1 does not fit: input should be"),
        (
            "learner",
            {"batch_size": "many"},
            "learner.batch_size: 'many' does not fit: input should be",
        ),
        ("generation", {"n": 0}, "generation.n: 0 does not fit: input should be greater than or equal to 1."),
        ("generation", {"top_k": -2}, "generation.top_k: -2 does not fit: input should be greater than or"),
        (
            "generation",
            {"in_flight": "abort"},
            "generation.in_flight: 'abort' does not fit: input should be 'finish', 'continue' or 'resubmit'",
        ),
        ("generation", {"min_p": 1.5}, "generation.min_p: 1.5 does not fit: input should be less than or"),
        ("generation", {"stop": "END"}, "generation.stop: 'END' does not fit: input should be a valid list."),
        ("generation", {"stop": [""]}, "generation.stop.0: '' does not fit: string should have at least 1"),
        ("run", {"name": "../up"}, "run.name: '../up' does not fit: string should match"),
        ("alpha", {"value": -1}, "alpha.value: -1 does not fit: input should be greater than or equal to 0."),
        ("alpha", {"minimum": -0.5}, "alpha.minimum: -0.5 does not fit: input should be greater than or"),
        ("alpha", {"gap_per": "word"}, "alpha.gap_per: 'word' does not fit: input should be 'token' or"),
        ("sync", 3, "sync: 3 does not fit"),
    ],
)
def test_a_wrong_value_is_named_with_its_field(section, values, message):
    assert message in refused(**{section: values})


def test_all_errors_are_told_at_once():
    assert len(refused(learner={"workers": 0, "zero_stage": 9}, run={"seed": -1}).splitlines()) == 4


def test_a_missing_section_is_named():
    with pytest.raises(ConfigError, match="data: is missing; please set it"):
        RunConfig.from_dict({"model": {"path": "a"}})


@pytest.mark.parametrize(
    ("section", "both"),
    [("model", {"path": "a", "scratch": {}}), ("data", {"path": "b", "sort_digits": {}})],
)
def test_exactly_one_source(section, both):
    message = f"{section}: set exactly one of {section}.path"
    assert message in refused(**{section: both})
    assert message in refused(**{section: {}})
    for name, value in both.items():
        assert RunConfig.from_dict(MINIMAL | {section: {name: value}})


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"alpha": {"minimum": 2, "maximum": 1}},
            "alpha.maximum (1.0) must be at least alpha.minimum",
        ),
        (
            {"objective": {"name": "spin", "options": {"lam": 1}, "by_iteration": {"lam": [1]}}},
            "objective: lam: set in options and in by_iteration. Set it in one of them",
        ),
        (
            {"model": {"scratch": {"heads": 3}}},
            "model.scratch: heads (3) must divide hidden_size (128) into even parts",
        ),
        ({"model": {"scratch": {"hidden_size": 20}}}, "heads (4) must divide hidden_size (20) into even"),
        ({"model": {"scratch": {"kv_heads": 3}}}, "model.scratch: kv_heads (3) must divide heads (4)"),
        (
            {"model": {"scratch": {"heads": 16}}},
            "model.scratch.heads (16) makes heads of 8 of model.scratch.hidden_size (128), and vLLM on CPUs",
        ),
        (
            {"run": {"folder": "s3://bucket/runs"}},
            "run.folder: 's3://bucket/runs' is a URI, and run folders need a file system. Mount that",
        ),
        ({"data": {"sort_digits": {"min_digits": 9}}}, "max_digits (8) must be at least min_digits (9)"),
        (
            {"learner": {"offload": "optimizer", "zero_stage": 0}},
            "learner.offload (optimizer) needs learner.zero_stage (0) to be at least 1",
        ),
        (
            {"learner": {"offload": "parameters", "zero_stage": 2}},
            "learner.offload (parameters) needs learner.zero_stage (2) to be at least 3",
        ),
        (
            {"learner": {"workers": 2, "num_gpus": 0.5}},
            "learner.num_gpus (0.5): with learner.workers (2) each rank needs a whole GPU",
        ),
        (
            {"sync": {"transport": "nccl"}},
            "sync.transport (nccl) needs a whole GPU on each side: raise generation.num_gpus (0)",
        ),
        (
            {"sync": {"transport": "nccl"}, "generation": {"num_gpus": 1}},
            "sync.transport (nccl) needs a whole GPU on each side: raise learner.num_gpus (0)",
        ),
        (
            {"sync": {"transport": "gloo"}, "generation": {"num_gpus": 1}},
            "sync.transport (gloo) is for CPUs, and generation.num_gpus is 1",
        ),
        (
            {"sync": {"transport": "gloo"}, "model": {"path": "a", "lora": {}}},
            "sync.transport (gloo) sends whole models. An adapter (model.lora) is small",
        ),
        (
            {"generation": {"bind_cores": True, "num_cpus": 0.5}},
            "generation.bind_cores needs whole cores: generation.num_cpus is 0.5",
        ),
        (
            {"generation": {"in_flight": "continue"}, "model": {"path": "a", "lora": {}}},
            "generation.in_flight (continue) does not go with model.lora",
        ),
        ({"generation": {"max_ahead": 8}}, "max_ahead (8) must be at least learner.batch_size (64)"),
    ],
)
def test_settings_that_contradict_each_other(sections, message):
    assert message in refused(**sections)


def test_settings_cannot_be_changed_later():
    with pytest.raises(ValueError, match="frozen"):
        run_config().run.name = "other"


def test_overrides_are_yaml_values_at_any_depth(recipe):
    config = RunConfig.from_yaml(
        recipe,
        [
            "learner.learning_rate=5e-7",
            "run.name = second",
            "generation.enforce_eager=true",
            "objective.options={lam: 0.5}",
            "data.sort_digits.examples=12",
            "data.path=null",
            "evaluation.answer_pattern='#### (.+)'",
            "run.ray_address=",
        ],
    )
    assert config.learner.learning_rate == 5e-7
    assert config.run.name == "second"
    assert config.generation.enforce_eager is True
    assert config.objective.options == {"lam": 0.5}
    assert config.data.sort_digits.examples == 12
    assert config.evaluation.answer_pattern == "#### (.+)"
    assert config.run.ray_address is None


def test_learning_rates_as_yaml_reads_them(recipe):
    config = RunConfig.from_yaml(recipe, ["learner.learning_rate=[5e-7, 1.0e-7]"])
    assert config.learner.learning_rate == [5e-7, 1e-7]


def test_an_override_fills_a_section_left_empty(recipe):
    recipe.write_text("model: {path: a}\ndata:\n")
    assert RunConfig.from_yaml(recipe, ["data.path=rows.jsonl"]).data.path == "rows.jsonl"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("run.name", "write it as section.key=value"),
        ("name=second", "write it as section.key=value"),
        ("model.path.deeper=1", "path is a value, not a section"),
        ("run.name={", "not valid YAML"),
        ("run.nam=second", "run.nam: there is no such setting. Did you mean name?"),
    ],
)
def test_malformed_overrides(recipe, override, message):
    with pytest.raises(ConfigError) as error:
        RunConfig.from_yaml(recipe, [override])
    assert message in str(error.value)


def test_a_recipe_that_does_not_exist(tmp_path):
    with pytest.raises(ConfigError, match=r"absent\.yaml does not exist"):
        RunConfig.from_yaml(tmp_path / "absent.yaml")


@pytest.mark.parametrize(
    ("text", "message"), [("model: [", "is not valid YAML"), ("- model", "must hold sections")]
)
def test_a_recipe_that_cannot_be_read(recipe, text, message):
    recipe.write_text(text)
    with pytest.raises(ConfigError, match=message):
        RunConfig.from_yaml(recipe)


def test_errors_name_the_recipe(recipe):
    recipe.write_text("")
    with pytest.raises(ConfigError, match=r"recipe\.yaml:\n  model: is missing"):
        RunConfig.from_yaml(recipe)


def test_what_is_written_reads_back_the_same(recipe):
    config = run_config(
        run={"folder": "über/runs", "ray_address": "auto"},
        data={"sort_digits": {"examples": 7}},
        objective={"options": {"lam": 0.1, "link": "hinge", "swap": True}},
        sync={"parity_tolerance": 1e-4},
        learner={"learning_rate": [5e-7, 1e-7], "adam_betas": [0.8, 0.9]},
    )
    recipe.write_text(config.to_yaml())
    assert RunConfig.from_yaml(recipe) == config


def recipes(folder: Path, **texts: str) -> list[Path]:
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text)
    return [folder / f"{name}.yaml" for name in texts]


def test_each_recipe_changes_what_stands_before_it(tmp_path):
    several = recipes(
        tmp_path,
        base="{model: {path: a}, data: {path: b, holdout: 4}, learner: {learning_rate: [1e-6, 1e-7]}}",
        method="objective: {name: spin, options: {lam: 0.2, loss: hinge}}",
        small="{model: {path: null, scratch: {layers: 1}}, learner: {learning_rate: [1e-3]}, "
        "objective: {options: {lam: 0.5}}}",
    )
    config = RunConfig.from_yaml(several, ["data.holdout=8"])
    assert config.run.name == "base-method-small"
    assert (config.model.path, config.model.scratch.layers) == (None, 1)
    assert (config.data.path, config.data.holdout) == ("b", 8)
    assert config.learner.learning_rate == [1e-3]
    assert config.objective.options == {"lam": 0.5, "loss": "hinge"}


def test_several_recipes_may_be_named_by_one_of_them(tmp_path):
    several = recipes(tmp_path, base="{model: {path: a}, data: {path: b}}", other="run: {name: x}")
    assert RunConfig.from_yaml(several).run.name == "x"
    assert RunConfig.from_yaml(several[:1]).run.name == "demo"


def test_errors_name_all_recipes(tmp_path):
    several = recipes(tmp_path, base="{model: {path: a}, data: {path: b}}", other="run:")
    with pytest.raises(ConfigError, match=r"base\.yaml, .*other\.yaml:\n  run: None does not fit"):
        RunConfig.from_yaml(several)


def test_options_that_change():
    options = {"options": {"loss": "hinge"}, "by_iteration": {"lam": [0.1, 0.1, 5.0]}}
    config = run_config(objective={"name": "spin", **options}, schedule={"iterations": 4})
    made = [configured_objective(config, iteration).options for iteration in (1, 2, 3, 4)]
    assert [each["lam"] for each in made] == [0.1, 0.1, 5.0, 5.0]
    assert {each["loss"] for each in made} == {"hinge"}


def test_options_of_later_iterations_are_checked_before_anything_starts():
    config = run_config(objective={"name": "spin", "by_iteration": {"lam": [0.1, -5.0]}})
    with pytest.raises(ConfigError, match=r"objective\.options\.lam: -5\.0 does not fit"):
        check_names(config)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_fit_and_are_named_after_their_file(path):
    asks_for_data = yaml.safe_load(path.read_text())["data"].get("path", "") is None
    config = RunConfig.from_yaml(path, ["data.path=rows.jsonl"] if asks_for_data else [])
    assert config.run.name == path.stem


def test_the_gsm8k_recipe_asks_for_its_data():
    with pytest.raises(ConfigError, match=r"set exactly one of data\.path"):
        RunConfig.from_yaml(Path(__file__).parents[1] / "recipes/gsm8k.yaml")


def test_the_page_of_all_settings_is_up_to_date():
    written = Path(__file__).parents[1] / "docs" / "configuration.md"
    assert written.read_text() == page(), "run: python -m iris_ray.reference > docs/configuration.md"


def test_heads_that_only_cpus_do_not_know_are_fine_on_gpus():
    made = MINIMAL | {"model": {"scratch": {"heads": 16}}, "generation": {"num_gpus": 1}}
    assert RunConfig.from_dict(made).model.scratch.head_size == 8


def test_a_section_that_stands_twice_is_refused(recipe):
    recipe.write_text(recipe.read_text() + "learner: {workers: 2}\nrun: {seed: 1}\nlearner: {num_cpus: 2}\n")
    with pytest.raises(ConfigError, match="learner stands twice"):
        RunConfig.from_yaml(recipe)


def test_keys_that_come_in_by_a_merge_may_be_changed(recipe):
    merged = "generation: {resources: &both {a: 1, b: 1}}\nlearner: {resources: {<<: *both, b: 2}}\n"
    recipe.write_text(recipe.read_text() + merged)
    assert RunConfig.from_yaml(recipe).learner.resources == {"a": 1, "b": 2}


def test_a_recipe_that_is_not_utf_8_is_refused(recipe):
    recipe.write_bytes("run: {name: x} # größer".encode("latin-1"))
    with pytest.raises(ConfigError, match="is not text in UTF-8"):
        RunConfig.from_yaml(recipe)
