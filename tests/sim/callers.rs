//! Who may call what: every RPC that is served, by everybody there is; how far a rule reaches; and what is told of it.

use crate::audit::{heard, lines, listen};
use crate::machine::{BACKENDS, DIRECTORY, IQN, POOL, PORTAL, SimStage, VG, rule, until};
use agent::config::{Callers, Config, Need, Role};
use driver::Backend;
use prost::Message;
use prost_types::FileDescriptorSet;
use proto::v1;
use std::{fmt, time::Duration};
use tests::{
    client::{Answer, Client, Refused, attach, manage},
    stage::Stage,
};
use tokio::time::timeout;
use tonic::{Code, Request, Status, client::Grpc, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;

const SIZE: u64 = 16 << 20;

fn config(rules: Vec<agent::config::CallerRule>) -> Config {
    Config { callers: Callers { rules, ..Callers::default() }, ..Config::default() }
}

/// The least role for each RPC, as README and man page promise it; not taken from the agent's own table.
pub(crate) fn promised(rpc: &str) -> Role {
    let (service, method) = rpc.split_once('/').unwrap();
    match (service.rsplit('.').next().unwrap(), method) {
        (_, "Attach" | "Detach" | "Extend" | "Cancel" | "Start" | "Stop" | "Reboot") => Role::Operator,
        (_, "Manage" | "Unmanage" | "Export" | "Unexport" | "Rescue" | "Unrescue") => Role::Admin,
        (_, "Get" | "List" | "ListManageable" | "Watch" | "GetHost" | "Diagnose") => Role::Viewer,
        ("Health", "Check") | ("ServerReflection", "ServerReflectionInfo") => Role::Viewer,
        _ => panic!("nobody has promised anything of {rpc}"),
    }
}

/// Everything that is served.
pub(crate) fn rpcs() -> Vec<String> {
    let mut rpcs = Vec::new();
    for encoded in [
        proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ] {
        for file in FileDescriptorSet::decode(encoded).unwrap().file {
            for service in &file.service {
                let methods = service.method.iter();
                rpcs.extend(methods.map(|method| format!("{}.{}/{}", file.package(), service.name(), method.name())));
            }
        }
    }
    assert!(rpcs.len() >= 31, "{rpcs:?}");
    rpcs
}

/// Calls by name with an empty message, and takes the first answer.
pub(crate) async fn call(channel: Channel, rpc: &str) -> Result<(), Status> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await.unwrap();
    let path = PathAndQuery::try_from(format!("/{rpc}")).unwrap();
    grpc.server_streaming(Request::new(()), path, ProstCodec::<(), ()>::default()).await.map(drop)
}

/// Role × RPC.
#[tokio::test]
async fn every_rpc_by_every_role() {
    let roles = [None, Some(Role::Viewer), Some(Role::Operator), Some(Role::Admin)];
    let mut asked = 0;
    for role in roles {
        let groups = Callers::default().rules.into_iter().filter(|rule| rule.group.is_some());
        let stage = SimStage::with(config(groups.chain(role.map(|role| rule(role, &[]))).collect())).await;
        for rpc in rpcs() {
            let refused = call(stage.channel(), &rpc).await.err();
            let is_forbidden = refused.as_ref().is_some_and(|status| status.code() == Code::PermissionDenied);
            assert_eq!(is_forbidden, role < Some(promised(&rpc)), "{rpc} as {role:?}: {refused:?}");
            if let Some(refused) = refused.filter(|_| is_forbidden) {
                let refused = Refused::from(refused);
                assert_eq!(refused.reason, "FORBIDDEN");
                let needed = format!("needs the role {}", format!("{:?}", promised(&rpc)).to_lowercase());
                assert!(refused.message.contains(&needed), "{}", refused.message);
                assert!(refused.message.contains("usermod -aG mortar"), "{}", refused.message);
            }
            asked += 1;
        }
        // What nobody has written down is served to nobody.
        let unknown = call(stage.channel(), "mortar.agent.v1.Attachments/Format").await.unwrap_err();
        assert_eq!(unknown.code(), Code::Unimplemented);
    }
    assert!(asked >= 4 * 31);
}

