//! The command line as clap sees it: every command, every flag, and the texts of `--help`.
//!
//! The doc comments here are what users read. Nothing is decided: what an id, a WWN or a locator may look like is the
//! agent's to say, so that every client gets the same answer.

use crate::values::{self, Target};
use clap::{ArgGroup, Args, Parser, Subcommand, ValueEnum, ValueHint, builder::NonEmptyStringValueParser};
use clap_complete::Shell;
use std::{ffi::OsString, path::PathBuf, time::Duration};

const GLOBAL: &str = "Global options";

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  something else went wrong; of doctor: something is amiss
  2  invalid input: mend the command
  3  not found
  4  refused: in use, exists already, wrong state, or another volume than expected
  5  try again: busy, unreachable, or timed out
  6  not permitted";

const ATTACH_EXAMPLES: &str = "\
Examples:
  mortar attach iscsi://10.0.0.5:3260/iqn.2026-11.org.example:t1/0
  mortar attach lvm:vg0/data --id web1-data --persistent
  mortar attach file:/srv/volumes/a.raw --read-only --output json
  pass show san | mortar attach iscsi://10.0.0.5/iqn.2026-11.org.example:t1/0 --chap-user web1 --chap-password-file -
  mortar attach iscsi://10.0.0.5,10.0.1.5/iqn.2026-11.org.example:t1/0 --all-paths
  openstack --os-volume-api-version 3.54 volume attachment show ID -f json | mortar attach --connection-info -
  mortar attach 'rbd:volumes/a?user=cinder' --cephx-key-file /etc/ceph/ceph.client.cinder.keyring";

const DETACH_EXAMPLES: &str = "\
Examples:
  mortar detach web1-data
  mortar detach lvm:vg0/data
  mortar detach /dev/sdb
  mortar detach --connection-info connection.json
  mortar detach web1-data --timeout 5m";

const MANAGE_EXAMPLES: &str = "\
Examples:
  mortar manageable lvm:vg0
  mortar manage lvm:vg0/data --name web1-data
  mortar manage rbd:volumes/data@monday
  mortar manage file:/srv/volumes/a.raw --id 0193a1c2-7a5e-7cc0-9d1b-3f2c5a7e9b10";

const EXPORT_EXAMPLES: &str = "\
Examples:
  mortar export lvm:vg0/data --initiator iqn.1993-08.org.debian:01:abc --output json >data.json
  mortar export lvm:vg0/data --initiator iqn.1993-08.org.debian:01:abc --portal 10.0.0.5 --portal [fd00::5]:3260
  mortar unexport lvm:vg0/data

On the other host:
  mortar attach --connection-info data.json";

const RESCUE_EXAMPLES: &str = "\
Examples:
  mortar rescue web1 --image lvm:vg0/rescue-system
  mortar rescue web1 --image file:/srv/images/rescue.qcow2 --layout stable --ssh-key ~/.ssh/id_ed25519.pub
  pass show rescue | mortar rescue web1 --volume iscsi://10.0.0.5/iqn.2026-11.org.example:t1/7 --password-file -
  mortar show web1
  mortar unrescue web1";

const DOCTOR_EXAMPLES: &str = "\
Examples:
  mortar doctor
  mortar doctor --all
  mortar doctor --repair --timeout 5m";

/// Attaches storage to this host, takes existing volumes into management, and rescues virtual machines.
///
/// mortar asks mortard, the storage agent of this host, over its Unix socket.
#[derive(Debug, Parser)]
#[command(name = "mortar", version, after_help = EXIT_CODES)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) to: To,

    /// How to print: a table for people, JSON for programs (errors too, on stderr)
    #[arg(short, long, value_name = "FORMAT", default_value = "table", global = true, help_heading = GLOBAL)]
    pub(crate) output: Format,

    /// How long to wait before giving up: 30s, 1500ms, 2m; a bare number is seconds
    ///
    /// The agent waits for portals, devices and flushes no longer than this, and while something else holds the volume
    /// the call is tried again until then. At most 24h.
    #[arg(
        long,
        value_name = "DURATION",
        default_value = "30s",
        value_parser = values::duration,
        global = true,
        help_heading = GLOBAL
    )]
    pub(crate) timeout: Duration,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Which agent is asked.
