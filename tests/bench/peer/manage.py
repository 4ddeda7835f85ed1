"""What Cinder's LVM and RBD drivers do to take a volume into management, and to list what could be.

Cinder itself is not here: these are the calls of its drivers (volume/drivers/lvm.py and rbd.py), in their order, to the
libraries that it calls.
"""

import subprocess
import time

from os_brick.local_dev import lvm
from os_brick.privileged import rootwrap

groups = {}


def group(name):
    # The driver looks at its VG once, at its start.
    if name not in groups:
        groups[name] = lvm.LVM(name, "", executor=rootwrap.execute)
    return groups[name]


def open_group(vg):
    group(vg)


def rename_lv(vg, lv, name):
    """LVMVolumeDriver.manage_existing: look at the LV, rename it."""
    if group(vg).get_volume(lv) is None:
        raise LookupError(f"{vg}/{lv}")
    group(vg).rename_volume(lv, name)


def list_lvs(vg, sample):
    """LVMVolumeDriver.get_manageable_volumes: lvs for the VG, then two questions for each LV. Only a sample of them is asked about."""
    started = time.monotonic()
    volumes = group(vg).get_volumes()
    listed = time.monotonic() - started
    started = time.monotonic()
    for volume in volumes[:sample]:
        group(vg).lv_is_snapshot(volume["name"])
        group(vg).lv_is_open(volume["name"])
    return {"count": len(volumes), "list_seconds": listed, "each_seconds": (time.monotonic() - started) / max(sample, 1)}


JOBS = {"open-group": open_group, "rename-lv": rename_lv, "list-lvs": list_lvs}
