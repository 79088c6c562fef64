//! `datamon mount`: wires the floors below into the daemon of one mount.
//!
//! Everything that can be refused is refused before the mount appears. In the background this process starts itself
//! again with `-f --child`; the child says one line on its stdout, `ready` or the refusal, and lives on alone.

mod identity;
pub mod keeper;
mod place;
mod process;
pub mod remount;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;

use crate::cli::host::Host;
use crate::cli::metrics;
use crate::cli::options::{self, MountOptions};
use crate::cli::output::{Failure, print_line};
use crate::config::Context;
use crate::content::reader::ContentReader;
use crate::faults::Faults;
use crate::fuse::session::{self, Access};
use crate::local::db::DatabaseMemory;
use crate::local::sys;
use crate::model::name::ContextName;
use crate::snapshot::RangeCache;
use crate::store::share::Limits;
use crate::telemetry::host::HostLog;
use crate::telemetry::{self, Destination};
use crate::vfs::namespace::{Settings, Source, Vfs};
use crate::vfs::shown::Shown;

/// How long a child that said why it does not mount may take to end.
const END_LIMIT: Duration = Duration::from_secs(2);

/// For the help.
pub const EXAMPLES: &str = "\
Examples:
  datamon mount prod /mnt/dm                                   a whole context
  datamon mount prod/census/staging /work                      a repo's writable tree
  datamon mount prod/census/labels/v1 /data -o ro              a version
  datamon mount prod /mnt/dm -o base=v1,commit=manual
  mount -o remount,ro /mnt/dm
In /etc/fstab:
  prod/census/labels/v1  /data/census  datamon  ro,_netdev,nofail,x-systemd.automount  0 0

--help lists the options of -o";

/// The same, with all options.
pub fn long_help() -> String {
    format!("{EXAMPLES}\n\n{}", options::help()).replace("--help lists the options of -o\n\n", "")
}

/// How long a mount looks for what earlier ones left: nobody is answered before.
const LEFT_LIMIT: Duration = Duration::from_secs(5);
/// What a mount in the background says to who waits for it: begins a line to be told, and that it is there.
const NOTE: &str = "note: ";
const READY: &str = "ready";

/// The arguments of `datamon mount`.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// Mount options, as for mount(8)
    #[arg(short = 'o', value_name = "OPT[,OPT...]")]
    options: Vec<String>,
    /// Stay in the foreground, log to stderr
    #[arg(short = 'f', long)]
    foreground: bool,
    /// The child of a mount in the background
    #[arg(long, hide = true)]
    child: bool,
    /// What to mount: CONTEXT, CONTEXT/REPO, CONTEXT/REPO/staging, …/labels/NAME, …/bundles/ID
    source: String,
    /// Where
    dir: PathBuf,
}

/// Mounts; in the foreground until it is unmounted.
pub fn run(args: &MountArgs, host: &Host) -> Result<(), Failure> {
    if MountOptions::parse(&args.options, sys::identity().0 == 0).map_err(Failure::usage)?.remount {
        return remount::run(&place::absolute(&args.dir)?, &args.options);
    }
    if args.foreground || args.child {
        let outcome = serve(args, host);
        if let (true, Err(failure)) = (args.child, &outcome) {
            print_line(&serde_json::json!([failure.kind, failure.message, failure.remedy]).to_string());
        }
        return outcome;
    }
    let dir = place::absolute(&args.dir)?;
    let mut child = Command::new("/proc/self/exe");
    child.arg0(process::DAEMON).arg("mount").arg("--child");
    for option in &args.options {
        child.args(["-o", option]);
    }
    child.arg("--").arg(&args.source).arg(&dir);
    // Nothing of the caller's stays in use: not its directory, its terminal or its pipes.
    child.current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let broken = |why: String| Failure::new("failed", format!("{}: {why}", args.source));
    let mut child = child.spawn().map_err(|why| broken(why.to_string()))?;
    let out = child.stdout.take().expect("it was asked for two lines ago");
    let mut out = BufReader::new(out);
    let mut line = String::new();
    loop {
        line.clear();
        out.read_line(&mut line).map_err(|why| broken(why.to_string()))?;
        match line.strip_prefix(NOTE) {
            Some(note) => eprintln!("datamon: {}", note.trim_end()),
            None if line.trim() == READY => return Ok(()),
            None => break,
        }
    }
    wait_a_moment(&mut child);
    let told: Option<(String, String, Option<String>)> = serde_json::from_str(&line).ok();
    let (kind, message, remedy) =
        told.ok_or_else(|| broken("the daemon ended before it was ready (mount with -f to see why)".to_owned()))?;
    Err(Failure { kind: if kind == "usage" { "usage" } else { "failed" }, message, remedy })
}