#[derive(Debug, Args)]
pub(crate) struct To {
    /// The agent's socket
    #[arg(
        long,
        value_name = "PATH",
        env = "MORTAR_SOCKET",
        default_value = "/run/mortar/agent.sock",
        global = true,
        help_heading = GLOBAL
    )]
    pub(crate) socket: PathBuf,

    /// Ask the agent of another machine: https://HOST[:PORT], port 7443 unless given. It needs --cert, --key and --ca
    #[arg(
        long,
        value_name = "URL",
        env = "MORTAR_ENDPOINT",
        value_parser = values::endpoint,
        global = true,
        help_heading = GLOBAL
    )]
    pub(crate) endpoint: Option<values::Endpoint>,

    /// For --endpoint: the certificate that says who asks (PEM)
    #[arg(long, value_name = "FILE", env = "MORTAR_CERT", global = true, help_heading = GLOBAL)]
    pub(crate) cert: Option<PathBuf>,

    /// For --endpoint: its private key (PEM)
    #[arg(long, value_name = "FILE", env = "MORTAR_KEY", global = true, help_heading = GLOBAL)]
    pub(crate) key: Option<PathBuf>,

    /// For --endpoint: the CAs that the agent may have its certificate from (PEM)
    #[arg(long, value_name = "FILE", env = "MORTAR_CA", global = true, help_heading = GLOBAL)]
    pub(crate) ca: Option<PathBuf>,
}

/// How answers are printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// ASCII tables
    Table,
    /// One JSON value; `watch` prints one JSON object a line
    Json,
}

impl Format {
    /// What the user most likely asked for, for the errors of a command line that does not parse.
    pub(crate) fn guess(arguments: &[OsString]) -> Self {
        let json = arguments.iter().any(|argument| argument == "--output=json" || argument == "-ojson")
            || arguments.windows(2).any(|pair| (pair[0] == "--output" || pair[0] == "-o") && pair[1] == "json");
        if json { Self::Json } else { Self::Table }
    }
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Make a volume present on this host as a block device
    ///
    /// The device is printed only after it has proved that it is the volume. Again with the same id and locator returns
    /// the same device.
    #[command(after_help = ATTACH_EXAMPLES)]
    Attach(Attach),

    /// Take a device away again, after flushing it
    ///
    /// Refused while the device is mounted, held or open; the message says by whom. What is not attached is detached
    /// already: success. What could not be removed is said on stderr, one sentence each, with exit code 4.
    #[command(after_help = DETACH_EXAMPLES)]
    Detach(Detach),

    /// List the attachments of this host
    List,

    /// Show one attachment, its device proved again; or one instance, with its disks
    Show {
        /// The attachment's id; or else the name or UUID of an instance
        #[arg(value_name = "ID", value_parser = NonEmptyStringValueParser::new())]
        id: String,

        /// The instance of this name, although there may be such an attachment
        #[arg(long)]
        instance: bool,
    },

    /// Take over the new size of a volume that grew on its backend
    Extend {
        /// The attachment's id
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        id: String,
    },

    /// List what could be managed in one place, and why not
    Manageable {
        /// lvm:VG, rbd:POOL or file:/DIRECTORY
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        scope: String,
    },

    /// Take an existing volume into management by renaming it in place
    ///
    /// No data is touched. Where it came from is written onto the storage beside it, so that `unmanage` can give the
    /// old name back.
    #[command(after_help = MANAGE_EXAMPLES)]
    Manage(Manage),

    /// Let a managed volume go and give it its old name back
    ///
    /// No data is touched. What is not managed is let go already: success.
    Unmanage {
        /// The volume's id, a UUID
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        id: String,

        /// Leave the volume under its managed name
        #[arg(long)]
        keep_name: bool,
    },

