//! The gRPC services: convert, hand on, convert back. No decisions.

mod instances;

use crate::{
    agent::Agent,
    callers::Call,
    convert::{self, Patience},
    doctor::Orphans,
    hostinfo,
    journal::{ExportRecord, Record},
    operation::{ExportTarget, Operation, Target},
    status, unrecorded,
    watch::{Event, Watch},
};
use driver::{AttachmentId, Error, Result as DriverResult};
use export::ExportId;
use proto::v1;
use std::{collections::HashSet, future::Future, pin::Pin, sync::Arc};
use tokio::{
    sync::broadcast::error::RecvError,
    time::{Instant, timeout_at},
};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status};

/// All six services; clones are the same agent.
#[derive(Clone)]
pub(crate) struct Service {
    agent: Arc<Agent>,
}

impl Service {
    pub(crate) fn new(agent: Arc<Agent>) -> Self {
        Self { agent }
    }

    fn patience<T>(&self, request: &Request<T>) -> Patience {
        let header = request.metadata().get("grpc-timeout").and_then(|value| value.to_str().ok());
        Patience::new(self.agent.config.limits.operation_timeout(), header.and_then(convert::grpc_timeout))
    }

    /// Runs an operation in a task of its own, and answers at its end; or when the caller's patience is: then it goes on.
    async fn run<T: Send + 'static>(
        &self,
        call: &Arc<Call>,
        answer_by: Option<Instant>,
        what: &str,
        work: impl Future<Output = DriverResult<T>> + Send + 'static,
    ) -> DriverResult<T> {
        let work = self.agent.in_own_task(Arc::clone(call).during(work));
        let Some(answer_by) = answer_by else { return work.await };
        timeout_at(answer_by, work).await.unwrap_or_else(|_| {
            Err(Error::TimedOut { waiting_for: format!("{what}, which goes on: see the operations") })
        })
    }

    /// An operation, with what it waits for.
    fn operation_now(&self, operation: Operation) -> v1::Operation {
        let course = self.agent.running.get(operation.id).filter(|_| !operation.ended);
        let patience = self.agent.config.limits.wedged_after();
        let waiting = course.and_then(|course| course.waiting(self.agent.host.as_ref(), patience));
        convert::operation(operation, waiting)
    }

    /// The record of an attachment that a call is about; `None` if there is none.
    async fn attachment(&self, call: &Call, id: &AttachmentId) -> DriverResult<Option<Record>> {
        let record = self.agent.journal.attachment(id).await?;
        if let Some(record) = &record {
            call.concerns(format_args!("attachment {id}"), &record.attached.spec.locator)?;
        }
        Ok(record)
    }

    /// As [`Service::attachment`], of an export.
    async fn export(&self, call: &Call, id: &ExportId) -> DriverResult<Option<ExportRecord>> {
        let record = self.agent.journal.export(id).await?;
        if let Some(record) = &record {
            call.concerns(format_args!("export {id}"), &record.attached.spec.locator)?;
        }
        Ok(record)
    }
}

/// Whether a watcher is to hear of something that happened.
fn is_shown(call: &Call, event: &Event, told: &mut HashSet<AttachmentId>) -> bool {
    match event {
        Event::Attachment(attachment) => {
            let shown = call.shows(&attachment.record.attached.spec.locator);
            if shown {
                told.insert(attachment.record.id.clone());
            }
            shown
        }
        Event::Gone(id) => told.remove(id),
        Event::Operation(operation) => call.shows_all_that(&operation.plan),
    }
}

fn answer<T>(result: DriverResult<T>) -> Result<Response<T>, Status> {
    match result {
        Ok(value) => Ok(Response::new(value)),
        Err(error) => {
            tracing::debug!(reason = error.reason(), "refused: {}", error.chain());
            Err(status::status(&error))
        }
    }
}

