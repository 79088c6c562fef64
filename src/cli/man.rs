//! The manual: datamon(1), datamon-context(1) and mount.datamon(8).
//!
//! Commands come from the command line's own definition (clap_mangen), mount options from the table in [`options`]; what
//! is written by hand here is what neither says: files, environment, exit status.

use std::fs;
use std::path::Path;

use clap::Command;
use clap_mangen::Man;

use super::options::{self, OptionText};
use super::output::Failure;

const SOURCE: &str = concat!("datamon ", env!("CARGO_PKG_VERSION"));

/// Writes the pages below `dir`, as man(1) looks for them.
pub fn write(command: &Command, dir: &Path) -> Result<(), Failure> {
    for (section, name, page) in pages(command)? {
        let dir = dir.join(format!("man{section}"));
        let file = dir.join(format!("{name}.{section}"));
        let written = fs::create_dir_all(&dir).and_then(|()| fs::write(&file, page));
        written.map_err(|why| Failure::new("failed", format!("{}: {why}", file.display())))?;
    }
    Ok(())
}

type Page = (char, &'static str, Vec<u8>);

fn pages(command: &Command) -> Result<Vec<Page>, Failure> {
    let mut command = command.clone();
    command.build();
    let context = command.find_subcommand("context").cloned();
    let context = context.ok_or_else(|| Failure::new("failed", "the command line has no `context`"))?;
    let broken = |why: std::io::Error| Failure::new("failed", format!("the manual: {why}"));
    let one = commands(&command, "datamon", DATAMON).map_err(broken)?;
    let two = commands(&context, "datamon-context", CONTEXT).map_err(broken)?;
    Ok(vec![('1', "datamon", one), ('1', "datamon-context", two), ('8', "mount.datamon", mount().into_bytes())])
}

/// A page about a command and what is below it.
fn commands(command: &Command, title: &'static str, rest: &str) -> std::io::Result<Vec<u8>> {
    let mut page = Vec::new();
    let man = Man::new(command.clone().name(title)).title(title).section("1").source(SOURCE).manual("datamon");
    man.render_title(&mut page)?;
    man.render_name_section(&mut page)?;
    man.render_synopsis_section(&mut page)?;
    man.render_description_section(&mut page)?;
    page.extend_from_slice(b".SH COMMANDS\n");
    for sub in command.get_subcommands().filter(|sub| !sub.is_hide_set() && sub.get_name() != "help") {
        page.extend_from_slice(subcommand(sub).as_bytes());
    }
    page.extend_from_slice(rest.as_bytes());
    Ok(page)
}

fn subcommand(sub: &Command) -> String {
    let mut sub = sub.clone();
    let usage = sub.render_usage().to_string().replace("Usage: ", "");
    let about = sub.get_long_about().or(sub.get_about()).map(ToString::to_string).unwrap_or_default();
    let mut text =
        format!(".SS {}\n.nf\n{}\n.fi\n.PP\n{}\n", escaped(sub.get_name()), escaped(&usage), escaped(&about));
    if sub.has_subcommands() {
        return text + &format!(".PP\nSee \\fBdatamon\\-{}\\fR(1).\n", escaped(sub.get_name()));
    }
    for argument in sub.get_arguments().filter(|argument| !argument.is_hide_set() && argument.get_id() != "help") {
        let help = argument.get_help().map(ToString::to_string).unwrap_or_default();
        // An option's own text is its long form, where it has one.
        let short = argument.get_short().filter(|_| argument.get_long().is_some());
        let short = short.map_or_else(String::new, |short| format!("-{short}, "));
        text += &format!(".TP\n\\fB{}\\fR\n{}\n", escaped(&format!("{short}{argument}")), escaped(&help));
    }
    if let Some(examples) = sub.get_after_help() {
        text += &format!(".PP\n.nf\n{}\n.fi\n", escaped(&examples.to_string()));
    }
    text
}

fn mount() -> String {
    let table = |options: &[OptionText]| -> String {
        let entry = |option: &OptionText| {
            let default =
                if option.default.is_empty() { String::new() } else { format!(" Default: {}.", option.default) };
            format!(".TP\n\\fB{}\\fR\n{}.{}\n", escaped(option.form), escaped(option.says), escaped(&default))
        };
        options.iter().map(entry).collect()
    };
    format!(
        ".TH mount.datamon 8 \"\" \"{SOURCE}\" \"datamon\"\n{MOUNT}.SH OPTIONS\n{}.SS The kernel's and mount(8)'s\n{}\
         .PP\nLet through without effect: _netdev, nofail, [no]auto, [no]user, users, owner, group, defaults, [no]atime, \
         relatime, x\\-*, comment=.\n.SS Of the store\nThe same as with \\fBdatamon context create \\-\\-option\\fR, for \
         this mount alone.\n{}{MOUNT_END}",
        table(options::OPTIONS),
        table(options::KERNEL_OPTIONS),
        table(options::STORE_OPTIONS),
    )
}

/// Text as roff takes it: backslashes, dashes that are meant, and no line that begins as a request does.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\e").replace('-', "\\-").replace('…', "...");
    let line = |line: &str| if line.starts_with(['.', '\'']) { format!("\\&{line}") } else { line.to_owned() };
    text.lines().map(line).collect::<Vec<_>>().join("\n")
}

