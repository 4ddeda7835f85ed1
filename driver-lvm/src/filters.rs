//! Whether the host's own `lvm` would look into attached volumes: at a shell, in a cron job, in another tool. It would find
//! the VGs that guests made inside of them, complain of duplicates, and could activate or repair them. We tell our own runs
//! what to look at; for others only the host's settings can.

use crate::{failed, lvm::Lvm, scan};
use driver::{Finding, Result};
use host::{Command, Tool};
use std::time::Duration;

/// What decides, and whence. It looks at no disk.
const ASK: [&str; 6] =
    ["lvmconfig", "--typeconfig", "full", "devices/use_devicesfile", "devices/global_filter", "devices/filter"];

/// How long lvm has for it.
const PATIENCE: Duration = Duration::from_secs(10);

impl Lvm {
    /// What to say if nothing keeps lvm out of attached volumes; the worse where there are some.
    pub(crate) async fn lets_guests_in(&self) -> Result<Option<Finding>> {
        let host = self.host.as_ref();
        let output = host.run(Command::read(Tool::Lvm, ASK).within(PATIENCE)).await;
        let output = output.map_err(failed("ask lvm for its settings"))?;
        if output.code != 0 || is_kept_out(&output.stdout) {
            return Ok(None);
        }
        let attached = scan::of_guests(host, &self.links).await?;
        let found = "no devices file is used, and neither filter nor global_filter leaves anything out";
        let advice = "use_devicesfile = 1 in lvm.conf and `lvmdevices --adddev` for each disk of this host's own VGs; or a \
                      global_filter that takes these and rejects the rest";
        let subject = "lvm.conf: devices";
        Ok(Some(match attached.first() {
            Some(one) => Finding::warning(
                subject,
                format!("{found}: pvs, vgs and lvs look into attached volumes, as {one}, and find the guests' VGs"),
                advice,
            ),
            None => Finding::info(subject, format!("{found}: once volumes are attached, lvm looks into them"), advice),
        }))
    }
}

/// By the settings in force, as `lvmconfig` prints them.
pub(crate) fn is_kept_out(settings: &str) -> bool {
    let value = |key: &str| {
        let setting = settings.lines().find_map(|line| line.trim().strip_prefix(key)?.trim_start().strip_prefix('='));
        setting.unwrap_or_default().trim().to_owned()
    };
    value("use_devicesfile") == "1" || ["filter", "global_filter"].iter().any(|key| leaves_out(&value(key)))
}

/// Whether a filter rejects anything: `["a|/dev/sda|", "r|.*|"]`. One that only accepts leaves all in.
fn leaves_out(filter: &str) -> bool {
    let patterns = filter.trim_matches(['[', ']']).split(',');
    patterns.map(|pattern| pattern.trim().trim_matches('"')).any(|pattern| pattern.starts_with('r'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{LvmConfig, LvmDriver};
    use driver::{Driver, Severity, Templates};
    use host::sim::Machine;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// Captured from lvm 2.03.16 (Debian 12) with its own lvm.conf.
    const DEBIAN: &str = "use_devicesfile=0\nglobal_filter=[\"a|.*|\"]\nfilter=[\"a|.*|\"]\n";

    #[test]
    fn what_keeps_lvm_out() {
        assert!(!is_kept_out(DEBIAN));
        assert!(!is_kept_out(""), "settings that are not told are taken for the worst");
        for (from, to) in [
            ("use_devicesfile=0", "use_devicesfile=1"),
            ("global_filter=[\"a|.*|\"]", "global_filter=[\"a|^/dev/sda2$|\", \"r|.*|\"]"),
            ("\nfilter=[\"a|.*|\"]", "\nfilter=[\"r|/dev/rbd.*|\",\"a|.*|\"]"),
            ("\nfilter=[\"a|.*|\"]", "\nfilter=\"r|.*|\""),
        ] {
            assert!(is_kept_out(&DEBIAN.replace(from, to)), "{to}");
        }
        assert!(!is_kept_out(&DEBIAN.replace("\"a|.*|\"", "\"a/.*/\", \"a|/dev/r.*|\"")));
    }

    async fn found(machine: &Machine) -> Vec<Finding> {
        let config = LvmConfig { templates: Templates::default(), exclude_links: "/dev/mortar".into() };
        LvmDriver::new(Arc::new(machine.clone()), config).findings().await.unwrap()
    }

    #[tokio::test]
    async fn it_is_worse_once_something_is_attached() {
        let machine = Machine::new();
        assert_eq!(found(&machine).await, []);
        machine.put_file("/etc/lvm/lvm.conf", DEBIAN);
        assert!(matches!(&found(&machine).await[..], [Finding { severity: Severity::Info, .. }]));
        machine.put_raw("/srv/a.raw", 1 << 20);
        let setup = host::LoopSetup { file: "/srv/a.raw".into(), read_only: false, label: "mortar".into() };
        host::Host::loop_attach(&machine, &setup).await.unwrap();
        let found = found(&machine).await;
        assert!(
            matches!(&found[..], [Finding { severity: Severity::Warning, found, .. }] if found.contains("as loop0")),
            "{found:?}"
        );
    }

    proptest! {
        #[test]
        fn no_settings_panic(text in "(\\PC|[\n=,\"\\[\\]|]|use_devicesfile|global_filter|filter){0,60}") {
            let _ = is_kept_out(&text);
        }

        #[test]
        fn what_a_filter_rejects_is_seen(patterns in proptest::collection::vec((any::<bool>(), "[a-z/.*^$]{1,12}"), 1..5), global: bool) {
            let rejects = patterns.iter().any(|(accept, _)| !accept);
            let patterns = patterns.iter().map(|(accept, what)| format!("\"{}|{what}|\"", if *accept { 'a' } else { 'r' }));
            let filter = patterns.collect::<Vec<_>>().join(",");
            let key = if global { "global_filter" } else { "filter" };
            prop_assert_eq!(is_kept_out(&format!("use_devicesfile=0\n{key}=[{filter}]\n")), rejects);
        }
    }
}
