"""The address for reports of faults in the program. Imports nothing that may be missing from an installation."""

from importlib.metadata import PackageNotFoundError, metadata

_REPORT_URLS = ("issues", "bug tracker", "repository", "source")
"""Labels of project URLs at which a fault can be reported, the best first."""


def report_address() -> str:
    """The URL that the package names for reports of faults, or words in its place."""
    try:
        declared = metadata("ovi-ray").get_all("Project-URL") or []
    except PackageNotFoundError:  # run from a checkout
        declared = []
    urls = {label.lower(): url for label, _, url in (line.partition(", ") for line in declared)}
    return next((urls[label] for label in _REPORT_URLS if label in urls), "the maintainers of ovi-ray")
