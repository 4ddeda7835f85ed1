#!/usr/bin/env python3
"""The controller of controller.rs in Python: it makes a host have the volumes that a file asks for, and keeps it so.

  python3 -m pip install grpcio grpcio-reflection protobuf
  python3 controller.py wanted.txt           # goes on until Ctrl-C
  python3 controller.py wanted.txt --once    # one round; ends with 1 if something is left to do

The file has a line for each volume, an id of our own and the locator: `example-web1 lvm:vg0/web1`. MORTAR_SOCKET names another
socket than /run/mortar/agent.sock. There is no generated code: the agent tells its contract by reflection. Nor is there memory:
what is wanted stands in the file, what is there the agent knows, and every call may be repeated. So it may be killed at any time.
"""
import os
import random
import sys
import threading
import time

import grpc
from google.protobuf import descriptor_pool, message_factory
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

# Of every id that is ours; what others have attached is not our business.
PREFIX = "example-"
# Seconds from a round to the next: if nothing was heard (a device may go unheard, and the file may change), and if something was.
LOOK, PACE = 10, 1
# How long a call may take, and how much later gRPC's own deadline is, so that the agent's better explanation comes first.
TIMEOUT, GRACE = 30, 2
# Something else holds the volume; the agent restarts, or a portal does not answer. All our calls name what they mean by an id.
AGAIN = (grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE)


class Controller:
    """The service mortar.agent.v1.Attachments, and what keeps the host as the file says."""

    def __init__(self, socket, file):
        self.file = file
        # gRPC's C core would send the socket's path as the authority, which is none.
        self.channel = grpc.insecure_channel(f"unix:{socket}", options=[("grpc.default_authority", "localhost")])
        grpc.channel_ready_future(self.channel).result(timeout=TIMEOUT)
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(self.channel))
        self.service = pool.FindServiceByName("mortar.agent.v1.Attachments")
        self.ready = pool.FindEnumTypeByName("mortar.agent.v1.AttachmentState").values_by_name["ATTACHMENT_STATE_READY"].number

    def begin(self, name, timeout=None, **fields):
        """Makes a call once; its answer, or where there are many an iterator over them."""
        method = self.service.methods_by_name[name]
        request, answer = (message_factory.GetMessageClass(kind) for kind in (method.input_type, method.output_type))
        make = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        call = make(f"/{self.service.full_name}/{name}", request.SerializeToString, answer.FromString)
        return call(request(**fields), timeout=timeout, wait_for_ready=True)

    def call(self, name, **fields):
        """The answer; with another try where that helps, until the time is over."""
        end, pause = time.monotonic() + TIMEOUT, 0.05
        while True:
            left = max(end - time.monotonic(), 0.001)
            if "timeout_ms" in self.service.methods_by_name[name].input_type.fields_by_name:
                fields["timeout_ms"] = max(1, int(left * 1000))
            try:
                return self.begin(name, timeout=left + GRACE, **fields)
            except grpc.RpcError as error:
                if error.code() not in AGAIN or time.monotonic() + pause > end:
                    raise
            time.sleep(pause * random.uniform(0.5, 1))  # Those who were refused together do not come back together.
            pause = min(2 * pause, 1)

    def wanted(self):
        with open(self.file, encoding="utf-8") as lines:
            wanted = dict(line.strip().split(maxsplit=1) for line in lines if line.strip())
        if not all(name.startswith(PREFIX) for name in wanted):
            raise ValueError(f"every id has to begin with {PREFIX}")
        return wanted

    def detach(self, name):
        reply = self.call("Detach", id=name)
        for left in reply.residuals:
            raise ValueError(f"{left.name} could not be removed: {left.reason}")
        return reply.changed

    def attach(self, name, locator):
        try:
            return self.call("Attach", id=name, locator=locator).changed
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.ALREADY_EXISTS:
                raise
        # The id is that of another volume: the line was changed.
        self.detach(name)
        return self.call("Attach", id=name, locator=locator).changed

    def attempt(self, what, act, name, *arguments):
        """Tells what changed, or why it did not; whether it is as it should be."""
        try:
            if act(name, *arguments):
                print(f"{name}: {what}", flush=True)
            return True
        except (grpc.RpcError, ValueError) as error:
            return complain(name, error)

    def round(self):
        """Makes the host be as the file says; what cannot be now is said, and is for the next round. Whether all of it is done."""
        try:
            wanted = self.wanted()
            ours = [there.id for there in self.call("List").attachments if there.id.startswith(PREFIX)]
        except (OSError, ValueError, grpc.RpcError) as error:
            # A file that cannot be read does not say that nothing is wanted.
            return complain(self.file, error)
        done = [self.attempt("detached", self.detach, name) for name in ours if name not in wanted]
        # Also what is there: the agent proves that it is that volume still, and brings back what is broken.
        return all(done + [self.attempt("attached", self.attach, *volume) for volume in wanted.items()])

    def follow(self, wake):
        """Wakes the rounds when something of ours is gone or broken, and when a watch begins: it did not hear what was before."""
        while True:
            wake.set()
            try:
                for event in self.begin("Watch"):
                    gone, there = event.attachment_gone, event.attachment
                    if gone.startswith(PREFIX) or there.id.startswith(PREFIX) and there.state != self.ready:
                        wake.set()
            except grpc.RpcError as error:
                complain("watch", error)
            time.sleep(PACE)


def complain(what, error):
    print(f"{what}: {error.details() if isinstance(error, grpc.RpcError) else error}", file=sys.stderr, flush=True)
    return False


def main(file, *options):
    controller = Controller(os.environ.get("MORTAR_SOCKET", "/run/mortar/agent.sock"), file)
    if options == ("--once",):
        return 0 if controller.round() else 1
    wake = threading.Event()
    threading.Thread(target=controller.follow, args=(wake,), daemon=True).start()
    while True:
        controller.round()
        time.sleep(PACE)
        wake.wait(LOOK)
        wake.clear()


if __name__ == "__main__":
    try:
        sys.exit(main(*sys.argv[1:]) if sys.argv[1:] else "usage: controller.py FILE [--once]")
    except KeyboardInterrupt:
        pass  # What is attached stays attached: we find it when we come back.
    except grpc.FutureTimeoutError:
        sys.exit("controller.py: mortard does not answer: systemctl start mortard")
