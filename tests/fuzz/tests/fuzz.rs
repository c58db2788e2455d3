//! The corpus of every target, and mutations of it: the same in every run.

use std::{
    fs,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use breakglass_fuzz::{
    TARGETS, Target,
    mutate::{Numbers, mutate},
};
use libtest_mimic::{Arguments, Failed, Trial};

/// Mutated inputs for each target. At some 20 µs each, a few seconds for all together.
const MUTATIONS: usize = 4_000;

fn main() {
    let trials = TARGETS.iter().map(|target| Trial::test(target.name, || feed(target))).collect();
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn feed(target: &Target) -> Result<(), Failed> {
    let corpus = corpus(target.name)?;
    if corpus.is_empty() {
        return Err("it has no corpus".into());
    }
    for (name, input) in &corpus {
        run(target, input).map_err(|panic| format!("corpus/{}/{name}: {panic}", target.name))?;
    }
    let mut numbers = Numbers::named(target.name);
    for round in 0..MUTATIONS {
        let input = &corpus[numbers.below(corpus.len())].1;
        let other = &corpus[numbers.below(corpus.len())].1;
        let mutated = mutate(input, other, target.max_len, &mut numbers);
        run(target, &mutated).map_err(|panic| format!("mutation {round}: {panic}\n{}", mutated.escape_ascii()))?;
    }
    Ok(())
}

/// Runs it; an error is what the panic said.
fn run(target: &Target, input: &[u8]) -> Result<(), String> {
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).map_err(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string)).unwrap_or_default()
    })
}

/// Names and contents, in the order of names.
fn corpus(name: &str) -> std::io::Result<Vec<(String, Vec<u8>)>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(name);
    let mut files = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        files.push((entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?));
    }
    files.sort();
    Ok(files)
}
