"""What Cinder's LVM and RBD drivers do to take a volume into management, and to list what could be.

Cinder itself is not here: these are the calls of its drivers (volume/drivers/lvm.py and rbd.py), in their order, to the
libraries that it calls.
"""

import subprocess
import time

import rados
import rbd
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
    """LVMVolumeDriver.get_manageable_volumes: lvs for the VG, then two questions (a process each) for each LV. Only a sample of them is asked about."""
    started = time.monotonic()
    volumes = group(vg).get_volumes()
    listed = time.monotonic() - started
    started = time.monotonic()
    for volume in volumes[:sample]:
        # What os-brick 6.1 has of Cinder's two questions; a snapshot's attributes cost another process each.
        group(vg).lv_has_snapshot(volume["name"])
        group(vg).lv_has_snapshot(volume["name"])
    return {"count": len(volumes), "list_seconds": listed, "each_seconds": (time.monotonic() - started) / max(sample, 1)}


def make_images(pool, count):
    with rados.Rados(conffile="/etc/ceph/ceph.conf", name="client.admin") as cluster, cluster.open_ioctx(pool) as ioctx:
        for number in range(count):
            rbd.RBD().create(ioctx, f"image-{number}", 64 << 20)


def list_images(pool, sample):
    """RBDDriver.get_manageable_volumes: the names, then each image opened, and `rbd status` of it. Only a sample of them is asked about."""
    with rados.Rados(conffile="/etc/ceph/ceph.conf", name="client.admin") as cluster, cluster.open_ioctx(pool) as ioctx:
        started = time.monotonic()
        names = rbd.RBD().list(ioctx)
        listed = time.monotonic() - started
        started = time.monotonic()
        for name in names[:sample]:
            with rbd.Image(ioctx, name, read_only=True) as image:
                image.size()
            subprocess.run(["rbd", "status", "--pool", pool, "--format=json", name], check=True, capture_output=True)
        return {"count": len(names), "list_seconds": listed, "each_seconds": (time.monotonic() - started) / max(sample, 1)}


JOBS = {"open-group": open_group, "rename-lv": rename_lv, "list-lvs": list_lvs, "make-images": make_images, "list-images": list_images}
