//! The world of one seed: a store in memory, a network in which requests wait, hosts whose processes die.
//!
//! ```text
//!   host = one runtime a life, its time stands still      network: what waits, in the order it was asked
//!        └─ an operation: real code on a Store ──asks──>     │
//!   world: draws what happens next ── carries out, answers, loses, repeats, delays ──> memory
//! ```
//! A turn lets one host run until all that it has waits: for the network or for time. So a seed decides everything.
//!
//! # Invariants
//!
//! 1. Nothing but the world's draws decides in which order requests are carried out.
//! 2. Dropping a runtime is the death of a process: nothing of it runs on, what it had asked is still on its way.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures_util::future::BoxFuture;
use object_store::memory::InMemory;
use object_store::{Error, ObjectStore};
use tokio::runtime::Runtime;
use tokio::task::JoinHandle;

use super::Mutant;
use super::ledger::Ledger;
use crate::format::key::Role;
use crate::model::clock::{Clock, Entropy, Timestamp};
use crate::model::id::ContextId;
use crate::store::Store;
use crate::store::backend::Place;
use crate::store::fault::network::{Answer, Network, Request};
use crate::store::fault::{FaultStore, Faults, Operation};

/// How long a host waits for the store before it gives up.
const TIMEOUT: Duration = Duration::from_secs(20);
/// How long a host runs in one turn, in its own time.
const TURN: Duration = Duration::from_millis(1);
/// Turns after which the world comes to rest.
const TURNS_MAX: usize = 3_000;
/// Turns that it may take to come to rest.
const REST_TURNS_MAX: usize = 40_000;

/// Draws that repeat themselves with their seed (splitmix64).
#[derive(Debug, Clone)]
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0xD134_2543_DE82_EF95).wrapping_add(0x2545_F491_4F6C_DD1D))
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }

    pub fn chance(&mut self, percent: usize) -> bool {
        self.below(100) < percent
    }

    pub fn pick<'a, T>(&mut self, of: &'a [T]) -> Option<&'a T> {
        if of.is_empty() { None } else { Some(&of[self.below(of.len())]) }
    }
}

/// The time of all hosts: a millisecond goes by each time somebody looks.
#[derive(Default)]
struct Ticks(Mutex<u64>);

impl Clock for Ticks {
    fn now(&self) -> Timestamp {
        let mut ticks = self.0.lock().unwrap();
        *ticks += 1;
        Timestamp { secs: 1_700_000_000 + (*ticks / 1000) as i64, nanos: (*ticks % 1000) as u32 * 1_000_000 }
    }
}

struct Drawn(Mutex<Rng>);

impl Entropy for Drawn {
    fn random(&self) -> u128 {
        let mut rng = self.0.lock().unwrap();
        u128::from(rng.next()) << 64 | u128::from(rng.next())
    }
}

/// What all hosts of a world share.
pub struct Shared {
    pub context: ContextId,
    pub memory: Arc<InMemory>,
    pub network: Arc<Network>,
    pub clock: Arc<dyn Clock>,
    /// Looks at the store past the network: for checks, in no time.
    pub direct: Arc<Store>,
    pub mutant: Option<Mutant>,
    ledger: Mutex<Ledger>,
}

impl Shared {
    pub fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap()
    }

    pub fn is(&self, mutant: Mutant) -> bool {
        self.mutant == Some(mutant)
    }

    fn store(&self, place: Place, rng: Rng) -> Arc<Store> {
        let entropy = Arc::new(Drawn(Mutex::new(rng)));
        Store::new(self.context, [(Role::Config, place)].into(), TIMEOUT, self.clock.clone(), entropy)
    }
}

/// One life of a process.
pub struct Life {
    runtime: Runtime,
    pub store: Arc<Store>,
    /// The store's own interface, for what no product code does: a collector's deletions.
    pub client: Arc<dyn ObjectStore>,
    running: Vec<(String, JoinHandle<String>)>,
}

