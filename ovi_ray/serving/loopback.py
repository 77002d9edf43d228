"""Names and addresses of this machine that no other machine reaches."""

import ipaddress


def is_loopback(host: str) -> bool:
    """Whether a host, as in an address of a page, is `localhost` or a loopback address."""
    if host.lower() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return False
