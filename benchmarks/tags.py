"""Names that carry where they come from: a domain's number, and a label's domain and version."""


def domain_name(index: int) -> str:
    """`d00007`."""
    return f"d{index:05d}"


def label(domain: str, version: int, class_id: int) -> str:
    """`d00007.v2.c3`: what a version of a domain calls one of its classes."""
    return f"{domain}.v{version}.c{class_id}"


def source_of(found: str) -> tuple[str, int]:
    """The domain and version that a label belongs to.

    Raises:
        ValueError: no label of these bundles.
    """
    domain, version, _ = found.split(".")
    return domain, int(version.removeprefix("v"))
