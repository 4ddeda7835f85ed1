//! explain: what an error means. It does not ask the agent.

use crate::{
    error::{Error, Failure},
    output::Output,
    reasons,
    view::Reason,
};

pub(super) fn one(name: &str, out: &Output) -> Result<(), Error> {
    let reason = reasons::find(name).ok_or_else(|| Failure::internal(format!("{name} has no explanation")))?;
    out.answer(&Reason::from(reason))
}

pub(super) fn list(out: &Output) -> Result<(), Error> {
    out.answer(&reasons::all().map(Reason::from).collect::<Vec<_>>())
}
