//! Numbers of a batch as differences, for the sake of compression.
//!
//! Every program that is run brings three events, and in these hardly anything is new but numbers: clocks, process ids, numbers of records.
//! A compressor sees digits that never repeat. As differences most of them are zero, which the encoding leaves out, or small.
//!
//! Events are gone through in order. All arithmetic wraps, so that any batch can be thinned, and restored to exactly what it was:
//!
//! - `Event.boot_ns`: less that of the event before; the first less the frame's earliest boot time.
//! - `KernelRef.seq`: less the number behind the last record of the event before on this ring and CPU (its `seq` + `more` + 1). The first of each
//!   is left as it is.
//! - `Process.start_ns`, in the fields named below: less the start time of the same process id where it was seen before in this frame, else the
//!   event's boot time less it.
//! - `Process.pid`, in the same fields: of a new child, less that of the child before; of any other process than a parent, that of the last
//!   child less it. A parent's is left as it is. Before the first child its id counts as 0.
//!
//! The fields, in the order in which they are gone through: `Exec.parent` (parent), `Exec.process`; `ExecFailed.process`; `Fork.process`
//! (parent), `Fork.child` (child); `Exit.process`; `FileAction.process`; `SocketAction.process`; `TerminalOutput.by`; `TerminalInput.by`. Fields that are
//! not set are left out. "Same process id" and "last child" mean the ids themselves, not the differences.

use std::collections::HashMap;

use crate::v1::{Batch, Event, KernelRef, Process, event::Body};

/// What a process is to an event, which decides what its id is likely to be.
#[derive(Clone, Copy)]
enum Role {
    /// Likely the same as before.
    Parent,
    /// Likely one more than the child before.
    Child,
    /// Likely the child that was made last.
    Itself,
}

/// Puts differences in place of numbers. `earliest_ns` is what the frame's header says.
pub fn thin(batch: &mut Batch, earliest_ns: u64) {
    let mut before = Before::new(earliest_ns);
    for event in &mut batch.events {
        let now = event.boot_ns;
        event.boot_ns = now.wrapping_sub(before.boot_ns);
        before.boot_ns = now;
        if let Some(origin) = &mut event.origin {
            let next = before.next_of(origin);
            let seq = origin.seq;
            origin.seq = seq.wrapping_sub(*next);
            *next = behind(seq, origin.more);
        }
        for (role, process) in processes(event).into_iter().flatten() {
            let Process { pid, start_ns } = *process;
            process.start_ns = match before.starts.insert(pid, start_ns) {
                Some(known) => start_ns.wrapping_sub(known),
                None => now.wrapping_sub(start_ns),
            };
            process.pid = before.difference(role, pid);
        }
    }
}

/// Undoes [`thin`].
pub fn restore(batch: &mut Batch, earliest_ns: u64) {
    let mut before = Before::new(earliest_ns);
    for event in &mut batch.events {
        let now = event.boot_ns.wrapping_add(before.boot_ns);
        event.boot_ns = now;
        before.boot_ns = now;
        if let Some(origin) = &mut event.origin {
            let next = before.next_of(origin);
            origin.seq = origin.seq.wrapping_add(*next);
            *next = behind(origin.seq, origin.more);
        }
        for (role, process) in processes(event).into_iter().flatten() {
            process.pid = before.id(role, process.pid);
            process.start_ns = match before.starts.get(&process.pid) {
                Some(known) => process.start_ns.wrapping_add(*known),
                None => now.wrapping_sub(process.start_ns),
            };
            before.starts.insert(process.pid, process.start_ns);
        }
    }
}

/// What differences are taken from.
struct Before {
    boot_ns: u64,
    /// By ring and CPU: the number that the next record is likely to have.
    next: HashMap<(i32, u32), u64>,
    /// By process id.
    starts: HashMap<u32, u64>,
    /// The last new child.
    child: u32,
}

impl Before {
    fn new(boot_ns: u64) -> Self {
        Self { boot_ns, next: HashMap::new(), starts: HashMap::new(), child: 0 }
    }

    fn next_of(&mut self, origin: &KernelRef) -> &mut u64 {
        self.next.entry((origin.ring, origin.cpu)).or_default()
    }

    fn difference(&mut self, role: Role, pid: u32) -> u32 {
        match role {
            Role::Parent => pid,
            Role::Child => pid.wrapping_sub(std::mem::replace(&mut self.child, pid)),
            Role::Itself => self.child.wrapping_sub(pid),
        }
    }

    fn id(&mut self, role: Role, difference: u32) -> u32 {
        match role {
            Role::Parent => difference,
            Role::Child => {
                self.child = self.child.wrapping_add(difference);
                self.child
            }
            Role::Itself => self.child.wrapping_sub(difference),
        }
    }
}

/// The number behind an event's last record.
fn behind(seq: u64, more: u32) -> u64 {
    seq.wrapping_add(u64::from(more)).wrapping_add(1)
}