/// Diagnose is for all who look; with `repair` it is not.
#[tokio::test]
async fn a_repair_needs_an_admin() {
    for (role, may) in [(Role::Viewer, false), (Role::Operator, false), (Role::Admin, true)] {
        let stage = SimStage::with(config(vec![rule(role, &[])])).await;
        let diagnose = |repair| v1::DiagnoseRequest { repair, ..v1::DiagnoseRequest::default() };
        stage.client().host.diagnose(diagnose(false)).await.unwrap();
        for dry_run in [true, false] {
            let repair = v1::DiagnoseRequest { dry_run, ..diagnose(true) };
            let repaired = stage.client().host.diagnose(repair).await.map_err(Refused::from);
            assert_eq!(repaired.is_ok(), may, "{role:?}: {repaired:?}");
        }
    }
}

/// Health and reflection can be opened to strangers, and closed to viewers; nothing else opens with them.
#[tokio::test]
async fn health_and_reflection_as_configured() {
    let reflection = "grpc.reflection.v1.ServerReflection/ServerReflectionInfo";
    for (need, role, may) in [
        (Need::Anyone, None, true),
        (Need::Viewer, None, false),
        (Need::Admin, Some(Role::Operator), false),
        (Need::Admin, Some(Role::Admin), true),
    ] {
        let mut config = config(role.map(|role| rule(role, &[])).into_iter().collect());
        (config.callers.health, config.callers.reflection) = (need, need);
        let stage = SimStage::with(config).await;
        for rpc in ["grpc.health.v1.Health/Check", reflection] {
            let code = call(stage.channel(), rpc).await.err().map(|status| status.code());
            assert_eq!(code != Some(Code::PermissionDenied), may, "{rpc} {need:?} {role:?}: {code:?}");
        }
        let list = stage.client().list().await;
        assert_eq!(list.is_ok(), role.is_some(), "{list:?}");
    }
}

/// Strangers may connect, as everybody on the host may; they take no places from others.
#[tokio::test]
async fn strangers_keep_nobody_out() {
    let mut config = config(Vec::new());
    config.limits.connections = 2;
    let mut stage = SimStage::with(config).await;
    let mut strangers: Vec<Client> = (0..40).map(|_| stage.client()).collect();
    for stranger in &mut strangers {
        let refused = stranger.list().await.unwrap_err();
        assert!(
            [Code::PermissionDenied, Code::Unavailable, Code::Unknown, Code::Cancelled].contains(&refused.code),
            "{refused:?}"
        );
    }
    // Somebody is named at last, while they hold what they got.
    stage.config.callers.rules.push(rule(Role::Admin, &[]));
    assert_eq!(stage.reload(), Vec::<String>::new());
    stage.client().list().await.unwrap();
    drop(strangers);
}

/// Rules hold from the moment of the reload, also for those who are connected.
#[tokio::test]
async fn a_reload_gives_and_takes() {
    let mut stage = SimStage::with(config(vec![rule(Role::Viewer, &[])])).await;
    let locator = stage.volume(Backend::File, "v", SIZE).await;
    let mut client = stage.client();
    assert_eq!(client.attach(attach("a", &locator)).await.unwrap_err().reason, "FORBIDDEN");
    stage.config.callers.rules = vec![rule(Role::Operator, &[])];
    stage.config.limits.operations += 1;
    assert_eq!(stage.reload(), ["limits.operations"]);
    client.attach(attach("a", &locator)).await.unwrap();
    assert_eq!(client.manage(manage(&locator)).await.unwrap_err().reason, "FORBIDDEN");
    stage.config.callers.rules.clear();
    stage.reload();
    assert_eq!(client.detach("a").await.unwrap_err().reason, "FORBIDDEN");
    assert_eq!(client.list().await.unwrap_err().reason, "FORBIDDEN");
}

/// An operation is ended by those who could have begun it.
#[tokio::test]
async fn a_cancel_needs_the_role_of_what_it_ends() {
    let mut stage = SimStage::with(config(vec![rule(Role::Admin, &[])])).await;
    let file = stage.volume(Backend::File, "v", SIZE).await;
    let lv = stage.volume(Backend::Lvm, "v", SIZE).await;
    let mut client = stage.client();
    let attached = client.attach(attach("a", &file)).await.unwrap().operation_id;
    let managed = client.manage(manage(&lv)).await.unwrap().operation_id;
    stage.config.callers.rules = vec![rule(Role::Operator, &[])];
    stage.reload();
    let mut cancel = async |id: &str| {
        let request = v1::CancelOperationRequest { id: id.into() };
        client.operations.cancel(request).await.map(tonic::Response::into_inner).map_err(Refused::from)
    };
    assert!(!cancel(&attached).await.unwrap().changed);
    let refused = cancel(&managed).await.unwrap_err();
    assert!(refused.reason == "FORBIDDEN" && refused.message.contains("needs the role admin"), "{}", refused.message);
}

