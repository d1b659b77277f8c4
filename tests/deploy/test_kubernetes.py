"""The Kubernetes manifests: valid by published schemas, and in agreement with the image and the settings."""

import copy
import os
import shutil
import subprocess

import kubernetes_validate
import pytest
import typer
import yaml

from service.access.rules import RULES
from service.cli import serve_app
from service.settings import PREFIX, Settings
from tests.architecture.repository import ROOT
from tests.deploy.dockerfile import IMAGES

FOLDER = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("base", "gpu", "openshift", "s3")
VERSIONS = ("1.30", "1.37")
"""The oldest and the newest Kubernetes that the manifests are checked against."""
IMAGE = IMAGES[0]
DEFAULTS = Settings()
FOREIGN_VARIABLES = {"PROTOCOL": "KServe"}
"""Variables of the manifests that the service ignores, and what reads them."""


def documents(path):
    """The objects of a file."""
    return [one for one in yaml.safe_load_all(path.read_text(encoding="utf-8")) if one]


def resources():
    """All objects of the base."""
    names = documents(FOLDER / "base" / "kustomization.yaml")[0]["resources"]
    return [one for name in names for one in documents(FOLDER / "base" / name)]


def predictor():
    """The InferenceService's predictor."""
    return documents(FOLDER / "kserve" / "inference-service.yaml")[0]["spec"]["predictor"]


BASE = resources()
(DEPLOYMENT,) = [one for one in BASE if one["kind"] == "Deployment"]
PODS = {"base": DEPLOYMENT["spec"]["template"]["spec"], "kserve": predictor()}
LABELS = DEPLOYMENT["spec"]["template"]["metadata"]["labels"]

each_pod = pytest.mark.parametrize("pod", PODS.values(), ids=PODS)


def container(pod):
    """The pod's container; there is one."""
    (only,) = pod["containers"]
    return only


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("resource", BASE, ids=lambda one: f"{one['kind']} {one['metadata']['name']}")
def test_an_object_is_valid_by_kubernetes_schemas(resource, version):
    kubernetes_validate.validate(resource, version, strict=True)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_predictor_of_kserve_is_a_valid_pod_but_for_the_fields_of_kserve(version):
    own = {"minReplicas", "maxReplicas", "deploymentStrategy"}
    spec = {name: value for name, value in predictor().items() if name not in own}

    assert own < predictor().keys()
    kubernetes_validate.validate({"apiVersion": "v1", "kind": "Pod", "spec": spec}, version, strict=True)


def test_a_misspelt_field_is_not_valid():
    broken = copy.deepcopy(DEPLOYMENT)
    broken["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}

    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[-1], strict=True)


