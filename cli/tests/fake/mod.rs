//! An agent with canned answers on a socket of its own, so that the binary is tested as a user runs it.

use assert_cmd::{Command, assert::Assert};
use proto::v1::{
    self, attachments_server::AttachmentsServer, exports_server::ExportsServer, host_server::HostServer,
    instances_server::InstancesServer, operations_server::OperationsServer, volumes_server::VolumesServer,
};
use std::{
    collections::HashMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tempfile::TempDir;
use tokio::{net::UnixListener, runtime::Runtime, sync::Notify};
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Code, Request, Response, Status, transport::Server};
use tonic_types::{ErrorDetails, StatusExt};

type Reply<T> = Result<Response<T>, Status>;

/// What the agent was asked.
#[derive(Default)]
pub(crate) struct Asked {
    pub(crate) attach: Vec<v1::AttachRequest>,
    pub(crate) detach: Vec<v1::DetachRequest>,
    pub(crate) manage: Vec<v1::ManageRequest>,
    pub(crate) unmanage: Vec<v1::UnmanageRequest>,
    pub(crate) export: Vec<v1::ExportRequest>,
    pub(crate) unexport: Vec<v1::UnexportRequest>,
    pub(crate) scopes: Vec<String>,
    pub(crate) operations: Vec<v1::ListOperationsRequest>,
    pub(crate) diagnose: Vec<v1::DiagnoseRequest>,
    pub(crate) rescue: Vec<v1::RescueRequest>,
    pub(crate) unrescue: Vec<v1::UnrescueRequest>,
    pub(crate) stop: Vec<v1::StopInstanceRequest>,
}

#[derive(Clone, Default)]
struct Canned {
    asked: Arc<Mutex<Asked>>,
    dying: Arc<Notify>,
    without_a_journal: Arc<AtomicBool>,
}

impl Canned {
    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A running agent; dropped, it is gone.
pub(crate) struct Agent {
    canned: Canned,
    dir: TempDir,
    runtime: Runtime,
}

impl Agent {
    pub(crate) fn start() -> Self {
        let dir = TempDir::new().expect("a temporary directory");
        let canned = Canned::default();
        let runtime = Runtime::new().expect("a runtime");
        let listener = runtime.block_on(async { UnixListener::bind(dir.path().join("agent.sock")) }).expect("a socket");
        let server = Server::builder()
            .add_service(AttachmentsServer::new(canned.clone()))
            .add_service(VolumesServer::new(canned.clone()))
            .add_service(ExportsServer::new(canned.clone()))
            .add_service(OperationsServer::new(canned.clone()))
            .add_service(InstancesServer::new(canned.clone()))
            .add_service(HostServer::new(canned.clone()))
            .serve_with_incoming(UnixListenerStream::new(listener));
        runtime.spawn(server);
        Self { canned, dir, runtime }
    }

    pub(crate) fn asked(&self) -> MutexGuard<'_, Asked> {
        self.canned.asked()
    }

    /// From now on it knows of no operation.
    pub(crate) fn lose_the_journal(&self) {
        self.canned.without_a_journal.store(true, Ordering::Relaxed);
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("agent.sock")
    }