fn is_out_of_reach<T: fmt::Debug>(answer: Answer<T>) {
    let refused = answer.unwrap_err();
    assert_eq!((refused.code, refused.reason.as_str()), (Code::PermissionDenied, "FORBIDDEN"), "{}", refused.message);
    assert!(refused.message.contains(" only"), "{}", refused.message);
}

/// Who is let to one place of each backend has that, and of everything else no sight.
#[tokio::test]
async fn a_reach_ends_where_it_says() {
    let places = [
        (Backend::File, format!("file:{DIRECTORY}")),
        (Backend::Iscsi, format!("iscsi:{IQN}")),
        (Backend::Lvm, format!("lvm:{VG}")),
        (Backend::Rbd, format!("rbd:{POOL}")),
    ];
    for (mine, place) in places {
        let mut stage = SimStage::with(config(vec![rule(Role::Admin, &[])])).await;
        let mut all = stage.client();
        let mut others = Vec::new();
        for backend in BACKENDS {
            let locator = stage.volume(backend, "v", SIZE).await;
            all.attach(attach(backend.as_str(), &locator)).await.unwrap();
            if backend != mine {
                others.push((backend, locator));
            }
        }
        let free = stage.volume(mine, "free", SIZE).await;
        let (lv, exported) =
            (stage.volume(Backend::Lvm, "other", SIZE).await, stage.volume(Backend::Lvm, "served", SIZE).await);
        let export = v1::ExportRequest {
            id: "e".into(),
            locator: exported.clone(),
            initiator: "iqn.1993-08.org.debian:01:abc".into(),
            portals: vec!["127.0.0.1".into()],
            ..v1::ExportRequest::default()
        };
        let served = all.export(export.clone()).await.is_ok();
        let managed = all.manage(manage(&lv)).await.unwrap().volume.unwrap().id;
        let operations =
            all.operations.list(v1::ListOperationsRequest::default()).await.unwrap().into_inner().operations;

        stage.config.callers.rules = vec![rule(Role::Admin, &[&place])];
        stage.reload();
        let mut client = stage.client();
        for (backend, locator) in &others {
            is_out_of_reach(client.attach(attach("new", locator)).await);
            is_out_of_reach(client.attach(attach(backend.as_str(), locator)).await);
            is_out_of_reach(client.detach(backend.as_str()).await);
            is_out_of_reach(client.detach(locator).await);
            is_out_of_reach(client.get(backend.as_str()).await);
            let extend = v1::ExtendRequest { id: backend.to_string(), timeout_ms: 0 };
            is_out_of_reach(client.attachments.extend(extend).await.map_err(Refused::from));
            let device = all_path(&stage, backend.as_str()).await;
            is_out_of_reach(client.detach(&device).await);
            if *backend != Backend::Iscsi {
                is_out_of_reach(client.manage(manage(locator)).await);
                is_out_of_reach(client.manageable(&stage.scope(*backend)).await);
                is_out_of_reach(client.volumes(&stage.scope(*backend)).await);
            }
        }
        if mine != Backend::Lvm {
            is_out_of_reach(client.export(export).await);
            is_out_of_reach(client.unmanage(&managed, false).await);
            let get = v1::GetVolumeRequest { id: managed };
            is_out_of_reach(client.volumes.get(get).await.map_err(Refused::from));
            if served {
                is_out_of_reach(client.exported("e").await);
                is_out_of_reach(client.unexport("e").await);
            }
            is_out_of_reach(client.unexport(&exported).await);
            assert!(client.exports.list(v1::ListExportsRequest {}).await.unwrap().into_inner().exports.is_empty());
        }
        // What looks at the host as a whole is not for him.
        let diagnosis = client.host.diagnose(v1::DiagnoseRequest::default()).await.map_err(Refused::from);
        assert_eq!(diagnosis.unwrap_err().reason, "FORBIDDEN");
        client.host.get_host(v1::GetHostRequest {}).await.unwrap();

        let listed: Vec<String> = client.list().await.unwrap().into_iter().map(|one| one.id).collect();
        assert_eq!(listed, [mine.as_str()]);
        let mine_too = |locator: &str| locator.starts_with(&format!("{mine}:"));
        for volume in client.volumes("").await.unwrap() {
            assert!(mine_too(&volume.locator), "{volume:?}");
        }
        for operation in &operations {
            let get = v1::GetOperationRequest { id: operation.id.clone() };
            let got = client.operations.get(get).await.map_err(Refused::from);
            let cancel = v1::CancelOperationRequest { id: operation.id.clone() };
            let cancelled = client.operations.cancel(cancel).await.map_err(Refused::from);
            if mine_too(&operation.locator) {
                got.unwrap();
                cancelled.unwrap();
            } else {
                is_out_of_reach(got);
                is_out_of_reach(cancelled);
            }
        }
        let seen = client.operations.list(v1::ListOperationsRequest::default()).await.unwrap().into_inner().operations;
        assert_eq!(seen.len(), operations.iter().filter(|operation| mine_too(&operation.locator)).count());

        // A watcher hears of his own only; and when the rules are others, he has to ask again.
        let mut heard = client.attachments.watch(v1::WatchRequest {}).await.unwrap().into_inner();
        client.attach(attach("last", &free)).await.unwrap();
        client.detach("last").await.unwrap();
        loop {
            let event = timeout(Duration::from_secs(10), heard.message()).await.unwrap().unwrap().unwrap();
            match event.event.unwrap() {
                v1::watch_event::Event::Attachment(one) => assert!(mine_too(&one.locator), "{one:?}"),
                v1::watch_event::Event::Operation(one) => assert!(mine_too(&one.locator), "{one:?}"),
                v1::watch_event::Event::AttachmentGone(id) => {
                    assert_eq!(id, "last");
                    break;
                }
            }
        }
        stage.config.callers.rules.push(rule(Role::Admin, &[]));
        stage.reload();
        let mut all = stage.client();
        for (backend, _) in &others {
            all.detach(backend.as_str()).await.unwrap();
        }
        let ended = Refused::from(timeout(Duration::from_secs(10), heard.message()).await.unwrap().unwrap_err());
        assert_eq!((ended.code, ended.reason.as_str()), (Code::FailedPrecondition, "WRONG_STATE"), "{}", ended.message);
    }
}