const DATAMON: &str = r#".SH EXIT STATUS
.TP
.B 0
Done.
.TP
.B 1
Failed: one line on stderr says what, why and what to do.
.TP
.B 2
A wrong call.
.PP
With \fB\-\-json\fR an error is also an object on stdout: {"error":{"kind","message","remedy"}}.
.SH ENVIRONMENT
.TP
.BR DATAMON_CONFIG_DIR ", " DATAMON_STATE_DIR ", " DATAMON_CACHE_DIR
Other places for contexts, staged changes, and what can be lost.
.TP
.B DATAMON_LOG
What is logged: error, warn, info, debug.
.TP
.B DATAMON_CONTRIBUTOR
Who commits, of commit, umount and mount; see IDENTITY in mount.datamon(8).
.TP
.B AWS_*
Credentials, as the cloud's own tools read them. They are never written to a file of ours.
.SH FILES
.TP
.I /etc/datamon/contexts.d/NAME.toml
How this host reaches a context (others than root: ~/.config/datamon/contexts.d, then these).
.TP
.I /var/lib/datamon
Staged changes: precious (others than root: ~/.local/state/datamon).
.TP
.I journal, syslog
What happened, from daemons in the background: \fBjournalctl \-t datamon\fR, of one mount with DATAMON_MOUNT=DIR. On a host that
keeps neither: log/CONTEXT.log in the state directory. \fIstatus\fR says where.
.TP
.I .datamon/
In a context, a repo and a staging tree: status, stats, history, wal, reads, ctl, message, labels, diff, bundle. Never
listed, reachable by name. \fIbundle/ID/info\fR says who made a version, when, and from which others (derived_from).
.SH EXTENDED ATTRIBUTES
.B getfattr \-n user.datamon.NAME
answers, of a version: bundle, labels, contributor, state, repo, context; of a directory in it rfiles and rbytes, of a file of
one chunk blake3; of a staging tree state. They are not listed, so that no copy takes them along.
.SH SEE ALSO
.BR datamon\-context (1),
.BR mount.datamon (8),
.BR mount (8),
.BR sync (1)
"#;

const CONTEXT: &str = r#".SH FILES
.TP
.I /etc/datamon/contexts.d/NAME.toml
How this host reaches a context (others than root: ~/.config/datamon/contexts.d, then these). No secrets.
.SH SEE ALSO
.BR datamon (1),
.BR mount.datamon (8)
"#;

