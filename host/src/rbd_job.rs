//! What is asked of `mortar-rbd`, and what it answers: one JSON job on its stdin, one JSON reply on its stdout.
//!
//! Ceph is reached through its own libraries, which no agent should have in its address space: they start threads, keep
//! sessions and abort when they are confused. So they live in a process of their own, one for each job, and these types
//! are the whole of what passes between the two. They know images, pools and keys of metadata, and nothing of volumes.

use crate::Output;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::{collections::BTreeMap, path::PathBuf};

/// The names of an image's features, one bit for each in this order (`rbd/features.h` of Ceph 16.2). The kernel's client and
/// librbd number them alike.
pub const FEATURES: [&str; 12] = [
    "layering",
    "striping",
    "exclusive-lock",
    "object-map",
    "fast-diff",
    "deep-flatten",
    "journaling",
    "data-pool",
    "operations",
    "migrating",
    "non-primary",
    "dirty-cache",
];

/// What the keys of an image's metadata begin with that a reply shows. Others are not ours, and there may be many.
pub const METADATA_PREFIX: &str = "mortar.";

/// A job: where, as whom, and what.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Job {
    /// The cluster's name: it is in the names of the keyrings that librados looks for in `/etc/ceph`.
    pub cluster: String,
    /// The configuration. It may be absent when there are monitors.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub conf: Option<PathBuf>,
    /// The monitors, `ADDRESS:PORT` each; none: those of the configuration.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub monitors: Vec<String>,
    /// The cephx user, without `client.`.
    pub user: String,
    /// The user's key, base64; none: from the keyring.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "secret")]
    pub key: Option<SecretString>,
    /// The pool's name.
    pub pool: String,
    /// The namespace in the pool; empty: the default one.
    #[serde(default)]
    pub namespace: String,
    /// How long one request to the cluster may take, connecting included; whole seconds, rounded up. A job is several
    /// requests, and gives up at the first that takes longer.
    #[serde(default = "twenty_seconds")]
    pub timeout_ms: u64,
    /// When a change gives up, counted from its start: no step is begun later, and what was done by then stays. Whoever asks
    /// waits longer than that. None: never.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub budget_ms: Option<u64>,
    /// What is to be done.
    #[serde(flatten)]
    pub task: Task,
}

fn twenty_seconds() -> u64 {
    20_000
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "job", rename_all = "snake_case")]
pub enum Task {
    /// Every image of the pool and namespace, and the trash. Answered by [`Pool`].
    List,
    /// One image, by name, or by id, which then decides. Answered by [`Pool`] with one image, or with none if it is not
    /// there, and then with the entries of the trash that have this name or id.
    Inspect {
        /// The image's name.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        image: Option<String>,
        /// The image's id.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        id: Option<String>,
    },
    /// Metadata, then the name. Answered by [`Pool`] with the image as it is then.
    Manage(Change),
    /// The name, then metadata. Answered by [`Pool`] with the image as it is then.
    Unmanage(Change),
    /// A copy of an image that shares what is not written, beside it. Answered by [`Pool`] with the clone.
    Clone(Cloning),
    /// The way back, from wherever it came to. Answered by [`Pool`] with no image.
    Unclone(Cloning),
    /// The features of one image. Answered by [`Features`].
    Features {
        /// The image's name.
        image: String,
    },
}

/// What is to become of one image. It may be asked for again after a crash or an error: what is done already is left.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The image's name now. It may have the new name already.
    pub image: String,
    /// Its id. If another image has the name, nothing is changed.
    pub id: String,
    /// Metadata to set, all keys under [`METADATA_PREFIX`].
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
    /// Keys of metadata to remove. One that is not there is fine.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub forget: Vec<String>,
    /// The image's new name, if it is to have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rename_to: Option<String>,
    /// One of its snapshots to be renamed. (A snapshot has no metadata of its own.)
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<SnapshotChange>,
}

/// A new name for a snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotChange {
    /// Its id.
    pub id: u64,
    /// Its name now. It may have the new name already.
    pub name: String,
    /// Its new name, if it is to have one; without, it only has to be there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rename_to: Option<String>,
}

/// A clone beside its image, in the same pool and namespace. It may be asked for again after a crash or an error: what is done
/// already is left.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cloning {
    /// The clone's name; of the snapshot too, if one has to be made.
    pub name: String,
    /// Who it is for: what the clone is marked with. Nothing else is ever removed.
    pub owner: String,
    /// The image's id.
    pub image_id: String,
    /// The image's snapshot to clone, by name and id; none: one is made, and goes with the clone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<(String, u64)>,
    /// The features that the clone may have, of those that its image has.
    #[serde(default)]
    pub features: Vec<String>,
}

impl Cloning {
    /// The key of a clone's mark; its value is the owner.
    pub const MARK: &str = "mortar.rescue";
    /// The key beside it; its value is the clone's own id, as Ceph copies metadata to the clones of a clone.
    pub const MARKED: &str = "mortar.rescue.image";

