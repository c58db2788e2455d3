//! The command line: what can be asked for, and what the exit code says.

use std::{
    io::{self, Write},
    path::PathBuf,
    process::ExitCode,
};

use clap::{Args, CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use crate::{
    config::Config,
    evidence,
    operator::{self, failure::Failure},
    print::{Color, Options, note, safe},
    security::{self, client},
};

const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  failure
  2  the command line, or what it asks for, makes no sense
  3  refused by the host or the collector; the message says why
  4  nothing found, no such session
  5  cannot connect
  6  verify: sound, but no --host-key to hold it against
  7  some of several hosts failed; each said why

The configuration is looked for in --config, $BREAKGLASS_CONFIG and ~/.config/breakglass/config.toml, in this order.";

const EXAMPLES: &str = "\
Examples:
  breakglass open web1 --reason 'database down, SSO unreachable' --ttl 30m
  breakglass sessions --open
  breakglass show 5f2c9a1e
  breakglass replay 5f2c9a1e --speed 4
  breakglass search 'drop table'";

/// Break the glass on a locked-down host, and see what was done behind it.
///
/// Operators open and close emergency sessions with their own SSH key. The security team lists, reads, replays and
/// searches what the hosts recorded.
#[derive(Debug, Parser)]
#[command(name = "breakglass", version, after_help = EXAMPLES, after_long_help = format!("{EXAMPLES}\n\n{EXIT_CODES}"))]
#[command(max_term_width = 100, disable_help_subcommand = true)]
pub struct Cli {
    /// Options of every command.
    #[command(flatten)]
    pub global: Global,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// Options of every command.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Options of every command")]
pub struct Global {
    /// Configuration file.
    #[arg(long, global = true, env = "BREAKGLASS_CONFIG", hide_env_values = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print one JSON object a line, whole and exact, in place of text for people.
    #[arg(long, global = true)]
    pub json: bool,
    /// When to colour: auto (on a terminal, unless NO_COLOR is set), always or never.
    #[arg(long, global = true, value_enum, default_value_t, value_name = "WHEN", hide_possible_values = true)]
    pub color: Color,
    /// Show times in UTC, not in this machine's time zone. (JSON is always in UTC.)
    #[arg(long, global = true)]
    pub utc: bool,
}

/// What can be done.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Break the glass: sign, open an emergency session on one host or several, and log in
    Open(operator::OpenArgs),
    /// Log in again to a host that you opened from here, or to another of several
    Login(operator::LoginArgs),
    /// Sign a grant ahead, for a host that cannot be reached; it is carried there by hand
    Prepare(operator::PrepareArgs),
    /// Consent to somebody else's request, where a host asks for several people
    Cosign(operator::CosignArgs),
    /// Close emergency sessions
    Close(operator::CloseArgs),
    /// Ask hosts how they stand: locked or open, recording, connected
    Status(operator::StatusArgs),
    /// List the hosts that record to the collector
    Hosts(security::hosts::HostsArgs),
    /// List sessions, newest first
    Sessions(security::sessions::SessionsArgs),
    /// Show who opened a session, why, and every command run in it
    Show(security::show::ShowArgs),
    /// Play back a session's terminal as it was
    Replay(security::replay::ReplayArgs),
    /// Print everything recorded in a session, as JSON
    Events(security::events::EventsArgs),
    /// Find text in commands, in what was typed and in what the screen showed
    Search(security::search::SearchArgs),
    /// Sign a session off, once you have looked at it
    Review(security::review::ReviewArgs),
    /// Save everything that proves a session, as one file to be verified offline
    Export(security::export::ExportArgs),
    /// List what the collector raised the alarm for, such as silent hosts, and say that you have looked
    Alerts(security::alerts::AlertsArgs),
    /// End a session on its host, by way of the collector
    Terminate(security::orders::TerminateArgs),
    /// Have a host read its rules about grants anew
    Refresh(security::orders::RefreshArgs),
    /// Ask a host's agent for an answer
    Reach(security::orders::ReachArgs),
    /// List what people did by way of the collector
    Acts(security::alerts::ActsArgs),
    /// Verify an evidence file: offline, with public keys only
    Verify(evidence::VerifyArgs),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  breakglass completions bash > /etc/bash_completion.d/breakglass")]
    Completions {
        /// The shell.
        shell: Shell,
    },
}

/// Runs what the command line says.
pub async fn main() -> ExitCode {
    match run(Cli::parse().settled()).await {
        Ok(code) => ExitCode::from(code),
        Err(error) => ExitCode::from(report(&error)),
    }
}

impl Cli {
    /// Tells the commands that print by themselves what was asked for, wherever on the line it stands.
    fn settled(mut self) -> Self {
        let json = self.global.json;
        match &mut self.command {
            Command::Open(args) => args.json = json,
            Command::Close(args) => args.json = json,
            Command::Status(args) => args.json = json,
            _ => {}
        }
        self
    }
}

async fn run(cli: Cli) -> anyhow::Result<u8> {
    if let Command::Completions { shell } = cli.command {
        return completions(shell);
    }
    let options = Options { json: cli.global.json, color: cli.global.color, utc: cli.global.utc };
    if let Command::Verify(args) = &cli.command {
        // Needs no configuration, so that anybody can.
        return evidence::run(args, &options);
    }
    let config = Config::load(cli.global.config.as_deref())?;
    match &cli.command {
        Command::Open(args) => operator::run_open(args, &config).await,
        Command::Login(args) => operator::run_login(args, &config, options.json).await,
        Command::Prepare(args) => operator::run_prepare(args, &config, options.json).await,
        Command::Cosign(args) => operator::run_cosign(args, &config, options.json).await,
        Command::Close(args) => operator::run_close(args, &config).await,
        Command::Status(args) => operator::run_status(args, &config).await,
        Command::Hosts(args) => security::hosts::run(args, &config, &options).await,
        Command::Sessions(args) => security::sessions::run(args, &config, &options).await,
        Command::Show(args) => security::show::run(args, &config, &options).await,
        Command::Replay(args) => security::replay::run(args, &config, &options).await,
        Command::Events(args) => security::events::run(args, &config, &options).await,
        Command::Search(args) => security::search::run(args, &config, &options).await,
        Command::Review(args) => security::review::run(args, &config, &options).await,
        Command::Export(args) => security::export::run(args, &config, &options).await,
        Command::Alerts(args) => security::alerts::run(args, &config, &options).await,
        Command::Terminate(args) => security::orders::run_terminate(args, &config, &options).await,
        Command::Refresh(args) => security::orders::run_refresh(args, &config, &options).await,
        Command::Reach(args) => security::orders::run_reach(args, &config, &options).await,
        Command::Acts(args) => security::alerts::run_acts(args, &config, &options).await,
        Command::Verify(args) => evidence::run(args, &options),
        Command::Completions { shell } => completions(*shell),
    }
}

fn completions(shell: Shell) -> anyhow::Result<u8> {
    // Into memory first: the generator panics on a closed pipe.
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "breakglass", &mut script);
    io::stdout().write_all(&script)?;
    Ok(0)
}

