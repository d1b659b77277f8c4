"""The commands `caspl serve` and `caspl keys`; torch and the web framework are imported when a command runs."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal

import typer
from rich.console import Console
from rich.text import Text

from prompt_store.errors import PromptStoreError
from prompt_store.tables import table
from service.access import key_file
from service.access.rules import SCOPES
from service.configuration.environment import load_settings
from service.demo.files import ASSETS, BACKBONE, seed_store
from service.errors import ServiceError, SettingsError
from service.observability import logs
from service.process import end_process, set_openmp_spinning
from service.ray.options import RayOptions
from service.settings import Settings

if TYPE_CHECKING:
    from prompt_store.store import Store
    from service.http.context import ServiceContext

serve_app: Final = typer.Typer(add_completion=False, rich_markup_mode=None)
keys_app: Final = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

logger = logging.getLogger(__name__)

FAILURE: Final = 1
USAGE: Final = 2
DIGEST_CHARS: Final = 19
NO_SETTINGS: Final = frozenset({"demo", "demo_assets", "ray", "replicas", "autoscale", "route_by"})
"""Options of `caspl serve` that are not in `Settings`."""
RANDOM_SEED: Final = 0
"""Seed of `--random-weights`; CASPL_RANDOM_WEIGHTS sets another."""


@serve_app.command(epilog="\b\nExample:\n  caspl serve --pretrained openai --store store/")
def serve(
    host: Annotated[str | None, typer.Option(help="address to listen on; any but loopback requires keys")] = None,
    port: Annotated[int | None, typer.Option(help="port; 0 picks a free one  [8000]")] = None,
    store: Annotated[
        str | None, typer.Option(help="directory of the prompt store, or s3://BUCKET/PREFIX  [./store]")
    ] = None,
    backbone: Annotated[str | None, typer.Option(help="open_clip architecture  [ViT-B-16]")] = None,
    pretrained: Annotated[str | None, typer.Option(help="open_clip tag or local weights file")] = None,
    quick_gelu: Annotated[
        bool, typer.Option("--quick-gelu", help="use QuickGELU, for a local file of OpenAI's weights")
    ] = False,
    preprocess_of: Annotated[
        str | None, typer.Option(help="open_clip tag whose preprocessing and activation a local weights file needs")
    ] = None,
    interpolate_positions: Annotated[
        bool,
        typer.Option(
            "--interpolate-positions", help="resize a file's positional embeddings of another image grid or text length"
        ),
    ] = False,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="use random weights, for tests and benchmarks")
    ] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N  [auto]")] = None,
    backend: Annotated[str | None, typer.Option(help="auto, torch or openvino (CPU)  [auto]")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="auto, float32, bfloat16, float16 or int8 (OpenVINO)  [auto]")
    ] = None,
    preprocess: Annotated[str | None, typer.Option(help="exact, fast or gpu, see docs/images.md  [exact]")] = None,
    keys_file: Annotated[Path | None, typer.Option(help="API keys; `caspl keys new` creates them")] = None,
    require_signature: Annotated[
        list[Path] | None,
        typer.Option(help="serve only bundles signed by this Ed25519 public key (PEM file), may be repeated"),
    ] = None,
    follow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[DOMAIN=]ADDRESS", help="make the bundle at oci://…, s3://… or hf://… live here, may be repeated"
        ),
    ] = None,
    signing_key: Annotated[
        Path | None,
        typer.Option(help="Ed25519 private key (PEM file) that signs fits and new domains of this service"),
    ] = None,
    root_path: Annotated[
        str | None, typer.Option(help="path prefix under which a reverse proxy serves the API, such as /caspl")
    ] = None,
    web_workers: Annotated[
        int | None, typer.Option(help="processes for HTTP and decoding; 0 runs everything in one process  [0]")
    ] = None,
    keep_uncertain: Annotated[
        int | None,
        typer.Option(help="keep this many uncertain images of classify requests per domain for labelling  [0]"),
    ] = None,
    ray: Annotated[bool, typer.Option("--ray", help="serve with replicas on Ray Serve, see docs/ray.md")] = False,
    replicas: Annotated[int | None, typer.Option(min=1, help="with --ray: number of replicas  [1]")] = None,
    autoscale: Annotated[
        str | None, typer.Option(metavar="MIN:MAX", help="with --ray: number of replicas by the length of their queues")
    ] = None,
    route_by: Annotated[
        Literal["load", "domain"] | None,
        typer.Option(help="with --ray: to the replica with less load, or each domain to one replica  [load]"),
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="serve the packaged demo backbone and domains")] = False,
    demo_assets: Annotated[Path, typer.Option(hidden=True)] = ASSETS,
    log_format: Annotated[str | None, typer.Option(help="text or json  [text]")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error  [info]")] = None,
) -> None:
    """Serve every live domain of a store over HTTP. Further settings: CASPL_* variables, see docs/configuration.md."""
    options = {name: value for name, value in locals().items() if name not in NO_SETTINGS}
    options["require_signature"] = require_signature or None
    options["follow"] = follow or None
    options["random_weights"] = RANDOM_SEED if random_weights else None
    options["quick_gelu"] = quick_gelu or None
    options["interpolate_positions"] = interpolate_positions or None
    console = _console()
    with _exit_on_error(console):
        if not ray and (replicas or autoscale or route_by):
            raise SettingsError("--replicas, --autoscale and --route-by require --ray.")
        on_ray = RayOptions(replicas, autoscale, route_by or "load") if ray else None
        status = _serve(options, demo_assets if demo else None, on_ray, console)
    end_process(status)


@keys_app.callback(epilog="\b\nExample:\n  caspl keys ls keys.json")
def keys() -> None:
    """Create, list and revoke API keys; a running service follows the file within a second."""


KeysFile = Annotated[Path, typer.Argument(help="key file")]


@keys_app.command(
    "new", epilog="\b\nExample:\n  caspl keys new keys.json --scope classify --domain shelf --expires 90d"
)
def new_key(
    keys_file: Annotated[Path, typer.Argument(help="key file; created if missing")],
    scope: Annotated[list[str], typer.Option(help=f"permission, may be repeated: {', '.join(SCOPES)}")],
    domain: Annotated[
        list[str] | None, typer.Option(help="limit the key to this domain, may be repeated  [all]")
    ] = None,
    name: Annotated[str, typer.Option(help="description for `caspl keys ls`")] = "",
    expires: Annotated[str | None, typer.Option(help="duration (90d, 12h) or UTC date (2027-03-31)  [never]")] = None,
    not_before: Annotated[str | None, typer.Option(help="duration or UTC date when it becomes valid  [now]")] = None,
    requests_per_s: Annotated[float | None, typer.Option(help="rate limit  [the service's default]")] = None,
    bytes_per_s: Annotated[float | None, typer.Option(help="rate limit of bodies  [the service's default]")] = None,
) -> None:
    """Create an API key and print it once; the file stores its hash."""
    with _exit_on_error(_console()):
        fields = {
            "name": name,
            "expires": key_file.moment(expires) if expires else None,
            "not_before": key_file.moment(not_before) if not_before else None,
            "requests_per_s": requests_per_s,
            "bytes_per_s": bytes_per_s,
        }
        key = key_file.add_key(keys_file, scope, domain or [], **fields)
    typer.echo(key)


@keys_app.command("ls", epilog="\b\nExample:\n  caspl keys ls keys.json")
def list_keys(keys_file: KeysFile) -> None:
    """List the keys of a file: id, name, scopes, domains and validity; secrets are not stored."""
    with _exit_on_error(_console()):
        keys = key_file.read_keys(keys_file)
    columns = ("id", "name", "scopes", "domains", "not before", "expires")
    rows = [
        (key.id, key.name, " ".join(sorted(key.scopes)), " ".join(sorted(key.domains)), key.not_before, key.expires)
        for key in keys
    ]
    Console().print(table(f"API keys in {keys_file}", columns, rows))


@keys_app.command("revoke", epilog="\b\nExample:\n  caspl keys revoke keys.json 1a2b3c4d")
def revoke_key(keys_file: KeysFile, key_id: Annotated[str, typer.Argument(help="id, the part after `pk_`")]) -> None:
    """Remove a key from the file. Running services reject it within a second."""
    with _exit_on_error(_console()):
        key_file.revoke_key(keys_file, key_id)


def _console() -> Console:
    """Standard error; text from outside cannot carry markup."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