/// What a host does next: what it is called, and the work, which says how it ended.
pub type Work = (String, BoxFuture<'static, String>);

/// What a host is there for. Its own state is what a process keeps over its death.
pub trait Actor {
    /// The next operation; `running` are under way. `None`: nothing now.
    fn next(&mut self, life: &Life, rng: &mut Rng, running: &[String]) -> Option<Work>;
    /// What is left to do when the world comes to rest; `None`: nothing.
    fn rest(&mut self, life: &Life, rng: &mut Rng) -> Option<Work>;
    /// The process has died.
    fn died(&mut self) {}
}

struct Host {
    name: String,
    actor: Box<dyn Actor>,
    life: Option<Life>,
    lives: u64,
    /// How likely its requests are carried out next.
    speed: usize,
    is_done: bool,
}

/// How much goes wrong in a world.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Requests of 100 with which something goes wrong.
    pub faults: usize,
    /// How likely a process dies in a turn, of 10,000.
    pub deaths: usize,
    /// How likely a host waits until it gives up, of 10,000.
    pub patience: usize,
}

/// See the module.
pub struct World {
    pub shared: Arc<Shared>,
    rng: Rng,
    weather: Weather,
    hosts: Vec<Host>,
    direct: Runtime,
    pub trace: String,
    /// What a mutant's host has been told before.
    told: BTreeMap<(usize, String), Vec<String>>,
}

/// What a world may do next.
enum Choice {
    Serve(usize),
    Land(usize),
    Begin(usize),
    Die(usize),
    Rise(usize),
    Drop(usize),
    Wait(usize, Duration),
}

fn runtime() -> Runtime {
    // One blocking thread: what is handed over comes back in the order in which it went.
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_time().start_paused(true).max_blocking_threads(1).build().unwrap()
}

impl World {
    pub fn new(seed: u64, mutant: Option<Mutant>) -> Self {
        let mut rng = Rng::new(seed);
        let (memory, network, clock) = (Arc::new(InMemory::new()), Network::new(), Arc::new(Ticks::default()));
        let context = ContextId::from_parts(1, 1);
        let entropy = Arc::new(Drawn(Mutex::new(Rng::new(seed ^ 0x5eed))));
        let places = [(Role::Config, Place::of(memory.clone()))].into();
        let direct = Store::new(context, places, TIMEOUT, clock.clone(), entropy);
        let ledger = Mutex::default();
        let shared = Arc::new(Shared { context, memory, network, clock, direct, mutant, ledger });
        let (faults, deaths, patience) =
            ([0, 3, 10][rng.below(3)], [0, 20, 60][rng.below(3)], [0, 5, 20][rng.below(3)]);
        let weather = Weather { faults, deaths, patience };
        Self { shared, rng, weather, hosts: Vec::new(), direct: runtime(), trace: String::new(), told: BTreeMap::new() }
    }

    pub fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// Lets something be done past the network.
    pub fn directly<T>(&self, work: impl Future<Output = T>) -> T {
        self.direct.block_on(work)
    }

    /// The number that the next host gets.
    pub fn next_host(&self) -> usize {
        self.hosts.len()
    }

    pub fn add(&mut self, name: &str, actor: impl Actor + 'static) {
        let name = format!("{name}{}", self.hosts.len());
        let speed = 1;
        self.hosts.push(Host { name, actor: Box::new(actor), life: None, lives: 0, speed, is_done: false });
        self.rise(self.hosts.len() - 1);
    }

    fn note(&mut self, text: String) {
        let _ = writeln!(self.trace, "{text}");
    }

    /// Lives the seed to its end: the violation that was found, if one was.
    pub fn live(&mut self) -> Option<String> {
        for turn in 0..TURNS_MAX {
            if turn % 64 == 0 {
                // Who is slow stays slow for a while: what two fast ones do goes by in between.
                for host in &mut self.hosts {
                    host.speed = [1, 10, 100][self.rng.below(3)];
                }
            }
            let Some(choice) = self.choose() else { break };
            self.act(choice);
            if let Some(violation) = self.violation() {
                return Some(violation);
            }
        }
        self.come_to_rest()
    }

    fn violation(&mut self) -> Option<String> {
        self.shared.ledger().violation()
    }

    // ---- what happens next -----------------------------------------------------------------------------------------