    /// List the managed volumes, as the storage itself tells
    ///
    /// A place that cannot be looked at now hides no other: it is named on stderr, and its volumes are missing.
    Volumes {
        /// lvm:VG, rbd:POOL or file:/DIRECTORY; without it, everywhere
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        scope: Option<String>,
    },

    /// Serve a logical volume of this host to another host, as an iSCSI target
    ///
    /// Only that initiator may log in, with a password made for it. JSON output is the connection_info that the other
    /// host attaches it by, the password included; the table leaves it out. Again with the same locator and initiator
    /// prints the same. An export comes back after a reboot of this host.
    #[command(after_help = EXPORT_EXAMPLES)]
    Export(Export),

    /// List the exports of this host, and who is logged in
    Exports,

    /// Stop serving a logical volume
    ///
    /// Refused while the initiator is logged in; the message says from where. What is not exported is gone already:
    /// success.
    Unexport {
        /// An export id, or a locator (lvm:VG/LV)
        #[arg(value_name = "TARGET", value_parser = values::target)]
        target: Target,
    },

    /// List the virtual machines of this host, and which are rescued
    Instances,

    /// Let an instance boot from a rescue disk, with its own disks beside it
    ///
    /// Its own disks are not written and its definition is kept, so that `unrescue` puts everything back as it was. In the
    /// classic layout the rescue disk comes first and the original root second; in the stable one every disk keeps its place.
    /// The password of root is printed once, unless keys, user data or a password are given. Whatever fails, the instance is
    /// as it was before.
    #[command(after_help = RESCUE_EXAMPLES)]
    Rescue(Rescue),

    /// Put an instance back as it was before its rescue
    ///
    /// Its definition byte for byte, its disks by what they are, and its power as before; then the rescue disk goes. What is not
    /// rescued is unrescued already: success.
    Unrescue(Unrescue),

    /// Start, stop or reboot an instance
    Instance {
        #[command(subcommand)]
        command: InstanceCommand,
    },

    /// Show what this host is and can do: versions, drivers with their tools, connector properties
    Host,

    /// Say what on this host is amiss, and take away what mortar left behind
    ///
    /// Everything of the sorts that mortar brings (devices, sessions, node records, multipath maps, RBD mappings, active
    /// LVs, loop devices, targets, stable paths, rescue disks, seeds) is ours (of an attachment, an export, a rescue or an
    /// operation), foreign, an orphan (it bears mortar's mark, and nobody has it) or stale (an attachment whose device is
    /// gone or is another volume now, a rescue whose definition somebody changed). What is wrong with the host itself is
    /// told with what to do about it. Stale attachments are for you to detach, and stale rescues to unrescue. Without
    /// errors, orphans and stale things the exit code is 0, else 1.
    #[command(after_help = DOCTOR_EXAMPLES)]
    Doctor(Doctor),

    /// List the operations of the agent, newest first, or show one
    Operations {
        /// The operation's id, a UUID
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        id: Option<String>,

        /// Only those that have not ended
        #[arg(long, conflicts_with = "id")]
        running: bool,

        /// At most so many, up to 10000
        #[arg(long, value_name = "COUNT", default_value_t = 100, conflicts_with = "id",
              value_parser = clap::value_parser!(u32).range(1..=10_000))]
        limit: u32,
    },

    /// Make an operation give up, and take back what it has done
    ///
    /// An attach or an export can be cancelled until its end, everything else until its first change; otherwise it is
    /// refused, and goes on. What has ended is as it is: success.
    Cancel {
        /// The operation's id, a UUID
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        id: String,
    },

    /// Print the attachments, then every change to an attachment or operation as it happens
    Watch,

    /// Print the completion script of a shell
    Completions {
        /// The shell
        shell: Shell,
    },

    /// Write the manual pages
    #[command(hide = true)]
    Man {
        /// An existing directory for one page a command; without it, the main page goes to stdout
        dir: Option<PathBuf>,
    },
}