#[tonic::async_trait]
impl v1::attachments_server::Attachments for Service {
    async fn attach(&self, request: Request<v1::AttachRequest>) -> Result<Response<v1::AttachResponse>, Status> {
        let patience = self.patience(&request);
        let work = async {
            let call = Call::of(&request)?;
            let request = convert::attach_request(request.into_inner(), patience)?;
            call.concerns(&request.spec.locator, &request.spec.locator)?;
            let answer_by = patience.answer_by(Some(request.attempt.deadline));
            let reply = self.run(&call, answer_by, "the attach", Arc::clone(&self.agent).attach(request)).await?;
            Ok(v1::AttachResponse {
                attachment: Some(convert::attachment(reply.attachment)),
                changed: reply.changed,
                operation_id: reply.operation.map(|id| id.to_string()).unwrap_or_default(),
            })
        };
        answer(work.await)
    }

    async fn detach(&self, request: Request<v1::DetachRequest>) -> Result<Response<v1::DetachResponse>, Status> {
        let patience = self.patience(&request);
        let work = async {
            let call = Call::of(&request)?;
            let request = request.into_inner();
            let target = convert::detach_target(request.target)?;
            match &target {
                Target::Id(id) => drop(self.attachment(&call, id).await?),
                Target::Locator(locator) => call.concerns(locator, locator)?,
                // Which volume it is will be seen on the way, before anything begins.
                Target::Device(_) => {}
            }
            let deadline = patience.deadline(request.timeout_ms)?;
            let answer_by = patience.answer_by(Some(deadline));
            let reply =
                self.run(&call, answer_by, "the detach", Arc::clone(&self.agent).detach(target, deadline)).await?;
            Ok(convert::detach_response(reply))
        };
        answer(work.await)
    }

    async fn get(&self, request: Request<v1::GetAttachmentRequest>) -> Result<Response<v1::Attachment>, Status> {
        let patience = self.patience(&request);
        let work = async {
            let call = Call::of(&request)?;
            let id = convert::attachment_id(&request.into_inner().id)?;
            match self.attachment(&call, &id).await? {
                Some(record) => {
                    self.agent.looked_at(&id, patience.deadline(0)?).await?;
                    Ok(convert::attachment(self.agent.look(record, true).await))
                }
                None => Err(Error::NotFound { what: format!("attachment {id}") }),
            }
        };
        answer(work.await)
    }

    async fn list(
        &self,
        request: Request<v1::ListAttachmentsRequest>,
    ) -> Result<Response<v1::ListAttachmentsResponse>, Status> {
        let work = async {
            let call = Call::of(&request)?;
            if let Some(why) = self.agent.journal.lost() {
                // Nobody knows any more which volumes these are.
                call.shows_everything()?;
                let found = unrecorded::list(&self.agent)?;
                let attachments = found.into_iter().map(|one| convert::unrecorded(one, &why)).collect();
                return Ok(v1::ListAttachmentsResponse { attachments });
            }
            let mut records = self.agent.journal.attachments().await?;
            records.retain(|record| call.shows(&record.attached.spec.locator));
            let attachments = self.agent.look_at_each(records).await;
            Ok(v1::ListAttachmentsResponse { attachments: attachments.into_iter().map(convert::attachment).collect() })
        };
        answer(work.await)
    }

    async fn extend(&self, request: Request<v1::ExtendRequest>) -> Result<Response<v1::ExtendResponse>, Status> {
        let patience = self.patience(&request);
        let work = async {
            let call = Call::of(&request)?;
            let request = request.into_inner();
            let id = convert::attachment_id(&request.id)?;
            self.attachment(&call, &id).await?;
            let deadline = patience.deadline(request.timeout_ms)?;
            let answer_by = patience.answer_by(Some(deadline));
            let reply = self.run(&call, answer_by, "the extend", Arc::clone(&self.agent).extend(id, deadline)).await?;
            Ok(v1::ExtendResponse {
                attachment: Some(convert::attachment(reply.attachment)),
                changed: reply.changed,
                operation_id: reply.operation.map(|id| id.to_string()).unwrap_or_default(),
            })
        };
        answer(work.await)
    }