/// Lets a child that was refused end first: systemd reports what a mount that failed leaves running.
fn wait_a_moment(child: &mut Child) {
    let start = Instant::now();
    while start.elapsed() < END_LIMIT && matches!(child.try_wait(), Ok(None)) {
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What a source names: the context, and a path in it.
fn parse_source(text: &str) -> Result<(ContextName, Source), Failure> {
    let path = text.strip_prefix("datamon:").unwrap_or(text);
    if path.starts_with('/') {
        let sentence = format!("{text}: a source is no path of this host (write datamon:CONTEXT/…, or use mount -c)");
        return Err(Failure::usage(sentence));
    }
    let (context, rest) = path.split_once('/').unwrap_or((path, ""));
    let name = context.parse().map_err(|why| Failure::usage(format!("{context}: {why}")))?;
    let source = rest.parse().map_err(|why| Failure::usage(format!("{text}: {why}")))?;
    Ok((name, source))
}

fn serve(args: &MountArgs, host: &Host) -> Result<(), Failure> {
    let root = sys::identity().0 == 0;
    let options = MountOptions::parse(&args.options, root).map_err(Failure::usage)?;
    let (name, source) = parse_source(&args.source)?;
    let mut context = host.places.context(&name)?;
    context.options.extend(options.store.clone());
    let state = options.state.clone().unwrap_or_else(|| host.places.state.clone());
    let (dir, replaced) = place::mount_point(&args.dir)?;
    place::check(&dir, &state, host, &context)?;
    place::settle(&state, &context.id.to_string())?;
    let destination = destination(args, &options, &state.join("log").join(format!("{}.log", context.name)), &dir);
    let log = destination.to_string();
    let started = telemetry::start(destination, host.environment.get("DATAMON_LOG"));
    started.map_err(|why| match why.kind() {
        std::io::ErrorKind::InvalidInput => Failure::usage(why.to_string()),
        _ => Failure::new("failed", format!("log: {why} (choose another place: -o log=FILE)")),
    })?;
    if let Some(what) = replaced {
        tracing::warn!(dir = %dir.display(), "{what}: another takes its place");
    }
    if let Err(why) = std::fs::write("/proc/self/comm", process::DAEMON) {
        tracing::warn!(%why, "ps(1) shows this daemon by another name");
    }
    sys::bound_heap();
    if let Err(why) = sys::raise_open_files() {
        tracing::warn!(%why, "no more files can be open than the shell allowed (ulimit -n)");
    }
    // Before any thread is started, so that all of them leave these signals to the one that waits.
    let terminated = sys::catch_termination();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|why| Failure::new("failed", format!("threads: {why}")))?;

    let read_only = options.read_only || matches!(source, Source::Bundle(..) | Source::Label(..));
    let settings = settings(args, host, &options, &context, Places { state, log }, read_only)?;
    // Before the mount appears: an address that is taken is refused.
    let numbers = options.metrics.map(metrics::bind).transpose()?;
    let limits = Limits {
        timeout: options.timeout,
        uploads: options.requests.0,
        downloads: options.requests.1,
        bytes_per_second: options.bytes_per_second,
    };
    let store = context.open(&host.environment, &options.store, limits, host.clock.clone(), host.entropy.clone());
    let store = store.map_err(|why| Failure::from(why).about(&args.source))?;
    let make_reader = if options.verify { ContentReader::new } else { ContentReader::unverified };
    let reader = make_reader(store.clone(), options.memory / 4);
    let ranges = RangeCache::new(options.memory / 32 * 3);
    let vfs = runtime.block_on(Vfs::new(store, reader, ranges, settings, source));
    let vfs = vfs.map_err(|why| Failure::new("failed", format!("{}: {why}", args.source)))?;

    if let Some(numbers) = numbers {
        metrics::serve(numbers, &runtime, Arc::downgrade(&vfs))?;
    }
    let config = session::MountConfig {
        source: args.source.clone(),
        dir: dir.clone(),
        read_only,
        access: options.access,
        default_permissions: options.default_permissions,
        suid: options.suid,
        dev: options.dev,
        exec: options.exec,
    };
    let read_log = vfs.read_log().cloned();
    let session = session::mount(vfs.clone(), &config, runtime.handle().clone());
    let session = session.map_err(|why| Failure::new("failed", format!("{}: {why}", dir.display())))?;
    let left = runtime.block_on(async { tokio::time::timeout(LEFT_LIMIT, vfs.find_left()).await.unwrap_or_default() });
    left.iter().for_each(|note| tracing::info!("{note}"));
    // The staging trees go with the session.
    drop(vfs);
    if root {
        place::remember(&args.source, &dir, options.network || context.is_elsewhere());
    }
    let unseen = || std::io::Error::other("the mount is not in /proc/self/mountinfo");
    let keeper = session.number().ok_or_else(unseen).and_then(|number| keeper::start(number, &dir));
    if let Err(why) = &keeper {
        tracing::warn!(%why, "no keeper: if this daemon is killed, who works in the mount may wait until it is mounted again");
    }
    let leaving = dir.clone();
    std::thread::spawn(move || {
        let signal = terminated();
        tracing::info!(signal, "unmounting; what changed stays staged");
        place::detach(&leaving);
    });
    tracing::info!(dir = %dir.display(), version = env!("CARGO_PKG_VERSION"), "mounted {}", args.source);
    if args.child {
        // Not before: autofs lets nobody to a mount point that it waits for but the process group of who mounts there.
        sys::new_session();
        left.iter().for_each(|note| print_line(&format!("{NOTE}{note}")));
        print_line(READY);
        let _ = std::io::stdout().flush();
    }
    let outcome = session.serve();
    if let Ok(keeper) = keeper {
        keeper.dismiss();
    }
    tracing::info!("unmounted {}", args.source);
    // The staging trees went with the session: whoever mounts them next need not wait for this.
    if let Some(log) = read_log {
        runtime.block_on(log.finish());
    }
    outcome.map_err(|why| Failure::new("failed", format!("{}: {why}", dir.display())))
}

/// Where this mount keeps what it keeps.
struct Places {
    state: PathBuf,
    log: String,
}

/// Where the log goes; `file` is for a host that keeps none.
fn destination(args: &MountArgs, options: &MountOptions, file: &Path, dir: &Path) -> Destination {
    match &options.log {
        Some(file) => Destination::File(file.clone()),
        None if !args.child => Destination::Stderr,
        None => HostLog::find(dir).map_or_else(|| Destination::File(file.to_owned()), Destination::Host),
    }
}

fn settings(
    args: &MountArgs,
    host: &Host,
    options: &MountOptions,
    context: &Context,
    Places { state, log }: Places,
    read_only: bool,
) -> Result<Settings, Failure> {
    let faults = match host.environment.get("DATAMON_FAULT") {
        None => Faults::none(),
        Some(name) => Faults::kill_at(name.trim_end_matches(":kill"))
            .ok_or_else(|| Failure::usage(format!("DATAMON_FAULT={name}: no such place")))?,
    };
    let (uid, gid) = sys::identity();
    let own = context.own_options()?;
    let logs_reads = options.read_log.or(own.read_log).unwrap_or(true);
    Ok(Settings {
        context: context.name.to_string(),
        source: args.source.clone(),
        read_only,
        state,
        log,
        stage: options.stage.parse().map_err(|why| Failure::usage(format!("stage={}: {why}", options.stage)))?,
        base: options.base.clone(),
        refresh: options.refresh,
        owner: (uid, gid),
        // A user's mount shows everything as the user's.
        shown: Shown {
            uid: options.uid.or((uid != 0).then_some(uid)),
            gid: options.gid.or((uid != 0).then_some(gid)),
            umask: options.umask,
        },
        acl: options.acl,
        synced: options.synced,
        identity: identity::of(host, options, &own)?,
        sync_commits: options.commit_at_sync,
        umount_commits: options.commit_at_umount,
        message: options.message.clone(),
        labels: options.labels.clone(),
        fail_if_diverged: options.fail_if_diverged,
        notices: notices(uid, options, context),
        database_memory: DatabaseMemory::new((options.memory / 4) as usize),
        read_log_memory: logs_reads.then_some((options.memory / 32) as usize),
        // What is left beside the databases and reads, and in serve() a quarter for content and 3/32 for ranges.
        pack_memory: (options.memory / 8 * 3) as usize,
        uploads: options.requests.0,
        keeps: {
            let options = options.clone();
            Box::new(move |lists| options.keeps(lists))
        },
        faults: Arc::new(faults),
    })
}

/// What a person is to know of this mount.
fn notices(uid: u32, options: &MountOptions, context: &Context) -> Vec<String> {
    let closed =
        "other users, root too, cannot look in (-o allow_other or allow_root, if /etc/fuse.conf has user_allow_other)";
    let plain = "without root the kernel reads ahead as it does by itself: first reads of large files are slower";
    let unverified = "what is read is not verified (verify=off): wrong bytes may pass";
    let is_closed = uid != 0 && options.access == Access::Owner;
    let all = [(is_closed, closed), (uid != 0, plain), (!options.verify, unverified)];
    let all = all.into_iter().filter(|(holds, _)| *holds).map(|(_, notice)| notice.to_owned());
    let open_file = context.options.get("credentials").filter(|file| sys::is_open_to_others(Path::new(file)));
    all.chain(open_file.map(|file| format!("credentials={file}: others can read it (chmod 600 {file})"))).collect()
}
