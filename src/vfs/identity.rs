//! Identity: whose name a commit, a label's move or a removal stands under in the history.
//!
//! The first that says something:
//!
//! 1. `-o contributor=` of the mount, which stands before the context's option of that name;
//! 2. `contributor` of the context: the word of who keeps it, for all its mounts on this host;
//! 3. `DATAMON_CONTRIBUTOR` of the command that asked (`datamon commit`, `datamon umount`), else of the mount;
//! 4. user and host: the user who did it, not the daemon's.
//!
//! It is a claim, as git's is: what a user may do rests on credentials of the store and on modes, never on this.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use crate::model::name::Contributor;

/// Finds a user's name; takes seconds at most.
pub type UserNames = Arc<dyn Fn(u32) -> Name + Send + Sync>;

/// A user's name, if he has one.
pub type Name = Pin<Box<dyn Future<Output = Option<String>> + Send>>;

/// See the module.
#[derive(Clone)]
pub struct Identity {
    /// What the mount's options or its context say: nobody who uses the mount says otherwise.
    pub fixed: Option<Contributor>,
    /// What the mount's environment says.
    pub environment: Option<Contributor>,
    /// Who mounted it: number, and the name by the mount's environment.
    pub mounter: (u32, Option<String>),
    /// This host.
    pub host: String,
    /// The names of all others.
    pub names: UserNames,
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let said = self.fixed.as_ref().or(self.environment.as_ref());
        f.debug_struct("Identity").field("said", &said).field("mounter", &self.mounter).finish_non_exhaustive()
    }
}

impl Identity {
    /// The name of the user with this number, in whose command's environment stands `said`.
    pub async fn of(&self, uid: u32, said: Option<&Contributor>) -> String {
        if let Some(contributor) = self.fixed.as_ref().or(said).or(self.environment.as_ref()) {
            return contributor.to_string();
        }
        // Who is behind sudo(8) only the environment of the mount says, and only of who mounted.
        let (mounter, name) = &self.mounter;
        let user = match name {
            Some(name) if uid == *mounter => Some(name.clone()),
            _ => (self.names)(uid).await,
        };
        format!("{}@{}", user.unwrap_or_else(|| format!("uid {uid}")), self.host)
    }

    /// The name for what the mount does by itself.
    pub async fn of_the_mount(&self) -> String {
        self.of(self.mounter.0, None).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_that_says_something_names_the_contributor() {
        let named = |text: &str| Some(text.parse::<Contributor>().unwrap());
        let names: UserNames = Arc::new(|uid| Box::pin(std::future::ready((uid == 7).then(|| "ada".to_owned()))));
        let mounter = (0, Some("root".to_owned()));
        let mut identity = Identity { fixed: None, environment: None, mounter, host: "lab".into(), names };
        assert_eq!((identity.of(7, None).await, identity.of(8, None).await), ("ada@lab".into(), "uid 8@lab".into()));
        assert_eq!(identity.of_the_mount().await, "root@lab");
        identity.environment = named("of the mount");
        assert_eq!(identity.of(7, None).await, "of the mount");
        assert_eq!(identity.of(7, named("of the command").as_ref()).await, "of the command");
        identity.fixed = named("of the context");
        assert_eq!(identity.of(7, named("of the command").as_ref()).await, "of the context");
    }
}
