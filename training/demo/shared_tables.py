"""The tables of `shared_domains`: shares of the gain of per-domain boosting, and boosting from a start."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from training.demo.shared_domains import N_OWN, OWN_EPOCHS
from training.demo.shifts import SHIFTED

Row = Mapping[str, Any]
Rows = Sequence[Row]

CHOSEN: Final = {"loss": "chosen by loss", "agreement": "chosen by agreement"}
"""The best prompt set by a measure on a few unlabelled images of the domain, among those that did not see it."""
_SHARED: Final = ("union", "styles", "union+styles")


def with_chosen(rows: Rows) -> list[dict[str, Any]]:
    """The rows, and behind them those of the prompt sets that are chosen for a domain: copies with their `source`.

    Candidates are no prompts at all, the bundles of the other domains, and shared prompts that did not see the domain.
    """
    found = [dict(row) for row in rows]
    for seed in _seeds(rows) or [None]:
        for domain in SHIFTED:
            candidates = [
                row
                for row in rows
                if row["domain"] == domain
                and row["way"] in {"plain", "own", *_SHARED}
                and row["seed"] in {None, seed}
                and not _is_seen(row)
            ]
            best = {
                "loss": min(candidates, key=lambda row: row["loss"]),
                "agreement": max(candidates, key=lambda row: row["agreement"]),
            }
            for measure, row in best.items():
                source = row["way"] if row["way"] != "own" else row["left_out"]
                found.append({**row, "way": CHOSEN[measure], "seed": seed, "left_out": domain, "source": source})
    return found


def share_table(rows: Rows) -> str:
    """Shares of the gain of a domain's own boosting as Markdown, in per cent, on domains that were seen or not."""
    plain = {row["domain"]: row["accuracy"] for row in rows if row["way"] == "plain"}
    own = {row["domain"]: row["accuracy"] for row in rows if row["way"] == "own" and _is_seen(row)}
    columns = [
        (way, is_seen)
        for way in dict.fromkeys(row["way"] for row in rows)
        for is_seen in (True, False)
        if way in {*_SHARED, *CHOSEN.values()} and any(row["way"] == way and _is_seen(row) is is_seen for row in rows)
    ]
    names = [
        way if way in CHOSEN.values() or way == "styles" else f"{way}, {'seen' if is_seen else 'unseen'}"
        for way, is_seen in columns
    ]
    lines = [f"| domain | plain | own | {' | '.join(names)} |", "|---" * (3 + len(columns)) + "|"]
    shares: dict[tuple[str, bool], list[float]] = {column: [] for column in columns}
    for domain in SHIFTED:
        cells = [f"{plain[domain]:.1f}", f"{own[domain]:.1f}"]
        for way, is_seen in columns:
            found = [
                100 * (row["accuracy"] - plain[domain]) / (own[domain] - plain[domain])
                for row in rows
                if (row["way"], row["domain"], _is_seen(row)) == (way, domain, is_seen)
            ]
            cells.append(f"{statistics.mean(found):.0f}" if found else "")
            shares[way, is_seen] += [statistics.mean(found)] if found else []
        lines.append(f"| {domain} | {' | '.join(cells)} |")
    means = [f"**{statistics.mean(found):.0f}**" if len(found) == len(SHIFTED) else "" for found in shares.values()]
    return "\n".join([*lines, f"| mean | | | {' | '.join(means)} |"])


def start_table(rows: Rows) -> str:
    """Accuracy of a domain's own short runs as Markdown, cold and from shared prompts that did not see the domain.

    Means over the domains of which all of these runs are measured.
    """
    found: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    for row in rows:
        found[row["way"], row["epochs"], row["domain"]].append(row["accuracy"])
    kinds = [(way, epochs) for epochs in OWN_EPOCHS for way in ("cold", "start")]
    domains = [domain for domain in SHIFTED if all((*kind, domain) in found for kind in kinds)]
    if not domains:
        return "No runs yet."
    lines = ["| images | epochs | cold | from shared prompts | gained |", "|---|---|---|---|---|"]
    for epochs in OWN_EPOCHS:
        cold, warm = (
            statistics.mean(statistics.mean(found[way, epochs, domain]) for domain in domains)
            for way in ("cold", "start")
        )
        lines.append(f"| {N_OWN} | {epochs} | {cold:.1f} | {warm:.1f} | {warm - cold:+.1f} |")
    return "\n".join([*lines, "", f"Domains: {', '.join(domains)}."])


def _seeds(rows: Rows) -> list[int | None]:
    return sorted({row["seed"] for row in rows if row["seed"] is not None})


def _is_seen(row: Row) -> bool:
    """Whether the run trained on images of the domain that it was measured in."""
    if row["way"] in {"own", "cold", "start"}:
        return bool(row["domain"] == row["left_out"])
    return row["way"] in _SHARED and row["left_out"] not in {None, row["domain"]}
