//! The command line of the agent.

use std::{path::PathBuf, process::ExitCode};

use breakglass_agent::{commands, config, daemon};
use clap::{Parser, Subcommand};

/// Opens, records and closes emergency access to this host.
#[derive(Parser)]
#[command(name = "breakglass-agent", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the agent: lock the account, load the kernel programs, wait for operators.
    #[command(after_help = "Example:\n  breakglass-agent run --config /etc/breakglass/agent.toml\n\n\
        Messages go to standard error; BREAKGLASS_LOG=debug shows more.")]
    Run {
        /// The configuration.
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Say what this kernel allows, and why not more. Changes nothing.
    #[command(after_help = "Example:\n  breakglass-agent doctor --json\n\n\
        Ends with 0 where the configuration's minimum tier is reached, with 1 where it is not.")]
    Doctor {
        /// The configuration; the defaults are used where it does not exist.
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Say where the running agent stands.
    #[command(after_help = "Example:\n  breakglass-agent status --json")]
    Status {
        /// The agent's control socket.
        #[arg(long, default_value = "/run/breakglass/control.sock")]
        socket: PathBuf,
        /// For programs.
        #[arg(long)]
        json: bool,
    },
    /// Print the keys that may log in as USER now: sshd's AuthorizedKeysCommand.
    #[command(after_help = "Example, in sshd_config:\n  \
        AuthorizedKeysCommand /usr/sbin/breakglass-agent keys --runtime /run/breakglass %u\n  \
        AuthorizedKeysCommandUser root")]
    Keys {
        /// The agent's runtime folder.
        #[arg(long, default_value = "/run/breakglass")]
        runtime: PathBuf,
        /// The account that somebody wants to log into.
        user: String,
    },
    /// Lock the emergency account and end: before logins are possible at boot, and after the agent died.
    #[command(after_help = "Example:\n  breakglass-agent lock --config /etc/breakglass/agent.toml")]
    Lock {
        /// The configuration.
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Ask for a new host key, which the next start of the agent makes; for when the old one may be in wrong hands.
    #[command(after_help = "Example:\n  breakglass-agent rekey && systemctl restart breakglass-agent\n\n\
        The new key is <state>/keys/host-key.pub after the start. The collector raises an alert, once.")]
    Rekey {
        /// The configuration.
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run { config } => daemon::run(&config),
        Command::Doctor { config, json } => commands::doctor(&config, json),
        Command::Status { socket, json } => commands::status(&socket, json),
        Command::Keys { runtime, user } => Ok(commands::keys(&runtime, &user)),
        Command::Lock { config } => commands::lock(&config),
        Command::Rekey { config } => commands::rekey(&config),
    };
    result.unwrap_or_else(|error| {
        eprintln!("breakglass-agent: {error:#}");
        ExitCode::FAILURE
    })
}
