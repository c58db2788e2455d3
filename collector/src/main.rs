//! `breakglass-collector`: see `breakglass-collector --help`.

#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    breakglass_collector::cli::main()
}
