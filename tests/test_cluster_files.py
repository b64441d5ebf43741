"""The files of cluster/: read as Ray, KubeRay's schemas and this project's own configuration read them."""

import copy
import re
import shlex
import subprocess
import tomllib
import zipfile
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from ray._private.runtime_env.packaging import create_package
from ray.autoscaler._private.kuberay.autoscaling_config import _generate_available_node_types_from_ray_cr_spec
from ray.autoscaler._private.kuberay.utils import parse_quantity
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.runtime_env import RuntimeEnv

from iris_ray.config import RunConfig
from iris_ray.errors import ConfigError
from iris_ray.resources import needs
from iris_ray.submission import read_environment

ROOT = Path(__file__).parents[1]
CLUSTER = ROOT / "cluster"
SCHEMAS = ROOT.parent / "shared/data/kuberay"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
IN_IMAGE = "/opt/iris-ray"  # where the image holds the project
MIB = 1 << 20
# Of the models that the jobs train: recipes/demo.yaml makes the first one.
PARAMETERS = {"cpu": 1_000_000, "gpu": 494_000_000}
KINDS = list(PARAMETERS)
MANIFESTS = [f"{what}-{kind}" for what in ("raycluster", "rayjob") for kind in KINDS]


def manifest(name: str) -> dict[str, Any]:
    return yaml.safe_load((CLUSTER / "kuberay" / f"{name}.yaml").read_text())


def cluster_spec(kind: str) -> dict[str, Any]:
    return manifest(f"raycluster-{kind}")["spec"]


def pods(kind: str) -> dict[str, dict[str, Any]]:
    """The pod specs of a cluster's groups; each has one container."""
    spec = cluster_spec(kind)
    groups = {"head": spec["headGroupSpec"]} | {each["groupName"]: each for each in spec["workerGroupSpecs"]}
    return {name: group["template"]["spec"] for name, group in groups.items()}


def volume(pod: dict[str, Any], path: str) -> dict[str, Any]:
    (container,) = pod["containers"]
    (name,) = [mount["name"] for mount in container["volumeMounts"] if mount["mountPath"] == path]
    (found,) = [volume for volume in pod["volumes"] if volume["name"] == name]
    return found


def job_config(kind: str) -> RunConfig:
    """What the job's entrypoint plays; everything but `--set` is checked here."""
    program, command, recipe, *options = shlex.split(manifest(f"rayjob-{kind}")["spec"]["entrypoint"])
    assert (program, command) == ("iris-ray", "run")
    assert set(options[::2]) == {"--set"}
    return RunConfig.from_yaml(ROOT / Path(recipe).relative_to(IN_IMAGE), options[1::2])


@cache
def closed_schema(kind: str) -> dict[str, Any]:
    """KubeRay's schema of a kind, without room for fields that it does not know.

    Kubernetes drops such fields in silence.
    """
    definition = yaml.load((SCHEMAS / f"ray.io_{kind}s.yaml").read_text(), yaml.CSafeLoader)
    (version,) = [each for each in definition["spec"]["versions"] if each["name"] == "v1"]
    schema = version["schema"]["openAPIV3Schema"]
    close(schema)
    return schema


def close(schema: dict[str, Any]) -> None:
    open_ended = schema.get("x-kubernetes-preserve-unknown-fields")
    if "properties" in schema and not open_ended:
        schema.setdefault("additionalProperties", False)
    inner = [*schema.get("properties", {}).values(), schema.get("items"), schema.get("additionalProperties")]
    for each in inner:
        if isinstance(each, dict):
            close(each)


needs_schemas = pytest.mark.skipif(
    not SCHEMAS.exists(), reason="KubeRay's schemas do not lie beside this checkout"
)


@needs_schemas
@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_fit_kuberays_schema(name: str) -> None:
    document = manifest(name)
    assert document["apiVersion"] == "ray.io/v1"
    jsonschema.validate(document, closed_schema(document["kind"].lower()))