/// How long a guest may take.
#[derive(Debug, Args)]
pub(crate) struct Grace {
    /// How long the guest may take to shut down before it is ended, 0 not to ask it; without it, as the agent's config says
    ///
    /// It comes on top of --timeout. At most 10m.
    #[arg(long, value_name = "DURATION", value_parser = values::grace)]
    pub(crate) grace: Option<Duration>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("disk").required(true))]
pub(crate) struct Rescue {
    /// The instance's name or UUID, as `mortar instances` lists them
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) instance: String,

    /// Boot from a copy (on write) of this image, which goes with the rescue: lvm:VG/LV, rbd:POOL/IMAGE[@SNAPSHOT] or file:/PATH
    #[arg(long, value_name = "LOCATOR", group = "disk", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) image: Option<String>,

    /// Boot from this volume itself, which stays: iscsi://…, lvm:…, rbd:… or a raw file:…
    #[arg(long, value_name = "LOCATOR", group = "disk", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) volume: Option<String>,

    /// Where the rescue disk stands among the others
    #[arg(long, default_value = "classic")]
    pub(crate) layout: Layout,

    /// What the rescue disk hangs from; without it, what the root disk hangs from
    #[arg(long)]
    pub(crate) bus: Option<Bus>,

    /// Leave the instance's other disks out, all but its root (classic only)
    #[arg(long)]
    pub(crate) without_data_disks: bool,

    /// The file that holds a password for the rescue system, - for stdin; one newline at its end is cut
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) password_file: Option<PathBuf>,

    /// A file of public SSH keys to be let in by, one a line, - for stdin; may be given again
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) ssh_key: Vec<PathBuf>,

    /// The file that holds user data for cloud-init, - for stdin; handed on as it is
    #[arg(long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(crate) user_data: Option<PathBuf>,

    /// Hand nothing to the rescue system, not even a password (for one without cloud-init)
    #[arg(long, conflicts_with_all = ["password_file", "ssh_key", "user_data"])]
    pub(crate) no_seed: bool,

    #[command(flatten)]
    pub(crate) grace: Grace,
}

/// Where the rescue disk stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Layout {
    /// The rescue disk is vda, the original root vdb, the others follow
    Classic,
    /// Every disk keeps its place; the rescue disk comes last, and boots first
    Stable,
}

impl From<Layout> for proto::v1::RescueLayout {
    fn from(layout: Layout) -> Self {
        match layout {
            Layout::Classic => Self::Classic,
            Layout::Stable => Self::Stable,
        }
    }
}

/// What a disk hangs from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Bus {
    /// virtio-blk
    Virtio,
    /// A SCSI controller
    Scsi,
    /// AHCI
    Sata,
    /// IDE
    Ide,
    /// USB storage
    Usb,
}

impl From<Bus> for proto::v1::DiskBus {
    fn from(bus: Bus) -> Self {
        match bus {
            Bus::Virtio => Self::Virtio,
            Bus::Scsi => Self::Scsi,
            Bus::Sata => Self::Sata,
            Bus::Ide => Self::Ide,
            Bus::Usb => Self::Usb,
        }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Unrescue {
    /// The instance's name or UUID
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) instance: String,

    /// Go on although somebody changed the definition since the rescue: his changes are lost
    #[arg(long)]
    pub(crate) discard_changes: bool,

    #[command(flatten)]
    pub(crate) grace: Grace,
}

#[derive(Debug, Subcommand)]
pub(crate) enum InstanceCommand {
    /// Let an instance run
    Start {
        /// Its name or UUID
        #[arg(value_parser = NonEmptyStringValueParser::new())]
        instance: String,
    },

    /// Shut an instance down, or end it when its guest does not
    Stop(Power),

    /// Stop an instance, and start it again
    Reboot(Power),
}

#[derive(Debug, Args)]
pub(crate) struct Power {
    /// Its name or UUID
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) instance: String,

    #[command(flatten)]
    pub(crate) grace: Grace,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Take orphans away, as a detach would: users are looked for, data is flushed, absence is seen
    ///
    /// What somebody uses stays, and so does everything that is not an orphan.
    #[arg(long)]
    pub(crate) repair: bool,

