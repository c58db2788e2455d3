//! What running a program costs: with no agent, beside a whole glass, and inside a session.
//!
//! A machine that others share has moods: for seconds at a time the same loop takes half as long again, many times what is to be measured. So
//! every loop is short, and is set against one that fills fresh memory in the moment before it; a round without an agent comes before and after
//! every other; and all of it stays on one processor, since whether a shell's child is put on another one, which may have to be woken, makes as
//! much difference again.

use std::{fs, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use aya::{
    programs::loaded_programs,
    sys::{Stats, enable_stats},
};
use breakglass_tests::{
    machine,
    stack::{Options, Stack, pins},
    tiny,
};
use nix::{
    sched::{CpuSet, sched_getaffinity},
    unistd::Pid,
};

use crate::{
    Effort,
    auditd::Auditd,
    exec::{times, wait_until_quiet},
    figure::{Budget, Figure, percentile},
};

/// Rounds of each state: without an agent, with auditd, at rest, tagged.
const ROUNDS: u64 = 30;
/// Loops of each kind in a state.
const LOOPS: u64 = 25;
/// Programs in one loop; about 15 milliseconds.
const PROGRAMS: u64 = 30;
/// Fresh memory that a loop is set against, bytes: about as long.
const MEMORY: u64 = 48 << 20;

/// A user that is not the emergency account.
const BYSTANDER: u32 = 65_534;

/// A loop of programs.
struct Load {
    name: &'static str,
    programs: u64,
    /// At rest and tagged.
    budgets: [Budget; 2],
    command: fn(&Stack, u64) -> Vec<String>,
}

/// Most of what a session costs is by the system call: a program that is linked statically makes few, one of the C library's some forty, and
/// posix_spawn a hundred more than a shell to start one.
const LOADS: [Load; 3] = [
    Load {
        name: "a shell's loop, smallest program there is",
        programs: 6 * PROGRAMS,
        budgets: [Budget::None, Budget::None],
        command: |stack, count| shell_loop(&stack.path("bin/tiny").display().to_string(), count),
    },
    Load {
        name: "a shell's loop, 41 system calls each",
        programs: PROGRAMS,
        budgets: [Budget::MedianAtMost(0.5), Budget::MedianAtMost(3.0)],
        command: |_, count| shell_loop("/bin/true", count),
    },
    Load {
        name: "posix_spawn, 173 system calls each",
        programs: PROGRAMS,
        budgets: [Budget::None, Budget::None],
        command: |_, count| vec!["execs".into(), count.to_string()],
    },
];

impl Load {
    fn is_budgeted(&self) -> bool {
        self.budgets.iter().any(|budget| !matches!(budget, Budget::None))
    }
}

fn shell_loop(program: &str, count: u64) -> Vec<String> {
    let script = format!("n=0; while [ $n -lt {count} ]; do {program} $n; n=$((n+1)); done");
    ["command", "/bin/sh", "-c", &script].map(str::to_owned).to_vec()
}

/// What a program of each load took in one state.
#[derive(Clone, Copy, Default)]
struct Taken {
    /// Set against fresh memory; the median of the state's loops.
    ratios: [f64; LOADS.len()],
    /// Microseconds of processor time; the median of the state's loops.
    micros: [f64; LOADS.len()],
}

/// What recording costs a program. Without a collector: it would share this machine's cores, which it does not do where it matters. Beside it
/// what auditd costs the same programs, where that can be tried.
pub fn measure(effort: Effort) -> Result<Vec<Figure>> {
    Stack::with(Options { ship: false, ..Options::default() }, |stack| {
        tiny::write(&stack.path("bin/tiny"))?;
        let processor = last_processor()?;
        let (mut none, mut auditd, mut rest, mut tagged) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut own_at_rest, mut own_tagged) = (Vec::new(), Vec::new());
        for _ in 0..effort.runs(ROUNDS) {
            stop_agent(stack)?;
            none.push(state(stack, BYSTANDER, processor)?);
            if let Some(running) = Auditd::start(&stack.run)? {
                auditd.push(state(stack, BYSTANDER, processor)?);
                running.stop()?;
            }
            stack.start_agent()?;
            wait_until_quiet(stack)?;
            rest.push(state(stack, BYSTANDER, processor)?);
            own_at_rest.push(own_share(stack, BYSTANDER, processor)?);
            stack.open("measured", "10m")?;
            wait_until_quiet(stack)?;
            tagged.push(state(stack, stack.account.uid, processor)?);
            own_tagged.push(own_share(stack, stack.account.uid, processor)?);
            stack.close()?;
            stack.wait_for_state("locked")?;
        }
        stop_agent(stack)?;
        none.push(state(stack, BYSTANDER, processor)?);
        stack.start_agent()?;
        let states = States { none, auditd, rest, tagged, own_at_rest, own_tagged };
        Ok(LOADS.iter().enumerate().flat_map(|(at, load)| states.figures(at, load)).collect())
    })
}

/// Stops the agent, and what it leaves pinned, which would go on recording.
fn stop_agent(stack: &mut Stack) -> Result<()> {
    stack.agent.stop()?;
    if pins(&stack.run).exists() {
        fs::remove_dir_all(pins(&stack.run))?;
    }
    Ok(())
}

