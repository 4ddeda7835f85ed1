//! The process under test, as the machine sees it: what it did, when it dies, and which of its calls fail.

use super::Machine;
use crate::{Error, Output};
use std::{collections::VecDeque, sync::Arc, time::Duration};
use tokio::sync::watch;

/// How a call ends that was told to fail.
#[derive(Debug)]
pub enum Fault {
    /// Any call.
    Error(Error),
    /// A tool's run.
    Output(Output),
}

impl From<Error> for Fault {
    fn from(error: Error) -> Self {
        Self::Error(error)
    }
}

impl From<Output> for Fault {
    fn from(output: Output) -> Self {
        Self::Output(output)
    }
}

/// A fault that waits for its call.
#[derive(Debug)]
pub(crate) struct Planned {
    /// A part of the call's name.
    name: String,
    pub(crate) fault: Fault,
    /// What the call was to do is done all the same.
    pub(crate) done: bool,
}

/// A call that waits in the kernel, or will.
#[derive(Debug, Clone)]
pub struct Held {
    reached: Arc<watch::Sender<bool>>,
    let_go: Arc<watch::Sender<bool>>,
}

impl Held {
    /// Ends when the call is there.
    pub async fn reached(&self) {
        let _seen = self.reached.subscribe().wait_for(|there| *there).await.is_ok();
    }

    /// The kernel answers.
    pub fn let_go(&self) {
        self.let_go.send_replace(true);
    }

    pub(crate) async fn until_let_go(self) {
        self.reached.send_replace(true);
        let _seen = self.let_go.subscribe().wait_for(|free| *free).await.is_ok();
    }
}

/// What somebody else does just before a call.
pub(crate) type Interference = Box<dyn FnOnce(&Machine) + Send>;

pub(crate) struct Process {
    /// Which process is the present one; all those before it are dead.
    life: u64,
    /// The present one is dead too.
    dead: watch::Sender<bool>,
    /// How many effects it still has to live.
    effects_left: Option<usize>,
    effects: Vec<String>,
    commands: Vec<String>,
    faults: VecDeque<Planned>,
    /// With a part of the call's name.
    interferences: Vec<(String, Interference)>,
    /// With how many effects there have to be, and a part of the call's name.
    holds: Vec<(usize, String, Held)>,
    /// A part of the name of the tool's run that the process dies of, and how long the tool goes on.
    deadly: Option<(String, Duration)>,
    /// The tools of dead processes that still run.
    orphans: watch::Sender<Vec<String>>,
}

impl Process {
    pub(crate) fn new() -> Self {
        Self {
            life: 0,
            dead: watch::Sender::new(false),
            effects_left: None,
            effects: Vec::new(),
            commands: Vec::new(),
            faults: VecDeque::new(),
            interferences: Vec::new(),
            holds: Vec::new(),
            deadly: None,
            orphans: watch::Sender::default(),
        }
    }

    /// Whether a process is the present one, and lives.
    pub(crate) fn lives(&self, life: u64) -> bool {
        self.life == life && !*self.dead.borrow()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<bool> {
        self.dead.subscribe()
    }

    pub(crate) fn crash_after(&mut self, effects: usize) {
        self.effects_left = Some(effects);
        if effects == 0 {
            self.dead.send_replace(true);
        }
    }

    /// Starts the next process, and says which it is.
    pub(crate) fn start_next(&mut self) -> u64 {
        self.life += 1;
        self.effects_left = None;
        self.dead.send_replace(false);
        self.life
    }

    pub(crate) fn hang(&mut self, effects: usize, name: String) -> Held {
        let held = Held { reached: Arc::new(watch::Sender::new(false)), let_go: Arc::new(watch::Sender::new(false)) };
        self.holds.push((self.effects.len() + effects, name, held.clone()));
        held
    }

    pub(crate) fn holds(&mut self, life: u64, call: &str) -> Option<Held> {
        let is_it = |(effects, name, _): &(usize, String, Held)| *effects <= self.effects.len() && call.contains(name);
        let place = self.holds.iter().position(is_it).filter(|_| self.lives(life))?;
        Some(self.holds.remove(place).2)
    }

    pub(crate) fn die_of(&mut self, name: String, after: Duration) {
        self.deadly = Some((name, after));
    }

    /// Whether the process dies as this tool starts; then how long the tool goes on, as an orphan.
    pub(crate) fn dies_of(&mut self, run: &str) -> Option<Duration> {
        let (_, after) = self.deadly.take_if(|(name, _)| run.contains(name.as_str()))?;
        self.orphans.send_modify(|all| all.push(run.to_owned()));
        self.dead.send_replace(true);
        Some(after)
    }

    pub(crate) fn orphan_ended(&mut self, run: &str) {
        self.orphans.send_modify(|all| all.retain(|other| other != run));
    }

    pub(crate) fn forget_orphans(&mut self) {
        self.orphans.send_replace(Vec::new());
    }

    pub(crate) fn orphans(&self) -> watch::Receiver<Vec<String>> {
        self.orphans.subscribe()
    }

    pub(crate) fn did(&mut self, effect: &str) {
        self.effects.push(effect.to_owned());
        if let Some(left) = &mut self.effects_left {
            *left = left.saturating_sub(1);
            if *left == 0 {
                self.dead.send_replace(true);
            }
        }
    }

    /// An effect in the middle of a call; `false` if the process died of it.
    pub(crate) fn did_within(&mut self, effect: &str) -> bool {
        self.did(effect);
        !*self.dead.borrow()
    }

    pub(crate) fn effects(&self) -> &[String] {
        &self.effects
    }

    pub(crate) fn started(&mut self, command: String) {
        self.commands.push(command);
    }

    pub(crate) fn commands(&self) -> &[String] {
        &self.commands
    }

    pub(crate) fn fail_next(&mut self, name: String, fault: Fault, done: bool) {
        self.faults.push_back(Planned { name, fault, done });
    }

    pub(crate) fn forget_faults(&mut self) {
        self.faults.clear();
        self.effects_left = None;
    }

    /// The fault that was planned for a call, if any.
    pub(crate) fn fault(&mut self, call: &str) -> Option<Planned> {
        let place = self.faults.iter().position(|planned| call.contains(&planned.name))?;
        self.faults.remove(place)
    }

    pub(crate) fn interfere(&mut self, name: String, what: Interference) {
        self.interferences.push((name, what));
    }

    /// What somebody else was to do before a call of a living process, if anything.
    pub(crate) fn interference(&mut self, life: u64, call: &str) -> Option<Interference> {
        let place = self.interferences.iter().position(|(name, _)| call.contains(name.as_str()))?;
        self.lives(life).then(|| self.interferences.remove(place).1)
    }
}