    /// Also what is ours or foreign
    #[arg(long)]
    pub(crate) all: bool,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("volume").required(true))]
pub(crate) struct Attach {
    // Not a doc comment: rustdoc would take the brackets for a link.
    #[arg(
        value_parser = NonEmptyStringValueParser::new(),
        group = "volume",
        help = "Where the volume is: iscsi://ADDRESS[:PORT][,ADDRESS…]/IQN/LUN, lvm:VG/LV, file:/PATH or \
                rbd:POOL[/NAMESPACE]/IMAGE[@SNAPSHOT][?cluster=NAME&user=NAME&mon=ADDRESS,…]"
    )]
    pub(crate) locator: Option<String>,

    /// Instead of a locator: the file that holds what Cinder or os-brick has for the volume, - for stdin
    ///
    /// JSON, as it stands: {"driver_volume_type": "iscsi", "data": {…}}, or the flat form of Cinder's attachments API.
    /// The types iscsi, rbd and local are known. A password in it is used, and shows up nowhere.
    #[arg(long, value_name = "FILE", group = "volume", value_hint = ValueHint::FilePath)]
    pub(crate) connection_info: Option<PathBuf>,

    /// The id to attach it under; without it, the one that the volume has already, or a new one
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) id: Option<String>,

    /// Make the device refuse writes
    #[arg(long)]
    pub(crate) read_only: bool,

    /// The WWN that the device must have: 3600…, naa.600… or bare hexadecimal digits
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) wwn: Option<String>,

    /// The size that the device must have, in bytes; KiB, MiB, GiB and TiB may follow the number
    #[arg(long, value_name = "BYTES", value_parser = values::size)]
    pub(crate) size: Option<u64>,

    /// Attach it again after a reboot of this host
    #[arg(long)]
    pub(crate) persistent: bool,

    /// No other host may write to the image while it is attached (RBD; not with --read-only, nor for a snapshot)
    #[arg(long)]
    pub(crate) exclusive: bool,

    /// Wait until every path stands, not just the first one (iSCSI with several portals)
    #[arg(long)]
    pub(crate) all_paths: bool,

    /// The user that CHAP authenticates as (iSCSI)
    #[arg(long, value_name = "USER", requires = "chap_password_file", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) chap_user: Option<String>,

    /// The file that holds the CHAP password, - for stdin; one newline at its end is cut
    #[arg(long, value_name = "FILE", requires = "chap_user", value_hint = ValueHint::FilePath)]
    pub(crate) chap_password_file: Option<PathBuf>,

    /// The file that holds the cephx key of the locator's user, bare or in a keyring, - for stdin (RBD)
    ///
    /// Without it, the keyrings in /etc/ceph are used.
    #[arg(long, value_name = "FILE", conflicts_with = "chap_user", value_hint = ValueHint::FilePath)]
    pub(crate) cephx_key_file: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("attachment").required(true))]
pub(crate) struct Detach {
    /// An attachment id, a locator (iscsi://…, lvm:…, file:…, rbd:…) or a device path (/dev/…)
    #[arg(value_name = "TARGET", value_parser = values::target, group = "attachment")]
    pub(crate) target: Option<Target>,

    /// Instead of a target: the file that holds what the volume was attached with, - for stdin
    #[arg(long, value_name = "FILE", group = "attachment", value_hint = ValueHint::FilePath)]
    pub(crate) connection_info: Option<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Export {
    /// The volume: lvm:VG/LV
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) locator: String,

    /// Who may log in: the other host's iSCSI name, as `mortar host` shows it there; case does not count
    #[arg(long, value_name = "IQN", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) initiator: String,

