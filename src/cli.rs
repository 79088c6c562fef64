//! L8, the program: the command line, and the wiring of the floors below.

pub mod context;
pub mod host;
pub mod output;

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use host::Host;
use output::Failure;

/// A file system that keeps versioned data sets on plain object storage
#[derive(Debug, Parser)]
#[command(name = "datamon", version, arg_required_else_help = true)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Contexts: where data sets live
    #[command(subcommand)]
    Context(context::ContextCommand),
    /// Print a completion script for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let command = CommandLine::parse().command;
    let host = match Host::of_this_process() {
        Ok(host) => host,
        Err(error) => return Failure::from(error).report(false),
    };
    match command {
        Command::Context(command) => context::run(command, &host),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut CommandLine::command(), "datamon", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        CommandLine::command().debug_assert();
    }
}