/// The device of an attachment, looked up by somebody who may see it.
async fn all_path(stage: &SimStage, id: &str) -> String {
    let name = stage.config.agent.device_directory.join(id);
    name.display().to_string()
}

/// What an id stands for is asked once more when it is certain; rules add up, and each role has its own reach.
#[tokio::test]
async fn roles_have_their_own_reach() {
    let mut stage =
        SimStage::with(config(vec![rule(Role::Viewer, &[]), rule(Role::Operator, &[&format!("lvm:{VG}")])])).await;
    let lv = stage.volume(Backend::Lvm, "v", SIZE).await;
    let file = stage.volume(Backend::File, "v", SIZE).await;
    let mut client = stage.client();
    client.attach(attach("lv", &lv)).await.unwrap();
    is_out_of_reach(client.attach(attach("file", &file)).await);
    client.volumes(&stage.scope(Backend::File)).await.unwrap();
    client.host.diagnose(v1::DiagnoseRequest::default()).await.unwrap();
    client.detach("lv").await.unwrap();
}

/// Who only looks what he would change has changed nothing, and the log does not say that he had.
#[tokio::test]
async fn a_dry_run_is_told_as_one() {
    listen();
    let mut stage = SimStage::with(config(vec![rule(Role::Admin, &[])])).await;
    let locator = stage.volume(Backend::File, "v", SIZE).await;
    let mut client = stage.client();
    lines();
    client.manage(v1::ManageRequest { dry_run: true, ..manage(&locator) }).await.unwrap();
    let repair = v1::DiagnoseRequest { repair: true, dry_run: true, ..v1::DiagnoseRequest::default() };
    client.host.diagnose(repair).await.unwrap();
    let told = lines();
    assert_eq!(
        told,
        [format!("Manage {locator} (dry run) admin OK"), "Diagnose this host (dry run) admin OK".to_owned()]
    );
}

