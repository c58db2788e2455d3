//! Many cases on one installation, each with a verdict of its own: to start an installation for each would take minutes.

use std::time::Instant;

use anyhow::{Result, ensure};

/// Runs cases one after the other; one that fails does not keep the others from running.
#[derive(Default)]
pub struct Cases {
    run: usize,
    failed: Vec<String>,
}

impl Cases {
    /// Runs one, and prints how it went.
    pub fn case(&mut self, name: &str, run: impl FnOnce() -> Result<()>) {
        let started = Instant::now();
        let result = run();
        let seconds = started.elapsed().as_secs_f64();
        self.run += 1;
        match result {
            Ok(()) => println!("case ok     {seconds:5.1}s {name}"),
            Err(error) => {
                println!("case FAILED {seconds:5.1}s {name}: {error:#}");
                self.failed.push(name.to_owned());
            }
        }
    }

    /// Fails if any did, or if none ran.
    pub fn verdict(self) -> Result<()> {
        ensure!(self.run > 0, "no case ran");
        ensure!(
            self.failed.is_empty(),
            "{} of {} cases failed: {}",
            self.failed.len(),
            self.run,
            self.failed.join("; ")
        );
        println!("{} cases passed", self.run);
        Ok(())
    }
}
