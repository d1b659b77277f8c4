"""The operations of a CasPL server's clients that teach a domain: create it, keep examples, fit a head to them."""

import threading
from collections.abc import Callable, Iterable, Sequence
from itertools import islice
from typing import Any, Final, Literal

import httpx

from caspl.errors import CasplError, InvalidRequestError, from_problem
from caspl.images import ImageInput, encode, n_bytes
from caspl.requests import (
    TOO_LARGE,
    Concurrently,
    Operation,
    Request,
    accepted,
    chunks,
    domain_path,
    response_body,
)
from caspl.results import AddedExample, Example, Fit, Prediction, Version
from prompt_store.class_names import UNLABELLED, comparison_key

PAGE: Final = 1000
IDS_PER_REQUEST: Final = 1000
BYTES_FOR_HEADERS: Final = 2**20
"""Of a request's limit, kept for the multipart headers of its images."""


def create_domain(
    domain: str, classes: Sequence[str], *, templates: Sequence[str] = (), boosted_by: str | None = None
) -> Operation[Version]:
    """Create a domain from class names alone and make it live: it classifies by its text features (zero-shot).

    Args:
        domain: its name.
        classes: class names.
        templates: texts with one `{}` for the class name; by default those of `boosted_by`, or `a photo of a {}.`.
        boosted_by: another domain, whose boosting prompts are copied.

    Raises:
        ConflictError: the domain exists.
        CasplError: a name is not accepted, or the server cannot be reached or fails.
    """
    body = {"classes": list(classes), "templates": list(templates), "boosted_by": boosted_by}
    made = accepted((yield Request("PUT", domain_path(domain), {"json": body})), "version")
    return Version(made["domain"], made["version"], made["digest"], is_new=True)


def add_examples(
    domain: str,
    examples: Iterable[tuple[str | None, ImageInput]],
    *,
    on_added: Callable[[int], object] | None = None,
) -> Operation[list[AddedExample]]:
    """Add pictures to a domain's examples, in requests within the server's limits, four at a time.

    A picture that the domain has already is not added again; another label for it replaces the earlier one. If a
    request fails, the examples of the others are kept, and the same call adds the rest.

    Args:
        domain: its name.
        examples: labels (None for a picture without one) and images as in `classify`.
        on_added: called with the number of pictures of each finished request, possibly from another thread.

    Returns:
        One result per picture, in order; a rejected picture has `error` set and does not affect others.

    Raises:
        NotFoundError: no such domain, or it has no live version.
        ConflictError: the domain would have more examples than the server's limit.
        CasplError: the server cannot be reached or rejects a request.
        InvalidRequestError: a label is `unlabelled` or contains `%22`: in a form they mean no label, and a quote.
        OSError: a file cannot be read.
        TypeError: not pairs.
    """
    parts = list(examples)
    for part in parts:
        if not (isinstance(part, tuple | list) and len(part) == 2):
            raise TypeError(f"Expected (label, image) pairs, found {type(part).__name__}. The label may be None.")
    for label in {label for label, _ in parts if label is not None}:
        if comparison_key(label) == UNLABELLED or "%22" in label:
            detail = f"{label!r} cannot be sent as a label; for pictures without one pass None."
            raise InvalidRequestError("Invalid label", detail, code="label_invalid")
    limits = accepted((yield Request("GET", "/info")), "limits")["limits"]
    sizes = [n_bytes(image) for _, image in parts]
    max_bytes = limits["max_request_bytes"] - BYTES_FOR_HEADERS
    lock = threading.Lock()

    def report(n_added: int) -> None:
        if on_added is not None:
            with lock:
                on_added(n_added)

    timeout_ms = int(1000 * limits["max_timeout_s"])  # low priority: on a busy server other requests go first
    requests = [
        _add_chunk(domain, chunk, timeout_ms, report) for chunk in chunks(parts, sizes, limits["max_images"], max_bytes)
    ]
    results: list[list[AddedExample]] = yield Concurrently(requests)
    return [one for chunk in results for one in chunk]


def examples(
    domain: str,
    *,
    label: str | None = None,
    is_labelled: bool | None = None,
    suspect: bool = False,
    order: Literal["id", "uncertain"] = "id",
    limit: int | None = None,
) -> Operation[list[Example]]:
    """The examples of a domain.

    Args:
        domain: its name.
        label: only those with this label.
        is_labelled: only those with a label, or without one.
        suspect: only those whose label the others contradict and nobody confirmed, worst first.
        order: `id`, or `uncertain` for those without a label, the smallest margin first.
        limit: at most this many; all by default.

    Raises:
        CasplError: no such domain, a parameter is not accepted, or the server cannot be reached or fails.
    """
    query = {
        "label": label,
        "labelled": is_labelled,
        "suspect": suspect or None,
        "order": order if order != "id" else None,
    }
    params = {name: value for name, value in query.items() if value is not None}
    found: list[Example] = []
    after: int | None = 0
    while after is not None and (limit is None or len(found) < limit):
        n_wanted = PAGE if limit is None else min(PAGE, limit - len(found))
        options = {"params": params | {"after": after, "limit": n_wanted}}
        body = accepted((yield Request("GET", domain_path(domain, "examples"), options)), "examples")
        found += [_example(one) for one in body["examples"]]
        after = body["next"]
    return found