@contextmanager
def _exit_on_error(console: Console) -> Iterator[None]:
    """Print an expected error as one line and exit."""
    try:
        yield
    except SettingsError as error:
        _print_error(console, error)
        raise typer.Exit(USAGE) from error
    except (ServiceError, PromptStoreError) as error:
        _print_error(console, error)
        raise typer.Exit(FAILURE) from error


def _print_error(console: Console, error: Exception) -> None:
    if logs.is_json():
        logger.critical("command.failed", extra={"code": getattr(error, "code", ""), "reason": str(error)})
    else:
        console.print(Text.assemble(("error:", "red"), f" {error}"), soft_wrap=True)


def _serve(options: dict[str, Any], demo_assets: Path | None, on_ray: RayOptions | None, console: Console) -> int:
    if demo_assets is not None and options["backbone"] is None:
        options = {**options, "backbone": BACKBONE}
    settings = load_settings(**options)
    logs.install(settings.log_format, settings.log_level)
    set_openmp_spinning()
    with console.status(Text(f"Loading {settings.backbone} ...")) if console.is_terminal else nullcontext():
        from prompted_clip.errors import PromptedClipError
        from service import server
    with _open_store(settings, options, demo_assets) as store:
        if on_ray:
            from service.ray import command

            return command.run(settings.model_copy(update={"store": store.address}), on_ray, console)
        try:
            is_kept = demo_assets is None or options["store"] is not None
            return server.run(
                settings, store, lambda context, address: _announce(console, context, address, is_kept=is_kept)
            )
        except PromptedClipError as error:
            raise SettingsError(str(error)) from error