    fn choose(&mut self) -> Option<Choice> {
        self.shared.network.sweep();
        let mut choices: Vec<(usize, Choice)> = Vec::new();
        let requests = self.shared.network.look(|request| (request.host, request.is_awaited()));
        for (index, (host, is_awaited)) in requests.iter().enumerate() {
            choices.push(match is_awaited {
                true => (self.hosts[*host].speed * 100, Choice::Serve(index)),
                false => (200, Choice::Land(index)),
            });
        }
        for (number, host) in self.hosts.iter().enumerate() {
            let Some(life) = &host.life else {
                choices.push((300, Choice::Rise(number)));
                continue;
            };
            if !host.is_done {
                choices.push((if life.running.is_empty() { host.speed * 50 } else { 20 }, Choice::Begin(number)));
            }
            if !life.running.is_empty() {
                choices.push((self.weather.deaths, Choice::Die(number)));
                if life.running.iter().any(|(what, _)| what == "commit") && host.name.starts_with("tree") {
                    choices.push((self.weather.deaths, Choice::Drop(number)));
                }
                let asks = requests.iter().any(|(of, is_awaited)| *of == number && *is_awaited);
                let pause = Duration::from_millis([20, 500, 3_000][self.rng.below(3)]);
                choices.push(match asks {
                    true => (self.weather.patience, Choice::Wait(number, TIMEOUT * [1, 2, 4][self.rng.below(3)] / 2)),
                    false => (host.speed * 50, Choice::Wait(number, pause)),
                });
            }
        }
        let is_over =
            self.hosts.iter().all(|host| host.is_done && host.life.as_ref().is_none_or(|life| life.running.is_empty()));
        if is_over {
            return None;
        }
        let total: usize = choices.iter().map(|(weight, _)| weight).sum();
        let mut at = self.rng.below(total);
        for (weight, choice) in choices {
            if at < weight {
                return Some(choice);
            }
            at -= weight;
        }
        None
    }

    fn act(&mut self, choice: Choice) {
        match choice {
            Choice::Serve(index) => self.serve(index),
            Choice::Land(index) => {
                let mut request = self.shared.network.take(index);
                // What is on its way arrives, or does not.
                if self.rng.chance(75) {
                    let done = self.perform(&mut request);
                    self.note(format!("      late {} {}", shown(&request), outcome(&done)));
                } else {
                    self.note(format!("      lost {}", shown(&request)));
                }
            }
            Choice::Begin(number) => self.begin(number),
            Choice::Die(number) => self.die(number),
            Choice::Rise(number) => self.rise(number),
            Choice::Drop(number) => self.drop_commit(number),
            Choice::Wait(number, time) => {
                self.note(format!("{:>9} {time:?} go by", self.hosts[number].name));
                self.turn(number, time);
            }
        }
    }

    fn begin(&mut self, number: usize) {
        let host = &mut self.hosts[number];
        let Some(life) = &mut host.life else { return };
        let running: Vec<String> = life.running.iter().map(|(what, _)| what.clone()).collect();
        match host.actor.next(life, &mut self.rng, &running) {
            Some(work) => self.start(number, work),
            None if running.is_empty() => host.is_done = true,
            None => {}
        }
    }

    fn start(&mut self, number: usize, (what, work): Work) {
        self.note(format!("{:>9} begins {what}", self.hosts[number].name));
        // A mutant's lies are for one operation.
        self.told.retain(|(of, _), _| *of != number);
        let host = &mut self.hosts[number];
        let life = host.life.as_mut().expect("only the living begin something");
        let task = life.runtime.spawn(work);
        life.running.push((what, task));
        self.turn(number, TURN);
    }

    fn die(&mut self, number: usize) {
        self.note(format!("{:>9} dies", self.hosts[number].name));
        let host = &mut self.hosts[number];
        host.life = None;
        host.actor.died();
    }

    /// Whoever asked for the commit has gone: nobody goes on with it.
    fn drop_commit(&mut self, number: usize) {
        let name = self.hosts[number].name.clone();
        self.note(format!("{name:>9} drops its commit"));
        let Some(life) = &mut self.hosts[number].life else { return };
        if let Some(at) = life.running.iter().position(|(what, _)| what == "commit") {
            let (_, task) = life.running.remove(at);
            task.abort();
        }
        self.turn(number, TURN);
    }