/// The processes of an event that are thinned, in order. Rarer events than these are not worth it.
fn processes(event: &mut Event) -> [Option<(Role, &mut Process)>; 2] {
    fn of(role: Role, process: &mut Option<Process>) -> Option<(Role, &mut Process)> {
        process.as_mut().map(|process| (role, process))
    }
    match &mut event.body {
        Some(Body::Exec(exec)) => [of(Role::Parent, &mut exec.parent), of(Role::Itself, &mut exec.process)],
        Some(Body::ExecFailed(failed)) => [of(Role::Itself, &mut failed.process), None],
        Some(Body::Fork(fork)) => [of(Role::Parent, &mut fork.process), of(Role::Child, &mut fork.child)],
        Some(Body::Exit(exit)) => [of(Role::Itself, &mut exit.process), None],
        Some(Body::FileAction(action)) => [of(Role::Itself, &mut action.process), None],
        Some(Body::SocketAction(action)) => [of(Role::Itself, &mut action.process), None],
        Some(Body::TerminalOutput(output)) => [of(Role::Itself, &mut output.by), None],
        Some(Body::TerminalInput(input)) => [of(Role::Itself, &mut input.by), None],
        _ => [None, None],
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::v1::{Exec, Exit, FileAction, Fork};

    fn process() -> impl Strategy<Value = Option<Process>> {
        // Few, so that they come again, and the ends of the range.
        let pid = prop_oneof![0u32..6, any::<u32>()];
        let start = prop_oneof![0u64..4, any::<u64>()];
        prop::option::weighted(0.9, (pid, start).prop_map(|(pid, start_ns)| Process { pid, start_ns }))
    }

    fn event() -> impl Strategy<Value = Event> {
        let body = (0..5, process(), process()).prop_map(|(kind, process, other)| match kind {
            0 => Some(Body::Exec(Exec { process, parent: other, ..Exec::default() })),
            1 => Some(Body::Fork(Fork { process, child: other })),
            2 => Some(Body::Exit(Exit { process, ..Exit::default() })),
            3 => Some(Body::FileAction(FileAction { process, ..FileAction::default() })),
            _ => None,
        });
        let seq = prop_oneof![1u64..9, any::<u64>()];
        let origin = (0..3, 0u32..3, seq, prop_oneof![0u32..3, any::<u32>()]);
        let origin = origin.prop_map(|(ring, cpu, seq, more)| KernelRef { ring, cpu, seq, more });
        (prop_oneof![0u64..9, any::<u64>()], prop::option::of(origin), body).prop_map(|(boot_ns, origin, body)| Event {
            boot_ns,
            origin,
            body,
            ..Event::default()
        })
    }

    proptest! {
        #[test]
        fn whatever_is_thinned_is_restored(events in prop::collection::vec(event(), 0..40), earliest: u64) {
            let batch = Batch { events, ..Batch::default() };
            let mut other = batch.clone();
            thin(&mut other, earliest);
            restore(&mut other, earliest);
            prop_assert_eq!(&other, &batch);
            // And the other way round: anything at all can be restored, and only one batch thins to it.
            restore(&mut other, earliest);
            thin(&mut other, earliest);
            prop_assert_eq!(other, batch);
        }
    }

    #[test]
    fn a_loop_of_programs_leaves_next_to_no_numbers() {
        let shell = Some(Process { pid: 4000, start_ns: 5 });
        let of = |boot_ns, seq, body| Event {
            boot_ns,
            origin: Some(KernelRef { ring: 0, cpu: 1, seq, more: 0 }),
            body: Some(body),
            ..Event::default()
        };
        let mut events = Vec::new();
        for n in 0..3u32 {
            let (at, seq) = (1_000_000 * u64::from(n + 1), 100 + 3 * u64::from(n));
            let child = Some(Process { pid: 4001 + n, start_ns: at });
            let exec = Exec { process: child, parent: shell, ..Exec::default() };
            events.push(of(at, seq, Body::Fork(Fork { process: shell, child })));
            events.push(of(at + 10, seq + 1, Body::Exec(exec)));
            events.push(of(at + 20, seq + 2, Body::Exit(Exit { process: child, ..Exit::default() })));
        }
        let mut batch = Batch { events, ..Batch::default() };
        thin(&mut batch, 1_000_000);
        let same = Some(Process { pid: 4000, start_ns: 0 });
        let none = Some(Process::default());
        let Some([fork, exec, exit]) = batch.events.get(3..6) else { panic!() };
        let bodies = [&fork.body, &exec.body, &exit.body].map(|body| body.clone().unwrap());
        let [Body::Fork(fork_body), Body::Exec(exec_body), Body::Exit(exit_body)] = bodies else { panic!() };
        assert_eq!((fork_body.process, fork_body.child), (same, Some(Process { pid: 1, start_ns: 0 })));
        assert_eq!((exec_body.process, exec_body.parent, exit_body.process), (none, same, none));
        assert_eq!([fork, exec, exit].map(|event| event.boot_ns), [999_980, 10, 10]);
        assert!([fork, exec, exit].iter().all(|event| event.origin.unwrap().seq == 0));
    }
}