    // Not a doc comment: rustdoc would take the brackets for a link.
    #[arg(
        long,
        value_name = "ADDRESS",
        value_parser = NonEmptyStringValueParser::new(),
        help = "An address of this host to serve it at, with or without :PORT, IPv6 in brackets; may be given again. Without \
                it, every address of this host"
    )]
    pub(crate) portal: Vec<String>,

    /// The id to export it under, a part of the target's name; without it, the one that it has already, or a new one
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) id: Option<String>,

    /// Let the other host only read
    #[arg(long)]
    pub(crate) read_only: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Manage {
    /// The volume or snapshot as it is named now: lvm:VG/LV, rbd:POOL/IMAGE, rbd:POOL/IMAGE@SNAPSHOT or file:/PATH
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    pub(crate) locator: String,

    /// The id to manage it under; without it, one is made up
    #[arg(long, value_name = "UUID", value_parser = NonEmptyStringValueParser::new())]
    pub(crate) id: Option<String>,

    /// A name for people; without it, the name it has now
    #[arg(long, value_parser = NonEmptyStringValueParser::new())]
    pub(crate) name: Option<String>,

    /// Manage it although it is open, mounted or held; a rename does not disturb those who have it open
    #[arg(long)]
    pub(crate) allow_in_use: bool,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_and_flag_says_what_it_does() {
        let mut command = Cli::command();
        command.build();
        for sub in command.get_subcommands() {
            assert!(sub.get_about().is_some(), "{} says nothing", sub.get_name());
            for argument in sub.get_arguments() {
                assert!(argument.get_help().is_some(), "{} {} says nothing", sub.get_name(), argument.get_id());
            }
        }
    }

    #[test]
    fn global_flags_stand_on_either_side_of_the_command() {
        for line in [["mortar", "--timeout", "5", "-ojson", "list"], ["mortar", "list", "--timeout", "5", "-ojson"]] {
            let cli = Cli::try_parse_from(line).unwrap();
            assert_eq!((cli.timeout, cli.output), (Duration::from_secs(5), Format::Json));
        }
        assert_eq!(Cli::try_parse_from(["mortar", "list"]).unwrap().timeout, Duration::from_secs(30));
    }

    #[test]
    fn what_looks_like_an_option_is_a_value_after_the_dashes() {
        let cli = Cli::try_parse_from(["mortar", "detach", "--", "--foo"]).unwrap();
        assert!(matches!(cli.command, Command::Detach(Detach { target: Some(Target::Id(id)), .. }) if id == "--foo"));
        assert!(Cli::try_parse_from(["mortar", "detach", "--foo"]).is_err());
    }

    #[test]
    fn chap_needs_both_a_user_and_a_password() {
        assert!(Cli::try_parse_from(["mortar", "attach", "x", "--chap-user", "u"]).is_err());
        assert!(Cli::try_parse_from(["mortar", "attach", "x", "--chap-password-file", "-"]).is_err());
    }

    #[test]
    fn a_volume_is_named_in_one_way() {
        for line in [&["mortar", "attach"][..], &["mortar", "detach"]] {
            assert!(Cli::try_parse_from(line).is_err(), "{line:?}");
            let both = [line, &["x", "--connection-info", "-"]].concat();
            assert!(Cli::try_parse_from(both).is_err(), "{line:?}");
            let one = [line, &["--connection-info", "-"]].concat();
            assert!(Cli::try_parse_from(one).is_ok(), "{line:?}");
        }
    }

    #[test]
    fn an_empty_value_is_no_value() {
        for line in [["mortar", "attach", "x", "--id="], ["mortar", "attach", "x", "--wwn="]] {
            assert!(Cli::try_parse_from(line).is_err(), "{line:?}");
        }
        for line in [["mortar", "attach", ""], ["mortar", "detach", ""], ["mortar", "volumes", ""]] {
            assert!(Cli::try_parse_from(line).is_err(), "{line:?}");
        }
    }

    #[test]
    fn the_format_is_guessed_from_a_line_that_does_not_parse() {
        let guess = |line: &[&str]| Format::guess(&line.iter().map(OsString::from).collect::<Vec<_>>());
        assert_eq!(guess(&["mortar", "-o", "json", "nonsense"]), Format::Json);
        assert_eq!(guess(&["mortar", "nonsense", "--output=json"]), Format::Json);
        assert_eq!(guess(&["mortar", "nonsense"]), Format::Table);
    }
}
