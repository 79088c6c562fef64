//! L8, the program: the command line, and the wiring of the floors below.

pub mod commit;
pub mod context;
pub mod control;
pub mod host;
pub mod man;
pub mod metrics;
pub mod mount;
pub mod options;
pub mod output;
pub mod progress;
pub mod umount;

use std::process::ExitCode;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, Parser, Subcommand};
use clap_complete::Shell;

use host::Host;
use output::Failure;

const EXAMPLES: &str = "\
The first steps:
  datamon context create prod --store s3://bucket/prefix --option region=eu-west-1
  datamon mount prod /mnt/dm              or: mount -t datamon prod /mnt/dm
  mkdir /mnt/dm/census                    makes a repo
  cp -a data/. /mnt/dm/census/staging/
  sync /mnt/dm/census/staging             commits: a new bundle, seen by every host
  ls /mnt/dm/census/labels/latest/
  umount /mnt/dm                          commits what changed

Everything that can be a file operation is one: cat /mnt/dm/census/.datamon/history";

/// A file system that keeps versioned data sets on plain object storage
#[derive(Debug, Parser)]
#[command(name = "datamon", version, arg_required_else_help = true, after_help = EXAMPLES)]
struct CommandLine {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Make a bundle of a staging tree
    ///
    /// Prints the bundle's id. What was written before it began is in it; writers go on meanwhile. Nothing changed:
    /// nothing is committed, and the base's id is printed. A commit that fails keeps every byte staged.
    #[command(after_help = commit::EXAMPLES)]
    Commit(commit::CommitArgs),
    /// Mount a context, a repo, a staging tree or a version
    ///
    /// The daemon of the mount stays in the background; what is wrong is said before the mount appears. A mount whose
    /// daemon ended is replaced. mount(8) does the same: mount -t datamon SOURCE DIR.
    #[command(after_help = mount::EXAMPLES, after_long_help = mount::long_help())]
    Mount(mount::MountArgs),
    /// Commit what changed, and unmount
    ///
    /// The same as umount(8) of a datamon mount, for users without our helper. Fails, and stays mounted, when what
    /// changed cannot be committed.
    #[command(after_help = umount::EXAMPLES)]
    Umount(umount::UmountArgs),
    /// The first ioctl of the other commands, in a process that can be left behind
    #[command(hide = true)]
    Submit {
        /// A verb in JSON
        verb: String,
        /// A path in the mount
        path: std::path::PathBuf,
    },
    /// The process that ends the connection of a mount whose daemon was killed and cannot
    #[command(hide = true)]
    Keeper(mount::keeper::KeeperArgs),
    /// Contexts: where data sets live
    ///
    /// A context is one instance of datamon in a store. What is kept here is how this host reaches it: no secrets.
    #[command(subcommand, after_help = context::EXAMPLES)]
    Context(context::ContextCommand),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  datamon completions bash > /etc/bash_completion.d/datamon")]
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write the manual pages below a directory
    #[command(hide = true)]
    ManPages {
        /// Such as /usr/local/share/man
        dir: std::path::PathBuf,
    },
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let command = match CommandLine::try_parse() {
        Ok(line) => line.command,
        Err(error) => return wrong_call(&error),
    };
    let host = match Host::of_this_process() {
        Ok(host) => host,
        Err(error) => return Failure::from(error).report(false),
    };
    match command {
        Command::Commit(args) => output::finish(args.json, commit::run(&args, &host)),
        Command::Mount(args) => for_mount_8(&host, mount::run(&args, &host)),
        Command::Umount(args) => for_mount_8(&host, umount::run(&args, &host)),
        Command::Submit { verb, path } => output::finish(true, control::submit(&path, &verb)),
        Command::Keeper(args) => {
            mount::keeper::run(&args);
            ExitCode::SUCCESS
        }
        Command::Context(command) => context::run(command, &host),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut visible(&CommandLine::command()), "datamon", &mut script);
            output::print(&script);
            ExitCode::SUCCESS
        }
        Command::ManPages { dir } => output::finish(false, man::write(&CommandLine::command(), &dir)),
    }
}

/// The command line without what is hidden: completions would offer that, too.
fn visible(command: &clap::Command) -> clap::Command {
    let subs = command.get_subcommands().filter(|sub| !sub.is_hide_set()).cloned();
    clap::Command::new("datamon").version(env!("CARGO_PKG_VERSION")).subcommands(subs)
}

/// Commands that a later version will have.
const LATER: &[&str] = &["purge", "prune", "export", "import"];

/// Help where it was asked for; else one line that says what is wrong with the call.
fn wrong_call(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() || error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        // A terminal that went away is no failure of the call.
        let _ = error.print();
        return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
    }
    let as_json = std::env::args_os().any(|word| word == "--json");
    let failure = Failure::usage(match error.get(ContextKind::InvalidSubcommand) {
        Some(ContextValue::String(word)) if LATER.contains(&&word[..]) => {
            format!("{word}: not in this version (datamon help shows what is)")
        }
        _ => one_line(&error.render().to_string()),
    });
    if std::env::var_os("DATAMON_HELPER").is_some() {
        eprintln!("{}", failure.line());
        return ExitCode::from(1);
    }
    failure.report(as_json)
}

/// clap's words without its usage: that is what the help is for.
fn one_line(rendered: &str) -> String {
    let parts = ["\n\nUsage:", "\n\nFor more information"];
    let end = parts.iter().filter_map(|part| rendered.find(part)).min().unwrap_or(rendered.len());
    let words: Vec<_> = rendered[..end].split_whitespace().collect();
    let said = words.join(" ");
    format!("{} (datamon help shows the commands)", said.strip_prefix("error: ").unwrap_or(&said))
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

    #[test]
    fn every_command_has_a_help_with_an_example() {
        let mut command = CommandLine::command();
        command.build();
        let mut open: Vec<_> = command.get_subcommands().cloned().collect();
        let mut seen = 0;
        while let Some(mut command) = open.pop() {
            if command.get_name() == "help" || command.is_hide_set() {
                continue;
            }
            seen += 1;
            open.extend(command.get_subcommands().cloned());
            let help = command.render_long_help().to_string();
            assert!(help.contains("  datamon "), "{}: {help}", command.get_name());
            for argument in command.get_arguments() {
                assert!(argument.get_help().is_some(), "{}: {}", command.get_name(), argument.get_id());
            }
        }
        assert!(seen > 10, "{seen}");
    }

    #[test]
    fn completions_offer_what_is_visible() {
        let names: Vec<_> =
            visible(&CommandLine::command()).get_subcommands().map(|sub| sub.get_name().to_owned()).collect();
        assert_eq!(names, ["commit", "mount", "umount", "context", "completions"]);
    }

    #[test]
    fn a_wrong_call_is_one_line() {
        let said = |words: &[&str]| {
            let error = CommandLine::try_parse_from(words).unwrap_err();
            Failure::usage(one_line(&error.render().to_string())).line()
        };
        let end = "(datamon help shows the commands)";
        assert_eq!(said(&["datamon", "sing"]), format!("datamon: unrecognized subcommand 'sing' {end}"));
        let missing = format!("datamon: the following required arguments were not provided: <PATH> {end}");
        assert_eq!(said(&["datamon", "commit"]), missing);
        assert!(said(&["datamon", "commit", "-l", "a b", "/x"]).contains("invalid value 'a b' for '--label <LABEL>'"));
    }
}