    type WatchStream = Pin<Box<dyn Stream<Item = Result<v1::WatchEvent, Status>> + Send>>;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let call = Call::of(&request).map_err(|error| status::status(&error))?;
        let seat = Arc::clone(&self.agent.seats).try_acquire_owned().map_err(|_| {
            let what = format!("{} watch already; let one of them go", self.agent.config.limits.watchers);
            status::status(&Error::Limit { what, key: "limits.watchers" })
        })?;
        let (events, stream) = tokio::sync::mpsc::channel(16);
        let agent = Arc::clone(&self.agent);
        // Subscribed before the records are read: nothing falls between.
        let mut changes = Watch::subscribe(&agent.watch);
        tokio::spawn(async move {
            let _seat = seat;
            let follow = async {
                let records = match agent.journal.attachments().await {
                    Ok(records) => records,
                    Err(error) => return drop(events.send(Err(status::status(&error))).await),
                };
                // That an attachment is gone is told to those who heard that it was there.
                let mut told = HashSet::new();
                for record in records.into_iter().filter(|record| call.shows(&record.attached.spec.locator)) {
                    told.insert(record.id.clone());
                    let event = convert::event(Event::Attachment(agent.look(record, false).await));
                    if events.send(Ok(event)).await.is_err() {
                        return;
                    }
                }
                loop {
                    let next = changes.recv().await;
                    if let Err(error) = call.goes_on() {
                        return drop(events.send(Err(status::status(&error))).await);
                    }
                    let sent = match next {
                        Ok(event) if !is_shown(&call, &event, &mut told) => continue,
                        Ok(event) => events.send(Ok(convert::event(event))).await,
                        Err(RecvError::Lagged(missed)) => {
                            let behind = Status::resource_exhausted(format!("{missed} events missed; watch again"));
                            return drop(events.send(Err(behind)).await);
                        }
                        Err(RecvError::Closed) => return,
                    };
                    if sent.is_err() {
                        return;
                    }
                }
            };
            tokio::select! {
                () = follow => {}
                () = agent.stop.cancelled() => {}
                () = events.closed() => {}
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }
}

#[tonic::async_trait]
impl v1::volumes_server::Volumes for Service {
    async fn list_manageable(
        &self,
        request: Request<v1::ListManageableRequest>,
    ) -> Result<Response<v1::ListManageableResponse>, Status> {
        let work = async {
            let call = Call::of(&request)?;
            let scope = request.into_inner().scope.parse()?;
            call.concerns_all_of(&scope)?;
            let candidates = self.agent.manageable(&scope).await?;
            Ok(v1::ListManageableResponse { entries: candidates.into_iter().map(convert::manageable).collect() })
        };
        answer(work.await)
    }

    async fn manage(&self, request: Request<v1::ManageRequest>) -> Result<Response<v1::ManageResponse>, Status> {
        let answer_by = self.patience(&request).answer_by(None);
        let work = async {
            let call = Call::of(&request)?;
            let request = convert::manage_request(request.get_ref())?;
            if request.dry_run {
                call.only_looks();
            }
            call.concerns(&request.locator, &request.locator)?;
            let reply = self.run(&call, answer_by, "the manage", Arc::clone(&self.agent).manage(request)).await?;
            Ok(v1::ManageResponse {
                volume: Some(convert::volume(reply.volume)),
                changed: reply.changed,
                operation_id: reply.operation.map(|id| id.to_string()).unwrap_or_default(),
                would: reply.would,
            })
        };
        answer(work.await)
    }

    async fn unmanage(&self, request: Request<v1::UnmanageRequest>) -> Result<Response<v1::UnmanageResponse>, Status> {
        let answer_by = self.patience(&request).answer_by(None);
        let work = async {
            let call = Call::of(&request)?;
            let v1::UnmanageRequest { id, keep_name } = request.into_inner();
            let volume = id.parse()?;
            // Where it is will be seen on the way, before anything begins.
            let work = Arc::clone(&self.agent).unmanage(volume, keep_name);
            let reply = self.run(&call, answer_by, "the unmanage", work).await?;
            Ok(v1::UnmanageResponse {
                id: volume.to_string(),
                locator: reply.locator.map(|locator| locator.to_string()).unwrap_or_default(),
                changed: reply.changed,
                operation_id: reply.operation.map(|id| id.to_string()).unwrap_or_default(),
            })
        };
        answer(work.await)
    }

    async fn list(
        &self,
        request: Request<v1::ListVolumesRequest>,
    ) -> Result<Response<v1::ListVolumesResponse>, Status> {
        let work = async {
            let call = Call::of(&request)?;
            let scope = convert::scope(&request.into_inner().scope)?;
            if let Some(scope) = &scope {
                call.concerns_all_of(scope)?;
            }
            let listing = self.agent.volumes(scope.as_ref()).await?;
            let volumes = listing.volumes.into_iter().filter(|volume| call.shows(&volume.locator));
            let unseen =
                listing.unseen.iter().filter(|unseen| unseen.scope().is_none_or(|scope| call.shows_all_of(scope)));
            Ok(v1::ListVolumesResponse {
                volumes: volumes.map(convert::volume).collect(),
                problems: unseen.map(ToString::to_string).collect(),
            })
        };
        answer(work.await)
    }

    async fn get(&self, request: Request<v1::GetVolumeRequest>) -> Result<Response<v1::Volume>, Status> {
        let work = async {
            let call = Call::of(&request)?;
            let id = request.into_inner().id.parse()?;
            let volume = self.agent.volume(id).await?;
            if let Some(volume) = &volume {
                call.concerns(format_args!("volume {id}"), &volume.locator)?;
            }
            volume.map(convert::volume).ok_or_else(|| Error::NotFound { what: format!("volume {id}") })
        };
        answer(work.await)
    }
}

#[tonic::async_trait]
impl v1::exports_server::Exports for Service {
    async fn export(&self, request: Request<v1::ExportRequest>) -> Result<Response<v1::ExportResponse>, Status> {
        let patience = self.patience(&request);
        let work = async {
            let call = Call::of(&request)?;
            let request = convert::export_request(request.into_inner(), patience)?;
            call.concerns(&request.locator, &request.locator)?;
            let answer_by = patience.answer_by(Some(request.deadline));
            let reply = self.run(&call, answer_by, "the export", Arc::clone(&self.agent).export(request)).await?;
            Ok(convert::export_response(reply))
        };
        answer(work.await)
    }

    async fn unexport(&self, request: Request<v1::UnexportRequest>) -> Result<Response<v1::UnexportResponse>, Status> {
        let patience = self.patience(&request);
        let work = async {
            let call = Call::of(&request)?;
            let request = request.into_inner();
            let target = convert::export_target(request.target)?;
            match &target {
                ExportTarget::Id(id) => drop(self.export(&call, id).await?),
                ExportTarget::Locator(locator) => call.concerns(locator, locator)?,
            }
            let deadline = patience.deadline(request.timeout_ms)?;
            let answer_by = patience.answer_by(Some(deadline));
            let reply =
                self.run(&call, answer_by, "the unexport", Arc::clone(&self.agent).unexport(target, deadline)).await?;
            Ok(convert::unexport_response(reply))
        };
        answer(work.await)
    }

    async fn get(&self, request: Request<v1::GetExportRequest>) -> Result<Response<v1::Export>, Status> {
        let work = async {
            let call = Call::of(&request)?;
            let id = convert::export_id(&request.into_inner().id)?;
            match self.export(&call, &id).await? {
                Some(record) => Ok(convert::export(self.agent.look_at_export(record))),
                None => Err(Error::NotFound { what: format!("export {id}") }),
            }
        };
        answer(work.await)
    }

    async fn list(
        &self,
        request: Request<v1::ListExportsRequest>,
    ) -> Result<Response<v1::ListExportsResponse>, Status> {
        let work = async {
            let call = Call::of(&request)?;
            let mut records = self.agent.journal.exports().await?;
            records.retain(|record| call.shows(&record.attached.spec.locator));
            let look = |record| convert::export(self.agent.look_at_export(record));
            Ok(v1::ListExportsResponse { exports: records.into_iter().map(look).collect() })
        };
        answer(work.await)
    }
}

#[tonic::async_trait]
impl v1::operations_server::Operations for Service {
    async fn get(&self, request: Request<v1::GetOperationRequest>) -> Result<Response<v1::Operation>, Status> {
        let work = async {
            let call = Call::of(&request)?;
            let id = request.into_inner().id.parse()?;
            let operation = self.agent.journal.operation(id).await?;
            let operation = operation.ok_or_else(|| Error::NotFound { what: format!("operation {id}") })?;
            call.concerns_all_that(id, &operation.plan)?;
            Ok(self.operation_now(operation))
        };
        answer(work.await)
    }

    async fn list(
        &self,
        request: Request<v1::ListOperationsRequest>,
    ) -> Result<Response<v1::ListOperationsResponse>, Status> {
        const MOST: u32 = 10_000;
        const USUAL: u32 = 100;
        let work = async {
            let call = Call::of(&request)?;
            let v1::ListOperationsRequest { running_only, limit } = request.into_inner();
            let limit = match limit {
                0 => USUAL,
                asked if asked > MOST => return Err(Error::invalid("limit", format!("{asked} is more than {MOST}"))),
                asked => asked,
            };
            let mut operations = self.agent.journal.operations(running_only, limit).await?;
            operations.retain(|operation| call.shows_all_that(&operation.plan));
            let operations = operations.into_iter().map(|operation| self.operation_now(operation)).collect();
            Ok(v1::ListOperationsResponse { operations })
        };
        answer(work.await)
    }

    async fn cancel(
        &self,
        request: Request<v1::CancelOperationRequest>,
    ) -> Result<Response<v1::CancelOperationResponse>, Status> {
        let patience = self.patience(&request);
        let work = async {
            let call = Call::of(&request)?;
            let id = request.into_inner().id.parse()?;
            if let Some(operation) = self.agent.journal.operation(id).await? {
                call.may_end(id, &operation.plan)?;
            }
            let cancel = self.agent.cancel(id);
            let answer_by = patience.answer_by(Some(patience.deadline(0)?));
            let waiting_for = || format!("operation {id} to give up, which it will when the machine answers it");
            let late = |_| Error::TimedOut { waiting_for: waiting_for() };
            let (operation, changed) = match answer_by {
                Some(answer_by) => timeout_at(answer_by, cancel).await.map_err(late)??,
                None => cancel.await?,
            };
            Ok(v1::CancelOperationResponse { operation: Some(self.operation_now(operation)), changed })
        };
        answer(work.await)
    }
}

#[tonic::async_trait]
impl v1::host_server::Host for Service {
    async fn get_host(&self, _request: Request<v1::GetHostRequest>) -> Result<Response<v1::HostInfo>, Status> {
        answer(hostinfo::read(&self.agent).await)
    }

    async fn diagnose(&self, request: Request<v1::DiagnoseRequest>) -> Result<Response<v1::DiagnoseResponse>, Status> {
        let patience = self.patience(&request);
        let work = async {
            let call = Call::of(&request)?;
            let v1::DiagnoseRequest { repair, timeout_ms, dry_run } = request.into_inner();
            if repair {
                if dry_run {
                    call.only_looks();
                }
                call.repairs()?;
            }
            let orphans = match (repair, dry_run) {
                (false, _) => Orphans::Stay,
                (true, true) => Orphans::WouldGo,
                (true, false) => Orphans::Go,
            };
            let deadline = patience.deadline(timeout_ms)?;
            let answer_by = patience.answer_by(Some(deadline));
            let diagnosis = Arc::clone(&self.agent).diagnose(orphans, deadline);
            Ok(convert::diagnosis(self.run(&call, answer_by, "the diagnosis", diagnosis).await?))
        };
        answer(work.await)
    }
}