    /// What the key of an intent begins with; the owner follows.
    pub const INTENT: &str = "mortar.rescue.of.";

    /// The key that the image has from before the first change until after the last: what has the clone's name is ours then,
    /// though it may not be marked yet. Its value is [`Cloning::intended`].
    pub fn intent(&self) -> String {
        format!("{}{}", Self::INTENT, self.owner)
    }

    /// The image's id, and behind an `@` the clone's name: other clones of the image get this with its metadata.
    pub fn intended(&self) -> String {
        format!("{}@{}", self.image_id, self.name)
    }
}

/// The reply to every task but [`Task::Features`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    /// The cluster's id.
    pub fsid: String,
    /// The pool's id: its name may be given to another pool.
    pub pool_id: i64,
    /// The images, by name.
    pub images: Vec<Image>,
    /// What is in the trash.
    #[serde(default)]
    pub trash: Vec<Trashed>,
}

/// An image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image {
    /// Its name.
    pub name: String,
    /// Its id: stays when it is renamed. Empty for an image of format 1, which has none.
    pub id: String,
    /// Why nothing more is known of it, if nothing is: then all below is empty.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
    /// Bytes.
    pub size: u64,
    /// The names of its features, as `rbd info` has them; `unknown-N` for a bit that has no name here.
    pub features: Vec<String>,
    /// Its metadata under [`METADATA_PREFIX`].
    pub metadata: BTreeMap<String, String>,
    /// Who has it open for writing, on any host, or mapped by a kernel.
    pub watchers: Vec<Watcher>,
    /// Its part in mirroring, if it is mirrored.
    pub mirroring: Option<Mirroring>,
    /// What it was cloned from, unless it was flattened.
    pub parent: Option<Parent>,
    /// Its snapshots that users made, oldest first.
    pub snapshots: Vec<Snapshot>,
}

/// A client that watches an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Watcher {
    /// `ADDRESS:PORT/NONCE`
    pub address: String,
    /// `client.NUMBER`
    pub client: String,
}

/// Mirroring of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mirroring {
    /// This is the copy that is written to; the others only follow.
    pub primary: bool,
}

/// The snapshot that an image was cloned from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parent {
    /// The pool of its image.
    pub pool: String,
    /// The namespace of its image.
    pub namespace: String,
    /// The name of its image.
    pub image: String,
    /// The id of its image.
    pub image_id: String,
    /// Its name.
    pub snapshot: String,
    /// Its id.
    pub snapshot_id: u64,
}

/// A snapshot of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// Its id, unique in the pool.
    pub id: u64,
    /// Its name.
    pub name: String,
    /// The image's size when it was made, in bytes.
    pub size: u64,
    /// It cannot be removed until that is taken back.
    pub protected: bool,
    /// How many clones it has, over all pools; only where one image was asked for, and only if the user may see that.
    pub children: Option<u64>,
}

/// An image in the trash.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trashed {
    /// Its id.
    pub id: String,
    /// The name it had.
    pub name: String,
}

/// The reply to [`Task::Features`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// Their names, as `rbd info` has them; `unknown-N` for a bit that has no name here.
    pub features: Vec<String>,
}

/// Why a job was not done.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("cannot {doing}: {message}")]
pub struct Failure {
    /// What Ceph's libraries said, if it was they.
    pub errno: Option<i32>,
    /// How far the job came: the same number means something else in another step.
    pub step: Step,
    /// In words, to be put behind "cannot".
    pub doing: String,
    /// The number in words, or more.
    pub message: String,
}

/// How far a job came.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// The job itself is wrong, or the reply is.
    Job,
    /// Loading Ceph's libraries. They may not be installed.
    Library,
    /// Reading the configuration, or reaching and persuading the monitors.
    Connect,
    /// Opening the pool. `ENOENT`: there is none of this name.
    Pool,
    /// Listing what the pool holds.
    List,
    /// Opening or reading an image. `ENOENT`: there is none of this name and id.
    Image,
    /// Finding a snapshot. `ENOENT`: there is none of this name and id.
    Snapshot,
    /// Setting or removing metadata.
    Metadata,
    /// Renaming an image or a snapshot. `EEXIST`: another has the new name; nothing was changed.
    Rename,
    /// Making or removing a clone or its snapshot. `EEXIST`: something else has the name; nothing was changed. `EBUSY`:
    /// somebody has the clone open.
    Clone,
}

/// How a [`Failure`] stands on stdout.
#[derive(Debug, Serialize, Deserialize)]
pub struct Failed {
    /// It.
    pub error: Failure,
}

impl Failure {
    /// A failure that is none of Ceph's.
    pub fn new(step: Step, doing: impl Into<String>, message: impl Into<String>) -> Self {
        Self { errno: None, step, doing: doing.into(), message: message.into() }
    }
}

impl Job {
    /// What goes to stdin. It holds the key.
    pub fn to_stdin(&self) -> SecretString {
        serde_json::to_string(self).expect("strings and numbers are JSON").into()
    }
}

