//! L8, the program: the command line, and the wiring of the floors below.

pub mod commit;
pub mod context;
pub mod control;
pub mod host;
pub mod mount;
pub mod options;
pub mod output;
pub mod umount;

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
    /// Make a bundle of a staging tree
    Commit(commit::CommitArgs),
    /// Mount a context, a repo, a staging tree or a version
    Mount(mount::MountArgs),
    /// Commit what changed, and unmount
    Umount(umount::UmountArgs),
    /// The first ioctl of the other commands, in a process that can be left behind
    #[command(hide = true)]
    Submit {
        /// A verb in JSON
        verb: String,
        /// A path in the mount
        path: std::path::PathBuf,
    },
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
        Command::Commit(args) => output::finish(args.json, commit::run(&args)),
        Command::Mount(args) => for_mount_8(&host, mount::run(&args, &host)),
        Command::Umount(args) => for_mount_8(&host, umount::run(&args)),
        Command::Submit { verb, path } => output::finish(true, control::submit(&path, &verb)),
        Command::Context(command) => context::run(command, &host),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut CommandLine::command(), "datamon", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
    }
}

/// Ends a command that mount(8) or umount(8) may have called through our helper: then with their exit codes.
fn for_mount_8(host: &Host, result: Result<(), Failure>) -> ExitCode {
    match result {
        Err(failure) if host.environment.get("DATAMON_HELPER").is_some() => {
            eprintln!("{}", failure.line());
            ExitCode::from(if failure.kind == "usage" { 1 } else { 32 })
        }
        result => output::finish(false, result),
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
