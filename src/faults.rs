//! Named places where a commit can be stopped, to test what a crash there leaves.
//!
//! A [`Faults`] is handed down like a clock; the program's is empty unless it was asked for one by a test.

use crate::local::sys;

/// A place between two steps of a commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FaultPoint {
    /// The intent is registered (W2).
    AfterRegister,
    /// The instant is sealed.
    AfterSeal,
    /// Every chunk is stored (W3).
    AfterData,
    /// The metadata packs are stored (W5).
    AfterTables,
    /// The descriptor is journaled (W6).
    AfterJournal,
    /// The descriptor is in its slot (W7).
    AfterDescriptor,
    /// The history names the bundle (W8).
    AfterRefs,
}

impl FaultPoint {
    /// All places, in the order of the steps.
    pub const ALL: [Self; 7] = [
        Self::AfterRegister,
        Self::AfterSeal,
        Self::AfterData,
        Self::AfterTables,
        Self::AfterJournal,
        Self::AfterDescriptor,
        Self::AfterRefs,
    ];

    /// The place's name, as a test asks for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::AfterRegister => "after-register",
            Self::AfterSeal => "after-seal",
            Self::AfterData => "after-data",
            Self::AfterTables => "after-tables",
            Self::AfterJournal => "after-journal",
            Self::AfterDescriptor => "after-descriptor",
            Self::AfterRefs => "after-refs",
        }
    }
}

/// Where to stop.
#[derive(Debug, Default)]
pub struct Faults {
    kill_at: Option<FaultPoint>,
}

impl Faults {
    /// No faults.
    pub fn none() -> Self {
        Self::default()
    }

    /// The process kills itself at the place of this name.
    pub fn kill_at(name: &str) -> Option<Self> {
        let kill_at = FaultPoint::ALL.into_iter().find(|point| point.name() == name)?;
        Some(Self { kill_at: Some(kill_at) })
    }

    /// Called at each place.
    pub fn hit(&self, point: FaultPoint) {
        if self.kill_at == Some(point) {
            sys::kill_self();
        }
    }
}
