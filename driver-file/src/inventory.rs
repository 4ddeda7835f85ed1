//! The loop devices of this host, whoever's. One of ours says so itself, by its label.

use crate::{
    binding::{self, BLOCK, LABEL, backing_file, node, proved},
    refusal::machine,
};
use driver::{Attached, Footprint, Identity, Locator, Mark, Object, ObjectKind, RawFile, Result};
use host::{Host, LoopDevice};
use std::path::Path;

pub(crate) async fn list(host: &dyn Host, known: &[Attached]) -> Result<Vec<Object>> {
    let told = binding::all(host).await?;
    let mut objects: Vec<Object> = told.iter().map(|bound| object(bound, known)).collect();
    // Those that do not answer: the server with their file is gone.
    let listed = host.list(Path::new(BLOCK)).map_err(machine("list the loop devices"))?;
    for name in listed.into_iter().filter(|name| name.starts_with("loop")) {
        let file = host.read(&backing_file(&name)).map_err(machine("list the loop devices"))?;
        if let (Some(file), false) = (file, told.iter().any(|device| device.name == name)) {
            let why = "it does not answer, so nothing tells whose it is";
            objects.push(Object::of_others(ObjectKind::Loop, format!("/dev/{name}"), file, why));
        }
    }
    Ok(objects)
}

fn object(bound: &LoopDevice, known: &[Attached]) -> Object {
    let (name, what) = (node(bound).display().to_string(), bound.file.display().to_string());
    if bound.label != LABEL {
        let why = match bound.label.as_str() {
            "" => "it has no label of ours".to_owned(),
            label => format!("its label is {label}"),
        };
        return Object::of_others(ObjectKind::Loop, name, what, why);
    }
    let identity = proved(bound);
    let is_held = |at: &Attached| match &at.footprint {
        Footprint::File { identity: noted } => at.identity.as_ref().unwrap_or(noted) == &identity,
        _ => false,
    };
    let holders: Vec<usize> =
        known.iter().enumerate().filter(|(_, at)| is_held(at)).map(|(number, _)| number).collect();
    let mark = match bound.autoclear {
        true => Mark::UnderWay("it was unbound, and goes when its last user closes it".into()),
        false => Mark::Ours,
    };
    let remains = if holders.is_empty() { remains(bound, identity) } else { None };
    Object { mark, holders, remains, ..Object::of_ours(ObjectKind::Loop, name, what) }
}

fn remains(bound: &LoopDevice, identity: Identity) -> Option<Attached> {
    let file = RawFile::new(&bound.file.to_string_lossy()).ok()?;
    Some(Attached::remains(Locator::File(file), Footprint::File { identity: identity.clone() }, Some(identity)))
}