/// What each state's rounds took. Those without an agent are one more than the others.
struct States {
    none: Vec<Taken>,
    auditd: Vec<Taken>,
    rest: Vec<Taken>,
    tagged: Vec<Taken>,
    /// The kernel programs' own share of a program of the load that has budgets, percent.
    own_at_rest: Vec<f64>,
    own_tagged: Vec<f64>,
}

impl States {
    fn figures(&self, at: usize, load: &Load) -> Vec<Figure> {
        let Load { name, budgets: [at_rest, in_session], .. } = load;
        let against = |what: &str, with: &[Taken], budget: Budget| {
            Figure::with_error(format!("{what} ({name})"), "%", self.against_none(with, at), budget)
        };
        let mut figures = vec![
            against("exec overhead, glass whole", &self.rest, *at_rest),
            against("exec overhead, tagged, full record", &self.tagged, *in_session),
        ];
        if load.is_budgeted() {
            let own = |state: &str| format!("the kernel programs' share of it, {state}, by the kernel's count");
            figures.push(Figure::new(own("glass whole"), "%", self.own_at_rest.clone(), *at_rest));
            figures.push(Figure::new(own("tagged"), "%", self.own_tagged.clone(), *in_session));
        }
        if !self.auditd.is_empty() {
            figures.push(against("auditd with a rule for execs", &self.auditd, Budget::None));
        }
        let alone = self.none.iter().filter_map(|taken| taken.micros.get(at).copied()).collect();
        figures.push(Figure::new(format!("without any ({name})"), "µs", alone, Budget::None));
        figures
    }

    /// Each round of a state against the rounds without an agent before and after it, percent.
    fn against_none(&self, with: &[Taken], at: usize) -> Vec<f64> {
        let ratio = |taken: &Taken| taken.ratios.get(at).copied().unwrap_or(f64::NAN);
        let around = self.none.windows(2).map(|pair| pair.iter().map(ratio).sum::<f64>() / 2.0);
        with.iter().zip(around).map(|(with, without)| (ratio(with) / without - 1.0) * 100.0).collect()
    }
}

/// Runs every load many times, as `uid`.
fn state(stack: &Stack, uid: u32, processor: usize) -> Result<Taken> {
    let mut samples: [[Vec<f64>; 2]; LOADS.len()] = Default::default();
    for _ in 0..LOOPS {
        for (load, [ratios, micros]) in LOADS.iter().zip(&mut samples) {
            let memory = probe(stack, BYSTANDER, processor, &["memory".to_owned(), MEMORY.to_string()])?;
            let took = probe(stack, uid, processor, &(load.command)(stack, load.programs))?;
            ratios.push(took / memory);
            micros.push(took / load.programs as f64 / 1000.0);
        }
    }
    let median = |mut samples: Vec<f64>| {
        samples.sort_by(f64::total_cmp);
        percentile(&samples, 0.5)
    };
    let medians = samples.map(|of_load| of_load.map(median));
    Ok(Taken { ratios: medians.map(|[ratio, _]| ratio), micros: medians.map(|[_, micros]| micros) })
}

/// Nanoseconds of processor time of a load that the probe runs as `uid`, with nothing in its environment. What the kernel programs take is in
/// it, since they run in the task that they are about; what others do on this machine is not, as it would be in the time on the clock.
fn probe(stack: &Stack, uid: u32, processor: usize, load: &[String]) -> Result<f64> {
    let mut command = Command::new(machine::program("taskset")?);
    command.env_clear().args(["--cpu-list", &processor.to_string()]).arg(machine::program("setpriv")?);
    command.args(["--reuid", &uid.to_string(), "--clear-groups"]).arg(stack.probe()).args(load);
    Ok(times(&machine::run(&mut command)?)?.1)
}

/// What share of a program's time the kernel programs take that `uid` runs, by the kernel's own count, percent. Counting costs some 40 ns a run,
/// which is in it; the kernel's way to a program, some 15 ns, is not. Nothing else is measured meanwhile.
fn own_share(stack: &Stack, uid: u32, processor: usize) -> Result<f64> {
    let load = LOADS.iter().find(|load| load.is_budgeted()).context("no load has a budget")?;
    let counting = enable_stats(Stats::RunTime).context("cannot have the kernel count")?;
    let before = run_time();
    let mut took = 0.0;
    for _ in 0..LOOPS {
        took += probe(stack, uid, processor, &(load.command)(stack, load.programs))?;
    }
    let own = run_time().saturating_sub(before);
    drop(counting);
    ensure!(!own.is_zero(), "the kernel counted nothing");
    Ok(own.as_nanos() as f64 / took * 100.0)
}

/// How long all kernel programs have run so far, since they were first counted: the agent's, and whatever else this machine has.
fn run_time() -> Duration {
    // One that is gone by now has nothing to say.
    loaded_programs().filter_map(Result::ok).map(|info| info.run_time()).sum()
}

/// The last processor that this process may use.
fn last_processor() -> Result<usize> {
    let allowed = sched_getaffinity(Pid::from_raw(0))?;
    (0..CpuSet::count()).rev().find(|at| allowed.is_set(*at).unwrap_or(false)).context("no processor")
}
