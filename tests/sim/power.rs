//! A power cut: with it goes what the journal had not on its disk, and what is persistent comes back from the rest.

#![expect(clippy::disallowed_methods, reason = "the journal's own files, as a disk would have them")]

use crate::{
    crash::{FILE, ISCSI, LVM, RBD, Subject, Verb, crash, nothing_is_left_after_a_boot, ready, settled, swept},
    machine::SimStage,
};
use proto::v1;
use std::path::PathBuf;
use tempfile::TempDir;
use tests::stage::Stage;

/// Where the journal is: a directory after each power cut, since dead agents may have the files of the last one open.
pub(crate) struct Journals {
    home: TempDir,
    /// What the agents know it by.
    link: PathBuf,
    cuts: usize,
}

impl Journals {
    /// In memory, if there is room.
    pub(crate) fn new(link: PathBuf) -> Self {
        let home = TempDir::new_in("/dev/shm").or_else(|_| TempDir::new()).unwrap();
        let journals = Self { home, link, cuts: 0 };
        std::fs::create_dir(journals.directory()).unwrap();
        std::os::unix::fs::symlink(journals.directory(), &journals.link).unwrap();
        journals
    }

    fn directory(&self) -> PathBuf {
        self.home.path().join(self.cuts.to_string())
    }

    /// Where each commit that is in the log ends, in bytes.
    pub(crate) fn commits(&self) -> Vec<usize> {
        std::fs::read(self.directory().join(LOG)).map_or(Vec::new(), |log| commits(&log))
    }

    /// The newest `lost` commits are not on the disk.
    pub(crate) fn cut_power(&mut self, lost: usize) {
        let (before, commits) = (self.directory(), self.commits());
        self.cuts += 1;
        std::fs::create_dir(self.directory()).unwrap();
        for file in std::fs::read_dir(&before).unwrap() {
            let name = file.unwrap().file_name();
            // SQLite's index of the log is in memory only.
            if name != "journal.sqlite-shm" {
                std::fs::copy(before.join(&name), self.directory().join(&name)).unwrap();
            }
        }
        if lost > 0 {
            let rest = commits[..commits.len() - lost].last().copied().unwrap_or(HEADER);
            let log = std::fs::File::options().write(true).open(self.directory().join(LOG)).unwrap();
            log.set_len(rest as u64).unwrap();
        }
        std::fs::remove_file(&self.link).unwrap();
        std::os::unix::fs::symlink(self.directory(), &self.link).unwrap();
    }
}

const LOG: &str = "journal.sqlite-wal";
/// Bytes.
const HEADER: usize = 32;
const FRAME_HEADER: usize = 24;

/// Where each commit ends in a write-ahead log (SQLite's file format, section 4): the size of its pages is at 8 of
/// the log's header and its salts are at 16; a frame says at 4 whether it ends a commit, and has the salts of its log at 8.
fn commits(log: &[u8]) -> Vec<usize> {
    let word = |at: usize| log.get(at..at + 4).map_or(0, |word| u32::from_be_bytes(word.try_into().unwrap()));
    let mut commits = Vec::new();
    let frame = FRAME_HEADER + word(8) as usize;
    let mut at = HEADER;
    while at + frame <= log.len() && (word(at + 8), word(at + 12)) == (word(16), word(20)) {
        if word(at + 4) != 0 {
            commits.push(at + frame);
        }
        at += frame;
    }
    commits
}

/// A power cut after every effect of a verb, with every number of commits that may be lost; returns how many effects there are,
/// and how many times the power was cut.
async fn sweep(subject: Subject, verb: Verb) -> (usize, usize) {
    let mut runs = 0;
    for at in 1.. {
        for lost in 0.. {
            let place = format!("{subject:?} {verb:?}, power cut after effect {at}, {lost} commits lost");
            let (mut stage, locator, bare) = ready(subject, verb).await;
            if !crash(&stage, verb, &locator, at).await {
                return (at - 1, runs);
            }
            if lost > stage.may_lose() {
                break;
            }
            stage.cut_power(lost);
            stage.start().await;
            // What there was of it comes back, or is taken away, in the background.
            settled(&stage).await;
            if !verb.is_of_names() && stage.client().list().await.unwrap().is_empty() {
                nothing_is_left_after_a_boot(&stage, &bare, &format!("{place}, before anybody calls")).await;
            }
            verb.call(stage.client(), &locator).await;
            assert!(!verb.call(stage.client(), &locator).await, "{place}: a third call changed something");
            if verb.before().is_none() {
                assert!(verb.back().call(stage.client(), &locator).await, "{place}");
            }
            nothing_is_left_after_a_boot(&stage, &bare, &place).await;
            runs += 1;
        }
    }
    unreachable!("a verb has an end")
}

#[tokio::test]
async fn what_was_under_way_leaves_nothing() {
    for subject in [FILE, ISCSI, LVM, RBD, Subject::Multipath] {
        for verb in [Verb::Attach, Verb::AttachPersistently, Verb::Detach] {
            let (points, runs) = sweep(subject, verb).await;
            assert!(points > 2 && runs >= points, "{subject:?} {verb:?}: {points} effects, {runs} power cuts");
            swept(&format!("{}, power cut", verb.words()), subject, points, runs);
        }
    }
    for subject in [FILE, LVM, RBD] {
        for verb in [Verb::Manage, Verb::Unmanage] {
            let (points, runs) = sweep(subject, verb).await;
            assert_eq!(points, runs, "{subject:?} {verb:?}: a commit may be lost");
            swept(&format!("{}, power cut", verb.words()), subject, points, runs);
        }
    }
}

/// Else a controller that attaches the volume elsewhere after the reply would find two hosts writing to it.
#[tokio::test]
async fn an_answered_detach_of_what_is_persistent_does_not_come_back() {
    for subject in [FILE, ISCSI, LVM, RBD, Subject::Multipath] {
        let mut stage = SimStage::new().await;
        let locator = subject.make(&mut stage).await;
        assert!(Verb::AttachPersistently.call(stage.client(), &locator).await);
        assert_eq!(stage.may_lose(), 0, "{subject:?}: the answered attach may be lost");
        assert!(Verb::Detach.call(stage.client(), &locator).await);
        stage.reboot().await;
        assert_eq!(stage.client().list().await.unwrap(), [], "{subject:?}");
    }
}

/// What the tests above lose is lost.
#[tokio::test]
async fn a_commit_that_a_power_cut_takes_is_gone() {
    let mut stage = SimStage::new().await;
    let locator = FILE.make(&mut stage).await;
    assert!(Verb::Attach.call(stage.client(), &locator).await);
    assert_eq!((operations(&stage).await.len(), stage.may_lose()), (1, 2));
    stage.reboot().await;
    assert_eq!(operations(&stage).await, []);
}

async fn operations(stage: &SimStage) -> Vec<v1::Operation> {
    let all = v1::ListOperationsRequest { running_only: false, limit: 0 };
    stage.client().operations.list(all).await.unwrap().into_inner().operations
}
