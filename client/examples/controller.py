#!/usr/bin/env python3
"""The controller of controller.rs in Python: it makes a host have the volumes that a file asks for, and keeps it so.

  python3 -m pip install grpcio grpcio-reflection protobuf
  python3 controller.py wanted.txt           # goes on until Ctrl-C
  python3 controller.py wanted.txt --once    # one round; ends with 1 if something is left to do

The file has a line for each volume, an id of our own and the locator: `example-web1 lvm:vg0/web1`. Another socket than
/run/mortar/agent.sock is named by MORTAR_SOCKET.

There is no generated code: the agent tells its contract by reflection. (With agent.proto at hand, `python3 -m grpc_tools.protoc`
makes classes of it; the calls are the same.) Nor is there any memory: what is wanted stands in the file, what is there the agent
knows, and every call may be repeated. So it may be killed at any time and started again.
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
# How often we look although nothing was heard (a device may go without the agent's doing, and the file may change), and how
# often at most, whatever is heard. Seconds.
LOOK, PACE = 10, 1
# How long a call may take, and how much later gRPC's own deadline is, so that the agent's better explanation comes first.
TIMEOUT, GRACE = 30, 2
# ABORTED: something else holds the volume. UNAVAILABLE: the agent restarts, or a portal does not answer. Both may be tried again,
# because all our calls name what they mean by an id.
AGAIN = (grpc.StatusCode.ABORTED, grpc.StatusCode.UNAVAILABLE)


class Attachments:
    """The service mortar.agent.v1.Attachments."""

    SERVICE = "mortar.agent.v1.Attachments"

    def __init__(self, socket):
        # gRPC's C core would send the socket's path as the authority, which is none.
        self.channel = grpc.insecure_channel(f"unix:{socket}", options=[("grpc.default_authority", "localhost")])
        grpc.channel_ready_future(self.channel).result(timeout=TIMEOUT)
        pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(self.channel))
        self.methods = {method.name: method for method in pool.FindServiceByName(self.SERVICE).methods}
        self.ready = pool.FindEnumTypeByName("mortar.agent.v1.AttachmentState").values_by_name["ATTACHMENT_STATE_READY"].number

    def invoke(self, name, request, **options):
        method = self.methods[name]
        answer = message_factory.GetMessageClass(method.output_type)
        make = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        call = make(f"/{self.SERVICE}/{name}", lambda message: message.SerializeToString(), answer.FromString)
        return call(request, wait_for_ready=True, **options)

    def request(self, name, **fields):
        return message_factory.GetMessageClass(self.methods[name].input_type)(**fields)

    def call(self, name, **fields):
        """The answer; with another try where that helps, until the time is over."""
        end, pause = time.monotonic() + TIMEOUT, 0.05
        while True:
            left = max(end - time.monotonic(), 0.001)
            request = self.request(name, **fields)
            if "timeout_ms" in request.DESCRIPTOR.fields_by_name:
                request.timeout_ms = max(1, int(left * 1000))
            try:
                return self.invoke(name, request, timeout=left + GRACE)
            except grpc.RpcError as error:
                if error.code() not in AGAIN or time.monotonic() + pause > end:
                    raise
            # Callers that were refused together do not come back together.
            time.sleep(pause * random.uniform(0.5, 1))
            pause = min(2 * pause, 1)

    def changes(self):
        """An item for each attachment of ours that is gone or broken."""
        for event in self.invoke("Watch", self.request("Watch")):
            kind = event.WhichOneof("event")
            if kind == "attachment_gone" and event.attachment_gone.startswith(PREFIX):
                yield event
            if kind == "attachment" and event.attachment.id.startswith(PREFIX) and event.attachment.state != self.ready:
                yield event


def read(file):
    """The locators by their ids."""
    with open(file, encoding="utf-8") as lines:
        wanted = dict(line.split(maxsplit=1) for line in lines if line.strip())
    for name in wanted:
        if not name.startswith(PREFIX):
            raise ValueError(f"{name} does not begin with {PREFIX}")
    return {name: locator.strip() for name, locator in wanted.items()}


def detach(agent, name):
    reply = agent.call("Detach", id=name)
    for left in reply.residuals:
        raise ValueError(f"{left.name} could not be removed: {left.reason}")
    return reply.changed


def attach(agent, name, locator):
    try:
        return agent.call("Attach", id=name, locator=locator).changed
    except grpc.RpcError as error:
        if error.code() != grpc.StatusCode.ALREADY_EXISTS:
            raise
    # The id is that of another volume: the line was changed.
    detach(agent, name)
    return agent.call("Attach", id=name, locator=locator).changed


def attempt(name, what, act, *arguments):
    """Tells what changed, or why it did not; whether it is as it should be."""
    try:
        if act(*arguments):
            print(f"{name}: {what}", flush=True)
        return True
    except (grpc.RpcError, ValueError) as error:
        why = error.details() if isinstance(error, grpc.RpcError) else error
        print(f"{name}: {why}", file=sys.stderr, flush=True)
        return False


def make_it_so(agent, file):
    """Makes the host be as the file says; what cannot be now is said, and is for the next round. Whether all of it is done."""
    try:
        wanted = read(file)
        ours = [there.id for there in agent.call("List").attachments if there.id.startswith(PREFIX)]
    except (OSError, ValueError, grpc.RpcError) as error:
        # A file that cannot be read does not say that nothing is wanted.
        print(f"{file}: {error}", file=sys.stderr, flush=True)
        return False
    done = [attempt(name, "detached", detach, agent, name) for name in ours if name not in wanted]
    # Also what is there: the agent proves that it is that volume still, and brings back what is broken.
    done += [attempt(name, "attached", attach, agent, name, locator) for name, locator in wanted.items()]
    return all(done)


def follow(agent, wake):
    """Wakes the rounds when something of ours has changed, and when a watch has begun: what happened before it was not heard."""
    while True:
        wake.set()
        try:
            for _ in agent.changes():
                wake.set()
        except grpc.RpcError as error:
            print(f"watch: {error.details()}", file=sys.stderr, flush=True)
        time.sleep(PACE)


def main(file, *options):
    agent = Attachments(os.environ.get("MORTAR_SOCKET", "/run/mortar/agent.sock"))
    if options == ("--once",):
        return 0 if make_it_so(agent, file) else 1
    wake = threading.Event()
    threading.Thread(target=follow, args=(agent, wake), daemon=True).start()
    while True:
        make_it_so(agent, file)
        time.sleep(PACE)
        wake.wait(LOOK)
        wake.clear()


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit("usage: controller.py FILE [--once]")
    try:
        sys.exit(main(*sys.argv[1:]))
    except KeyboardInterrupt:
        # What is attached stays attached: we find it when we come back.
        pass
    except grpc.FutureTimeoutError:
        sys.exit("controller.py: mortard does not answer: systemctl start mortard")