@contextmanager
def _open_store(settings: Settings, options: dict[str, Any], demo_assets: Path | None) -> Iterator[Store]:
    """Open the store; the demo uses a temporary one unless `--store` names another."""
    from prompt_store.stores import open_store

    if demo_assets is None:
        store = open_store(settings.store, create=True, cache=settings.store_cache, allow_stale=True)
        store.domains()  # fails if they cannot be listed; a single unreadable domain does not prevent the start
        yield store
        return
    with tempfile.TemporaryDirectory(prefix="caspl-demo-") as folder:
        store = open_store(options["store"] or Path(folder) / "store", create=True, cache=settings.store_cache)
        seed_store(store, demo_assets / "bundles")
        yield store


def _announce(console: Console, context: ServiceContext, address: str, *, is_kept: bool) -> None:
    """Report that the service accepts requests: as a banner, or as a log line in JSON.

    Args:
        console: for the banner.
        context: of the service.
        address: that it listens on.
        is_kept: whether the store outlives the process.
    """
    backbone, backend, kind = context.engine.backbone, context.engine.backend, context.engine.dtype
    if context.settings.log_format == "json":
        facts = {
            "address": address,
            "backbone": backbone.arch,
            "fingerprint": backbone.fingerprint,
            "backend": backend,
            "dtype": kind,
            "device": str(backbone.device),
            "store": context.store.address,
            "is_store_kept": is_kept,
            "n_signature_keys": len(context.settings.require_signature),
            "follows": list(context.settings.follow),
            "domains": {domain: state.name for domain, state in sorted(context.table.states.items())},
        }
        logger.info("server.started", extra=facts)
        return
    console.print("CasPL Serve", style="bold")
    console.print(f"  backbone  {backbone.arch} ({backbone.pretrained}), {kind} in {backend} on {backbone.device}")
    console.print(f"  weights   {backbone.fingerprint}", soft_wrap=True)
    note = "" if is_kept else "  (removed when the service stops; --store FOLDER keeps one)"
    console.print(f"  store     {context.store.address}{note}", soft_wrap=True)
    for domain, state in sorted(context.table.states.items()):
        live = state.live
        if live is None:
            console.print(f"  domain    {domain}: {state.name}{f' ({state.error})' if state.error else ''}")
            continue
        n_classes, digest = len(live.stack.class_names), live.digest[:DIGEST_CHARS]
        console.print(f"  domain    {domain}: version {live.version} live, {n_classes} classes, {digest}")
    if not context.table.states:
        console.print("  domain    none yet; upload a bundle or run `caspl store add`")
    for source in context.settings.follow:
        console.print(f"  follows   {source}", soft_wrap=True)
    console.print(f"  keys      {'not required on loopback' if context.keys.is_open else 'required'}")
    if n_signers := len(context.settings.require_signature):
        console.print(
            f"  bundles   must be signed by {'the key' if n_signers == 1 else f'one of {n_signers} keys'} given"
        )
    console.print(f"  open      {address}  (page), {address}/docs (API)", soft_wrap=True)
