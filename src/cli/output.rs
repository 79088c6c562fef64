//! What a command says: results on stdout, words on stderr, one line for what went wrong.

use std::process::ExitCode;

use serde_json::{Value, json};

use crate::config::ConfigError;
use crate::store::StoreError;
use crate::store::catalog::CatalogError;

/// A command that did not do what it was asked, in the user's words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// One word for programs.
    pub kind: &'static str,
    /// What happened to what, and why.
    pub message: String,
    /// What to do about it.
    pub remedy: Option<String>,
}

impl Failure {
    /// A failure from a sentence that may end in its remedy, in parentheses.
    pub fn new(kind: &'static str, sentence: impl Into<String>) -> Self {
        let sentence = without_numbers(&sentence.into());
        let split = sentence.strip_suffix(')').and_then(|rest| rest.rsplit_once(" ("));
        match split.map(|(message, remedy)| (message.to_owned(), remedy.to_owned())) {
            Some((message, remedy)) => Self { kind, message, remedy: Some(remedy) },
            None => Self { kind, message: sentence, remedy: None },
        }
    }

    /// A wrong call: exit status 2.
    pub fn usage(sentence: impl Into<String>) -> Self {
        Self::new("usage", sentence)
    }

    /// The same, told of `what`: `what: why (remedy)`.
    pub fn about(mut self, what: &str) -> Self {
        if !self.message.starts_with(what) {
            self.message = format!("{what}: {}", self.message);
        }
        self
    }

    /// The line on stderr.
    pub fn line(&self) -> String {
        let message = self.message.split_whitespace().collect::<Vec<_>>().join(" ");
        match &self.remedy {
            Some(remedy) => format!("datamon: {message} ({remedy})"),
            None => format!("datamon: {message}"),
        }
    }

    /// The object on stdout under `--json`.
    pub fn json(&self) -> Value {
        json!({"error": {"kind": self.kind, "message": self.message, "remedy": self.remedy}})
    }

    /// The exit status.
    pub fn code(&self) -> u8 {
        if self.kind == "usage" { 2 } else { 1 }
    }

    /// Tells the user and answers the exit code.
    pub fn report(&self, as_json: bool) -> ExitCode {
        if as_json {
            print_json(&self.json());
        }
        eprintln!("{}", self.line());
        ExitCode::from(self.code())
    }
}

/// A sentence without the numbers that std puts behind the system's words, as ` (os error 2)`: they are no remedy.
fn without_numbers(sentence: &str) -> String {
    let mut parts = sentence.split(" (os error ");
    let first = parts.next().unwrap_or_default().to_owned();
    let behind = |part: &str| part.split_once(')').map_or_else(|| part.to_owned(), |(_, rest)| rest.to_owned());
    parts.fold(first, |all, part| all + &behind(part))
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        let kind = match &error {
            StoreError::NotFound { .. } => "not_found",
            StoreError::Denied { .. } => "denied",
            StoreError::Full { .. } => "full",
            StoreError::Unavailable { .. } => "unavailable",
            StoreError::Corrupt { .. } => "corrupt",
            StoreError::Conflict { .. } => "conflict",
            StoreError::Unsupported { .. } => "unsupported",
        };
        Self::new(kind, error.to_string())
    }
}

impl From<ConfigError> for Failure {
    fn from(error: ConfigError) -> Self {
        let kind = match &error {
            ConfigError::Unknown { .. } => "not_found",
            ConfigError::Exists { .. } => "exists",
            ConfigError::Malformed { .. } | ConfigError::Io { .. } | ConfigError::NoHome { .. } => "config",
        };
        Self::new(kind, error.to_string())
    }
}

impl From<CatalogError> for Failure {
    fn from(error: CatalogError) -> Self {
        match error {
            CatalogError::Store(error) => error.into(),
            CatalogError::NotFound(_) => Self::new("not_found", error.to_string()),
            CatalogError::Exists(_) => Self::new("exists", error.to_string()),
            CatalogError::NotEmpty(..) | CatalogError::Full => Self::new("conflict", error.to_string()),
        }
    }
}

/// One line of JSON on stdout.
pub fn print_json(value: &Value) {
    print_line(&value.to_string());
}

/// One line on stdout. A reader that has gone away (`| head`) is no failure of ours.
pub fn print_line(line: &str) {
    print(format!("{line}\n").as_bytes());
}

/// The same, of any bytes.
pub fn print(bytes: &[u8]) {
    use std::io::Write;
    let _ = std::io::stdout().write_all(bytes);
}

/// Ends a command: nothing to say, or why it failed.
pub fn finish(as_json: bool, result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(as_json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_one_line_with_its_remedy() {
        let failure = Failure::new("denied", "prod: refused\nby the store (check the rights)");
        assert_eq!(failure.line(), "datamon: prod: refused by the store (check the rights)");
        assert_eq!(failure.json()["error"]["remedy"], "check the rights");
        assert_eq!(failure.json()["error"]["kind"], "denied");
        assert_eq!(failure.code(), 1);
    }

    #[test]
    fn an_errors_number_is_no_remedy() {
        let plain = Failure::new("x", "/a: No such file or directory (os error 2)");
        assert_eq!((&plain.message[..], plain.remedy), ("/a: No such file or directory", None));
        let both = Failure::new("x", "/a: In use (os error 16) (choose another)");
        assert_eq!(both.line(), "datamon: /a: In use (choose another)");
    }

    #[test]
    fn a_wrong_call_has_a_status_of_its_own() {
        assert_eq!(Failure::usage("no").code(), 2);
        assert_eq!(Failure::usage("no").line(), "datamon: no");
    }

    #[test]
    fn a_failure_names_what_it_is_about_once() {
        let failure = Failure::new("x", "why").about("s3://b");
        assert_eq!(failure.clone().about("s3://b"), failure);
        assert_eq!(failure.message, "s3://b: why");
    }
}
