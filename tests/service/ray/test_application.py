"""The Ray application and its configuration file, without a cluster."""

import prometheus_client
import pytest
import yaml

from service.errors import SettingsError
from service.settings import Settings
from tests.architecture.repository import ROOT

pytest.importorskip("ray.serve", reason="Ray is not installed: pip install 'caspl-serve[ray]'")

from ray.serve.schema import ServeDeploySchema

from service.ray import application

FILE = yaml.safe_load((ROOT / "deploy/ray/serve.yaml").read_text(encoding="utf-8"))


def test_the_packaged_file_is_valid_for_ray_and_names_the_application():
    (app,) = ServeDeploySchema.model_validate(FILE).applications

    module, name = app.import_path.split(":")
    assert (module, getattr(application, name)) == (application.__name__, application.app)
    assert [deployment.name for deployment in app.deployments] == [application.NAME]


def test_the_packaged_files_args_are_settings(tmp_path):
    bound = application.app(FILE["applications"][0]["args"])

    assert bound._bound_deployment.name == application.NAME
    assert bound._bound_deployment.ray_actor_options["num_gpus"] == 1


def test_args_that_are_no_settings_are_rejected_by_name():
    with pytest.raises(SettingsError, match="Unknown args: pretrain"):
        application.app({"pretrain": "openai"})


@pytest.mark.parametrize(
    ("settings", "reason"), [({"web_workers": 2}, "web_workers"), ({"device": "cuda:1"}, "cuda:1")]
)
def test_settings_of_a_single_server_are_rejected(settings, reason):
    with pytest.raises(SettingsError, match=reason):
        application.application(Settings(**settings), application.Layout())


def test_a_fixed_number_of_replicas_and_bounds_become_rays_options():
    fixed = application.Layout(2, 2).options(Settings())
    scaled = application.Layout(1, 4).options(Settings(max_batch_rows=16))

    assert fixed["num_replicas"] == 2
    assert (scaled["autoscaling_config"].min_replicas, scaled["autoscaling_config"].max_replicas) == (1, 4)
    assert scaled["autoscaling_config"].target_ongoing_requests == 16


def test_by_domain_a_replica_takes_two_batches_and_by_load_more_than_it_admits():
    by_domain = application.Layout(route_by="domain").options(Settings(max_batch_rows=8))
    by_load = application.Layout(route_by="load").options(Settings(max_batch_rows=8))

    assert by_domain["max_ongoing_requests"] == 16
    assert by_load["max_ongoing_requests"] > 1.5 * Settings().max_open_requests


def test_metrics_of_replicas_are_told_apart_by_a_label():
    registries = []
    for n in (3, 4):
        registry = prometheus_client.CollectorRegistry()
        prometheus_client.Counter("images", "Images.", ["domain"], registry=registry).labels("thermal").inc(n)
        registries.append(registry)

    text = application.labelled([(f"r{n}", list(one.collect())) for n, one in enumerate(registries)]).decode()

    assert text.count("# TYPE images_total counter") == 1
    assert 'images_total{domain="thermal",replica="r0"} 3.0' in text
    assert 'images_total{domain="thermal",replica="r1"} 4.0' in text
