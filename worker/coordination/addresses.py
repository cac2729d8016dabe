"""Who counts as one where limits go by address."""

import ipaddress
from functools import lru_cache

_NETWORK_BITS = 64


@lru_cache(1024)
def network_of(address: str) -> str:
    """``address`` itself, or the /64 of an IPv6 one: whoever has it has the other 2⁶⁴, too.

    IPv4 in IPv6 is the IPv4 address; what is no address stays as it is. ``limits.conf.j2`` has the
    same for nginx.
    """
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return address
    if found.version == 4:
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return str(ipaddress.ip_network((int(found), _NETWORK_BITS), strict=False))
