//! An instance's definition: what is made of it for a rescue is a definition again.

#![no_main]

use hypervisor::definition::{Definition, Layout, Rescue, RescueSource};
use libfuzzer_sys::fuzz_target;
use uuid::Uuid;

fuzz_target!(|text: &str| {
    let Ok(definition) = Definition::parse(text) else { return };
    let _facts = (definition.uuid(), definition.name(), definition.root(), definition.marker(), definition.facts());
    for layout in [Layout::Classic, Layout::Stable] {
        let rescue = Rescue {
            generation: Uuid::from_u128(7),
            source: RescueSource::Block { path: "/dev/mortar/rescue-1".into() },
            seed: None,
            layout,
            bus: None,
            data_disks: true,
        };
        if let Ok(changed) = definition.rescue(&rescue) {
            let after = Definition::parse(&changed).expect("a definition");
            assert_eq!(after.disks().len(), definition.disks().len() + 1);
        }
    }
});