/// Reads how `mortar-rbd` ended: the reply, or why there is none.
pub fn reply<T: DeserializeOwned>(output: &Output) -> Result<T, Failure> {
    let unclear = |why: String| Failure::new(Step::Job, "understand mortar-rbd", why);
    match output.code {
        0 => serde_json::from_str(&output.stdout).map_err(|error| unclear(error.to_string())),
        _ => match serde_json::from_str(&output.stdout) {
            Ok(Failed { error }) => Err(error),
            Err(_) => Err(unclear(format!("exit code {}: {}", output.code, output.said()))),
        },
    }
}

mod secret {
    //! A key in a job: the only place where it is written out.

    use super::{ExposeSecret, SecretString};
    use serde::{Deserialize, Deserializer, Serializer};

    pub(super) fn serialize<S: Serializer>(key: &Option<SecretString>, serializer: S) -> Result<S::Ok, S::Error> {
        match key {
            Some(key) => serializer.serialize_some(key.expose_secret()),
            None => serializer.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SecretString>, D::Error> {
        Ok(Option::<String>::deserialize(deserializer)?.map(SecretString::from))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    const JOB: &str = r#"{"job":"manage","cluster":"ceph","conf":"/etc/ceph/ceph.conf","user":"admin","key":"c2VjcmV0",
        "pool":"p","image":"a","id":"10ab","metadata":{"mortar.id":"7"},"rename_to":"volume-7"}"#;

    #[test]
    fn a_job_is_flat_and_what_is_left_out_has_a_default() {
        let job: Job = serde_json::from_str(JOB).unwrap();
        assert_eq!((job.namespace.as_str(), job.timeout_ms, job.monitors.len()), ("", 20_000, 0));
        assert_eq!(job.key.as_ref().unwrap().expose_secret(), "c2VjcmV0");
        let Task::Manage(change) = &job.task else { panic!("{job:?}") };
        assert_eq!((change.rename_to.as_deref(), change.snapshot.is_none()), (Some("volume-7"), true));
    }

    #[test]
    fn a_job_goes_in_as_it_came_out() {
        let job: Job = serde_json::from_str(JOB).unwrap();
        let again: Job = serde_json::from_str(job.to_stdin().expose_secret()).unwrap();
        assert_eq!(again.task, job.task);
        assert_eq!(again.key.unwrap().expose_secret(), "c2VjcmV0");
        for task in [Task::List, Task::Inspect { image: None, id: Some("1".into()) }] {
            let job = Job { task: task.clone(), key: None, ..job.clone() };
            let again: Job = serde_json::from_str(job.to_stdin().expose_secret()).unwrap();
            assert_eq!((again.task, again.key.is_none()), (task, true));
        }
    }

    #[test]
    fn a_key_is_not_shown() {
        let job: Job = serde_json::from_str(JOB).unwrap();
        assert!(!format!("{job:?}").contains("c2VjcmV0"));
    }

    #[test]
    fn a_wrong_key_is_not_quoted() {
        let error = serde_json::from_str::<Job>(&JOB.replace(r#""c2VjcmV0""#, "4711")).unwrap_err();
        assert!(!error.to_string().contains("c2VjcmV0"));
    }

    #[test]
    fn how_it_ended_is_read() {
        let output = |code, stdout: &str| Output { code, stdout: stdout.into(), stderr: "dlopen\n".into() };
        let features = json!({"features": ["layering"]}).to_string();
        assert_eq!(reply::<Features>(&output(0, &features)).unwrap().features, ["layering"]);

        let said =
            r#"{"error":{"errno":2,"step":"pool","doing":"open the pool p","message":"No such file or directory"}}"#;
        let failure = reply::<Pool>(&output(1, said)).unwrap_err();
        assert_eq!((failure.errno, failure.step), (Some(2), Step::Pool));
        assert_eq!(failure.to_string(), "cannot open the pool p: No such file or directory");

        let failure = reply::<Pool>(&output(134, "")).unwrap_err();
        assert_eq!((failure.step, failure.message.as_str()), (Step::Job, "exit code 134: dlopen"));
        assert_eq!(reply::<Pool>(&output(0, "{}")).unwrap_err().step, Step::Job);
    }

    proptest! {
        #[test]
        fn no_reply_panics(code in 0..3_i32, stdout in "(\\PC|[{}\"\\[\\]:,]|error|fsid|images|step){0,60}") {
            let _pool = reply::<Pool>(&Output { code, stdout, ..Output::default() });
        }

        #[test]
        fn what_is_answered_is_read_back(
            fsid in "\\PC{0,20}", pool_id in any::<i64>(), name in "\\PC{0,20}", size in any::<u64>(), id in "[0-9a-f]{1,12}",
        ) {
            let image = Image { name, id, size, ..Image::default() };
            let pool = Pool { fsid, pool_id, images: vec![image], trash: Vec::new() };
            let stdout = serde_json::to_string(&pool).unwrap();
            let read = reply::<Pool>(&Output { stdout: stdout.clone(), ..Output::default() }).unwrap();
            prop_assert_eq!(serde_json::to_string(&read).unwrap(), stdout);
        }
    }
}
