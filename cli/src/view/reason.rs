//! What explain prints.

use super::View;
use crate::{
    error,
    table::{Cell, Row, Table, property},
};
use serde::Serialize;

#[derive(Debug, Default, Serialize)]
pub(crate) struct Reason {
    reason: &'static str,
    code: &'static str,
    exit_code: u8,
    means: &'static str,
    changed: &'static str,
    next: &'static str,
}

impl From<&'static proto::reasons::Reason> for Reason {
    fn from(reason: &'static proto::reasons::Reason) -> Self {
        Self {
            reason: reason.name,
            code: mortar_client::code_name(reason.code),
            exit_code: error::exit_code(reason.code),
            means: reason.means,
            changed: reason.changed,
            next: reason.next,
        }
    }
}

impl View for Reason {
    fn tables(&self) -> Vec<Table> {
        let rows = vec![
            property("reason", self.reason),
            property("code", self.code),
            property("exit_code", self.exit_code.to_string()),
            property("means", self.means),
            property("changed", self.changed),
            property("next", self.next),
        ];
        vec![Table::properties(self, rows).wrapped()]
    }
}

impl Row for Reason {
    const COLUMNS: &'static [&'static str] = &["reason", "exit_code", "means"];
    const PROSE: bool = true;

    fn cells(&self) -> Vec<Cell> {
        vec![self.reason.into(), self.exit_code.to_string().into(), self.means.into()]
    }
}