def relabel(domain: str, ids: Sequence[int], label: str | None, *, is_confirmed: bool | None = None) -> Operation[int]:
    """Give examples a label; None removes their label. All change, or none.

    Args:
        domain: its name.
        ids: its examples.
        label: the label, or None.
        is_confirmed: True confirms that the label is right, so that the examples are no suspects; False ends that, as
            another label does.

    Returns:
        How many had another label.

    Raises:
        NotFoundError: no such domain, or it lacks some of the examples.
        CasplError: the label is not accepted, or the server cannot be reached or fails.
    """
    body = {"label": label, "ids": list(ids)} | ({} if is_confirmed is None else {"confirmed": is_confirmed})
    changed = accepted((yield Request("PATCH", domain_path(domain, "examples"), {"json": body})), "changed")
    return int(changed["changed"])


def remove_examples(domain: str, ids: Sequence[int] = (), *, remove_all: bool = False) -> Operation[int]:
    """Remove examples: these, or with `remove_all` all of the domain. Ids that do not exist are ignored.

    Returns:
        How many were removed.

    Raises:
        ValueError: both or neither were given.
        CasplError: no such domain, or the server cannot be reached or fails.
    """
    if bool(ids) == remove_all:
        raise ValueError("Pass ids, or remove_all=True.")
    rest = iter(ids)
    queries = [{"all": "true"}] if remove_all else []
    while batch := list(islice(rest, IDS_PER_REQUEST)):
        queries.append({"ids": ",".join(map(str, batch))})
    n_removed = 0
    for params in queries:
        removed = accepted((yield Request("DELETE", domain_path(domain, "examples"), {"params": params})), "removed")
        n_removed += removed["removed"]
    return n_removed


def fit(
    domain: str,
    *,
    activate: bool = True,
    based_on: int | Literal["live"] = "live",
    classes: Literal["own", "examples"] = "own",
    method: str = "auto",
    unlabelled: bool = False,
) -> Operation[Fit]:
    """Fit a head to a domain's labelled examples and publish it as a version.

    Args:
        domain: its name.
        activate: also make the version live; returns once it serves.
        based_on: the version whose prompts and text features are used.
        classes: `own` for the classes of that version and new labels, `examples` for the labels of the examples only.
        method: `auto`, `gda`, `ridge` or `tip-adapter`.
        unlabelled: use the unlabelled examples too, if that improves the fit (`auto` and `gda`).

    Raises:
        ConflictError: too few examples, or examples without features for the version's prompts.
        CasplError: the server cannot be reached or rejects the request.
    """
    options = {"based_on": based_on, "classes": classes, "method": method, "unlabelled": unlabelled}
    body = {"activate": activate, **options}
    return _fit(accepted((yield Request("POST", domain_path(domain, "fit"), {"json": body})), "report"))


def fit_report(
    domain: str,
    *,
    based_on: int | Literal["live"] = "live",
    classes: Literal["own", "examples"] = "own",
    method: str = "auto",
    unlabelled: bool = False,
) -> Operation[Fit]:
    """The report of the fit to a domain's labelled examples, without making a version; arguments as for `fit`.

    Raises:
        CasplError: as for `fit`.
    """
    params = {"based_on": based_on, "classes": classes, "method": method, "unlabelled": unlabelled}
    return _fit(accepted((yield Request("GET", domain_path(domain, "fit"), {"params": params})), "report"))


def _add_chunk(
    domain: str, parts: Sequence[tuple[str | None, ImageInput]], timeout_ms: int, on_added: Callable[[int], None]
) -> Operation[list[AddedExample]]:
    """One request, or one for each half of the pictures if a limit on the way is lower than the server's."""
    files = [(UNLABELLED if label is None else label, encode(image)) for label, image in parts]
    options = {"files": files, "params": {"timeout_ms": timeout_ms}}
    response: httpx.Response = yield Request("POST", domain_path(domain, "examples"), options, is_repeatable=True)
    if response.status_code == TOO_LARGE and len(parts) > 1:
        middle = len(parts) // 2
        first = yield from _add_chunk(domain, parts[:middle], timeout_ms, on_added)
        return first + (yield from _add_chunk(domain, parts[middle:], timeout_ms, on_added))
    body, status = response_body(response, "examples"), response.status_code
    if response.is_success:
        added = [_added(one) for one in body["examples"]]
    else:
        error = from_problem(body, status)
        if error.code == "images_rejected":
            added = [AddedExample(error=_problem(problem)) for problem in body["errors"]]
        elif len(parts) == 1 and (error.code.startswith("image_") or status == TOO_LARGE):
            added = [AddedExample(error=error)]
        else:
            raise error
    on_added(len(parts))
    return added


def _added(found: dict[str, Any]) -> AddedExample:
    if found["error"]:
        return AddedExample(error=_problem(found["error"]))
    best = found["prediction"]
    prediction = Prediction(best["label"], best["class_id"], best["probability"]) if best else None
    return AddedExample(found["id"], found["status"], found["label"], prediction)


def _example(found: dict[str, Any]) -> Example:
    return Example(**{name: found[name] for name in Example.__slots__ if name in found})


def _fit(body: dict[str, Any]) -> Fit:
    return Fit(
        body["domain"],
        body["report"],
        body.get("version"),
        body.get("digest"),
        body.get("is_live", False),
        tuple(body["new_classes"]),
    )


def _problem(problem: dict[str, Any]) -> CasplError:
    return from_problem(problem, problem.get("status", 422))