@pytest.fixture(scope="module", params=OVERLAYS)
def rendered(request):
    """The objects that kubectl would apply, and the overlay's name."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("needs kubectl: apt install kubernetes-client")
    command = [kubectl, "kustomize", str(FOLDER / request.param)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ)
    assert done.returncode == 0, done.stderr
    return request.param, {one["kind"]: one for one in yaml.safe_load_all(done.stdout)}


def test_an_overlay_renders_to_valid_objects(rendered):
    name, found = rendered

    left_out = {"PersistentVolumeClaim"} if name == "s3" else set()
    assert {one["kind"] for one in BASE} - left_out == found.keys()
    for resource in found.values():
        kubernetes_validate.validate(resource, VERSIONS[-1], strict=True)


def test_an_overlay_changes_what_its_name_promises(rendered):
    name, found = rendered
    pod = found["Deployment"]["spec"]["template"]["spec"]
    variables = {one["name"]: one["value"] for one in container(pod)["env"]}

    assert container(pod)["resources"]["limits"].get("nvidia.com/gpu") == (1 if name == "gpu" else None)
    assert variables.get("CASPL_DEVICE") == ("cuda" if name == "gpu" else None)
    assert pod["securityContext"].get("fsGroup") == (None if name == "openshift" else 65532)
    assert pod["securityContext"]["runAsNonRoot"]
    assert container(pod)["image"].startswith("registry.example/caspl-serve:")
    assert variables.items() >= {"CASPL_PRETRAINED": "openai", "CASPL_LOG_FORMAT": "json"}.items()
    assert {one.removeprefix(PREFIX).lower() for one in variables} <= set(Settings.model_fields)
    assert (found["Deployment"]["spec"]["replicas"] > 1) == (name == "s3")


def test_pods_may_reach_the_dns_of_their_cluster_and_https(rendered):
    name, found = rendered
    dns, https = found["NetworkPolicy"]["spec"]["egress"]
    namespace, port = ("openshift-dns", 5353) if name == "openshift" else ("kube-system", 53)

    assert dns["to"] == [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": namespace}}}]
    assert {(one["port"], one["protocol"]) for one in dns["ports"]} == {(port, "UDP"), (port, "TCP")}
    assert https["ports"] == [{"port": 443, "protocol": "TCP"}]


@pytest.mark.parametrize("rendered", ["s3"], indirect=True)
def test_replicas_share_a_bucket_and_are_replaced_one_by_one(rendered):
    deployment = rendered[1]["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    program, command, *arguments = container(pod)["args"]
    options = typer.main.get_command(serve_app).make_context("serve", [*arguments]).params
    variables = {one["name"]: one["value"] for one in container(pod)["env"]}
    scratch = {one["name"] for one in pod["volumes"] if "emptyDir" in one}

    assert [program, command, *arguments[:-1]] == IMAGE.command()[:-1]  # the image's, but for the store
    assert str(options["store"]).startswith("s3:")
    assert variables["CASPL_STORE_CACHE"] in IMAGE.volumes()
    assert deployment["strategy"]["rollingUpdate"]["maxUnavailable"] == 0
    assert scratch == {"store", "weights", "tmp"}
    assert not any("persistentVolumeClaim" in one for one in pod["volumes"])


@each_pod
def test_every_variable_is_a_valid_setting(pod):
    given = {one["name"]: one["value"] for one in container(pod)["env"]}
    settings = {name: value for name, value in given.items() if name not in FOREIGN_VARIABLES}

    assert settings
    assert {name.removeprefix(PREFIX).lower() for name in settings} <= set(Settings.model_fields)
    Settings(**{name.removeprefix(PREFIX).lower(): value for name, value in settings.items()})


@each_pod
def test_probes_use_routes_that_need_no_key_on_the_port_of_the_image(pod):
    ports = {one.get("name", one["containerPort"]): one["containerPort"] for one in container(pod)["ports"]}
    for kind in ("startupProbe", "livenessProbe", "readinessProbe"):
        target = container(pod)[kind]["httpGet"]
        assert RULES[target["path"]]["GET"] == "none"
        assert str(ports[target["port"]]) == IMAGE.only("EXPOSE")
        assert ("ready" in target["path"]) == (kind == "readinessProbe")


@each_pod
def test_a_pod_has_time_to_drain_and_is_unready_before_it_stops_serving(pod):
    probe = container(pod)["readinessProbe"]

    assert pod["terminationGracePeriodSeconds"] > DEFAULTS.drain_delay_s + DEFAULTS.drain_timeout_s
    assert probe["periodSeconds"] * probe["failureThreshold"] < DEFAULTS.drain_delay_s


@each_pod
def test_a_pod_can_write_to_its_volumes_and_tmp_alone(pod):
    mounts = {one["mountPath"]: one for one in container(pod)["volumeMounts"]}
    context = container(pod)["securityContext"]

    assert context["readOnlyRootFilesystem"]
    assert not context["allowPrivilegeEscalation"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert pod["securityContext"]["runAsNonRoot"]
    assert {path for path, one in mounts.items() if not one.get("readOnly")} == {*IMAGE.volumes(), "/tmp"}  # noqa: S108
    assert {one["name"] for one in mounts.values()} == {one["name"] for one in pod["volumes"]}


@each_pod
def test_the_secret_is_mounted_where_the_image_reads_keys_and_with_a_mode_that_the_service_accepts(pod):
    command = IMAGE.command()
    keys_file = command[command.index("--keys-file") + 1]
    (volume,) = [one for one in pod["volumes"] if "secret" in one]
    (mount,) = [one for one in container(pod)["volumeMounts"] if one["name"] == volume["name"]]

    assert keys_file == f"{mount['mountPath']}/keys.json"
    assert volume["secret"]["defaultMode"] == 0o400  # 0440 with fsGroup


def test_claims_exist_and_objects_select_the_pods():
    claims = {one["metadata"]["name"] for one in BASE if one["kind"] == "PersistentVolumeClaim"}
    for pod in PODS.values():
        used = {one["persistentVolumeClaim"]["claimName"] for one in pod["volumes"] if "persistentVolumeClaim" in one}
        assert used == claims
    for kind, selector in {
        "Deployment": lambda spec: spec["selector"]["matchLabels"],
        "Service": lambda spec: spec["selector"],
        "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
        "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
    }.items():
        (resource,) = [one for one in BASE if one["kind"] == kind]
        assert selector(resource["spec"]).items() <= LABELS.items()


def test_a_store_that_one_node_mounts_has_one_replica_which_stops_before_the_next_one_starts():
    assert DEPLOYMENT["spec"]["replicas"] == 1
    assert DEPLOYMENT["spec"]["strategy"] == {"type": "Recreate"}
    assert PODS["kserve"]["maxReplicas"] == 1
    assert PODS["kserve"]["deploymentStrategy"] == {"type": "Recreate"}


def test_prometheus_scrapes_what_the_annotations_name_with_a_key():
    annotations = DEPLOYMENT["spec"]["template"]["metadata"]["annotations"]
    (job,) = documents(ROOT / "deploy" / "prometheus" / "kubernetes.yml")[0]["scrape_configs"]
    read = {label for rule in job["relabel_configs"] for label in rule["source_labels"]}

    assert RULES[annotations["prometheus.io/path"]] == {"GET": "metrics"}
    assert annotations["prometheus.io/port"] == IMAGE.only("EXPOSE")
    assert {
        f"__meta_kubernetes_pod_annotation_{name.replace('.', '_').replace('/', '_')}" for name in annotations
    } < read
    assert job["kubernetes_sd_configs"][0]["selectors"][0]["label"] == "app.kubernetes.io/name=caspl"
    assert "credentials_file" in job["authorization"]