@needs_schemas
@pytest.mark.parametrize(
    "path",
    [
        ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplica"),
        ("spec", "rayClusterSpec", "authOptions", "modes"),
        ("spec", "rayClusterSpec", "headGroupSpec", "template", "spec", "containers", 0, "imagePullPolicies"),
        ("spec", "backofLimit"),
    ],
)
def test_a_misspelt_field_is_found(path: tuple[str | int, ...]) -> None:
    document = copy.deepcopy(manifest("rayjob-cpu"))
    parent = document
    for key in path[:-1]:
        parent = parent[key]
    parent[path[-1]] = "1"
    with pytest.raises(jsonschema.ValidationError, match=str(path[-1])):
        jsonschema.validate(document, closed_schema("rayjob"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_job_brings_the_cluster_of_the_same_kind(kind: str) -> None:
    assert manifest(f"rayjob-{kind}")["spec"]["rayClusterSpec"] == cluster_spec(kind)


@pytest.mark.parametrize("kind", KINDS)
def test_everything_runs_the_image_that_the_dockerfile_builds(kind: str) -> None:
    image = f"{PROJECT['name']}:{PROJECT['version']}-{kind}"
    assert f"--build-arg EXTRA={kind} -t {image} ." in (CLUSTER / "Dockerfile").read_text()
    assert {pod["containers"][0]["image"] for pod in pods(kind).values()} == {image}
    (ray,) = [each for each in PROJECT["dependencies"] if each.startswith("ray[")]
    assert ray.endswith(f"=={cluster_spec(kind)['rayVersion']}")


@pytest.mark.parametrize("kind", KINDS)
def test_run_folders_lie_on_the_volume_that_all_pods_share(kind: str) -> None:
    claim = yaml.safe_load((CLUSTER / "kuberay" / "storage.yaml").read_text())
    assert claim["spec"]["accessModes"] == ["ReadWriteMany"]
    for pod in pods(kind).values():
        runs = volume(pod, str(job_config(kind).run.folder))
        assert runs["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]


@pytest.mark.parametrize("kind", KINDS)
def test_memory_holds_actors_and_shared_memory(kind: str) -> None:
    config, spec = job_config(kind), cluster_spec(kind)
    weights = 2 * PARAMETERS[kind]
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        shared = volume(pod, "/dev/shm")["emptyDir"]
        assert shared["medium"] == "Memory"
        size = parse_quantity(shared["sizeLimit"])
        store = int(group["rayStartParams"]["object-store-memory"])
        resources = pod["containers"][0]["resources"]
        limit, actors = resources["limits"]["memory"], group["resources"].get("memory", 0)
        assert resources["requests"] == resources["limits"]
        assert parse_quantity(actors) + size < parse_quantity(limit)
        # Weights lie in Ray's store, two versions and one that comes, and then in files for the engine.
        staged = config.sync.buffer_mib * MIB if actors else 0
        assert store + staged <= size
        assert store >= 3 * weights or not actors


@pytest.mark.parametrize("kind", KINDS)
def test_rays_autoscaler_sees_room_for_the_job(kind: str) -> None:
    nodes = _generate_available_node_types_from_ray_cr_spec(cluster_spec(kind))
    config = job_config(kind)
    generator, rank = needs(config, PARAMETERS[kind])
    assert nodes["headgroup"]["resources"]["CPU"] == 0
    for name, need, placed in (
        ("generators", generator, config.generation.resources),
        ("learner", rank, config.learner.resources),
    ):
        node = nodes[name]
        wanted = {"CPU": need.cpus, "GPU": need.gpus, "memory": need.memory} | placed
        assert set(placed) == {name}
        # With autoscaling too, a run starts only on what is there.
        room = [node["resources"].get(each, 0) // amount for each, amount in wanted.items() if amount]
        assert node["min_workers"] * min(room) >= need.count
    assert nodes["generators"]["max_workers"] > nodes["generators"]["min_workers"]


def test_ray_up_takes_the_aws_cluster() -> None:
    config = yaml.safe_load((CLUSTER / "ray-cluster.yaml").read_text())
    prepared = prepare_config(config)
    validate_config(prepared)
    nodes = prepared["available_node_types"]
    assert nodes["head"]["resources"] == {"CPU": 0}
    assert {"learner", "generators"} < set(nodes)
    for name in ("learner", "generators"):
        assert set(nodes[name]["resources"]) == {name}
        assert nodes[name]["min_workers"] >= 1
    assert prepared["docker"]["image"].endswith(
        cluster_spec("gpu")["headGroupSpec"]["template"]["spec"]["containers"][0]["image"]
    )
    assert sum(node["max_workers"] for node in nodes.values()) == prepared["max_workers"]
    misspelt = copy.deepcopy(prepared)
    misspelt["available_node_types"]["learner"]["min_worker"] = 1
    with pytest.raises(jsonschema.ValidationError, match="min_worker"):
        validate_config(misspelt)


def dockerfile() -> list[tuple[str, str]]:
    """Instructions and their arguments, comments and line breaks left out."""
    text = re.sub(r"^#.*\n", "", (CLUSTER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines if line.strip()]


def test_the_image_installs_as_make_does() -> None:
    steps = dockerfile()
    instructions = [instruction for instruction, _ in steps]
    install = next(i for i, (_, step) in enumerate(steps) if "make EXTRA=${EXTRA}" in step)
    assert steps[install][1].endswith("install")
    # As the user under whom it runs: DeepSpeed's built operators lie in the home folder.
    assert steps[instructions.index("USER")] == ("USER", "ray")
    assert instructions.index("USER") < install
    assert ("WORKDIR", IN_IMAGE) in steps
    taken = {rule[1:] for rule in (CLUSTER / "Dockerfile.dockerignore").read_text().split() if rule[0] == "!"}
    sources = [
        source
        for instruction, step in steps
        if instruction == "COPY"
        for source in step.split()[:-1]
        if not source.startswith("--")
    ]
    assert set(sources) == taken
    assert all((ROOT / source).exists() for source in sources)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read as YAML"),
        ("a: [", "cannot be read as YAML"),
        ("- env_vars", "must hold fields of a Ray runtime environment"),
        ("working_dir: /elsewhere", "working_dir is told by --working-dir"),
    ],
)
def test_a_runtime_environment_that_does_not_fit_is_refused(
    tmp_path: Path, text: str | None, message: str
) -> None:
    file = tmp_path / "environment.yaml"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ConfigError, match=rf"--runtime-env .*environment\.yaml: {message}"):
        read_environment(file)


def test_a_submitted_job_takes_the_code_along_and_nothing_else(tmp_path: Path) -> None:
    environment = yaml.safe_load((CLUSTER / "runtime-env.yaml").read_text())
    RuntimeEnv(**environment, working_dir="https://example.org/a.zip")  # raises at what Ray does not know
    (tmp_path / "project").mkdir()
    archive = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, check=True, capture_output=True).stdout
    subprocess.run(["tar", "--extract"], cwd=tmp_path / "project", input=archive, check=True)
    for left_out in ("runs/demo/config.yaml", ".git/HEAD", "start/model.safetensors"):
        path = tmp_path / "project" / left_out
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    package = tmp_path / "package.zip"
    create_package(
        str(tmp_path / "project"), package, include_gitignore=True, excludes=environment["excludes"]
    )
    names = set(zipfile.ZipFile(package).namelist())
    assert {"iris_ray/cli.py", "actors/service.py", "recipes/demo.yaml"} <= names
    assert not [n for n in names if n.startswith(("runs/", ".git/", "tests/")) or n.endswith(".safetensors")]


@pytest.mark.parametrize("kind", KINDS)
def test_the_jobs_runtime_environment_is_one(kind: str) -> None:
    RuntimeEnv(**yaml.safe_load(manifest(f"rayjob-{kind}")["spec"]["runtimeEnvYAML"]))
