//! What a rescue would lose or break is refused before anything is touched; what it only might, is warned of.

use driver::{Error, Result};
use hypervisor::{
    Instance, Power,
    definition::{Definition, Disk},
};

fn refused<T>(what: String) -> Result<T> {
    Err(Error::WrongState { what })
}

pub(super) fn refuse_state(instance: &Instance) -> Result<()> {
    let name = &instance.name;
    if !instance.persistent {
        return refused(format!("{name} is transient: nothing of it would outlive its stop; define it first"));
    }
    if instance.managed_save {
        return refused(format!(
            "{name} has its memory saved, and would not go on from there; start it, or drop what was saved (`virsh \
             managedsave-remove`)"
        ));
    }
    match instance.power {
        Power::Running | Power::Off => Ok(()),
        Power::Paused => refused(format!("{name} is paused; resume it, or stop it, first")),
        Power::Other => refused(format!("{name} neither runs nor is it off; wait until it is one of the two")),
    }
}

/// Refuses a definition, and warns of what is in it.
pub(super) fn refuse_definition(name: &str, definition: &Definition<'_>, running: Option<&str>) -> Result<Vec<String>> {
    let facts = definition.facts();
    if definition.marker().is_some() {
        return refused(format!(
            "{name} has the definition of a rescue that this agent knows nothing of; restore its own first"
        ));
    }
    if facts.tpm {
        return refused(format!("{name} has a TPM, whose keys a rescue system could use or destroy"));
    }
    let disks = definition.disks();
    if let Some(disk) = disks.iter().find(|disk| disk.transient) {
        return refused(format!("what is on {} of {name} is lost when it stops (<transient/>)", disk.target));
    }
    if let Some(running) = running {
        refuse_live(name, &disks, &Definition::parse(running)?.disks())?;
    }
    let mut warnings = Vec::new();
    if facts.firmware {
        warnings.push(format!("{name} and its rescue system share the variables of its firmware"));
    }
    if facts.direct_kernel {
        warnings.push(format!("{name} boots a kernel of this host; the rescue system boots from its disk"));
    }
    Ok(warnings)
}

/// A disk that only the running instance has would be gone after its rescue; one that it has elsewhere would come back as it
/// was long ago.
fn refuse_live(name: &str, defined: &[Disk], running: &[Disk]) -> Result<()> {
    for disk in running.iter().filter(|disk| disk.is_hard()) {
        match defined.iter().find(|other| other.target == disk.target) {
            Some(same) if same.source == disk.source => {}
            Some(_) => {
                return refused(format!(
                    "{name} runs with another {} than it is defined with (a snapshot or a block job); bring the two \
                     together first",
                    disk.target
                ));
            }
            None => {
                return refused(format!(
                    "{name} has {} only while it runs; detach it, or attach it with --persistent, first",
                    disk.target
                ));
            }
        }
    }
    Ok(())
}

pub(super) fn warn_of_state(instance: &Instance) -> Option<String> {
    let (name, snapshots) = (&instance.name, instance.snapshots);
    (snapshots > 0).then(|| {
        format!(
            "{name} has {snapshots} snapshots: to revert to one while it is rescued replaces the rescue's definition"
        )
    })
}
