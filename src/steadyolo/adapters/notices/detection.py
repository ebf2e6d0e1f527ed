"""Which cloud this machine is a part of, told without a network."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from steadyolo.adapters.notices.notice import PROVIDERS, Provider
from steadyolo.errors import UserError

VARIABLE = "STEADYOLO_METADATA"
DMI = Path("/sys/class/dmi/id")  # what the firmware says of the machine; containers see their host's
ADDRESSES: Mapping[Provider, str] = {
    "aws": "http://169.254.169.254",
    "google": "http://169.254.169.254",
    "azure": "http://169.254.169.254",
    "alibaba": "http://100.100.100.200",
}
_DMI_FILES = ("sys_vendor", "product_name", "bios_vendor", "bios_version", "chassis_asset_tag")
_AZURE_TAG = "7783-7084-3265-9085-8269-3286-77"  # of each of its machines; "MSFT AZURE VM" in decimal ASCII


@dataclass(frozen=True, slots=True)
class Service:
    """A metadata service: whose it is, and where it answers."""

    provider: Provider
    address: str  # http://host or http://host:port


def read_dmi(folder: Path) -> dict[str, str]:
    """What the firmware says of this machine, without what cannot be read."""
    found: dict[str, str] = {}
    for name in _DMI_FILES:
        with suppress(OSError):
            found[name] = (folder / name).read_text(encoding="utf-8", errors="replace").strip()
    return found


def service_here(told: str, dmi: Mapping[str, str], addresses: Mapping[Provider, str] = ADDRESSES) -> Service | None:
    """The service to ask for notices, None where there is none.

    `told` is what the user says instead of the firmware: `off`, `aws` (or another provider) or `aws=http://host:port`.
    Raises: UserError for anything else.
    """
    told = told.strip()
    if told == "off":
        return None
    if not told:
        named = provider_of(dmi)
        return None if named is None else Service(named, addresses[named])
    name, given, address = told.partition("=")
    provider = next((known for known in PROVIDERS if known == name), None)
    if provider is None or (given and not _is_address(address)):
        raise UserError(
            f"{VARIABLE}={told} names no metadata service",
            remedy=f"set it to off, to one of {', '.join(PROVIDERS)}, or to aws=http://HOST:PORT",
        )
    return Service(provider, address or addresses[provider])


def provider_of(dmi: Mapping[str, str]) -> Provider | None:
    """The provider whose virtual or bare machines carry these marks.

    A vendor's name alone says nothing of Google and Microsoft, who sell laptops and hypervisors too.
    """
    if dmi.get("product_name") == "Google Compute Engine":
        return "google"
    if dmi.get("chassis_asset_tag") == _AZURE_TAG:
        return "azure"
    if dmi.get("sys_vendor") == "Alibaba Cloud" or dmi.get("product_name", "").startswith("Alibaba Cloud ECS"):
        return "alibaba"
    old_xen = "amazon" in dmi.get("bios_version", "")
    return "aws" if "Amazon EC2" in (dmi.get("sys_vendor"), dmi.get("bios_vendor")) or old_xen else None


def _is_address(address: str) -> bool:
    try:
        parts = urlsplit(address)
        return parts.scheme == "http" and bool(parts.hostname) and parts.port != 0 and parts.path in {"", "/"}
    except ValueError:  # a port that is no number
        return False
