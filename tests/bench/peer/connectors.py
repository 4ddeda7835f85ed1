"""os-brick's connectors, as Nova and Cinder call them."""

import threading
import time

import os_brick
from os_brick import privileged
from os_brick.initiator import connector
from oslo_config import cfg

cfg.CONF([], project="bench")
cfg.CONF.import_opt("lock_path", "oslo_concurrency.lockutils", group="oslo_concurrency")
cfg.CONF.set_override("lock_path", "/run/peer-locks", group="oslo_concurrency")
os_brick.setup(cfg.CONF)
# The privileged functions are called right here, as root, and not sent to a daemon.
privileged.default.set_client_mode(False)


def make(protocol, multipath, local):
    return connector.InitiatorConnector.factory(
        protocol.upper(), "", use_multipath=multipath, device_scan_attempts=3, do_local_attach=local)


def attach(protocol, properties, multipath=False, local=False):
    return {"device": make(protocol, multipath, local).connect_volume(properties)}


def detach(protocol, properties, device, multipath=False, local=False):
    make(protocol, multipath, local).disconnect_volume(properties, device)


def crowd(protocol, connections, seconds):
    """All of these at once, each by a thread, for so many seconds at most. Says when each that came had come."""
    came, begin, lock = [], time.monotonic(), threading.Lock()

    def one(properties):
        device = make(protocol, False, False).connect_volume(properties)
        with lock:
            came.append({"at": time.monotonic() - begin, "properties": properties, "device": device})

    threads = [threading.Thread(target=one, args=[properties], daemon=True) for properties in connections]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0, seconds - (time.monotonic() - begin)))
    with lock:
        return {"came": list(came)}


JOBS = {"attach": attach, "detach": detach, "crowd": crowd}