    /// `mortar` with these arguments, asked of this agent.
    pub(crate) fn mortar(&self, arguments: &[&str]) -> Command {
        let mut command = mortar(&self.socket());
        command.args(arguments);
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Assert {
        self.mortar(arguments).assert()
    }

    /// `mortar` with these words as somebody runs it at a terminal, on which he types this; stdout is what the terminal shows.
    pub(crate) fn on_terminal(&self, words: &str, typed: &str, environment: &[(&str, &str)]) -> Assert {
        let program = assert_cmd::cargo::cargo_bin!("mortar").display().to_string();
        let mut command = Command::new("script");
        command.args(["--quiet", "--return", "--command", &format!("{program} {words}"), "/dev/null"]);
        command.env_clear().env("PATH", "/usr/bin:/bin").env("MORTAR_SOCKET", self.socket());
        command.envs(environment.iter().copied()).write_stdin(typed).timeout(Duration::from_secs(20)).assert()
    }

    /// Kills the agent, as `kill -9` would, when it is asked for `lvm:deadly/lv`.
    pub(crate) fn die_when_asked(self) {
        let Self { canned, dir, runtime } = self;
        std::thread::spawn(move || {
            runtime.block_on(canned.dying.notified());
            runtime.shutdown_background();
            drop(dir);
        });
    }
}

/// `mortar` for a socket.
pub(crate) fn mortar(socket: &Path) -> Command {
    let mut command = Command::new(assert_cmd::cargo::cargo_bin!("mortar"));
    command.env_clear().env("MORTAR_SOCKET", socket).timeout(Duration::from_secs(20));
    command
}

#[expect(clippy::disallowed_methods, reason = "an agent that takes its time")]
async fn late() {
    tokio::time::sleep(Duration::from_millis(1800)).await;
}

fn refused(code: Code, reason: &str, message: &str) -> Status {
    let metadata = HashMap::from([("by".to_owned(), "somebody".to_owned())]);
    Status::with_error_details(code, message, ErrorDetails::with_error_info(reason, proto::ERROR_DOMAIN, metadata))
}

pub(crate) fn attachment(id: &str) -> v1::Attachment {
    v1::Attachment {
        id: id.to_owned(),
        locator: "lvm:vg/lv".to_owned(),
        path: "/dev/sdb".to_owned(),
        stable_path: format!("/dev/mortar/{id}"),
        scsi_wwn: "360000000000000000e00000000010001".to_owned(),
        r#type: "block".to_owned(),
        size_bytes: 1 << 30,
        state: v1::AttachmentState::Ready.into(),
        paths: vec![v1::Path { device: "/dev/sdb".into(), state: "running".into(), ..v1::Path::default() }],
        ..Default::default()
    }
}

fn volume() -> v1::Volume {
    v1::Volume {
        id: "9394b827-4ad0-488e-8df8-26476b3a8662".to_owned(),
        name: "web".to_owned(),
        locator: "lvm:vg/volume-9394b827-4ad0-488e-8df8-26476b3a8662".to_owned(),
        origin: "lvm:vg/lv".to_owned(),
        size_bytes: 1 << 30,
        snapshot: false,
    }
}

fn operation() -> v1::Operation {
    v1::Operation {
        id: "0193a1c2-7a5e-7cc0-9d1b-3f2c5a7e9b10".to_owned(),
        kind: v1::OperationKind::Attach.into(),
        state: v1::OperationState::Running.into(),
        subject: "a".to_owned(),
        waiting: Some(v1::Waiting { r#for: "run lvm lvchange".to_owned(), ..Default::default() }),
        ..Default::default()
    }
}

#[tonic::async_trait]
impl v1::attachments_server::Attachments for Canned {
    type WatchStream = tokio_stream::Iter<std::vec::IntoIter<Result<v1::WatchEvent, Status>>>;

    /// The locator says how it ends: `lvm:CODE/…`.
    async fn attach(&self, request: Request<v1::AttachRequest>) -> Reply<v1::AttachResponse> {
        let request = request.into_inner();
        let tries = {
            let mut asked = self.asked();
            asked.attach.push(request.clone());
            asked.attach.len()
        };
        let locator = match request.volume {
            Some(v1::attach_request::Volume::Locator(locator)) => locator,
            Some(v1::attach_request::Volume::ConnectionInfo(_)) => "lvm:vg/lv".to_owned(),
            None => return Err(refused(Code::InvalidArgument, "INVALID", "no locator")),
        };
        match locator.as_str() {
            "lvm:busy/thrice" if tries <= 3 => return Err(refused(Code::Aborted, "BUSY", "held by an attach for 2s")),
            "lvm:busy/always" => return Err(refused(Code::Aborted, "BUSY", "held by an attach for 2s")),
            "lvm:stopping/lv" => return Err(refused(Code::Unavailable, "SHUTTING_DOWN", "the agent is stopping")),
            "lvm:deadly/lv" => {
                self.dying.notify_one();
                std::future::pending().await
            }
            "lvm:silent/lv" => std::future::pending().await,
            "lvm:late/lv" => late().await,
            "lvm:absent/lv" => return Err(refused(Code::NotFound, "NOT_FOUND", "no VG absent")),
            "lvm:mounted/lv" => return Err(refused(Code::FailedPrecondition, "IN_USE", "/dev/sdb\nis mounted")),
            "lvm:taken/lv" => return Err(refused(Code::AlreadyExists, "ALREADY_EXISTS", "the id is taken")),
            "lvm:denied/lv" => return Err(refused(Code::PermissionDenied, "DENIED", "CHAP was refused")),
            "lvm:invalid/lv" => return Err(refused(Code::InvalidArgument, "INVALID", "no locator")),
            "lvm:slow/lv" => return Err(refused(Code::DeadlineExceeded, "TIMED_OUT", "no device appeared")),
            "lvm:lost/lv" => return Err(refused(Code::DataLoss, "FLUSH_FAILED", "the flush failed")),
            "lvm:full/lv" => return Err(refused(Code::ResourceExhausted, "NO_SPACE", "the VG is full")),
            _ => {}
        }
        let id = if request.id.is_empty() { "made-up" } else { &request.id };
        let attachment = v1::Attachment { locator, ..attachment(id) };
        let reply = v1::AttachResponse { attachment: Some(attachment), changed: true, operation_id: "op".into() };
        Ok(Response::new(reply))
    }

    async fn detach(&self, request: Request<v1::DetachRequest>) -> Reply<v1::DetachResponse> {
        let request = request.into_inner();
        self.asked().detach.push(request.clone());
        let id = match request.target {
            Some(v1::detach_request::Target::Id(id)) => id,
            _ => "a".to_owned(),
        };
        let mut reply = v1::DetachResponse { changed: id != "absent", id, ..Default::default() };
        if reply.id == "stuck" {
            for name in ["/dev/sdb", "/dev/sdc"] {
                let kind = v1::ResidualKind::Device.into();
                reply.residuals.push(v1::Residual { kind, name: name.into(), reason: "it does not answer".into() });
            }
        }
        Ok(Response::new(reply))
    }

    async fn get(&self, request: Request<v1::GetAttachmentRequest>) -> Reply<v1::Attachment> {
        match request.into_inner().id {
            id if id.contains(' ') => Err(refused(Code::InvalidArgument, "INVALID", "that is no id")),
            id if ["absent", "web1"].contains(&id.as_str()) => {
                Err(refused(Code::NotFound, "NOT_FOUND", "no attachment absent"))
            }
            id => Ok(Response::new(attachment(&id))),
        }
    }

    async fn list(&self, _: Request<v1::ListAttachmentsRequest>) -> Reply<v1::ListAttachmentsResponse> {
        let attachments = vec![attachment("a"), attachment("b")];
        Ok(Response::new(v1::ListAttachmentsResponse { attachments }))
    }

    async fn extend(&self, request: Request<v1::ExtendRequest>) -> Reply<v1::ExtendResponse> {
        let attachment = Some(attachment(&request.into_inner().id));
        Ok(Response::new(v1::ExtendResponse { attachment, changed: false, operation_id: String::new() }))
    }

    async fn watch(&self, _: Request<v1::WatchRequest>) -> Reply<Self::WatchStream> {
        let events = [
            Some(v1::watch_event::Event::Attachment(attachment("a"))),
            None,
            Some(v1::watch_event::Event::Operation(operation())),
            Some(v1::watch_event::Event::AttachmentGone("a".into())),
        ];
        let events: Vec<_> = events.into_iter().map(|event| Ok(v1::WatchEvent { event })).collect();
        Ok(Response::new(tokio_stream::iter(events)))
    }
}

#[tonic::async_trait]
impl v1::volumes_server::Volumes for Canned {
    async fn list_manageable(&self, request: Request<v1::ListManageableRequest>) -> Reply<v1::ListManageableResponse> {
        self.asked().scopes.push(request.into_inner().scope);
        let entry = v1::Manageable {
            reference: "lvm:vg/lv".into(),
            size_bytes: 1 << 20,
            safe_to_manage: true,
            ..Default::default()
        };
        Ok(Response::new(v1::ListManageableResponse { entries: vec![entry] }))
    }

    async fn manage(&self, request: Request<v1::ManageRequest>) -> Reply<v1::ManageResponse> {
        let request = request.into_inner();
        let (operation_id, would) = match request.dry_run {
            true => (String::new(), vec!["rename it".to_owned()]),
            false => ("op".to_owned(), Vec::new()),
        };
        self.asked().manage.push(request);
        Ok(Response::new(v1::ManageResponse { volume: Some(volume()), changed: true, operation_id, would }))
    }

    async fn unmanage(&self, request: Request<v1::UnmanageRequest>) -> Reply<v1::UnmanageResponse> {
        let request = request.into_inner();
        self.asked().unmanage.push(request.clone());
        let reply = v1::UnmanageResponse {
            id: request.id,
            locator: "lvm:vg/lv".into(),
            changed: true,
            operation_id: "op".into(),
        };
        Ok(Response::new(reply))
    }

    async fn list(&self, request: Request<v1::ListVolumesRequest>) -> Reply<v1::ListVolumesResponse> {
        let scope = request.into_inner().scope;
        let problems =
            if scope.is_empty() { vec!["rbd:gone cannot be looked at: no answer".to_owned()] } else { vec![] };
        self.asked().scopes.push(scope);
        Ok(Response::new(v1::ListVolumesResponse { volumes: vec![volume()], problems }))
    }

    async fn get(&self, _: Request<v1::GetVolumeRequest>) -> Reply<v1::Volume> {
        Ok(Response::new(volume()))
    }
}

fn export(id: &str) -> v1::Export {
    v1::Export {
        id: id.to_owned(),
        locator: "lvm:vg/lv".to_owned(),
        initiator: "iqn.2026-11.org.example:other".to_owned(),
        target: format!("iqn.2026-11.org.example:host:export-{id}"),
        portals: vec!["10.0.0.5:3260".to_owned()],
        size_bytes: 1 << 30,
        ready: true,
        ..Default::default()
    }
}

#[tonic::async_trait]
impl v1::exports_server::Exports for Canned {
    async fn export(&self, request: Request<v1::ExportRequest>) -> Reply<v1::ExportResponse> {
        self.asked().export.push(request.into_inner());
        Ok(Response::new(v1::ExportResponse {
            export: Some(export("a")),
            connection_info: r#"{"driver_volume_type":"iscsi","data":{"auth_password":"secret"}}"#.into(),
            changed: true,
            operation_id: "op".into(),
        }))
    }

    async fn unexport(&self, request: Request<v1::UnexportRequest>) -> Reply<v1::UnexportResponse> {
        let request = request.into_inner();
        self.asked().unexport.push(request.clone());
        let mut reply = v1::UnexportResponse { id: "a".into(), changed: true, ..Default::default() };
        if request.target == Some(v1::unexport_request::Target::Id("stuck".into())) {
            let kind = v1::ResidualKind::Activation.into();
            reply.residuals.push(v1::Residual { kind, name: "lvm:vg/lv".into(), reason: "it is open".into() });
        }
        Ok(Response::new(reply))
    }

    async fn get(&self, _: Request<v1::GetExportRequest>) -> Reply<v1::Export> {
        Ok(Response::new(export("a")))
    }

    async fn list(&self, _: Request<v1::ListExportsRequest>) -> Reply<v1::ListExportsResponse> {
        Ok(Response::new(v1::ListExportsResponse { exports: vec![export("a")] }))
    }
}

#[tonic::async_trait]
impl v1::operations_server::Operations for Canned {
    async fn get(&self, _: Request<v1::GetOperationRequest>) -> Reply<v1::Operation> {
        Ok(Response::new(operation()))
    }

    async fn list(&self, request: Request<v1::ListOperationsRequest>) -> Reply<v1::ListOperationsResponse> {
        self.asked().operations.push(request.into_inner());
        if self.without_a_journal.load(Ordering::Relaxed) {
            return Err(refused(Code::FailedPrecondition, "WRONG_STATE", "the journal is lost"));
        }
        Ok(Response::new(v1::ListOperationsResponse { operations: vec![operation()] }))
    }

    async fn cancel(&self, request: Request<v1::CancelOperationRequest>) -> Reply<v1::CancelOperationResponse> {
        match request.into_inner().id.as_str() {
            "late" => Err(refused(Code::FailedPrecondition, "WRONG_STATE", "it has changed something already")),
            _ => Ok(Response::new(v1::CancelOperationResponse { operation: Some(operation()), changed: true })),
        }
    }
}

fn instance() -> v1::Instance {
    let disk = |target: &str, source: &str, role: v1::InstanceDiskRole| v1::InstanceDisk {
        target: target.to_owned(),
        source: source.to_owned(),
        role: role.into(),
        ..Default::default()
    };
    v1::Instance {
        uuid: "7b1c6c5e-90a3-4c7c-a8de-6f7d6d2c8f3a".to_owned(),
        name: "web1".to_owned(),
        power: v1::InstancePower::Running.into(),
        persistent: true,
        disks: vec![
            disk("vda", "/dev/mortar/rescue-7b1c", v1::InstanceDiskRole::Rescue),
            disk("vdb", "/dev/vg/web1", v1::InstanceDiskRole::Root),
        ],
        ..Default::default()
    }
}

#[tonic::async_trait]
impl v1::instances_server::Instances for Canned {
    async fn list(&self, _: Request<v1::ListInstancesRequest>) -> Reply<v1::ListInstancesResponse> {
        Ok(Response::new(v1::ListInstancesResponse { instances: vec![instance()] }))
    }

    async fn get(&self, request: Request<v1::GetInstanceRequest>) -> Reply<v1::Instance> {
        match request.into_inner().instance.as_str() {
            "web1" | "a name" => Ok(Response::new(instance())),
            "saved" => {
                let disk = "lvm:vg/rescue-7b1c".to_owned();
                let rescue = Some(v1::InstanceRescue { disk, image: true, ..Default::default() });
                Ok(Response::new(v1::Instance { rescue, ..instance() }))
            }
            _ => Err(refused(Code::NotFound, "NOT_FOUND", "no such instance")),
        }
    }

    async fn rescue(&self, request: Request<v1::RescueRequest>) -> Reply<v1::RescueResponse> {
        let request = request.into_inner();
        let dry_run = request.dry_run;
        self.asked().rescue.push(request);
        if dry_run {
            let would = vec!["stop web1".to_owned(), "start web1".to_owned()];
            return Ok(Response::new(v1::RescueResponse {
                instance: Some(instance()),
                changed: true,
                would,
                ..Default::default()
            }));
        }
        Ok(Response::new(v1::RescueResponse {
            instance: Some(instance()),
            changed: true,
            password: "hT9wQm4xRkc7Ven3".into(),
            warnings: vec!["they have the same UUID".into()],
            operation_id: "op".into(),
            ..Default::default()
        }))
    }

    async fn unrescue(&self, request: Request<v1::UnrescueRequest>) -> Reply<v1::UnrescueResponse> {
        self.asked().unrescue.push(request.into_inner());
        Ok(Response::new(v1::UnrescueResponse { instance: Some(instance()), changed: true, ..Default::default() }))
    }

    async fn start(&self, _: Request<v1::StartInstanceRequest>) -> Reply<v1::PowerResponse> {
        Ok(Response::new(v1::PowerResponse { instance: Some(instance()), changed: false, ..Default::default() }))
    }

    async fn stop(&self, request: Request<v1::StopInstanceRequest>) -> Reply<v1::PowerResponse> {
        self.asked().stop.push(request.into_inner());
        let stopped = v1::Stopped::Hard.into();
        Ok(Response::new(v1::PowerResponse {
            instance: Some(instance()),
            changed: true,
            stopped,
            ..Default::default()
        }))
    }

    async fn reboot(&self, _: Request<v1::RebootInstanceRequest>) -> Reply<v1::PowerResponse> {
        Ok(Response::new(v1::PowerResponse { instance: Some(instance()), changed: true, ..Default::default() }))
    }
}

#[tonic::async_trait]
impl v1::host_server::Host for Canned {
    async fn get_host(&self, _: Request<v1::GetHostRequest>) -> Reply<v1::HostInfo> {
        Ok(Response::new(v1::HostInfo { name: "hv1".into(), ..Default::default() }))
    }

    /// An orphan, which a repair takes away; and something of somebody else's.
    async fn diagnose(&self, request: Request<v1::DiagnoseRequest>) -> Reply<v1::DiagnoseResponse> {
        let request = request.into_inner();
        self.asked().diagnose.push(request);
        let repair = match (request.repair, request.dry_run) {
            (false, _) => v1::RepairOutcome::Unspecified,
            (true, true) => v1::RepairOutcome::WouldBeRemoved,
            (true, false) => v1::RepairOutcome::Removed,
        };
        let object = |name: &str, state: v1::HostObjectState, why: &str| v1::HostObject {
            kind: v1::HostObjectKind::Loop.into(),
            name: name.into(),
            description: "/srv/a.raw".into(),
            state: state.into(),
            why: why.into(),
            ..Default::default()
        };
        let orphan = object("/dev/loop0", v1::HostObjectState::Orphan, "nobody has it");
        let detail = if request.repair && !request.dry_run { "removed".to_owned() } else { String::new() };
        let orphan = v1::HostObject { repair: repair.into(), repair_detail: detail, ..orphan };
        let foreign = object("/dev/loop1", v1::HostObjectState::Foreign, "it has no label of ours");
        let finding = v1::Finding {
            severity: v1::Severity::Warning.into(),
            subject: "the clock".into(),
            found: "no time service keeps it right".into(),
            advice: "start one".into(),
        };
        Ok(Response::new(v1::DiagnoseResponse { findings: vec![finding], objects: vec![orphan, foreign] }))
    }
}
