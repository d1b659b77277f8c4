"""The commands `caspl serve` and `caspl keys`.

Only reads options; torch and the web framework are loaded when a command runs, not when its help is shown.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console
from rich.text import Text

from prompt_store.errors import PromptStoreError
from service.demo.files import ASSETS, BACKBONE, seed_store
from service.errors import ServiceError, SettingsError
from service.http import auth
from service.observability import logs
from service.process import set_openmp_spinning
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from prompt_store.store import Store
    from service.runtime import Runtime

serve_app: Final = typer.Typer(add_completion=False, rich_markup_mode=None)
keys_app: Final = typer.Typer(add_completion=False, rich_markup_mode=None, no_args_is_help=True)

FAILURE: Final = 1
USAGE: Final = 2
DIGEST_CHARS: Final = 19
RANDOM_SEED: Final = 0
"""Seed of `--random-weights`; CASPL_RANDOM_WEIGHTS names another."""


@serve_app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="address to listen on; other than loopback needs keys")] = None,
    port: Annotated[int | None, typer.Option(help="port; 0 takes a free one  [8000]")] = None,
    store: Annotated[Path | None, typer.Option(help="directory of the prompt store  [./store]")] = None,
    backbone: Annotated[str | None, typer.Option(help="open_clip architecture  [ViT-B-16]")] = None,
    pretrained: Annotated[str | None, typer.Option(help="open_clip tag, or a local weights file")] = None,
    quick_gelu: Annotated[bool, typer.Option("--quick-gelu", help="for a local file of OpenAI's weights")] = False,
    random_weights: Annotated[
        bool, typer.Option("--random-weights", help="random weights instead; for tests and benchmarks")
    ] = False,
    device: Annotated[str | None, typer.Option(help="auto, cpu, cuda or cuda:N  [auto]")] = None,
    dtype: Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16  [auto]")] = None,
    preprocess: Annotated[
        str | None, typer.Option(help="exact; fast: images are resized sooner; gpu: JPEGs are decoded there  [exact]")
    ] = None,
    keys_file: Annotated[Path | None, typer.Option(help="API keys; `caspl keys new` makes them")] = None,
    web_workers: Annotated[
        int | None, typer.Option(help="processes for HTTP and decoding; 0 does everything in one  [0]")
    ] = None,
    demo: Annotated[bool, typer.Option("--demo", help="the packaged demo: its backbone and domains")] = False,
    demo_assets: Annotated[Path, typer.Option(hidden=True)] = ASSETS,
    log_format: Annotated[str | None, typer.Option(help="text or json  [text]")] = None,
    log_level: Annotated[str | None, typer.Option(help="debug, info, warning or error  [info]")] = None,
) -> None:
    """Serve every live domain of a store over HTTP. Further settings: CASPL_* variables, see docs/configuration.md."""
    given = {name: value for name, value in locals().items() if name not in {"demo", "demo_assets"}}
    given["random_weights"] = RANDOM_SEED if random_weights else None
    given["quick_gelu"] = quick_gelu or None
    console = _console()
    with _told(console):
        status = _serve(given, demo_assets if demo else None, console)
    raise typer.Exit(status)


@keys_app.callback()
def keys() -> None:
    """API keys of a service that other machines can reach."""


@keys_app.command("new")
def new_key(
    keys_file: Annotated[Path, typer.Argument(help="key file, created if it is not there")],
    scope: Annotated[list[str], typer.Option(help=f"what it may do, repeated: {', '.join(auth.SCOPES)}")],
    domain: Annotated[list[str] | None, typer.Option(help="only this domain, repeated  [all]")] = None,
) -> None:
    """Make an API key: the file keeps its hash, the key itself is shown once."""
    with _told(_console()):
        key = auth.add_key(keys_file, scope, domain or [])
    typer.echo(key)


def _console() -> Console:
    """Standard error, where paths, labels and messages are printed as they are and cannot carry markup."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False)


@contextmanager
def _told(console: Console) -> Iterator[None]:
    """Turn errors that a person can mend into one line and an exit status."""
    try:
        yield
    except SettingsError as error:
        console.print(Text.assemble(("error:", "red"), f" {error}"), soft_wrap=True)
        raise typer.Exit(USAGE) from error
    except (ServiceError, PromptStoreError) as error:
        console.print(Text.assemble(("error:", "red"), f" {error}"), soft_wrap=True)
        raise typer.Exit(FAILURE) from error


def _serve(given: dict[str, Any], demo_assets: Path | None, console: Console) -> int:
    if demo_assets is not None and given["backbone"] is None:
        given = {**given, "backbone": BACKBONE}
    settings = load_settings(**given)
    logs.install(settings.log_format, settings.log_level)
    set_openmp_spinning()
    with console.status(Text(f"Loading {settings.backbone} ...")) if console.is_terminal else _nothing():
        from prompted_clip.errors import PromptedClipError
        from service import server
    with _store_of(settings, given, demo_assets) as store:
        try:
            return server.run(settings, store, lambda runtime, address: _announce(console, runtime, address))
        except PromptedClipError as error:
            raise SettingsError(str(error)) from error


@contextmanager
def _store_of(settings: Settings, given: dict[str, Any], demo_assets: Path | None) -> Iterator[Store]:
    """The store to serve; the demo without a store of its own gets one that lasts as long as the process."""
    from prompt_store.store import Store

    if demo_assets is None:
        yield Store.open(settings.store)
        return
    with tempfile.TemporaryDirectory(prefix="caspl-demo-") as folder:
        store = Store.open(given["store"] or Path(folder) / "store")
        seed_store(store, demo_assets / "bundles")
        yield store


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def _announce(console: Console, runtime: Runtime, address: str) -> None:
    """Say what was loaded and where it answers."""
    backbone = runtime.engine.backbone
    kind = str(backbone.dtype).removeprefix("torch.")
    console.print("CasPL Serve", style="bold")
    console.print(f"  backbone  {backbone.arch} ({backbone.pretrained}), {kind} on {backbone.device}")
    console.print(f"  weights   {backbone.fingerprint}", soft_wrap=True)
    console.print(f"  store     {runtime.live.store.root}", soft_wrap=True)
    for domain, state in sorted(runtime.live.table.items()):
        served = state.served
        if served is None:
            console.print(f"  domain    {domain}: {state.name}{f' ({state.error})' if state.error else ''}")
            continue
        n_classes, digest = len(served.stack.class_names), served.digest[:DIGEST_CHARS]
        console.print(f"  domain    {domain}: version {served.version} live, {n_classes} classes, {digest}")
    if not runtime.live.table:
        console.print("  domain    none yet; upload a bundle or run `caspl store add`")
    console.print(f"  keys      {'none needed on loopback' if runtime.keys.is_open else 'needed'}")
    console.print(f"  open      {address}  (page), {address}/docs (API)", soft_wrap=True)


if __name__ == "__main__":
    serve_app()
