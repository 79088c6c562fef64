//! The protocol under every order of events that a seed can think of: real store and commit code of several hosts over a
//! store whose outcomes come late, twice, out of order or never.
//!
//! ```text
//!  world      the seed's draws: which request is carried out next, what is lost, who dies, who rises
//!  ledger     what was promised, and whether it is kept
//!  writer     commits by script, thousands of seeds          trees      the real commit code on real staging trees
//!  names      labels, removal and return, repos              collector  G of format.md, by script
//! ```
//!
//! A failure prints its seed and what happened. `DATAMON_SIM_SEED=N cargo test --lib simulation:: -- --nocapture` lives that
//! seed alone and prints all of it; `DATAMON_SIM_SEEDS=N` lives N seeds from the first on, and a twentieth of that with
//! real trees. `docs/simulation.md` says what is left out.
//!
//! A *mutant* is the same world with one rule of the format taken away: by the script of the writer or the collector, or by
//! a lie that the network tells to code that has the rule. Each must be found out within so many seeds; one that is not shows
//! that the worlds here are too tame to show anything.

mod collector;
mod ledger;
mod names;
mod trees;
mod world;
mod writer;

use names::{Namer, Trade};
use world::World;

/// Rules that are taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mutant {
    /// A writer does not look whether a round began while it registered.
    NoW2,
    /// A writer does not look whether its repo lives.
    NoCatalogLook,
    /// A writer does not look whether its bases were purged.
    BasesUnchecked,
    /// An own aborted intent's packs are used again whatever a collection did to them.
    AbortedBaseUnchecked,
    /// A tree is sealed anew while the outcome of W7 is unknown, and whatever the own intent published is taken for it.
    SameIntentIsOurs,
    /// A bundle enters the history without a look whether it is there.
    EnteredUnseen,
    /// A label is set without a look whether its bundle was purged.
    LabelsUnchecked,
    /// Who removes a bundle does not look at intents again afterwards.
    NoSecondLook,
    /// Who removes something looks at the intents of the newest round only.
    NewestRoundOnly,
    /// Who removes a repo looks at bundles before intents.
    SlotsFirst,
    /// A collector does not wait for intents of the round before.
    NoG3,
    /// A collector waits for those intents only that it listed in G1.
    G3OnListOfG1,
    /// A collector deletes packs of bases that intents of its round name.
    NoBasesInG4,
    /// A collector deletes packs of bundles that were removed after its list of the dead.
    LaterRemovalsSwept,
    /// A collector purges what was removed a moment ago.
    NoGrace,
    /// A collector purges what an open intent has for a base.
    BasesPurged,
}

/// What a world is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scene {
    /// Commits, labels and removal in one repo, with collections.
    Bundles,
    /// The same with more removals, returns, joined bases and rounds than commits.
    Removals,
    /// The same with a collector that waits for nobody, so that writers use again what they stored for an aborted intent.
    Aborts,
    /// Commits into repos that others make, rename and remove.
    Repos,
    /// The real commit code on staging trees, with collections and removals.
    Trees,
}

const REPO: &str = "x";

fn world(scene: Scene, seed: u64, mutant: Option<Mutant>) -> World {
    let mut world = World::new(seed, mutant);
    let shared = world.shared.clone();
    // Every third world is busier: more rounds, more removals, fewer accidents of chance.
    let factor = if seed.is_multiple_of(3) { 2 } else { 1 };
    let mut works = |most: usize| (2 + world.rng().below(most - 1)) * factor;
    let amounts: Vec<usize> = [6, 6, 5, 5, 5, 3].map(&mut works).to_vec();
    if scene == Scene::Repos {
        for works in &amounts[..2] {
            let writer = writer::Writer::new(&shared, world.next_host(), REPO, true, *works);
            world.add("writer", writer);
        }
        for works in &amounts[2..4] {
            world.add("remover", Namer::new(&shared, Trade::Repos, None, *works));
        }
        world.add("deleter", Namer::new(&shared, Trade::Deletes, None, amounts[2] + 2));
        world.add("labeller", Namer::new(&shared, Trade::Labels, None, amounts[3] + 2));
        world.add("collector", collector::Collector::new(&shared, amounts[4]));
        return world;
    }
    let name = REPO.parse().unwrap();
    let repo = world.directly(crate::store::catalog::create(&shared.direct, &name)).unwrap();
    let many = if matches!(scene, Scene::Removals | Scene::Aborts) { 10 } else { 0 };
    for works in &amounts[..2] {
        let number = world.next_host();
        if scene == Scene::Trees {
            world.add("tree", trees::TreeHost::new(&shared, number, repo.id, *works * 2 + 6));
        } else {
            let joins = if scene == Scene::Removals { 80 } else { 30 };
            world.add("writer", writer::Writer::new(&shared, number, REPO, false, *works + many / 2).joining(joins));
        }
    }
    world.add("deleter", Namer::new(&shared, Trade::Deletes, Some(repo.id), amounts[2] + many));
    world.add("labeller", Namer::new(&shared, Trade::Labels, Some(repo.id), amounts[3] + many));
    let collector = collector::Collector::new(&shared, amounts[4] + many);
    world.add("collector", if scene == Scene::Aborts { collector.aborting(100) } else { collector });
    if amounts[5] / factor == 2 {
        world.add("collector", collector::Collector::new(&shared, amounts[5]));
    }
    world
}

