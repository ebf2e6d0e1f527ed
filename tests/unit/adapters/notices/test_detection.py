"""Which cloud this is: from the firmware's marks, or from what the user says."""

from __future__ import annotations

from pathlib import Path

import pytest

from steadyolo.adapters.notices.detection import ADDRESSES, Service, provider_of, read_dmi, service_here
from steadyolo.errors import UserError

AZURE_TAG = "7783-7084-3265-9085-8269-3286-77"


@pytest.mark.parametrize(
    ("dmi", "provider"),
    [
        ({"sys_vendor": "Amazon EC2", "product_name": "g5.xlarge", "bios_vendor": "Amazon EC2"}, "aws"),
        ({"sys_vendor": "Amazon EC2", "product_name": "m5.metal", "bios_vendor": "Intel"}, "aws"),
        ({"sys_vendor": "Xen", "product_name": "HVM domU", "bios_version": "4.11.amazon"}, "aws"),
        ({"sys_vendor": "Google", "product_name": "Google Compute Engine", "bios_vendor": "Google"}, "google"),
        ({"sys_vendor": "Microsoft Corporation", "chassis_asset_tag": AZURE_TAG}, "azure"),
        ({"sys_vendor": "Alibaba Cloud", "product_name": "Alibaba Cloud ECS"}, "alibaba"),
        ({"sys_vendor": "Google", "product_name": "Eve", "bios_vendor": "coreboot"}, None),  # a laptop
        ({"sys_vendor": "Microsoft Corporation", "product_name": "Virtual Machine"}, None),  # Hyper-V under a desk
        ({"sys_vendor": "Microsoft Corporation", "product_name": "Surface Laptop", "chassis_asset_tag": ""}, None),
        ({"sys_vendor": "Xen", "product_name": "HVM domU", "bios_version": "4.11"}, None),
        ({"sys_vendor": "QEMU", "product_name": "Standard PC", "bios_vendor": "SeaBIOS"}, None),
        ({"sys_vendor": "LENOVO", "product_name": "20XW", "bios_vendor": "LENOVO"}, None),
        ({}, None),
    ],
)  # fmt: skip
def test_marks_of_the_firmware(dmi: dict[str, str], provider: str | None) -> None:
    assert provider_of(dmi) == provider
    found = service_here("", dmi)
    assert found == (provider and Service(provider, ADDRESSES[provider]))


def test_marks_are_read_from_files_and_what_is_missing_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "sys_vendor").write_text("Amazon EC2\n")
    (tmp_path / "product_name").write_bytes(b"\xff\xfe\n")
    (tmp_path / "bios_vendor").mkdir()  # cannot be read
    assert read_dmi(tmp_path) == {"sys_vendor": "Amazon EC2", "product_name": "\ufffd\ufffd"}
    assert read_dmi(tmp_path / "none") == {}


@pytest.mark.parametrize(
    ("told", "found"),
    [
        ("off", None),
        (" off ", None),
        ("aws", Service("aws", "http://169.254.169.254")),
        ("alibaba", Service("alibaba", "http://100.100.100.200")),
        ("google=http://127.0.0.1:8080", Service("google", "http://127.0.0.1:8080")),
        ("azure=http://[fd00::1]/", Service("azure", "http://[fd00::1]/")),
    ],
)
def test_what_the_user_says_counts_more(told: str, found: Service | None) -> None:
    assert service_here(told, {"product_name": "Google Compute Engine"}) == found


@pytest.mark.parametrize(
    "told",
    ["on", "AWS", "aws=", "aws=127.0.0.1:80", "aws=https://127.0.0.1", "aws=http://", "aws=http://h:x", "aws=http://h:99999"],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(told: str) -> None:
    with pytest.raises(UserError, match=r"STEADYOLO_METADATA=") as caught:
        service_here(told, {})
    assert told in caught.value.message
    assert "off" in caught.value.remedy