/// Says what went wrong and chooses the exit code.
fn report(error: &anyhow::Error) -> u8 {
    if is_closed_pipe(error) {
        // Whoever read our output has seen enough.
        return 0;
    }
    note(&safe::lines(format!("breakglass: {error:#}").as_bytes()));
    let of_client =
        |cause: &(dyn std::error::Error + 'static)| Some(cause.downcast_ref::<client::Error>()?.exit_code());
    let of_operator = |cause: &(dyn std::error::Error + 'static)| Some(cause.downcast_ref::<Failure>()?.exit_code());
    error.chain().find_map(|cause| of_client(cause).or_else(|| of_operator(cause))).unwrap_or(1)
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let broken = |cause: &io::Error| cause.kind() == io::ErrorKind::BrokenPipe;
    error.chain().any(|cause| cause.downcast_ref::<io::Error>().is_some_and(broken))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_shows_an_example() {
        let mut cli = Cli::command();
        cli.build();
        for command in cli.get_subcommands_mut() {
            let help = command.render_long_help().to_string();
            assert!(help.contains("Example"), "{} has no example", command.get_name());
        }
    }

    #[test]
    fn outputs_that_exclude_each_other_are_refused() {
        for flags in [["--raw", "--json"], ["--raw", "--input"], ["--asciicast", "--json"], ["--raw", "--asciicast"]] {
            assert!(Cli::try_parse_from([["breakglass", "replay"], flags].concat()).is_err());
            assert!(Cli::try_parse_from([["breakglass", "replay"], flags].concat().into_iter().chain(["x"])).is_err());
        }
    }

    /// What each command has to be given.
    const LINES: &[&[&str]] = &[
        &["open", "web1", "--reason", "x"],
        &["login", "web1"],
        &["prepare", "web1", "--reason", "x", "--host-id", "h"],
        &["cosign", "request"],
        &["close", "web1"],
        &["status", "web1"],
        &["hosts"],
        &["sessions"],
        &["show", "s"],
        &["replay", "s"],
        &["events", "s"],
        &["search", "x"],
        &["review", "s", "--verdict", "ok"],
        &["export", "s", "--evidence", "s.bge"],
        &["alerts"],
        &["terminate", "s", "--reason", "x"],
        &["refresh", "web1", "--reason", "x"],
        &["reach", "web1"],
        &["acts"],
        &["verify", "evidence.bge"],
        &["completions", "bash"],
    ];

    #[test]
    fn json_works_on_either_side_of_every_command() {
        let named: Vec<&str> = LINES.iter().map(|line| line[0]).collect();
        let command = Cli::command();
        let all: Vec<&str> = command.get_subcommands().map(clap::Command::get_name).collect();
        assert_eq!(named, all, "every command, in its order");
        for line in LINES {
            let before = [&["breakglass", "--json"], *line].concat();
            let behind = [&["breakglass"], *line, &["--json"]].concat();
            let neither = [&["breakglass"], *line].concat();
            for (words, asked) in [(before, true), (behind, true), (neither, false)] {
                let cli = Cli::try_parse_from(&words).unwrap_or_else(|error| panic!("{words:?}: {error}")).settled();
                let told = match &cli.command {
                    Command::Open(args) => args.json,
                    Command::Close(args) => args.json,
                    Command::Status(args) => args.json,
                    _ => cli.global.json,
                };
                assert_eq!((cli.global.json, told), (asked, asked), "{words:?}");
            }
        }
    }
}