/// Lives one seed: what happened, and the violation.
fn live(scene: Scene, seed: u64, mutant: Option<Mutant>) -> (String, Option<String>) {
    let mut world = world(scene, seed, mutant);
    let violation = world.live();
    (std::mem::take(&mut world.trace), violation)
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().unwrap_or_else(|_| panic!("{variable}: not a number: {text}")))
}

/// Lives many seeds, or the one that was asked for.
fn live_all(scene: Scene, seeds: u64) {
    if let Some(seed) = number("DATAMON_SIM_SEED") {
        let (trace, violation) = live(scene, seed, None);
        eprintln!("{trace}");
        assert!(violation.is_none(), "{scene:?}, seed {seed}: {}", violation.unwrap_or_default());
        return;
    }
    let begun = std::time::Instant::now();
    let (mut turns, mut copies) = (0, 0);
    for seed in 0..seeds {
        let (trace, violation) = live(scene, seed, None);
        turns += trace.lines().count();
        copies += trace.lines().filter(|line| line.contains(trees::NAMES_CONTENT)).count();
        if let Some(violation) = violation {
            let from = trace.lines().count().saturating_sub(150);
            let end: Vec<&str> = trace.lines().skip(from).collect();
            panic!("{scene:?}, seed {seed}: {violation}\n{}\nagain: DATAMON_SIM_SEED={seed}", end.join("\n"));
        }
    }
    eprintln!("{scene:?}: {seeds} seeds, {turns} steps, {copies} copies without bytes, {:.1?}", begun.elapsed());
    assert!(copies > 0 || scene != Scene::Trees, "nobody copies");
}

fn asked_for() -> Option<u64> {
    number("DATAMON_SIM_SEEDS")
}

#[test]
fn commits_labels_removals_and_collections_keep_their_promises_in_any_order() {
    live_all(Scene::Bundles, asked_for().unwrap_or(600));
}

#[test]
fn what_is_removed_is_purged_or_comes_back_in_any_order() {
    live_all(Scene::Removals, asked_for().unwrap_or(200));
    live_all(Scene::Aborts, asked_for().unwrap_or(100));
}

#[test]
fn repos_are_made_and_removed_beside_commits_in_any_order() {
    live_all(Scene::Repos, asked_for().unwrap_or(400));
}

#[test]
fn staging_trees_commit_die_and_go_on_in_any_order() {
    live_all(Scene::Trees, asked_for().map_or(40, |seeds| seeds.div_ceil(20)));
}

#[test]
fn a_seed_tells_the_same_story_twice() {
    for (scene, seeds) in [(Scene::Bundles, 5), (Scene::Repos, 5), (Scene::Trees, 2)] {
        for seed in 1000..1000 + seeds {
            let (first, second) = (live(scene, seed, None).0, live(scene, seed, None).0);
            for (one, other) in first.lines().zip(second.lines()) {
                assert_eq!(one, other, "{scene:?}, seed {seed}");
            }
            assert_eq!(first.len(), second.len(), "{scene:?}, seed {seed}");
        }
    }
}

/// The first seed in which it shows that the rule is missing, and only then.
fn found_after(scene: Scene, mutant: Mutant, seeds: u64) -> Option<(u64, String)> {
    let (seed, violation) = (0..seeds).find_map(|seed| Some((seed, live(scene, seed, Some(mutant)).1?)))?;
    let with_the_rule = live(scene, seed, None).1;
    assert!(with_the_rule.is_none(), "{scene:?}, seed {seed}: {}", with_the_rule.unwrap_or_default());
    Some((seed, violation))
}

/// Mutants with their scenes and the seeds that they may take.
const MUTANTS: [(Mutant, Scene, u64); 16] = [
    (Mutant::NoW2, Scene::Bundles, 3000),
    (Mutant::NoCatalogLook, Scene::Repos, 3000),
    (Mutant::BasesUnchecked, Scene::Removals, 3000),
    (Mutant::AbortedBaseUnchecked, Scene::Aborts, 3000),
    (Mutant::SameIntentIsOurs, Scene::Bundles, 3000),
    (Mutant::EnteredUnseen, Scene::Bundles, 3000),
    (Mutant::LabelsUnchecked, Scene::Removals, 3000),
    (Mutant::NoSecondLook, Scene::Removals, 3000),
    (Mutant::NewestRoundOnly, Scene::Removals, 3000),
    (Mutant::SlotsFirst, Scene::Repos, 3000),
    (Mutant::NoG3, Scene::Bundles, 3000),
    (Mutant::G3OnListOfG1, Scene::Bundles, 3000),
    (Mutant::NoBasesInG4, Scene::Removals, 3000),
    (Mutant::LaterRemovalsSwept, Scene::Aborts, 3000),
    (Mutant::NoGrace, Scene::Removals, 3000),
    (Mutant::BasesPurged, Scene::Removals, 12000),
];

#[test]
fn a_protocol_without_one_of_its_rules_is_found_out() {
    let mut kept = Vec::new();
    for (mutant, scene, seeds) in MUTANTS {
        match found_after(scene, mutant, seeds) {
            Some((seed, violation)) => eprintln!("{mutant:?}: seed {seed}: {violation}"),
            None => kept.push(mutant),
        }
    }
    assert!(kept.is_empty(), "nobody notices that these rules are missing: {kept:?}");
}
