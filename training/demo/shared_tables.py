"""The tables of `shared_domains`: shares of the gain of per-domain boosting, and boosting from a start."""

import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, Final

from training.demo.shared_domains import OWN_EPOCHS
from training.demo.shifts import SHIFTED

Row = Mapping[str, Any]
Rows = Sequence[Row]

CHOSEN: Final = {"agreement": "chosen", "accuracy": "best"}
"""The prompt set with the highest agreement on a few unlabelled images, and the one with the highest test accuracy."""
_SHARED: Final = ("mean", "styles", "union+styles", "union")


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
            for measure, way in CHOSEN.items():
                row = max(candidates, key=lambda row: row[measure])
                source = row["way"] if row["way"] != "own" else row["left_out"]
                found.append({**row, "way": way, "seed": seed, "left_out": domain, "source": source})
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
            cells.append(f"{statistics.mean(found):z.0f}" if found else "")
            shares[way, is_seen] += [statistics.mean(found)] if found else []
        lines.append(f"| {domain} | {' | '.join(cells)} |")
    means = [f"**{statistics.mean(found):z.0f}**" if len(found) == len(SHIFTED) else "" for found in shares.values()]
    return "\n".join([*lines, f"| mean | | | {' | '.join(means)} |"])


def start_table(rows: Rows) -> str:
    """Accuracy of domains' own short runs as Markdown, cold → from shared prompts that did not see the domain.

    A domain is shown once all of its runs are measured; the last line has the means.
    """
    found: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    for row in rows:
        found[row["way"], row["epochs"], row["domain"]].append(row["accuracy"])
    kinds = [(way, epochs) for epochs in OWN_EPOCHS for way in ("cold", "start")]
    domains = [domain for domain in SHIFTED if all((*kind, domain) in found for kind in kinds)]
    if not domains:
        return "No runs yet."
    lines = [f"| domain | {' | '.join(f'{epochs} epochs' for epochs in OWN_EPOCHS)} |", "|---" * 4 + "|"]
    for name, of in [*((domain, [domain]) for domain in domains), ("mean", domains)]:
        means = [statistics.mean(statistics.mean(found[*kind, domain]) for domain in of) for kind in kinds]
        pairs = zip(means[::2], means[1::2], strict=True)
        lines.append(f"| {name} | {' | '.join(f'{cold:.1f} → {warm:.1f}' for cold, warm in pairs)} |")
    return "\n".join(lines)


def _seeds(rows: Rows) -> list[int | None]:
    return sorted({row["seed"] for row in rows if row["seed"] is not None})


def _is_seen(row: Row) -> bool:
    """Whether the run trained on images of the domain that it was measured in."""
    if row["way"] in {"own", "cold", "start"}:
        return bool(row["domain"] == row["left_out"])
    return row["way"] in _SHARED and row["left_out"] not in {None, row["domain"]}
