//! Connects programs outside a session with what the session asked for, and has them followed where that is certain enough.
//!
//! A session's task that talks to the service manager, a job scheduler, a container runtime, somebody else's terminal
//! multiplexer or this host's own ssh server starts nothing itself: what it asked for descends from somebody else. The kernel
//! programs record every such program while a session is open; here the record is given its link. What a link proves and what it
//! only hints at is said in `docs/EVENTS.md`.
//!
//! A process is tagged (recorded in full from then on, and killed with the session) only where it exists because of the session:
//! a job of at, a transient unit, a login to this host. Not where the session may have repaired something that has to go on
//! running after it: an edited unit, a restarted container, somebody's cron job.

mod around;
mod requests;
mod rules;

use std::{
    collections::{HashMap, VecDeque},
    io,
    sync::Arc,
    time::Duration,
};

use breakglass_api::{
    checkpoint::Number,
    v1::{self, Exec, Ring, WitnessLink, event::Body},
};

use self::{
    around::{Around, System},
    requests::Requests,
};
use crate::{
    kernel::{ProcessId, Tagger},
    recorder::source::{EventSource, Observed},
    session::processes::NS_PER_TICK,
};

/// Processes outside the session that are remembered, with their parents and their links. The oldest go first; then a late
/// descendant of theirs is recorded without its link.
const REMEMBERED_MAX: usize = 4096;

/// Counts a process as one of a session from now on. Whether it was still there.
pub trait Follow: Send {
    /// See there.
    fn follow(&mut self, process: ProcessId, slot: u32) -> bool;
}

impl Follow for Tagger {
    fn follow(&mut self, process: ProcessId, slot: u32) -> bool {
        self.tag(process, slot).unwrap_or_else(|error| {
            tracing::error!(pid = process.tgid, %error, "what the session had started by another cannot be followed");
            false
        })
    }
}

/// Passes a source through and links the programs outside the session.
pub struct Witnessing<S> {
    source: S,
    links: Links,
}

impl<S: EventSource> Witnessing<S> {
    /// Watches `source`; `follow` tags what belongs to a session.
    pub fn new(source: S, follow: Box<dyn Follow>) -> Self {
        Self { source, links: Links::new(follow, Box::new(System)) }
    }
}

impl<S: EventSource> EventSource for Witnessing<S> {
    fn wait(&mut self, timeout: Duration) -> io::Result<()> {
        self.source.wait(timeout)
    }

    fn waker(&self) -> Arc<dyn Fn() + Send + Sync> {
        self.source.waker()
    }

    fn read(&mut self, out: &mut Vec<Observed>, max_bytes: usize) -> io::Result<()> {
        let before = out.len();
        self.source.read(out, max_bytes)?;
        out.iter_mut().skip(before).for_each(|observed| self.links.look_at(observed));
        Ok(())
    }

    fn position(&self) -> Vec<u8> {
        self.source.position()
    }

    fn numbers(&self) -> Vec<Number> {
        self.source.numbers()
    }

    fn release(&mut self) {
        self.source.release();
    }

    fn resume(&mut self, position: &[u8]) -> io::Result<()> {
        self.source.resume(position)
    }
}

/// What is known of the processes outside the session that is open.
struct Links {
    follow: Box<dyn Follow>,
    around: Box<dyn Around>,
    slot: u32,
    requests: Requests,
    known: HashMap<Key, Known>,
    oldest: VecDeque<Key>,
}

/// Number and start time, the latter in ticks: `/proc` is not more precise.
type Key = (u32, u64);

fn key_of(process: v1::Process) -> Key {
    (process.pid, process.start_ns / NS_PER_TICK)
}

/// A program outside the session that was seen to start, or what one of those descends from.
#[derive(Clone)]
struct Known {
    parent: Option<v1::Process>,
    exe: Vec<u8>,
    link: Option<WitnessLink>,
}

impl Links {
    fn new(follow: Box<dyn Follow>, around: Box<dyn Around>) -> Self {
        Self { follow, around, slot: 0, requests: Requests::default(), known: HashMap::new(), oldest: VecDeque::new() }
    }

    fn look_at(&mut self, observed: &mut Observed) {
        if observed.slot == 0 {
            return;
        }
        if observed.slot != self.slot {
            // Another session: what the one before asked for is its own.
            self.slot = observed.slot;
            self.requests = Requests::default();
            self.known.clear();
            self.oldest.clear();
        }
        let boot_ns = observed.event.boot_ns;
        let witness = observed.event.origin.as_ref().is_some_and(|origin| origin.ring() == Ring::Witness);
        match &mut observed.event.body {
            Some(Body::Exec(exec)) if witness => self.link(exec, boot_ns),
            Some(Body::SocketAction(action)) => self.requests.socket(action, boot_ns),
            Some(Body::FileAction(action)) => self.requests.file(action, boot_ns),
            _ => {}
        }
    }

    fn link(&mut self, exec: &mut Exec, boot_ns: u64) {
        let Some(process) = exec.process else { return };
        let link = if self.requests.is_empty() {
            None
        } else {
            let ancestors = self.ancestors(exec.parent);
            let inherited = ancestors.iter().find_map(|ancestor| ancestor.link.clone());
            inherited.or_else(|| rules::link(exec, boot_ns, &ancestors, &self.requests, self.around.as_ref()))
        };
        let link = link.map(|link| self.followed(link, process));
        self.remember(process, Known { parent: exec.parent, exe: exec.exe.clone(), link: link.clone() });
        exec.link = link;
    }

    /// The link, with what came of the wish to follow the process.
    fn followed(&mut self, mut link: WitnessLink, process: v1::Process) -> WitnessLink {
        let id = ProcessId { tgid: process.pid, start_ns: process.start_ns };
        link.tagged = link.tagged && self.follow.follow(id, self.slot);
        link
    }

    /// From the parent upwards: what was seen to start, and beyond that what the system says now.
    fn ancestors(&mut self, parent: Option<v1::Process>) -> Vec<Ancestor> {
        let mut found = Vec::new();
        let mut next = parent;
        while let Some(process) = next.filter(|process| process.pid != 0 && found.len() < rules::DEPTH_MAX) {
            let known = match self.known.get(&key_of(process)) {
                Some(known) => known.clone(),
                None => {
                    let Some((parent, exe)) = self.around.process(process) else { break };
                    let known = Known { parent, exe, link: None };
                    self.remember(process, known.clone());
                    known
                }
            };
            found.push(Ancestor { process, exe: known.exe, link: known.link });
            next = known.parent;
        }
        found
    }

    fn remember(&mut self, process: v1::Process, known: Known) {
        let key = key_of(process);
        if self.known.insert(key, known).is_none() {
            self.oldest.push_back(key);
        }
        if self.oldest.len() > REMEMBERED_MAX
            && let Some(key) = self.oldest.pop_front()
        {
            self.known.remove(&key);
        }
    }
}

/// A process that a program outside the session descends from.
#[derive(Clone, Debug, Default)]
pub struct Ancestor {
    process: v1::Process,
    /// Path of what it runs; empty where it is not known.
    exe: Vec<u8>,
    link: Option<WitnessLink>,
}

#[cfg(test)]
mod tests;