    fn rise(&mut self, number: usize) {
        let rng = Rng::new(self.rng.next());
        let faults = Faults::in_network(&self.shared.network, number);
        let place = Place::of(self.shared.memory.clone()).with_faults(&faults);
        let client = Arc::new(FaultStore::new(self.shared.memory.clone(), faults));
        let store = self.shared.store(place, rng);
        let host = &mut self.hosts[number];
        host.lives += 1;
        host.life = Some(Life { runtime: runtime(), store, client, running: Vec::new() });
        let (name, lives) = (self.hosts[number].name.clone(), self.hosts[number].lives);
        self.note(format!("{name:>9} lives ({lives})"));
    }

    /// Lets a host run until all that it has waits, or for `time` of its own.
    fn turn(&mut self, number: usize, time: Duration) {
        let host = &mut self.hosts[number];
        let Some(life) = &mut host.life else { return };
        life.runtime.block_on(async move { tokio::time::sleep(time).await });
        let mut ended = Vec::new();
        let mut index = 0;
        while index < life.running.len() {
            if life.running[index].1.is_finished() {
                let (what, task) = life.running.remove(index);
                ended.push((what, life.runtime.block_on(task)));
            } else {
                index += 1;
            }
        }
        let name = host.name.clone();
        for (what, how) in ended {
            let how = how.unwrap_or_else(|panic| {
                self.shared.ledger().violate(format!("{name}: {what} panicked: {panic}"));
                "panicked".to_owned()
            });
            self.note(format!("{name:>9} ended {what}: {how}"));
        }
    }

    // ---- the store -------------------------------------------------------------------------------------------------

    fn serve(&mut self, index: usize) {
        let mut request = self.shared.network.take(index);
        let number = request.host;
        let is_write = request.operation == Operation::Write;
        let name = self.hosts[number].name.clone();
        if request.operation == Operation::List && self.rng.chance(15) {
            let part = self.rng.below(100);
            let _ = request.list_a_part(&*self.shared.memory, part);
            self.note(format!("{name:>9} {} (a part)", shown(&request)));
            self.shared.network.put_back(request);
            return;
        }
        let fate = if self.rng.chance(self.weather.faults) { 1 + self.rng.below(5) } else { 0 };
        match fate {
            1 => {
                self.note(format!("{name:>9} {}: never arrives", shown(&request)));
                request.hang_up();
            }
            2 => {
                let done = self.perform(&mut request);
                self.note(format!("{name:>9} {} {}: answer lost", shown(&request), outcome(&done)));
                request.hang_up();
            }
            5 => {
                self.note(format!("{name:>9} {}: refused", shown(&request)));
                let (path, source) = (request.path.clone(), "credentials that have expired".into());
                request.answer(Err(Error::PermissionDenied { path, source }));
            }
            3 if is_write => {
                self.note(format!("{name:>9} {}: will be late", shown(&request)));
                request.hang_up();
                self.shared.network.put_back(request);
            }
            4 if is_write => {
                let first = self.perform(&mut request);
                let second = self.perform(&mut request);
                self.note(format!("{name:>9} {} {}, twice", shown(&request), outcome(&first)));
                request.answer(second);
            }
            _ => {
                let done = self.perform(&mut request);
                self.note(format!("{name:>9} {} {}", shown(&request), outcome(&done)));
                request.answer(done);
            }
        }
        self.turn(number, TURN);
    }

    fn perform(&mut self, request: &mut Request) -> object_store::Result<Answer> {
        if let Some(lie) = self.lie(request) {
            return lie;
        }
        let done = request.carry_out(&*self.shared.memory);
        if done.is_ok() && matches!(request.operation, Operation::Write | Operation::Delete) {
            let (shared, path) = (self.shared.clone(), request.path.clone());
            self.direct.block_on(super::ledger::landed(&shared, request.operation, &path));
        }
        done
    }

