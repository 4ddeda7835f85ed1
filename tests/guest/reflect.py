"""A client that knows nothing of mortar but its address: it learns every service by reflection, and calls every method.

Usage: reflect.py SOCKET LOCATOR LV    (volumes that nobody has attached: the first is attached and detached, the second exported)

Prints one JSON object: the services, and for each method what came of it. Exits with 1 and a sentence when something is
not as the contract says.
"""
import json
import sys

import grpc
from google.protobuf import any_pb2, descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

DEADLINE = 20


def rpc_messages():
    """google.rpc.Status and ErrorInfo, as far as they are needed here: the wheels at hand do not have them."""
    field = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(
        name="rpc.proto", package="google.rpc", syntax="proto3", dependency=["google/protobuf/any.proto"])
    status = file.message_type.add(name="Status")
    status.field.add(name="code", number=1, type=field.TYPE_INT32, label=field.LABEL_OPTIONAL)
    status.field.add(name="message", number=2, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    status.field.add(name="details", number=3, type=field.TYPE_MESSAGE, label=field.LABEL_REPEATED,
                     type_name=".google.protobuf.Any")
    info = file.message_type.add(name="ErrorInfo")
    info.field.add(name="reason", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    info.field.add(name="domain", number=2, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(any_pb2.DESCRIPTOR.serialized_pb)
    pool.Add(file)
    return [message_factory.GetMessageClass(pool.FindMessageTypeByName(f"google.rpc.{name}"))
            for name in ("Status", "ErrorInfo")]


STATUS, ERROR_INFO = rpc_messages()


def reason_of(error):
    """The reason in a refusal's ErrorInfo, which has to be there, with our domain."""
    raw = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin")
    assert raw, f"{error.code().name} without details: {error.details()}"
    for detail in STATUS.FromString(raw).details:
        if detail.type_url == "type.googleapis.com/google.rpc.ErrorInfo":
            info = ERROR_INFO.FromString(detail.value)
            assert info.domain == "mortar" and info.reason, f"{info}"
            return info.reason
    raise AssertionError(f"{error.code().name} without ErrorInfo: {error.details()}")


class Client:
    def __init__(self, channel):
        self.channel = channel
        self.database = ProtoReflectionDescriptorDatabase(channel)
        self.pool = descriptor_pool.DescriptorPool(self.database)
        self.results = {}

    def methods(self, service):
        return self.pool.FindServiceByName(service).methods

    def message(self, descriptor, **fields):
        return message_factory.GetMessageClass(descriptor)(**fields)

    def call(self, service, name, **fields):
        """The answer (of a stream: its first message), or the reason of the refusal."""
        method = next(method for method in self.methods(service) if method.name == name)
        assert not method.client_streaming, f"{method.full_name} wants a stream"
        answer = message_factory.GetMessageClass(method.output_type)
        make = self.channel.unary_stream if method.server_streaming else self.channel.unary_unary
        invoke = make(f"/{service}/{name}", request_serializer=lambda message: message.SerializeToString(),
                      response_deserializer=answer.FromString)
        try:
            reply = invoke(self.message(method.input_type, **fields), timeout=DEADLINE)
            if method.server_streaming:
                stream, reply = reply, next(iter(reply))
                stream.cancel()
            self.results.setdefault(method.full_name, []).append("OK")
            return reply
        except grpc.RpcError as error:
            reason = reason_of(error)
            self.results.setdefault(method.full_name, []).append(f"{error.code().name} {reason}")
            return reason


def listed_by(channel, version):
    """The services, asked for through one version of the reflection service. Both speak the same bytes."""
    call = channel.stream_stream(
        f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString)
    answers = call(iter([reflection_pb2.ServerReflectionRequest(list_services="")]), timeout=DEADLINE)
    return sorted(service.name for service in next(iter(answers)).list_services_response.service)


def main(socket, locator, lv):
    # gRPC's C core would send the socket's path as the authority, which is none.
    channel = grpc.insecure_channel(f"unix:{socket}", options=[("grpc.default_authority", "localhost")])
    client = Client(channel)
    services = sorted(client.database.get_services())
    for version in ("v1", "v1alpha"):
        # Each version of the reflection service lists itself beside the others' services.
        listed = listed_by(channel, version)
        assert f"grpc.reflection.{version}.ServerReflection" in listed, listed
        without = [[name for name in names if ".reflection." not in name] for names in (listed, services)]
        assert without[0] == without[1], without
    ours = [service for service in services if service.startswith("mortar.agent.v1.")]
    names = ("Attachments", "Exports", "Host", "Instances", "Operations", "Volumes")
    assert ours == [f"mortar.agent.v1.{name}" for name in names], services
    attachments, exports, host, _, operations, volumes = ours

    # An empty request to every method: an answer, or a refusal that says why.
    attached = client.call(attachments, "Attach", id="python", locator=locator)
    assert attached.changed and attached.attachment.path.startswith("/dev/"), attached
    for service in ours:
        for method in client.methods(service):
            client.call(service, method.name)
    # And what each is there for.
    assert client.call(attachments, "Get", id="python").locator == locator
    assert [there.id for there in client.call(attachments, "List").attachments] == ["python"]
    assert client.call(attachments, "Watch").attachment.id == "python"
    assert client.call(attachments, "Extend", id="python").changed is False
    assert client.call(operations, "Get", id=attached.operation_id).subject == "python"
    assert client.call(operations, "List", limit=3).operations
    assert client.call(operations, "Cancel", id=attached.operation_id).changed is False
    assert client.call(host, "GetHost").name
    assert any(there.name == attached.attachment.path for there in client.call(host, "Diagnose").objects)
    assert client.call(attachments, "Detach", id="python").changed is True
    assert client.call(attachments, "Get", id="python") == "NOT_FOUND"
    scope = locator.rsplit("/", 1)[0]
    assert locator in [entry.reference for entry in client.call(volumes, "ListManageable", scope=scope).entries]
    managed = client.call(volumes, "Manage", locator=locator)
    assert client.call(volumes, "Get", id=managed.volume.id) == managed.volume
    assert managed.volume in client.call(volumes, "List", scope=scope).volumes
    assert client.call(volumes, "Unmanage", id=managed.volume.id).locator == locator
    initiator = "iqn.2026-11.org.example:python"
    exported = client.call(exports, "Export", id="python", locator=lv, initiator=initiator, portals=["127.0.0.1"])
    assert exported.changed and json.loads(exported.connection_info)["data"]["auth_password"], exported.export
    assert client.call(exports, "Get", id="python").target == exported.export.target
    assert [there.id for there in client.call(exports, "List").exports] == ["python"]
    assert client.call(exports, "Unexport", id="python").changed is True

    health = client.call("grpc.health.v1.Health", "Check")
    assert health.status == 1, health
    assert client.call("grpc.health.v1.Health", "Watch").status == 1
    print(json.dumps({"services": services, "methods": client.results}))


try:
    main(*sys.argv[1:])
except AssertionError as failure:
    sys.exit(f"reflect.py: {failure}")