/// One line for each call that changes something or is refused, and none for those who look.
#[tokio::test]
async fn what_is_in_the_audit_log() {
    listen();
    let mut stage = SimStage::with(config(vec![rule(Role::Operator, &[])])).await;
    let locator = stage.volume(Backend::File, "v", SIZE).await;
    let mut client = stage.client();
    let operation = client.attach(attach("a", &locator)).await.unwrap().operation_id;
    let first = heard();
    assert_eq!((first.len(), &first[0]["operation"]), (1, &operation), "{first:?}");
    assert_eq!((&first[0]["subject"], first[0]["outcome"].as_str()), (&locator, "OK"));
    client.get("a").await.unwrap();
    client.list().await.unwrap();
    assert_eq!(lines(), Vec::<String>::new());
    client.attach(attach("a", "nonsense")).await.unwrap_err();
    client.attach(attach("b", &stage.nowhere(Backend::File))).await.unwrap_err();
    client.manage(manage(&locator)).await.unwrap_err();
    client.detach("a").await.unwrap();
    let nowhere = stage.nowhere(Backend::File);
    assert_eq!(
        lines(),
        [
            "Attach  operator INVALID_ARGUMENT".to_owned(),
            format!("Attach {nowhere} operator NOT_FOUND"),
            "Manage  operator PERMISSION_DENIED".into(),
            "Detach attachment a operator OK".into(),
        ]
    );
    // A caller who hangs up leaves his line all the same.
    stage.machine.silence(PORTAL);
    let unit = stage.volume(Backend::Iscsi, "w", SIZE).await;
    let request = v1::AttachRequest { timeout_ms: 1500, ..attach("b", &unit) };
    let mut other = stage.client();
    let call = tokio::spawn(async move { other.attach(request).await.map(drop) });
    until("the attach", async || !client.running().await.is_empty()).await;
    call.abort();
    let hung_up = async {
        loop {
            if let Some(line) = lines().pop() {
                break line;
            }
            tokio::task::yield_now().await;
        }
    };
    let line = timeout(Duration::from_secs(10), hung_up).await.unwrap();
    assert_eq!(line, format!("Attach {unit} operator HUNG_UP"));
}

/// Whoever has no role is told of once a minute, however often he calls.
#[tokio::test]
async fn strangers_do_not_fill_the_log() {
    listen();
    let stage = SimStage::with(config(Vec::new())).await;
    for _ in 0..20 {
        stage.client().list().await.unwrap_err();
    }
    assert_eq!(lines(), ["List  none PERMISSION_DENIED"]);
}

/// Of instances, those whose names a rule fits, whatever they are called in the request.
#[tokio::test]
async fn instances_in_reach() {
    let mut stage = SimStage::with(config(vec![rule(Role::Operator, &["instance:web*"])])).await;
    let uuid = |number: u32| format!("5f1e8f0a-0000-4000-8000-00000000000{number}");
    for (name, number) in [("web1", 1), ("db1", 2)] {
        stage.domains.put(&format!(
            "<domain type='qemu'>\n  <name>{name}</name>\n  <uuid>{}</uuid>\n  <os>\n    <type>hvm</type>\n  </os>\n  \
             <devices>\n  </devices>\n</domain>\n",
            uuid(number)
        ));
    }
    let mut client = stage.client();
    let seen = client.instances.list(v1::ListInstancesRequest {}).await.unwrap().into_inner().instances;
    assert_eq!(seen.iter().map(|one| one.name.as_str()).collect::<Vec<_>>(), ["web1"]);
    let start = |instance: &str| v1::StartInstanceRequest { instance: instance.into(), ..Default::default() };
    client.instances.start(start("web1")).await.unwrap();
    for other in ["db1".to_owned(), uuid(2)] {
        is_out_of_reach(client.instances.start(start(&other)).await.map_err(Refused::from));
        let get = v1::GetInstanceRequest { instance: other };
        is_out_of_reach(client.instances.get(get).await.map_err(Refused::from));
    }
    let rescue = v1::RescueRequest { instance: "web1".into(), ..v1::RescueRequest::default() };
    for dry_run in [true, false] {
        let rescue = v1::RescueRequest { dry_run, ..rescue.clone() };
        let refused = Refused::from(client.instances.rescue(rescue).await.unwrap_err());
        assert!(refused.reason == "FORBIDDEN" && refused.message.contains("the role admin"), "{}", refused.message);
    }
    // The operation of one is as much out of sight as the other.
    stage.config.callers.rules = vec![rule(Role::Viewer, &["instance:db*"])];
    stage.reload();
    let all = client.operations.list(v1::ListOperationsRequest::default()).await.unwrap().into_inner().operations;
    assert!(all.is_empty(), "{all:?}");
}
