//! `datamon commit`: makes a bundle of the staging tree that a path lies in.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::cli::control;
use crate::cli::host::Host;
use crate::cli::output::{Failure, print_json, print_line};
use crate::cli::progress::Shown;
use crate::model::job::{Committed, Verb};
use crate::model::name::LabelName;

/// For the help.
pub const EXAMPLES: &str = "\
Examples:
  datamon commit /mnt/dm/census/staging
  datamon commit -m 'August' -l v1 /mnt/dm/census/staging
  id=$(datamon commit /mnt/dm/census/staging) && ls /mnt/dm/census/bundles/$id

The same without this command: sync /mnt/dm/census/staging";

/// The arguments of `datamon commit`.
#[derive(Debug, Args)]
pub struct CommitArgs {
    /// What changed, and why
    #[arg(short, long)]
    message: Option<String>,
    /// A label to set on the bundle; repeatable
    #[arg(short, long = "label", value_name = "LABEL")]
    labels: Vec<LabelName>,
    /// One JSON object on stdout
    #[arg(long)]
    pub json: bool,
    /// Any path inside the staging tree
    path: PathBuf,
}

/// Commits, and prints the bundle's id.
pub fn run(args: &CommitArgs, host: &Host) -> Result<(), Failure> {
    let labels = args.labels.iter().map(ToString::to_string).collect();
    let contributor = host.contributor();
    let verb = Verb::Commit { message: args.message.clone(), labels, all: false, contributor };
    let path = args.path.display().to_string();
    let commits = control::carry_out(&args.path, &verb, Shown::on_a_terminal("committing"));
    let commits = commits.map_err(|failure| failure.about(&path))?;
    let missing = || Failure::new("failed", format!("{path}: the daemon named no bundle"));
    show(commits.first().ok_or_else(missing)?, args.json);
    Ok(())
}

fn show(done: &Committed, as_json: bool) {
    if as_json {
        return print_json(&json!(done));
    }
    if !done.changed {
        eprintln!("unchanged");
    }
    control::tell_notes(done);
    print_line(&done.bundle);
}