const MOUNT: &str = r#".SH NAME
mount.datamon, umount.datamon \- mount and unmount versioned data sets
.SH SYNOPSIS
.nf
mount \-t datamon [\-o \fIoptions\fR] \fISOURCE\fR \fIDIR\fR
mount \-o remount,ro|rw \fIDIR\fR
umount \fIDIR\fR
.fi
.SH DESCRIPTION
The source is a path in the namespace of datamon, with or without \fBdatamon:\fR in front:
.TP
.B CONTEXT
a whole context
.TP
.B CONTEXT/REPO
a repo: bundles, labels, staging
.TP
.B CONTEXT/REPO/staging
the repo's writable tree
.TP
.BR CONTEXT/REPO/labels/NAME ", " CONTEXT/REPO/bundles/ID
a version, read\-only; a label is pinned to what it names when it is mounted
.PP
.BR mount (8)
makes a source that exists as a path below the working directory absolute: write \fBdatamon:\fR in front, or use
\fBmount \-c\fR.
.PP
.B umount
commits every changed staging tree of the mount and prints the bundles; when that fails the mount stays, and writing goes
on. \fBumount \-l\fR, \fBumount \-i\fR and a killed daemon commit nothing and lose nothing.
"#;

const MOUNT_END: &str = r#".SH IDENTITY
Whose name a commit, a label's move or a removal has in the history. The first that says something:
.TP
.B 1
\fBcontributor=\fR of the mount's options.
.TP
.B 2
\fBcontributor\fR of the context (\fBdatamon context edit NAME \-\-option contributor=...\fR).
.TP
.B 3
\fBDATAMON_CONTRIBUTOR\fR in the environment of \fBdatamon commit\fR or \fBumount\fR.
.TP
.B 4
\fBDATAMON_CONTRIBUTOR\fR in the environment of the mount.
.TP
.B 5
The user who did it, not the daemon's, and the host: ada@lab. Of who mounted: SUDO_USER, USER or LOGNAME, else, as of all
others, the name in /etc/passwd, else the one that \fBgetent passwd\fR says (LDAP, sssd), asked for two seconds at most. A
name that nobody says is \fBuid N\fR.
.PP
It is a claim: what somebody may do rests on the store's credentials and on modes, never on this.
.SH EXIT STATUS
.TP
.B 0
Done.
.TP
.B 1
A wrong call, or not permitted.
.TP
.B 32
The mount, or the commit of an unmount, failed.
.SH EXAMPLES
A version, mounted when it is first looked at (in /etc/fstab):
.PP
.nf
prod/census/labels/v1  /data/census  datamon  ro,_netdev,nofail,x\-systemd.automount  0 0
.fi
.SH SEE ALSO
.BR datamon (1),
.BR datamon\-context (1),
.BR mount (8),
.BR fstab (5)
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manual_tells_every_option_and_every_command() {
        let command = Command::new("datamon")
            .about("x")
            .subcommand(Command::new("commit").about("Make a bundle").after_help("Example:\n  datamon commit"))
            .subcommand(Command::new("context").about("Contexts").subcommand(Command::new("add").about("Add one")));
        let pages = pages(&command).unwrap();
        let text = |at: usize| String::from_utf8(pages[at].2.clone()).unwrap();
        for option in options::OPTIONS.iter().chain(options::STORE_OPTIONS).chain(options::KERNEL_OPTIONS) {
            assert!(text(2).contains(&escaped(option.form)), "{}", option.form);
        }
        assert!(
            text(0).contains(".SS commit\n") && text(0).contains("See \\fBdatamon\\-context\\fR(1)"),
            "{}",
            text(0)
        );
        assert!(text(1).contains(".SS add\n"), "{}", text(1));
    }

    #[test]
    fn a_line_that_looks_like_a_request_is_text() {
        assert_eq!(escaped(".x\n'y -z\\"), "\\&.x\n\\&'y \\-z\\e");
    }
}
