//! The command line of the agent.

use std::{path::PathBuf, process::ExitCode};

use breakglass_agent::{codes, commands, config, daemon, gate};
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
    /// Say what this kernel allows, and why not more, and whether sshd, PAM and the account would let an operator in. Changes nothing.
    #[command(after_help = "Example:\n  breakglass-agent doctor --json\n\n\
        Ends with 0 where the configuration's minimum tier is reached, with 1 where it is not.\n\
        --strict ends with 1 also where something would keep operators out, or a lock is missing;\n\
        --closed also where a known way around the audit is open in this kernel's tier.")]
    Doctor {
        /// The configuration; the defaults are used where it does not exist.
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
        /// For programs.
        #[arg(long)]
        json: bool,
        /// Fail for what would keep operators out, too.
        #[arg(long)]
        strict: bool,
        /// Look at the account, sshd and PAM only, and leave the kernel alone.
        #[arg(long)]
        access: bool,
        /// Fail for known ways around the audit that are open here, too.
        #[arg(long)]
        closed: bool,
    },
    /// List every known way around the audit, and what this version promises about it in each tier.
    #[command(after_help = "Example:\n  breakglass-agent bypasses --json\n\nSee docs/BYPASSES.md.")]
    Bypasses {
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
    /// Stop the agent: recorded with the reason, account locked, kernel programs taken out. Nothing opens until it is started again.
    #[command(after_help = "Example:\n  breakglass-agent stop --reason 'kernel update, CHG-1207'\n\n\
        For root on the host. Refused while a session is open, unless --force ends that first; never from within a session.\n\
        Afterwards: systemctl start breakglass-agent")]
    Stop {
        /// Why, for the record.
        #[arg(long)]
        reason: String,
        /// End the session that is open, with everything that runs in it.
        #[arg(long)]
        force: bool,
        /// The agent's control socket.
        #[arg(long, default_value = "/run/breakglass/control.sock")]
        socket: PathBuf,
    },
    /// Open with a grant that was signed ahead for this host and carried here by hand.
    #[command(after_help = "Example:\n  breakglass-agent open --grant web1.grant\n\n\
        The grant is what `breakglass prepare` wrote; it is good once. Afterwards the key that signed it logs in, by\n\
        ssh from anywhere, or here: ssh breakglass@localhost")]
    Open {
        /// The file with the grant; - for standard input.
        #[arg(long)]
        grant: PathBuf,
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
        /// Leave the account alone while a grant is live: for the timer that is there in case the agent is not.
        #[arg(long)]
        expired: bool,
    },
    /// Decide for PAM whether somebody may become the emergency account: pam_exec's helper.
    #[command(after_help = "Example, in a pam-auth-update profile:\n  \
        required pam_exec.so seteuid quiet /usr/sbin/breakglass-agent gate account\n\n\
        Ends with 0 or 1; see docs/ACCESS.md.")]
    Gate {
        /// What PAM asks.
        phase: gate::Phase,
        /// The emergency account.
        #[arg(long, default_value = "breakglass")]
        account: String,
        /// The agent's runtime folder.
        #[arg(long, default_value = "/run/breakglass")]
        runtime: PathBuf,
        /// The agent's control socket; in the runtime folder where left out.
        #[arg(long)]
        socket: Option<PathBuf>,
    },
    /// Join a collector: make this host's key, and get its certificate for a one-time token.
    #[command(
        after_help = "Example:\n  breakglass-agent enroll --collector https://collector.example.org:7444 --token bge1.…\n\n\
        The token comes from `breakglass-collector enroll token`. The private key never leaves this host."
    )]
    Enroll {
        /// The collector's address.
        #[arg(long, value_name = "URL")]
        collector: String,
        /// The token; "-" reads it from standard input.
        #[arg(long)]
        token: String,
        /// Name that the collector's certificate carries; that of the configuration where left out.
        #[arg(long, value_name = "NAME")]
        server_name: Option<String>,
        /// Replace an enrolment that is there.
        #[arg(long)]
        again: bool,
        /// The configuration; the defaults are used where it does not exist.
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
    /// One-time codes for when there is no key, such as at the console.
    #[command(subcommand)]
    Codes(Codes),
    /// Ask for a new host key, which the next start of the agent makes; for when the old one may be in wrong hands.
    #[command(after_help = "Example:\n  breakglass-agent rekey && systemctl restart breakglass-agent\n\n\
        The new key is <state>/keys/host-key.pub after the start. The collector raises an alert, once.")]
    Rekey {
        /// The configuration.
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
}

#[derive(Subcommand)]
enum Codes {
    /// Make new codes and print them, once. Earlier ones are no good any more.
    #[command(after_help = "Example:\n  breakglass-agent codes issue --count 10 | lp")]
    Issue {
        /// How many.
        #[arg(long, default_value_t = 10)]
        count: usize,
        /// Keep earlier unused ones good.
        #[arg(long)]
        keep: bool,
        /// The configuration.
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
    /// Say how many codes there are.
    #[command(after_help = "Example:\n  breakglass-agent codes status --json")]
    Status {
        /// For programs.
        #[arg(long)]
        json: bool,
        /// The configuration.
        #[arg(long, default_value = config::DEFAULT_PATH)]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Run { config } => daemon::run(&config),
        Command::Doctor { config, json, strict, access, closed } => {
            commands::doctor(&config, commands::DoctorOptions { json, strict, access, closed })
        }
        Command::Bypasses { json } => commands::bypasses(json),
        Command::Status { socket, json } => commands::status(&socket, json),
        Command::Stop { reason, force, socket } => commands::stop(&reason, force, &socket),
        Command::Open { grant, socket, json } => commands::open(&grant, &socket, json),
        Command::Keys { runtime, user } => Ok(commands::keys(&runtime, &user)),
        Command::Lock { config, expired } => commands::lock(&config, expired),
        Command::Gate { phase, account, runtime, socket } => {
            Ok(gate::run(phase, &gate::Place::new(&account, &runtime, socket)))
        }
        Command::Codes(Codes::Issue { count, keep, config }) => codes::command::issue(&config, count, keep),
        Command::Codes(Codes::Status { json, config }) => codes::command::status(&config, json),
        Command::Enroll { collector, token, server_name, again, config } => {
            commands::enroll(&config, &collector, &token, server_name, again)
        }
        Command::Rekey { config } => commands::rekey(&config),
    };
    result.unwrap_or_else(|error| {
        eprintln!("breakglass-agent: {error:#}");
        ExitCode::FAILURE
    })
}
