//! What is mapped on this host, by whomever. A mapping of ours says so itself, by its mark.

use crate::{
    mapping::{self, Mapping},
    underway::Underway,
};
use driver::{Attached, Footprint, Locator, Object, ObjectKind, Result};
use host::Host;

pub(crate) fn list(host: &dyn Host, underway: &Underway, known: &[Attached]) -> Result<Vec<Object>> {
    Ok(mapping::list(host)?.iter().map(|mapping| object(mapping, underway, known)).collect())
}

fn object(mapping: &Mapping, underway: &Underway, known: &[Attached]) -> Object {
    let (name, what) = (mapping.node().display().to_string(), format!("rbd:{}", mapping.name));
    let is_held = |at: &Attached| match (&at.spec.locator, &at.identity) {
        (Locator::Rbd(_), Some(identity)) => *identity == mapping.identity,
        // Its attach has not come so far as to know.
        (Locator::Rbd(image), None) => mapping.mark.as_ref().is_some_and(|mark| mark.is_for(image)),
        _ => false,
    };
    let holders: Vec<usize> =
        known.iter().enumerate().filter(|(_, at)| is_held(at)).map(|(number, _)| number).collect();
    let Some(mark) = &mapping.mark else {
        let why = "its key has no name of ours";
        return Object { holders, ..Object::of_others(ObjectKind::Mapping, name, what, why) };
    };
    if underway.holds(mark) {
        let mark = driver::Mark::UnderWay("it is being mapped or unmapped".into());
        return Object { mark, holders, ..Object::of_ours(ObjectKind::Mapping, name, what) };
    }
    let remains = if holders.is_empty() { remains(mapping) } else { None };
    Object { holders, remains, ..Object::of_ours(ObjectKind::Mapping, name, what) }
}

/// By its ids: the name is that of the day on which it was mapped, and only for people.
fn remains(mapping: &Mapping) -> Option<Attached> {
    let locator = format!("rbd:{}", mapping.name).parse().ok()?;
    Some(Attached::remains(locator, Footprint::Rbd { marks: Vec::new() }, Some(mapping.identity.clone())))
}