    /// What a mutant's host is told instead of the truth: how a rule is taken out of code that has it.
    fn lie(&mut self, request: &mut Request) -> Option<object_store::Result<Answer>> {
        let path = request.path.clone();
        let not_found = || Error::NotFound { path: path.clone(), source: "a mutant".into() };
        let what = self.hosts[request.host].name.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
        let is_read = request.operation == Operation::Read;
        let is_list = request.operation == Operation::List;
        match self.shared.mutant? {
            Mutant::BasesUnchecked if is_read && what == "writer" && path.contains("/purged/") => {
                Some(Err(not_found()))
            }
            Mutant::LabelsUnchecked if is_read && what == "labeller" && path.contains("/purged/") => {
                Some(Err(not_found()))
            }
            Mutant::NoSecondLook if what == "deleter" => {
                if request.operation == Operation::Write && path.contains("/refs/") {
                    self.told.insert((request.host, "has removed".to_owned()), Vec::new());
                }
                let has_removed = self.told.contains_key(&(request.host, "has removed".to_owned()));
                (has_removed && is_list && path.contains("/wal/")).then(|| Ok(Answer::List(Vec::new())))
            }
            Mutant::NewestRoundOnly
                if is_list && ["deleter", "remover"].contains(&&*what) && path.contains("/wal/") =>
            {
                let is_later = self.told.contains_key(&(request.host, "has listed a round".to_owned()));
                self.told.insert((request.host, "has listed a round".to_owned()), Vec::new());
                // Two rounds are listed, the newest first.
                if is_later {
                    self.told.retain(|(of, _), _| *of != request.host)
                }
                is_later.then(|| Ok(Answer::List(Vec::new())))
            }
            Mutant::SlotsFirst if is_list && what == "remover" => {
                let noted = (request.host, "slots".to_owned());
                if path.contains("/wal/") && !self.told.contains_key(&noted) {
                    let slots = self.shared.ledger().slots(&self.shared.memory);
                    self.told.insert(noted, slots);
                    return None;
                }
                if !path.contains("/bundles/") {
                    return None;
                }
                let known = self.told.get(&noted)?.clone();
                let Ok(Answer::List(mut found)) = request.carry_out(&*self.shared.memory) else { return None };
                found.retain(|object| known.contains(&object.location.to_string()));
                Some(Ok(Answer::List(found)))
            }
            _ => None,
        }
    }

    // ---- rest ------------------------------------------------------------------------------------------------------

    /// Nothing goes wrong any more: everybody finishes, and everything is looked at.
    fn come_to_rest(&mut self) -> Option<String> {
        self.weather = Weather { faults: 0, deaths: 0, patience: 0 };
        self.note("--------- rest".to_owned());
        for turn in 0.. {
            self.shared.network.sweep();
            let requests = self.shared.network.look(Request::is_awaited);
            let choice = if !requests.is_empty() {
                let index = self.rng.below(requests.len());
                if requests[index] { Choice::Serve(index) } else { Choice::Land(index) }
            } else if let Some(number) = self.hosts.iter().position(|host| host.life.is_none()) {
                Choice::Rise(number)
            } else if let Some(number) = self.hosts.iter().position(is_busy) {
                Choice::Wait(number, Duration::from_secs(1))
            } else if !self.go_on() {
                break;
            } else {
                continue;
            };
            self.act(choice);
            if let Some(violation) = self.violation() {
                return Some(violation);
            }
            if turn > REST_TURNS_MAX {
                return Some("the world does not come to rest".to_owned());
            }
        }
        let shared = self.shared.clone();
        self.direct.block_on(super::ledger::at_rest(&shared));
        self.violation()
    }

    /// Lets the next host that has something left to do begin it.
    fn go_on(&mut self) -> bool {
        for number in 0..self.hosts.len() {
            let host = &mut self.hosts[number];
            let Some(life) = &host.life else { continue };
            if let Some(work) = host.actor.rest(life, &mut self.rng) {
                self.start(number, work);
                return true;
            }
        }
        false
    }
}

fn is_busy(host: &Host) -> bool {
    host.life.as_ref().is_some_and(|life| !life.running.is_empty())
}

fn shown(request: &Request) -> String {
    let path = request.path.split_once('/').map_or(&*request.path, |(_, path)| path);
    format!("{:?} {path}", request.operation)
}

fn outcome(done: &object_store::Result<Answer>) -> String {
    match done {
        Ok(Answer::List(found)) => format!("= {} names", found.len()),
        Ok(_) => "= ok".to_owned(),
        Err(Error::NotFound { .. }) => "= not found".to_owned(),
        Err(Error::AlreadyExists { .. }) => "= exists".to_owned(),
        Err(error) => format!("= {error}"),
    }
}
