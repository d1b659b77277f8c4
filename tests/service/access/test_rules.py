import pytest

from service.access.rules import RULES, SCOPES, UNMATCHED, find_endpoint

PROBES = ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready")
ENDPOINT_OF_PATH = {
    "/classify": ("/classify", None),
    "/classify/paint": ("/classify/{domain}", "paint"),
    "/domains/paint": ("/domains/{domain}", "paint"),
    "/domains/paint/versions/3": ("/domains/{domain}/versions/{version}", "paint"),
    "/domains/paint/versions/3/content": ("/domains/{domain}/versions/{version}/content", "paint"),
    "/domains/paint/examples": ("/domains/{domain}/examples", "paint"),
    "/domains/paint/examples/3/thumbnail": ("/domains/{domain}/examples/{example}/thumbnail", "paint"),
    "/domains/paint/live": ("/domains/{domain}/live", "paint"),
    "/v2": ("/v2", None),
    "/v2/models/paint": ("/v2/models/{domain}", "paint"),
    "/v2/models/paint/infer": ("/v2/models/{domain}/infer", "paint"),
    "/v2/models/paint/versions/3/infer": ("/v2/models/{domain}/versions/{version}/infer", "paint"),
    "/openapi.json": ("/openapi.json", None),
    "/": ("/", None),
}


def routes_of(router):
    """Method and path of every route, those of included routers too."""
    for route in router.routes:
        if included := getattr(route, "original_router", None):
            yield from routes_of(included)
        else:
            yield from ((method, route.path) for method in route.methods - {"HEAD"})


@pytest.mark.anyio
async def test_every_route_of_the_application_has_a_declared_scope_and_every_rule_has_a_route(serve):
    async with serve() as client:
        served = sorted(routes_of(client.app))
    declared = sorted((method, path) for path, methods in RULES.items() for method in methods)
    assert len(served) == len(set(served)) > 15
    assert served == declared


@pytest.mark.parametrize(("path", "expected"), ENDPOINT_OF_PATH.items())
def test_a_path_has_the_endpoint_of_its_template(path, expected):
    endpoint = find_endpoint(path)
    assert (endpoint.template, endpoint.domain) == expected
    assert endpoint.scopes == RULES[endpoint.template]


@pytest.mark.parametrize(
    "path",
    ["", "//", "/secret", "/domains/", "/domains/paint/", "/domains/a/b", "/openapixjson", "/classify/a/b", "/redoc"],
)
def test_any_other_path_has_none(path):
    assert find_endpoint(path) is UNMATCHED


def test_allow_names_every_method_that_works():
    assert find_endpoint("/domains/paint/versions").allow == "GET, HEAD, OPTIONS, POST"
    assert find_endpoint("/classify").allow == "OPTIONS, POST"


def test_only_pages_and_probes_need_no_key_and_every_other_scope_can_be_granted():
    scopes = {scope for methods in RULES.values() for scope in methods.values()}
    assert scopes == {*SCOPES, "any", "none"}
    open_routes = {path for path, methods in RULES.items() if "none" in methods.values()}
    assert open_routes == {"/", "/docs", "/openapi.json", "/assets/{name}", *PROBES}
