"""Options of `caspl serve --ray`."""

import pytest
from typer.testing import CliRunner

from service import cli
from service.errors import SettingsError
from service.ray.options import RayOptions


@pytest.mark.parametrize(
    ("replicas", "autoscale", "bounds"), [(None, None, (1, 1)), (3, None, (3, 3)), (None, "2:8", (2, 8))]
)
def test_the_number_of_replicas_is_fixed_or_between_bounds(replicas, autoscale, bounds):
    assert RayOptions(replicas, autoscale, "load").bounds() == bounds


@pytest.mark.parametrize("autoscale", ["", "2", "0:3", "3:2", "2:8:9", "a:b", " 1:2"])
def test_bounds_out_of_order_are_rejected_with_what_was_expected(autoscale):
    with pytest.raises(SettingsError, match="expected MIN:MAX"):
        RayOptions(None, autoscale, "load").bounds()


def test_a_fixed_number_and_bounds_exclude_each_other():
    with pytest.raises(SettingsError, match="exclude"):
        RayOptions(2, "1:3", "load").bounds()


@pytest.mark.parametrize("options", [["--replicas", "2"], ["--autoscale", "1:2"], ["--route-by", "domain"]])
def test_options_of_ray_without_ray_are_rejected(options):
    result = CliRunner().invoke(cli.serve_app, ["--demo", *options])

    assert result.exit_code == cli.USAGE
    assert "require --ray" in result.stderr
