//! Writes `docs/api.md` from the compiled proto and its comments, so that there is one text of the contract.
//!
//! Usage: `api-reference PAGE`, which writes it, or `api-reference --check PAGE`, which fails if it would be another.

#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "it runs beside the agent")]
#![allow(clippy::print_stderr, reason = "it says what to do")]

use prost::Message;
use prost_types::{
    DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorProto, FileDescriptorSet,
    ServiceDescriptorProto,
    field_descriptor_proto::{Label, Type},
};
use std::{collections::BTreeMap, fmt::Write, process::ExitCode};

/// Numbers of fields of `google/protobuf/descriptor.proto`, of which the place of a comment is made.
mod at {
    pub(crate) const MESSAGE: i32 = 4;
    pub(crate) const ENUM: i32 = 5;
    pub(crate) const SERVICE: i32 = 6;
    pub(crate) const SYNTAX: i32 = 12;
    /// Within a message; of an enum its values, and of a service its methods, have the same.
    pub(crate) const PART: i32 = 2;
}

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let set = FileDescriptorSet::decode(proto::FILE_DESCRIPTOR_SET).unwrap();
    let file = set.file.iter().find(|file| file.package() == "mortar.agent.v1").unwrap();
    let page = Reference::of(file).page();
    match arguments.as_slice() {
        [check, path] if check == "--check" => {
            if std::fs::read_to_string(path).unwrap_or_default() == page {
                return ExitCode::SUCCESS;
            }
            eprintln!("{path} is not what the proto says: run make api, and commit it");
            ExitCode::FAILURE
        }
        [path] => {
            std::fs::write(path, page).unwrap();
            ExitCode::SUCCESS
        }
        _ => panic!("usage: api-reference [--check] PAGE"),
    }
}

/// A proto file, and its comments by their place in it.
struct Reference<'a> {
    file: &'a FileDescriptorProto,
    comments: BTreeMap<&'a [i32], &'a str>,
}

impl<'a> Reference<'a> {
    fn of(file: &'a FileDescriptorProto) -> Self {
        let told = &file.source_code_info.as_ref().unwrap().location;
        let comments =
            told.iter().filter_map(|place| Some((place.path.as_slice(), place.leading_comments.as_deref()?)));
        Self { file, comments: comments.collect() }
    }

    fn page(&self) -> String {
        let mut page = String::from(
            "# The API of mortard\n\nWritten by `make api` from \
             [proto/mortar/agent/v1/agent.proto](../proto/mortar/agent/v1/agent.proto); nothing in this file is written by hand.\n",
        );
        let package = self.file.package();
        let _ = write!(page, "The package is `{package}`.\n\n```text\n{}\n```\n", self.comment(&[at::SYNTAX]));
        for (number, service) in (0..).zip(&self.file.service) {
            self.service(&mut page, number, service);
        }
        page.push_str("\n## Messages\n");
        let mut messages: Vec<(i32, &DescriptorProto)> = (0..).zip(&self.file.message_type).collect();
        messages.sort_by_key(|(_, message)| message.name());
        for (number, message) in messages {
            self.message(&mut page, number, message);
        }
        page.push_str("\n## Enums\n");
        let mut enums: Vec<(i32, &EnumDescriptorProto)> = (0..).zip(&self.file.enum_type).collect();
        enums.sort_by_key(|(_, of)| of.name());
        for (number, of) in enums {
            self.values(&mut page, number, of);
        }
        page
    }

    fn service(&self, page: &mut String, number: i32, service: &ServiceDescriptorProto) {
        let _ = write!(page, "\n## {}\n\n{}", service.name(), spaced(&self.comment(&[at::SERVICE, number])));
        page.push_str("| call | request | reply |\n|---|---|---|\n");
        for method in &service.method {
            let stream = if method.server_streaming() { "a stream of " } else { "" };
            let name = method.name();
            let heading = format!("{}{name}", service.name()).to_lowercase();
            let (request, reply) = (kind(method.input_type()), kind(method.output_type()));
            let _ = writeln!(page, "| [{name}](#{heading}) | {request} | {stream}{reply} |");
        }
        for (index, method) in (0..).zip(&service.method) {
            let comment = self.comment(&[at::SERVICE, number, at::PART, index]);
            let _ = write!(page, "\n### {}.{}\n\n{comment}\n", service.name(), method.name());
        }
    }

    fn message(&self, page: &mut String, number: i32, message: &DescriptorProto) {
        let comment = spaced(&self.comment(&[at::MESSAGE, number]));
        let _ = write!(page, "\n### {}\n\n{comment}", message.name());
        if message.field.is_empty() {
            page.push_str("No fields.\n");
            return;
        }
        page.push_str("| field | number | type | |\n|---|---|---|---|\n");
        for (index, field) in (0..).zip(&message.field) {
            let comment = cell(&self.comment(&[at::MESSAGE, number, at::PART, index]));
            let _ =
                writeln!(page, "| `{}` | {} | {} | {comment} |", field.name(), field.number(), shape(message, field));
        }
    }

    fn values(&self, page: &mut String, number: i32, of: &EnumDescriptorProto) {
        let _ = write!(page, "\n### {}\n\n{}", of.name(), spaced(&self.comment(&[at::ENUM, number])));
        page.push_str("| value | number | |\n|---|---|---|\n");
        for (index, value) in (0..).zip(&of.value) {
            let comment = cell(&self.comment(&[at::ENUM, number, at::PART, index]));
            let _ = writeln!(page, "| `{}` | {} | {comment} |", value.name(), value.number());
        }
    }

    /// Without the space that follows the slashes; of several blocks, the last stands right above what it is about.
    fn comment(&self, place: &[i32]) -> String {
        let text = self.comments.get(place).copied().unwrap_or_default();
        let lines: Vec<&str> = text.lines().map(|line| line.strip_prefix(' ').unwrap_or(line).trim_end()).collect();
        lines.join("\n").trim_end().to_owned()
    }
}

/// A paragraph of its own, if there is one.
fn spaced(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!("{text}\n\n") }
}

/// In one line, as a table's cell has to be.
fn cell(text: &str) -> String {
    text.replace("\n\n", "<br>").replace('\n', " ").replace('|', "\\|")
}

/// A message or an enum, with the way to it.
fn kind(name: &str) -> String {
    match name.strip_prefix(".mortar.agent.v1.") {
        Some(name) => format!("[{name}](#{})", name.to_lowercase()),
        None => format!("`{}`", name.trim_start_matches('.')),
    }
}

/// A field's type, and how often it may come.
fn shape(message: &DescriptorProto, field: &FieldDescriptorProto) -> String {
    let name = match field.r#type() {
        Type::Message | Type::Enum => kind(field.type_name()),
        other => format!("`{}`", other.as_str_name().trim_start_matches("TYPE_").to_lowercase()),
    };
    match field.oneof_index {
        _ if field.label() == Label::Repeated => format!("repeated {name}"),
        Some(_) if field.proto3_optional() => format!("optional {name}"),
        Some(of) => format!("{name}, one of `{}`", message.oneof_decl[usize::try_from(of).unwrap()].name()),
        None => name,
    }
}
